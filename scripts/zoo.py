"""Tag every architecture of the test suite's zoo, and print how its nodes were placed.

A node is wrong if the module of its tag is not in the model with that class, or did not run
while PyTorch traced the graph and holds none that did: PyTorch's forward hooks are asked.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from zoo_runs import zoo

from modelexport_optimum.attribution.placements import EVIDENCE_KINDS
from modelexport_optimum.system.standard_streams import libraries_silenced
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from witness import Graph


def wrong(node: htp.NodeTag, graph: Graph) -> bool:
    """Tell whether the node's module is not the model's, or neither ran nor holds one that did.

    An Identity stands on its parameter's module, which is perhaps never called.
    """
    if graph.tree.modules.get(node.module) != node.module_class:
        return True
    ran = [path for paths in graph.times for path in paths]
    prefix = f"{node.module}." if node.module else ""
    held = any(path == node.module or path.startswith(prefix) for path in ran)
    return not held and node.evidence != "parameter"


def measure(row: zoo.Architecture, work: Path) -> Counter[str]:
    """Export and tag one architecture, and count its nodes."""
    from witness import record_export

    source, output = work / "source", work / "output"
    zoo.build(row, source)
    witness = record_export(source, output, row.task, do_validation=False, **row.arguments(source))
    report = htp.tag(output)
    if not report.classes_known:
        report = htp.tag(output, model=source, trust_remote_code=True)
    counts = Counter(report.evidence_counts)
    counts["nodes"] = report.node_count
    for file in report.files:
        counts["on the root"] += file.on_root
        counts["attribute"] += file.with_attribute
        graphs = witness.branches(file.file.relative_to(output).as_posix())
        for node in htp.read_hierarchy(file.file):
            seen = [graph for branch, graph in graphs.items() if branch in node.graph]
            counts["wrong"] += all(wrong(node, graph) for graph in seen or graphs.values())
    return counts


def main() -> None:
    """Print the table, and exit with 1 if a node is wrong or an architecture fails."""
    columns = ["nodes", *EVIDENCE_KINDS, "on the root", "wrong", "attribute"]
    table = Table("architecture", "family", *columns)
    total, failed = Counter[str](), []
    chosen = [row for row in zoo.ARCHITECTURES if not sys.argv[1:] or row.name in sys.argv[1:]]
    for number, row in enumerate(chosen, 1):
        print(f"\r{number} of {len(chosen)}: {row.name:40}", end="", file=sys.stderr)
        with tempfile.TemporaryDirectory() as directory, libraries_silenced():
            try:
                counts = measure(row, Path(directory))
            except Exception as error:  # told below, with the others
                failed.append(f"{row.name}: {error}")
                continue
        total.update(counts)
        table.add_row(row.name, row.family, *(str(counts[column]) for column in columns))
    table.add_section()
    table.add_row("all", "", *(str(total[column]) for column in columns))
    print(file=sys.stderr)
    Console(width=150).print(table)
    for line in failed:
        print(f"failed: {line}")
    sys.exit(bool(failed or total["wrong"]))


if __name__ == "__main__":
    main()
