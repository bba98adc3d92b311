"""How the views' results are printed: on a terminal, as CSV, Markdown or JSON.

It counts and decides nothing.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from modelexport_optimum.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelexport_optimum.hierarchy.diff import Diff, FileDiff, ModuleChange
    from modelexport_optimum.hierarchy.extract import Extracted
    from modelexport_optimum.hierarchy.inspect import FileView
    from modelexport_optimum.hierarchy.profile import FileProfile
    from modelexport_optimum.hierarchy.tagged_model import TaggedNode

_MODULE_COLUMNS = (
    "file", "path", "class", "depth", "operators", "own_operators", "parameters",
    "own_parameters", "bytes", "own_bytes", "share",
)  # fmt: skip
_NODE_COLUMNS = ("file", "name", "op_type", "module", "class", "evidence", "graph")

_DIM = "bright_black"

# So many changes of one module are printed.
_TOLD = 8

# Rows of the list of what is slowest.
_SLOWEST = 10


def chosen(**formats: bool) -> str:
    """The one format that was asked for, by default "tree".

    Raises:
        UsageError: Two were asked for.
    """
    names = [name for name, asked in formats.items() if asked]
    if len(names) > 1:
        raise UsageError(f"--{names[0]} and --{names[1]} exclude one another: give one of them")
    return names[0] if names else "tree"


def print_json(document: object) -> None:
    """Prints one JSON document."""
    print(json.dumps(document, indent=2))


def print_rows(rows: Iterable[Mapping[str, object]], columns: Sequence[str], style: str) -> None:
    """Prints rows for other programs.

    Args:
        rows: The cells of each row by column.
        columns: The columns.
        style: "csv" or "markdown".
    """
    if style == "csv":
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        return
    print(f"| {' | '.join(columns)} |")
    print(f"|{'|'.join('---' for _ in columns)}|")
    for row in rows:
        cells = (str(row[column]).replace("|", "\\|") for column in columns)
        print(f"| {' | '.join(cells)} |")


def console() -> Console:
    """Standard output: with colours on a terminal, and in a pipe with no line broken."""
    width = None if sys.stdout.isatty() else 1000
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Prints aligned columns, those whose name begins with a `>` to the right.

    A line is cut where the terminal ends. rich's own table takes seconds for thousands of rows.
    """
    head = [Text(column.lstrip(">"), _DIM) for column in columns]
    table = [head, *([Text(c) if isinstance(c, str) else c for c in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    target = console()
    for row in table:
        for column, width, cell in zip(columns, widths, row, strict=True):
            (cell.pad_left if column.startswith(">") else cell.pad_right)(width - len(cell))
        line = Text("  ").join(row)
        line.rstrip()
        target.print(line, no_wrap=True, overflow="ellipsis")


def guides(levels: Sequence[int]) -> list[str]:
    """The lines of a tree before each row, from the rows' levels, outer before inner."""
    lines: list[str] = []
    goes_on: set[int] = set()  # the levels on which another row follows below
    for level in reversed(levels):
        before = "".join("│  " if outer in goes_on else "   " for outer in range(1, level))
        own = "├─ " if level in goes_on else "└─ "
        lines.append(before + own if level else "")
        goes_on = {outer for outer in goes_on if outer < level} | {level}
    return lines[::-1]


def print_modules(views: Sequence[FileView], style: str, *, narrowed: bool) -> None:
    """Prints what `inspect` found.

    Args:
        views: What it found in each file.
        style: "tree", "json", "csv" or "markdown".
        narrowed: It was asked for a part of the files.
    """
    if style == "json":
        print_json({"ok": True, "files": [view.to_dict() for view in views]})
    elif style == "tree":
        for view in views:
            if view.modules:
                _print_tree(view, narrowed)
    else:
        rows = ({"file": v.file.path, **module.to_dict()} for v in views for module in v.modules)
        print_rows(rows, _MODULE_COLUMNS, style)


def _print_tree(view: FileView, narrowed: bool) -> None:
    whole, asked = view.whole, view.selected
    target = console()
    target.print(
        Text.assemble(
            (str(view.file.path), "bold"),
            f"  {view.file.root.module_class}: {whole.operators:,} operators, "
            f"{whole.parameters:,} parameters, {decimal(whole.bytes)}",
        )
    )
    if narrowed:
        target.print(
            f"of these here: {asked.operators:,} operators, {asked.parameters:,} parameters, "
            f"{decimal(asked.bytes)}"
        )
    if view.file.untagged:
        target.print(
            f"without a tag: {len(view.file.untagged):,} operators, added after the file was "
            "tagged: `modelexport-optimum tag` places them",
            style="yellow",
        )
    target.print()
    lines = guides([module.level for module in view.modules])
    print_table(
        ("module", "class", ">operators", ">own", ">parameters", ">bytes", ">share"),
        [
            (
                Text.assemble((line, _DIM), (module.name, "bold")),
                Text(module.module.module_class, "cyan"),
                f"{module.total.operators:,}",
                Text(f"{module.own.operators:,}", _DIM),
                f"{module.total.parameters:,}",
                decimal(module.total.bytes),
                Text(f"{module.share:.1%}", "green" if module.share >= 0.1 else _DIM),
            )
            for line, module in zip(lines, view.modules, strict=True)
        ],
    )
    target.print()


def print_nodes(views: Sequence[FileView], style: str, *, of_directory: bool) -> None:
    """Prints the nodes that `inspect` found.

    Args:
        views: What it found in each file.
        style: "tree", "csv" or "markdown" for a row for each node; "json" for their names,
            which is the list that ONNX Runtime's quantizers take as `nodes_to_exclude`.
        of_directory: The files were given as a directory: the names come by file.
    """
    if style == "json":
        names = {str(view.file.path): view.node_names for view in views}
        print_json(names if of_directory else views[0].node_names)
        nameless = sum(not node.name for view in views for node in view.nodes)
        if nameless:
            print(f"warning: {nameless} nodes have no name and are not listed", file=sys.stderr)
        return
    rows = [_node_row(view, node) for view in views for node in view.nodes]
    if style != "tree":
        print_rows(rows, _NODE_COLUMNS, style)
        return
    print_table(
        ("node", "operator", "module", "placed by"),
        [
            (row["name"], Text(row["op_type"], "cyan"), row["module"], Text(row["evidence"], _DIM))
            for row in rows
        ],
    )


def _node_row(view: FileView, node: TaggedNode) -> dict[str, str]:
    assert node.module is not None  # nodes are found by their modules
    return {
        "file": str(view.file.path),
        "name": node.name,
        "op_type": node.op_type,
        "module": node.module.path,
        "class": node.module.module_class,
        "evidence": node.evidence,
        "graph": node.graph,
    }


def print_diff(found: Diff) -> None:
    """Prints what `diff` found: modules whose paths and changes differ in numbers alone as one."""
    target = console()
    if found.same:
        target.print(f"{found.a} and {found.b} are the same")
        return
    target.print(Text.assemble("a  ", (str(found.a), "bold"), "\nb  ", (str(found.b), "bold")))
    for file in found.files:
        if file.only_in:
            target.print(f"\n{file.name}: only in {file.only_in}", style="yellow")
        elif not file.same:
            target.print(f"\n{file.name}: {_summary(file)}\n", style="yellow")
            print_table(("", "", "", "a → b"), [*_graph_rows(file), *_diff_rows(file)])


def _summary(file: FileDiff) -> str:
    only = [sum(module.only_in == side for module in file.modules) for side in "ab"]
    differ = len(file.modules) - sum(only)
    counts = {
        "modules only in a": only[0],
        "modules only in b": only[1],
        "modules differ": differ,
        "nodes are in another module": len(file.moved),
        "nodes read other modules": len(file.rewired),
        "of opsets, inputs and outputs differ": len(file.graph),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _graph_rows(file: FileDiff) -> Iterator[tuple[str | Text, ...]]:
    for change in file.graph:
        yield (Text(change.what, "bold"), "", "", _arrow(change.a, change.b))


def _diff_rows(file: FileDiff) -> Iterator[tuple[str | Text, ...]]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for module in file.modules:
        key = (_starred(module.path or "(root)"), module.module_class, _starred(_told(module)))
        groups.setdefault(key, []).append(module.path)
    for kind, nodes in (("is in", file.moved), ("reads", file.rewired)):
        for node in nodes:
            told = f"{kind} {_arrow(node.a or '(root)', node.b or '(root)')}"
            groups.setdefault((_starred(node.name), node.op_type, _starred(told)), []).append(
                node.name
            )
    for (name, of_class, told), members in groups.items():
        one = len(members) == 1
        yield (
            Text(members[0] or "(root)" if one else name, "bold"),
            Text(of_class, "cyan"),
            "" if one else f"{len(members)} x",
            told,
        )


def _told(module: ModuleChange) -> str:
    if module.only_in:
        return f"only in {module.only_in}"
    changes = (*module.classes, *module.operators, *module.parameters)
    told = [f"{change.what} {_arrow(change.a, change.b)}" for change in changes]
    more = [f"and {len(told) - _TOLD} more (--json has them)"] if len(told) > _TOLD else []
    return "; ".join(told[:_TOLD] + more)


def _arrow(a: str, b: str) -> str:
    return f"{a or '(none)'} → {b or '(none)'}"


def _starred(text: str) -> str:
    """With a star for the numbers that tell layers and the exporter's names apart."""
    return re.sub(r"(?<=[._])\d+(?![\d\]])", "*", text)


def print_extracted(found: Extracted) -> None:
    """Prints what `extract` wrote."""
    console().print(
        Text.assemble(
            (str(found.path), "bold"),
            f"  {found.module} ",
            (found.module_class, "cyan"),
            f": {found.operators:,} operators, {decimal(found.bytes)} of weights\n",
        )
    )
    sides = (("takes", found.inputs), ("gives", found.outputs))
    rows = [(Text(side, _DIM), tensor.name, tensor.type) for side, ts in sides for tensor in ts]
    print_table(("", "tensor", "type"), rows)


def print_profile(profile: FileProfile, *, depth: int | None) -> None:
    """Prints where the time of a file goes: the tree, and what is slowest in it.

    Args:
        profile: What `profile` found in the file.
        depth: Levels of modules to show; by default all.
    """
    target = console()
    target.print(
        Text.assemble(
            (str(profile.path), "bold"),
            f"  {profile.milliseconds(profile.runs):,.3f} ms a run, "
            f"{profile.milliseconds(profile.kernels):,.3f} ms of it in kernels",
        )
    )
    on = ", ".join(f"{name} {profile.share(time):.0%}" for name, time in profile.providers.items())
    inputs = ", ".join(f"{name} {shape}" for name, shape in profile.inputs.items())
    target.print(f"{on}; mean of {profile.iterations} runs; {inputs}\n", style=_DIM)
    shown = [module for module in profile.modules if depth is None or module.depth <= depth]
    lines = guides([module.depth for module in shown])
    rows = [
        (
            Text.assemble((line, _DIM), (module.name, "bold")),
            Text(module.module_class, "cyan"),
            *_times(profile, module.total, module.own),
        )
        for line, module in zip(lines, shown, strict=True)
    ]
    for op_type, (time, kernels) in profile.unplaced.items():
        label = Text(f"(not placed) {op_type}, {kernels} kernels", "yellow")
        rows.append((label, Text(), *_times(profile, time, time)))
    print_table(("module", "class", ">ms", ">own", ">share"), rows)
    target.print("\nslowest by their own kernels, repeated modules together\n", style=_DIM)
    print_table(
        ("modules", "class", ">", ">ms", ">share"),
        [
            (
                Text(path or "(root)", "bold"),
                Text(module_class, "cyan"),
                f"{count} x" if count > 1 else "",
                f"{profile.milliseconds(time):,.3f}",
                _share(profile.share(time)),
            )
            for path, module_class, count, time in profile.repeated()[:_SLOWEST]
        ],
    )
    target.print()


def _times(profile: FileProfile, total: int, own: int) -> tuple[Text, Text, Text]:
    return (
        Text(f"{profile.milliseconds(total):,.3f}"),
        Text(f"{profile.milliseconds(own):,.3f}", _DIM),
        _share(profile.share(total)),
    )


def _share(share: float) -> Text:
    return Text(f"{share:.1%}", "green" if share >= 0.1 else _DIM)
