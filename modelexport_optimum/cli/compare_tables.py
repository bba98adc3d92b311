"""The output of `compare` for people, and its rows for CSV and Markdown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from modelexport_optimum.cli.tables import (
    DIM,
    Cell,
    Column,
    counted,
    guides,
    print_blank,
    print_line,
    print_table,
)
from modelexport_optimum.tags.tag_grammar import outer_paths

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from modelexport_optimum.cli.tables import Row
    from modelexport_optimum.comparing.comparison import (
        Comparison,
        ModuleComparison,
        OutputComparison,
    )

MODULE_FIELDS = (
    "path", "class", "call", "file", "max_abs", "relative", "relative_mean", "snr_db", "cosine",
    "own_relative", "matched", "reason",
)  # fmt: skip
"""The columns of `compare --csv` and `--markdown`."""

_MOST_CULPRITS = 10
"""Maximum number of culprits named above the tree."""

_COLUMNS = (
    Column("module", shrinks="path"),
    Column("class", shrinks="name", drop=1),
    Column("error", right=True),
    Column("own", right=True),
    Column("SNR dB", right=True, drop=0),
    Column("", shrinks="text", drop=2),
)

_OUTPUTS = (Column("output", shrinks="path"), Column("error", right=True), Column("", drop=0))


def rows(found: Comparison, shown: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """Yield the calls of modules, of all or of those shown, as rows of `MODULE_FIELDS`."""
    for module in found.modules:
        if shown is None or module.path in shown:
            yield module.to_dict()


def print_comparison(
    found: Comparison, *, depth: int | None, shown: Collection[str] | None
) -> None:
    """Print the culprits, the tree of each file, and the outputs as deployed."""
    print_line((found.other, "bold"), " against ", (found.reference, "bold"))
    print_line(*_verdict(found))
    for path in found.unpaired:
        print_line(f"{path}: the other side has no such file: not compared", style="yellow")
    _print_fallen_back(found)
    width = max((len(path) for path in found.culprits[:_MOST_CULPRITS]), default=0)
    for path in found.culprits[:_MOST_CULPRITS]:
        own = max(m.own_relative or 0.0 for m in found.modules if m.path == path)
        print_line("  ", ((path or "(root)").ljust(width), "bold red"), f"  own {_figure(own)}")
    if len(found.culprits) > _MOST_CULPRITS:
        print_line(f"  and {len(found.culprits) - _MOST_CULPRITS} more (--json has all)")
    files = dict.fromkeys(module.file for module in found.modules)
    for file in files:
        calls = [m for m in found.modules if m.file == file]
        if shown is not None:
            calls = [module for module in calls if module.path in shown]
        print_blank()
        print_line((file, "bold"))
        _print_tree(calls, found, depth)
    print_blank()
    rows = [row for file in files for row in _outputs_of(file, found, named=len(files) > 1)]
    print_line("as deployed, with ONNX Runtime's optimizations", style=DIM)
    print_table(_OUTPUTS, rows)
    print_line(
        "error: relative difference from the reference; own: the same if the module gets the "
        "reference's input tensors. Modules are compared without fusions.",
        style=DIM,
    )


def _print_fallen_back(found: Comparison) -> None:
    """Name the files whose figures are the CPU's, because the provider took few or no nodes."""
    for name in found.skipped:
        print_line(
            f"{name}: the provider takes no node of it, so it runs on the CPU and is not compared",
            style="yellow",
        )
    files = {row.file: (row.provider_nodes, row.nodes) for row in found.outputs}
    for file, (taken, nodes) in files.items():
        if taken is not None and nodes is not None and taken < nodes:
            where = f"{file}: of {counted(nodes, 'node')} the provider took {taken:,}"
            print_line(f"{where}; the others ran on the CPU", style="yellow")


def _outputs_of(file: str, found: Comparison, *, named: bool) -> Iterator[Row]:
    """Yield the outputs of a file that differ, or the one with the largest difference."""
    outputs = sorted((row for row in found.outputs if row.file == file), key=_by_error)
    wrong = [row for row in outputs if not row.relative <= found.tolerance]
    for row in wrong or outputs[:1]:
        name = f"{file} {row.name}" if named else row.name
        rest = len(outputs) - (len(wrong) or 1)
        note = f"the largest of {len(outputs)}" if rest and not wrong else ""
        yield name, _cell(row.relative, found), Cell(note, DIM)


def _by_error(row: OutputComparison) -> float:
    return -row.relative if row.relative == row.relative else -math.inf


def _verdict(found: Comparison) -> Iterator[tuple[str, str]]:
    tolerance = f" (tolerance {found.tolerance:g})"
    if found.culprits:
        several = len(found.culprits) > 1
        words = "modules differ by themselves" if several else "module differs by itself"
        yield f"{len(found.culprits):,} {words}", "red"
        yield f"{tolerance}, worst first:", ""
    elif found.ok:
        yield f"no module and no output differs{tolerance}", "green"
    elif found.only_deployed:
        files = dict.fromkeys(row.file for row in found.only_deployed)
        yield f"only the deployed outputs differ, those of {', '.join(files)}", "red"
        yield (
            f"{tolerance}: every module is correct by itself, so the difference begins in what ",
            "",
        )
        yield "ONNX Runtime does with the whole graph: fusions, or the branch that an If takes", ""
    else:
        yield "outputs differ, but no module differs by itself", "red"
        yield tolerance, ""


def _print_tree(calls: Sequence[ModuleComparison], found: Comparison, depth: int | None) -> None:
    ordered = [item for item in _outer_first(calls) if depth is None or item[1] <= depth]
    rows: list[Row] = []
    lines = guides([level for _, level, _ in ordered])
    for (call, _, outer), line in zip(ordered, lines, strict=True):
        name = call.path[len(outer) + 1 if outer else 0 :] or call.module_class
        if call.call:
            name += f" (call {call.call + 1})"
        rows.append(
            (
                Cell(name, "bold red" if call.path in found.culprits else "bold", line),
                Cell(call.module_class, "cyan"),
                _cell(call.relative, found, "yellow"),
                _cell(call.own_relative, found),
                Cell("" if call.snr_db is None else _decibels(call.snr_db), DIM),
                Cell(call.reason, DIM),
            )
        )
    print_table(_COLUMNS, rows)


def _outer_first(
    calls: Iterable[ModuleComparison],
) -> Iterator[tuple[ModuleComparison, int, str]]:
    """Yield the calls in tree order, each with its level and the path of its parent."""
    listed = list(calls)
    paths = {call.path for call in listed}

    children: dict[str | None, list[ModuleComparison]] = {}
    for call in listed:
        around = (*outer_paths(call.path), "") if call.path else ()
        outer = next((path for path in around if path in paths), None)
        children.setdefault(outer, []).append(call)
    done: set[str] = set()

    def below(outer: str | None, level: int) -> Iterator[tuple[ModuleComparison, int, str]]:
        for call in children.get(outer, []):
            yield call, level, outer or ""
            if call.path not in done:
                done.add(call.path)
                yield from below(call.path, level + 1)

    yield from below(None, 0)


def _cell(value: float | None, found: Comparison, wrong: str = "red") -> Cell:
    if value is None:
        return Cell("-", DIM)
    return Cell(_figure(value), DIM if value <= found.tolerance else wrong)


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "unbounded"
    return f"{value:.1e}" if value else "0"


def _decibels(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "equal" if value > 0 else "none"
