"""How the results of the views show themselves in a notebook. It counts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.filesize import decimal

from modelexport_optimum.system.notebook import Part, line, shown, table, tree, treemap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelexport_optimum.hierarchy.diff import Change, Diff, ModuleChange
    from modelexport_optimum.hierarchy.inspect import FileView

_MOST_CHANGES = 4
"""Changes of one module that are named."""


def show_modules(view: FileView) -> str:
    """Show the modules of a file: where its bytes are, and the tree."""
    parts = [
        Part(
            level=module.level,
            name=module.name,
            path=module.module.path,
            kind=module.module.module_class,
            size=module.total.bytes,
            own=module.own.bytes,
            cells=(
                f"{module.total.node_count:,}",
                f"{module.total.parameters:,}",
                decimal(module.total.bytes),
                f"{module.share:.1%}",
            ),
        )
        for module in view.modules
    ]
    return shown(
        view.file.path.name,
        line(
            f"{view.file.root.module_class}: {view.whole.node_count:,} operators, "
            f"{view.whole.parameters:,} parameters, {decimal(view.whole.bytes)}"
        ),
        treemap(parts, lambda size: decimal(int(size))),
        tree(("operators", "parameters", "bytes", "share"), parts),
    )


def show_difference(diff: Diff) -> str:
    """Show what differs, file by file."""
    if diff.same:
        return shown(f"{diff.a} and {diff.b}", table(("", ""), [("modules", "same")]))
    rows = [
        (file.file, where, kind, what)
        for file in diff.files
        for where, kind, what in ([("", "", f"only in {file.only_in}")] if file.only_in else [])
        + [("the graph", "", _changes(file.interface))] * bool(file.interface)
        + [(one.module, one.module_class, _of_module(one)) for one in file.modules]
        + [(one.a, one.op_type, f"{one.name} is in {one.b}") for one in file.moved]
        + [("", one.op_type, f"{one.name} reads {one.b}, not {one.a}") for one in file.rewired]
    ]
    return shown(f"a {diff.a}, b {diff.b}", table(("file", "module", "class", "a → b"), rows))


def _of_module(change: ModuleChange) -> str:
    if change.only_in:
        return f"only in {change.only_in}"
    return _changes((*change.class_changes, *change.operator_changes, *change.parameter_changes))


def _changes(changes: tuple[Change, ...]) -> str:
    def written() -> Iterator[str]:
        for change in changes[:_MOST_CHANGES]:
            yield f"{change.name} {change.a or 'nothing'} → {change.b or 'nothing'}"
        if len(changes) > _MOST_CHANGES:
            yield f"{len(changes) - _MOST_CHANGES:,} more"

    return ", ".join(written())
