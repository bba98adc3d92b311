"""Compare PyTorch with the export of every architecture of the test suite's zoo.

Nothing was changed in any export, so that each module that is accused is accused wrongly, and
each that is not matched is one that `compare` cannot answer for. The table has a line for each
architecture; the exit status is 1 if one fails, a module is accused, or too few are matched.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from zoo_runs import exported, zoo

from modelexport_optimum import compare
from modelexport_optimum.system.standard_streams import libraries_silenced

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_MATCHED = 0.97
"""Of the called modules that return tensors, over the whole zoo."""


def arguments(row: zoo.Architecture, source: Path) -> dict[str, Any]:
    """Return what the export cannot tell: that code is trusted, and the model's own arguments."""
    export = row.arguments(source)
    given = {key: export[key] for key in ("trust_remote_code", "model_kwargs") if key in export}
    return {**given, "task": row.task} if "trust_remote_code" in given else given


def measure(row: zoo.Architecture, source: Path, output: Path) -> dict[str, Any]:
    """Compare one export with its model."""
    started = time.monotonic()
    found = compare(output, model=str(source), **arguments(row, source))
    returning = [m for m in found.modules if "no output tensor in the reference" not in m.reason]
    unmatched = [m for m in returning if not m.matched]
    own = {m.path: m.own_relative for m in found.modules if m.path in found.culprits}
    worst = max((o.relative for o in found.outputs), default=None)
    return {
        "ok": found.ok,
        "tolerance": found.tolerance,
        "files": len({m.file for m in found.modules}),
        "modules": len(returning),
        "matched": len(returning) - len(unmatched),
        "culprits": own,
        "outputs": worst,
        "reasons": Counter(m.reason for m in unmatched),
        "unmatched": [[m.file, m.path, m.module_class, m.call, m.reason] for m in unmatched],
        "seconds": time.monotonic() - started,
    }


def table(results: Sequence[dict[str, Any]]) -> Table:
    """Return one line for each architecture."""
    found = Table("architecture", "graphs", "modules", "matched", "%", "seconds", "told")
    for result in results:
        if error := result.get("error"):
            found.add_row(result["name"], "", "", "", "", "", error, style="red")
            continue
        told = [f"accused: {path} {own:.1e}" for path, own in result["culprits"].items()]
        if not result["ok"] and not told:
            told = [f"its outputs differ by {result['outputs']:.1e}"]
        told += [f"{count} {reason}" for reason, count in result["reasons"].items()]
        part = 100 * result["matched"] / max(result["modules"], 1)
        found.add_row(
            result["name"],
            str(result["files"]),
            str(result["modules"]),
            str(result["matched"]),
            f"{part:.1f}",
            f"{result['seconds']:.1f}",
            "\n".join(told),
            style=None if result["ok"] else "red",
        )
    return found


def main() -> None:
    """Compare, print the table, and exit with 1 if a comparison is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--built", type=Path, help="a directory with models/ and exports/")
    parser.add_argument("--results", type=Path, help="JSON lines to go on from, and to add to")
    options = parser.parse_args()
    console = Console(width=160)
    results: dict[str, dict[str, Any]] = {}
    if options.results and options.results.exists():
        lines = map(json.loads, options.results.read_text().splitlines())
        results = {line["name"]: line for line in lines}
    for row in zoo.ARCHITECTURES:
        if (options.names and row.name not in options.names) or (
            not options.names and row.name in results and results[row.name].get("ok")
        ):
            continue
        result: dict[str, Any] = {"name": row.name, "family": row.family}
        try:
            with libraries_silenced(), exported(row, options.built) as (source, output):
                result |= measure(row, source, output)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"
        results[row.name] = result
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
    shown = [r for r in results.values() if not options.names or r["name"] in options.names]
    console.print(table(shown))
    good = [result for result in shown if result.get("ok")]
    matched, modules = (sum(r.get(key, 0) for r in shown) for key in ("matched", "modules"))
    part = matched / max(modules, 1)
    console.print(f"{len(good)} of {len(shown)} well, {matched} of {modules} matched: {part:.2%}")
    sys.exit(len(good) < len(shown) or part < LEAST_MATCHED)


if __name__ == "__main__":
    main()
