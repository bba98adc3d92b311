"""The output of the views for people, and their rows for CSV and Markdown. It counts nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.cli.tables import (
    DIM,
    EVIDENCE_LEGEND,
    Cell,
    Column,
    counted,
    guides,
    print_blank,
    print_legend,
    print_line,
    print_table,
    share_cell,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from modelexport_optimum.cli.tables import Row
    from modelexport_optimum.hierarchy.difference import Change, Diff, FileDiff, ModuleChange
    from modelexport_optimum.hierarchy.extract import Extracted
    from modelexport_optimum.hierarchy.inspect import FileView

MODULE_FIELDS = (
    "file", "module", "class", "depth", "node_count", "own_node_count",
    "parameters", "own_parameters", "bytes", "own_bytes", "share",
)  # fmt: skip
"""The columns of `inspect --csv` and `--markdown`."""

NODE_FIELDS = ("file", "name", "op_type", "module", "class", "evidence", "graph")
"""The columns of `inspect --nodes --csv` and `--markdown`."""

_MOST_CHANGES = 8
"""Maximum number of changes printed for one module."""

_MODULES = (
    Column("module", shrinks="path"),
    Column("class", shrinks="name", drop=2),
    Column("operators", right=True),
    Column("own", right=True, drop=0),
    Column("parameters", right=True),
    Column("bytes", right=True, drop=1),
    Column("share", right=True),
)

_NODES = (
    Column("node", shrinks="path"),
    Column("operator"),
    Column("module", shrinks="path"),
    Column("placed by", drop=0),
)

_CHANGES = (
    Column("", shrinks="path"),
    Column("class", shrinks="name", drop=0),
    Column("", right=True),
    Column("a → b", shrinks="text"),
)

_MODULE_LEGEND = {
    "operators": "nodes of the module and its submodules",
    "own": "the module's own nodes",
    "parameters": "elements of the initializers that the nodes read, each counted once",
    "bytes": "size of these initializers",
    "share": "these bytes as a fraction of those of the file",
}

_NODE_LEGEND = {"placed by": "the evidence for the node's module:", **EVIDENCE_LEGEND}

_TENSORS = (Column(""), Column("tensor", shrinks="path"), Column("type", shrinks="text"))


# --- inspect --------------------------------------------------------------------------------------


def module_rows(views: Iterable[FileView]) -> Iterator[dict[str, Any]]:
    """Yield the results of `inspect` as rows of `MODULE_FIELDS`."""
    for view in views:
        for module in view.modules:
            yield {"file": view.file.path, **module.to_dict()}


def print_modules(views: Iterable[FileView], *, narrowed: bool, legend: bool = False) -> None:
    """Print the tree that `inspect` found in each file."""
    for view in views:
        if view.modules:
            _print_tree(view, narrowed)
    if legend:
        print_legend(_MODULE_LEGEND)


def _print_tree(view: FileView, narrowed: bool) -> None:
    whole, asked = view.whole, view.selected
    print_line(
        (str(view.file.path), "bold"),
        f"  {view.file.root.module_class}: {counted(whole.node_count, 'operator')}, "
        f"{counted(whole.parameters, 'parameter')}, {decimal(whole.bytes)}",
    )
    if narrowed:
        print_line(
            f"selected: {counted(asked.node_count, 'operator')}, "
            f"{counted(asked.parameters, 'parameter')}, {decimal(asked.bytes)}"
        )
    if view.file.untagged:
        print_line(
            f"without a tag: {counted(len(view.file.untagged), 'operator')}, added after the "
            "file was tagged: run `modelexport-optimum tag` to tag them",
            style="yellow",
        )
    print_blank()
    lines = guides([module.level for module in view.modules])
    rows: list[Row] = [
        (
            Cell(module.name, "bold", line),
            Cell(module.module.module_class, "cyan"),
            f"{module.total.node_count:,}",
            Cell(f"{module.own.node_count:,}", DIM),
            f"{module.total.parameters:,}",
            decimal(module.total.bytes),
            share_cell(module.share),
        )
        for line, module in zip(lines, view.modules, strict=True)
    ]
    print_table(_MODULES, rows, elsewhere="--csv and --json have all")
    print_blank()


def node_rows(views: Iterable[FileView]) -> Iterator[dict[str, str]]:
    """Yield the nodes that `inspect` found as rows of `NODE_FIELDS`."""
    for view in views:
        for node in view.nodes:
            yield {"file": str(view.file.path), **node.to_dict()}


def print_nodes(views: Iterable[FileView], *, legend: bool = False) -> None:
    """Print a row for each node that `inspect` found."""
    rows: list[Row] = [
        (row["name"], Cell(row["op_type"], "cyan"), row["module"], Cell(row["evidence"], DIM))
        for row in node_rows(views)
    ]
    print_table(_NODES, rows, elsewhere="--csv and --json have all")
    if legend:
        print_legend(_NODE_LEGEND)


# --- diff -----------------------------------------------------------------------------------------


def print_diff(found: Diff) -> None:
    """Print the results of `diff`; modules that differ only in numbers share a row."""
    if found.same:
        print_line(f"{found.a} and {found.b} are the same")
        return
    print_line("a  ", (str(found.a), "bold"))
    print_line("b  ", (str(found.b), "bold"))
    for file in found.files:
        if file.same:
            continue
        print_blank()
        if file.only_in:
            print_line(f"{file.file}: only in {file.only_in}", style="yellow")
            continue
        print_line(f"{file.file}: {_summary(file)}", style="yellow")
        print_blank()
        rows: list[Row] = [
            (Cell(change.name, "bold"), "", "", _arrow(change.a, change.b))
            for change in file.interface
        ]
        rows += _module_change_rows(file)
        print_table(_CHANGES, rows)


def _summary(file: FileDiff) -> str:
    only = [sum(module.only_in == side for module in file.modules) for side in "ab"]
    differ = len(file.modules) - sum(only)
    counts = {
        "modules only in a": only[0],
        "modules only in b": only[1],
        "modules differ": differ,
        "nodes are in another module": len(file.moved),
        "nodes read other modules": len(file.rewired),
        "opsets, inputs or outputs differ": len(file.interface),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _module_change_rows(file: FileDiff) -> Iterator[Row]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for module in file.modules:
        changes = _starred(_changes(module))
        key = (_starred(module.module or "(root)"), module.module_class, changes)
        groups.setdefault(key, []).append(module.module)
    for kind, nodes in (("is in", file.moved), ("reads", file.rewired)):
        for node in nodes:
            change = f"{kind} {_arrow(node.a or '(root)', node.b or '(root)')}"
            key = (_starred(node.name), node.op_type, _starred(change))
            groups.setdefault(key, []).append(node.name)
    for (name, class_name, changes), members in groups.items():
        one = len(members) == 1
        yield (
            Cell(members[0] or "(root)" if one else name, "bold"),
            Cell(class_name, "cyan"),
            "" if one else f"{len(members)} x",
            changes,
        )


def _changes(module: ModuleChange) -> str:
    if module.only_in:
        return f"only in {module.only_in}"
    changes: list[Change] = [*module.class_changes, *module.operator_changes]
    changes += module.parameter_changes
    texts = [f"{change.name} {_arrow(change.a, change.b)}" for change in changes[:_MOST_CHANGES]]
    if len(changes) > _MOST_CHANGES:
        texts.append(f"and {len(changes) - _MOST_CHANGES} more (--json has them)")
    return "; ".join(texts)


def _arrow(a: str, b: str) -> str:
    return f"{a or '(none)'} → {b or '(none)'}"


def _starred(text: str) -> str:
    """Replace the numbers of layers and in the exporter's names by a star."""
    return re.sub(r"(?<=[._])\d+(?![\d\]])", "*", text)


# --- extract --------------------------------------------------------------------------------------


def print_extracted(found: Extracted) -> None:
    """Print the result of `extract`."""
    print_line(
        (str(found.file), "bold"),
        f"  {found.module or '(root)'} ",
        (found.module_class, "cyan"),
        f": {counted(found.node_count, 'operator')}, {decimal(found.bytes)} of weights",
    )
    print_blank()
    sides = (("input", found.inputs), ("output", found.outputs))
    rows = [(Cell(side, DIM), tensor.name, tensor.type) for side, ts in sides for tensor in ts]
    print_table(_TENSORS, rows)


def print_written(path: Path, size: int) -> None:
    """Print which file was written."""
    print_line("wrote ", (str(path), "bold"), f" ({decimal(size)})")
