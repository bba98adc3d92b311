"""What the views print for people, and their rows for CSV and Markdown. It counts nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.cli.provider_tables import print_isolated, print_placement
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
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from modelexport_optimum.cli.tables import Row
    from modelexport_optimum.hierarchy.diff import Change, Diff, FileDiff, ModuleChange
    from modelexport_optimum.hierarchy.extract import Extracted
    from modelexport_optimum.hierarchy.inspect import FileView
    from modelexport_optimum.hierarchy.profile import FileProfile

MODULE_FIELDS = (
    "file", "module", "class", "depth", "node_count", "own_node_count",
    "parameters", "own_parameters", "bytes", "own_bytes", "share",
)  # fmt: skip
"""The columns of `inspect --csv` and `--markdown`."""

NODE_FIELDS = ("file", "name", "op_type", "module", "class", "evidence", "graph")
"""The columns of `inspect --nodes --csv` and `--markdown`."""

_MOST_CHANGES = 8
"""Changes of one module that are printed."""

_SLOWEST = 10
"""Rows of the list of what is slowest."""

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
    "operators": "nodes of the module and of the modules inside it",
    "own": "nodes of the module alone",
    "parameters": "elements of the initializers that the nodes read, each counted once",
    "bytes": "size of these initializers",
    "share": "these bytes as a part of the file's",
}

_NODE_LEGEND = {"placed by": "the evidence for the node's module:", **EVIDENCE_LEGEND}

_TENSORS = (Column(""), Column("tensor", shrinks="path"), Column("type", shrinks="text"))

_TIMES = (
    Column("module", shrinks="path"),
    Column("class", shrinks="name", drop=1),
    Column("ms", right=True),
    Column("own", right=True, drop=0),
    Column("share", right=True),
)

_SLOWEST_MODULES = (
    Column("modules", shrinks="path"),
    Column("class", shrinks="name", drop=0),
    Column("", right=True),
    Column("ms", right=True),
    Column("share", right=True),
)


# --- inspect --------------------------------------------------------------------------------------


def module_rows(views: Iterable[FileView]) -> Iterator[dict[str, Any]]:
    """Yield what `inspect` found as rows of `MODULE_FIELDS`."""
    for view in views:
        for module in view.modules:
            yield {"file": view.file.path, **module.to_dict()}


def print_modules(views: Iterable[FileView], *, narrowed: bool, legend: bool = False) -> None:
    """Print the tree that `inspect` found in each file.

    Args:
        views: What it found in each file.
        narrowed: Whether it was asked for a part of the files.
        legend: Whether to explain the columns.
    """
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
            f"of these here: {counted(asked.node_count, 'operator')}, "
            f"{counted(asked.parameters, 'parameter')}, {decimal(asked.bytes)}"
        )
    if view.file.untagged:
        print_line(
            f"without a tag: {counted(len(view.file.untagged), 'operator')}, added after the "
            "file was tagged: `modelexport-optimum tag` places them",
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
            _share(module.share),
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
    """Print a row for each node that `inspect` found.

    Args:
        views: What it found in each file.
        legend: Whether to explain the columns.
    """
    rows: list[Row] = [
        (row["name"], Cell(row["op_type"], "cyan"), row["module"], Cell(row["evidence"], DIM))
        for row in node_rows(views)
    ]
    print_table(_NODES, rows, elsewhere="--csv and --json have all")
    if legend:
        print_legend(_NODE_LEGEND)


# --- diff -----------------------------------------------------------------------------------------


def print_diff(found: Diff) -> None:
    """Print what `diff` found: modules whose paths and changes differ in numbers alone as one."""
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
        rows = [*_interface_rows(file), *_module_change_rows(file)]
        print_table(_CHANGES, rows, elsewhere="--json has all")


def _summary(file: FileDiff) -> str:
    only = [sum(module.only_in == side for module in file.modules) for side in "ab"]
    differ = len(file.modules) - sum(only)
    counts = {
        "modules only in a": only[0],
        "modules only in b": only[1],
        "modules differ": differ,
        "nodes are in another module": len(file.moved),
        "nodes read other modules": len(file.rewired),
        "of opsets, inputs and outputs differ": len(file.interface),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _interface_rows(file: FileDiff) -> Iterator[Row]:
    for change in file.interface:
        yield Cell(change.name, "bold"), "", "", _arrow(change.a, change.b)


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
    """Put a star for the numbers that tell layers and the exporter's names apart."""
    return re.sub(r"(?<=[._])\d+(?![\d\]])", "*", text)


# --- extract --------------------------------------------------------------------------------------


def print_extracted(found: Extracted) -> None:
    """Print what `extract` wrote."""
    print_line(
        (str(found.file), "bold"),
        f"  {found.module or '(root)'} ",
        (found.module_class, "cyan"),
        f": {counted(found.node_count, 'operator')}, {decimal(found.bytes)} of weights",
    )
    print_blank()
    sides = (("takes", found.inputs), ("gives", found.outputs))
    rows = [(Cell(side, DIM), tensor.name, tensor.type) for side, ts in sides for tensor in ts]
    print_table(_TENSORS, rows)


def print_written(path: Path, size: int) -> None:
    """Print which file was written."""
    print_line("wrote ", (str(path), "bold"), f" ({decimal(size)})")


# --- profile --------------------------------------------------------------------------------------


def print_profile(profile: FileProfile, *, depth: int | None) -> None:
    """Print where the time of a file goes: the tree, and what is slowest in it.

    Args:
        profile: What `profile` found in the file.
        depth: Levels of modules to show; by default all.
    """
    if profile.placement is not None:
        print_placement(profile.placement, depth=depth)
        print_blank()
    print_line(
        (profile.name, "bold"),
        f"  {profile.milliseconds(profile.runs):,.3f} ms a run, "
        f"{profile.milliseconds(profile.kernels):,.3f} ms of it in kernels",
    )
    on = ", ".join(f"{name} {profile.share(time):.0%}" for name, time in profile.providers.items())
    print_line(f"{on}; mean of {counted(profile.iterations, 'run')}", style=DIM)
    inputs = _without_repeats(profile.inputs)
    sizes = ", ".join(f"{n} {s.size} ({s.source})" for n, s in profile.sizes.items())
    print_line(f"inputs: {inputs}" + (f"; {sizes}" if sizes else ""), style=DIM)
    print_blank()
    shown = [module for module in profile.modules if depth is None or module.depth <= depth]
    lines = guides([module.depth for module in shown])
    rows: list[Row] = [
        (
            Cell(module.name, "bold", line),
            Cell(module.module_class, "cyan"),
            *_times(profile, module.total, module.own),
        )
        for line, module in zip(lines, shown, strict=True)
    ]
    for op_type, (time, kernels) in profile.unplaced.items():
        label = Cell(f"(not placed) {op_type}, {counted(kernels, 'kernel')}", "yellow")
        rows.append((label, "", *_times(profile, time, time)))
    print_table(_TIMES, rows, elsewhere="--json has all")
    print_blank()
    print_line("slowest by their own kernels, repeated modules together", style=DIM)
    print_blank()
    slowest: list[Row] = [
        (
            Cell(path or "(root)", "bold"),
            Cell(module_class, "cyan"),
            f"{count:,} x" if count > 1 else "",
            f"{profile.milliseconds(time):,.3f}",
            _share(profile.share(time)),
        )
        for path, module_class, count, time in profile.repeated()[:_SLOWEST]
    ]
    print_table(_SLOWEST_MODULES, slowest, elsewhere="--json has all")
    print_blank()
    if profile.isolated is not None:
        print_isolated(profile.isolated)


def _without_repeats(inputs: Mapping[str, str]) -> str:
    """The inputs' shapes, what is cached of each layer told once."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, shape in inputs.items():
        kinds[re.sub(r"\.\d+\.", ".*.", name), shape].append(name)
    return ", ".join(
        f"{names[0] if len(names) == 1 else f'{len(names)} x {kind}'} {shape}"
        for (kind, shape), names in kinds.items()
    )


def _times(profile: FileProfile, total: int, own: int) -> tuple[str | Cell, ...]:
    return (
        f"{profile.milliseconds(total):,.3f}",
        Cell(f"{profile.milliseconds(own):,.3f}", DIM),
        _share(profile.share(total)),
    )


def _share(share: float) -> Cell:
    return Cell(f"{share:.1%}", "green" if share >= 0.1 else DIM)
