"""Profile the export of every architecture of the test suite's zoo, without an option.

Each must run: the sizes of its inputs come from what the export says, then from its graph. The
table has a line for each graph; the exit status is 1 if one cannot be run.

    python scripts/profile_zoo.py --provider openvino --built DIR   # exports that are there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from zoo_runs import exported, zoo

from modelexport_optimum import profile
from modelexport_optimum.errors import in_one_line
from modelexport_optimum.system.standard_streams import libraries_silenced


def rows_of(architecture: zoo.Architecture, built: Path | None, provider: str) -> list[list[str]]:
    """Return a line for each graph of an architecture: what ran, in which time, with which sizes.

    Raises:
        Exception: It cannot be exported or profiled.
    """
    rows = []
    with exported(architecture, built) as (_, output):
        for file in profile(output, provider=provider, iterations=2).files:
            name = str(file.file.relative_to(output)) + (f" {file.branch_words}").rstrip()
            sizes = ", ".join(f"{n} {s.size} ({s.source})" for n, s in file.sizes.items())
            placed = file.placement.answer() if file.placement is not None else ""
            ms = f"{file.milliseconds(file.runs):.2f}"
            rows.append([architecture.name, name, ms, placed or sizes])
    return rows


def main() -> None:
    """Profile, print the table, and exit with 1 if a graph cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--built", type=Path, help="a directory with models/ and exports/")
    parser.add_argument("--provider", default="cpu")
    options = parser.parse_args()
    table = Table("architecture", "graph", "ms", "sizes, or what ran where", box=None)
    failed = 0
    chosen = [row for row in zoo.ARCHITECTURES if not options.names or row.name in options.names]
    for row in chosen:
        try:
            with libraries_silenced():
                lines = rows_of(row, options.built, options.provider)
        except Exception as error:  # an exporter raises anything
            failed += 1
            lines = [[row.name, "", "", f"failed: {in_one_line(error)}"]]
        for line in lines:
            table.add_row(*line)
    console = Console(width=200)
    console.print(table)
    console.print(f"{len(chosen) - failed} of {len(chosen)} architectures run")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
