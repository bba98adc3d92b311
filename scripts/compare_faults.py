"""Plant one fault in each of many exports, and see that `compare` accuses the module that has it.

Architecture, file, module and weight are drawn by a seed, in turn from each family of the test
suite's zoo. Of all modules that read a weight which no other reads, each is as likely. In some
exports a second module is at fault, too, and both must be accused.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compare_zoo import arguments
from planted_faults import plant, weights_by_module
from rich.console import Console
from rich.table import Table
from zoo_runs import exported, zoo

from modelexport_optimum import compare
from modelexport_optimum.system.standard_streams import libraries_silenced

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = (
    *("text encoder", "text decoder", "encoder-decoder", "vision"),
    *("speech", "diffusion", "multi-modal", "vision encoder-decoder"),
)


def drawn(count: int, draw: random.Random) -> Iterator[zoo.Architecture]:
    """Architectures, in turn from each family, each once before any comes again."""
    decks: dict[str, list[zoo.Architecture]] = {}
    for number in range(count):
        family = FAMILIES[number % len(FAMILIES)]
        if not decks.get(family):
            rows = [row for row in zoo.ARCHITECTURES if row.family == family]
            decks[family] = draw.sample(rows, len(rows))
        yield decks[family].pop()


def try_one(
    row: zoo.Architecture, built: Path | None, draw: random.Random, *, faults: int
) -> tuple[bool, str, str]:
    """Plants faults in one export: whether they were found, where they are, what was said."""
    with exported(row, built) as (source, output), tempfile.TemporaryDirectory() as work:
        files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.onnx"))
        by_file = {file: weights_by_module(output / file) for file in files}
        file = draw.choice([name for name, found in by_file.items() if len(found) >= faults])
        weights = by_file[file]
        paths = draw.sample(sorted(weights), faults)
        names = [draw.choice(weights[path]) for path in paths]
        broken = output
        for number, name in enumerate(names):
            target = Path(work, str(number))
            plant(broken, target, file, name)
            broken = target
        found = compare(broken, model=str(source), **arguments(row, source))
        accused = found.culprits[:faults]
        where = f"{file}: " + ", ".join(
            f"{p or 'the root'} ({n})" for p, n in zip(paths, names, strict=True)
        )
        said = ", ".join(found.culprits[:3]) or f"none; ok={found.ok}"
        return set(accused) == set(paths), where, said


def main() -> None:
    """Plants, prints a table, and exits with 1 if a module was not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--two", type=int, default=0, help="so many more have two faults")
    parser.add_argument("--built", type=Path, help="a directory with models/ and exports/")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    table = Table("architecture", "fault", "accused")
    found = 0
    total = options.count + options.two
    for number, row in enumerate(drawn(total, draw)):
        try:
            with libraries_silenced():
                faults = 1 + (number >= options.count)
                ok, where, said = try_one(row, options.built, draw, faults=faults)
        except Exception as error:
            ok, where, said = False, "", f"{type(error).__name__}: {error}"
        found += ok
        table.add_row(row.name, where, "" if ok else said, style=None if ok else "red")
    console = Console(width=200)
    console.print(table)
    console.print(f"{found} of {total} found")
    sys.exit(found < total)


if __name__ == "__main__":
    main()
