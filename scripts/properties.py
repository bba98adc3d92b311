"""Tag random modules that are hard to attribute, and count the tags that are wrong or coarser.

Each is exported and tagged in three ways: with its calls noted as during an export, with the
module given to `tag`, and by its names alone.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from random_modules import WAYS, add_up, random_module, tagged_in_every_way

MODULES = 10_000


def main() -> None:
    """Print the table, and exit with 1 if a tag is wrong or too many are coarser."""
    warnings.simplefilter("ignore")
    count = int(sys.argv[1]) if sys.argv[1:] else MODULES
    outcomes, wrong = [], []
    with tempfile.TemporaryDirectory() as directory:
        for seed in track(range(count), f"{count} modules", console=Console(stderr=True)):
            found = tagged_in_every_way(random_module(seed), Path(directory) / "model.onnx")
            outcomes.append(found)
            wrong += [f"seed {seed}, {way}: {line}" for way in WAYS for line in found[way].wrong]
    sums = add_up(outcomes)
    table = Table("", "nodes", "wrong", "coarser", "%")
    for way, title in zip(WAYS, ("calls noted", "module given to tag", "names alone"), strict=True):
        nodes, coarser = sums[way]["nodes"], sums[way]["coarser"]
        share = f"{100 * coarser / max(nodes, 1):.1f}"
        table.add_row(title, str(nodes), str(sums[way]["wrong"]), str(coarser), share)
    Console().print(table)
    for line in wrong[:20]:
        print(line)
    given = sums["classes"]
    few = given["coarser"] <= 0.02 * given["nodes"] and not sums["recorded"]["coarser"]
    sys.exit(bool(wrong) or not few)


if __name__ == "__main__":
    main()
