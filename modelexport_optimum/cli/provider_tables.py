"""Tables of execution providers: those of this machine, and the provider of each module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.filesize import decimal

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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelexport_optimum.cli.tables import Row
    from modelexport_optimum.profiling.isolated import IsolatedRun
    from modelexport_optimum.providers.listing import ListedProvider, ProviderList
    from modelexport_optimum.providers.placement import Placement

_LISTED = (
    Column("provider", shrinks="name"),
    Column("is"),
    Column("devices or what it needs", shrinks="text"),
)

_CROSSINGS = (
    Column("tensor", shrinks="path"),
    Column("type", drop=1),
    Column("from"),
    Column("to"),
    Column("in", shrinks="path", drop=0),
)

_ISOLATED = (
    Column("module", shrinks="path"),
    Column("class", shrinks="name", drop=1),
    Column("nodes on it", right=True),
    Column("ms", right=True),
    Column("share", right=True),
    Column("", shrinks="text", drop=0),
)

_MOST_CROSSINGS = 20
"""Maximum number of listed tensors; `--json` has all."""


def print_providers(found: ProviderList) -> None:
    """Print the providers of this machine, and what the others need."""
    print_table(_LISTED, [(one.name, one.kind, _devices(one)) for one in found.providers])
    print_installs((one.name, one.install) for one in found.providers)


def print_installs(commands: Iterable[tuple[str, str | None]]) -> None:
    """Print the commands that install missing providers, each on a line to paste."""
    for name, command in commands:
        if command:
            print_blank()
            print_line(f"to install {name}:", style=DIM)
            print_line(f"  {command}")


def _devices(one: ListedProvider) -> str:
    if one.problem:
        return one.problem
    devices = [" ".join(filter(None, (d.type, d.vendor, d.description))) for d in one.devices]
    return "; ".join([*devices, *filter(None, [one.package])])


def print_placement(placement: Placement, *, depth: int | None) -> None:
    """Print the provider of each module's nodes, and the tensors that cross between providers."""
    whole = list(placement.providers) == [placement.provider]
    print_line(
        (str(placement.file), "bold"), "  ", (placement.answer(), "green" if whole else "red")
    )
    if not placement.recorded:
        print_line(
            "counted from the nodes that ran: this ONNX Runtime does not record all nodes",
            style=DIM,
        )
    if whole:
        return
    if placement.crossings:
        size = placement.crossing_bytes
        total = "of unknown size" if size is None else decimal(size)
        print_line(
            f"{counted(len(placement.crossings), 'tensor')}, {total}, cross between providers",
            style=DIM,
        )
    print_blank()
    names = list(placement.providers)
    columns = (
        Column("module", shrinks="path"),
        Column("class", shrinks="name", drop=1),
        *(Column(name.removesuffix("ExecutionProvider"), right=True) for name in names),
        Column("fell back", shrinks="text", drop=0),
    )
    shown = [one for one in placement.modules if depth is None or one.depth <= depth]
    lines = guides([one.depth for one in shown])
    rows: list[Row] = [
        (
            Cell(one.name, "bold", line),
            Cell(one.module_class, "cyan"),
            *(f"{one.total[name]:,}" if one.total.get(name) else "" for name in names),
            ", ".join(f"{count:,} {op}" for op, count in one.ops.items()),
        )
        for line, one in zip(lines, shown, strict=True)
    ]
    for provider, op_type, count in placement.unplaced:
        cells = (f"{count:,}" if name == provider else "" for name in names)
        rows.append((Cell(f"(not placed) {op_type}", "yellow"), "", *cells, ""))
    print_table(columns, rows)
    _print_crossings(placement)


def print_isolated(run: IsolatedRun) -> None:
    """Print the times of modules measured alone, with the whole graph's time."""
    ratio = f", {run.sum_ms / run.whole_ms:.1f} times as much" if run.whole_ms else ""
    print_line(
        f"each module alone on {run.provider}{f' ({run.branch})' if run.branch else ''}: ",
        f"{run.sum_ms:,.3f} ms in sum{ratio} as the whole graph's {run.whole_ms:,.3f} ms",
        style=DIM,
    )
    if run.outside:
        count = counted(run.outside, "node")
        print_line(f"without {count} of modules that contain these", style=DIM)
    failed = sum(bool(one.error) for one in run.modules)
    if failed:
        print_line(f"without {counted(failed, 'module')} that did not run alone", style="yellow")
    print_blank()
    rows: list[Row] = [
        (
            Cell(
                (one.module or "(root)") + (f" (call {one.call + 1})" if one.call else ""), "bold"
            ),
            Cell(one.module_class, "cyan"),
            "" if one.taken is None else f"{one.taken[0]:,} of {one.taken[1]:,}",
            "-" if one.ms is None else f"{one.ms:,.3f}",
            "" if not one.ms else f"{one.ms / run.sum_ms:.1%}",
            Cell(one.error, "red"),
        )
        for one in run.modules
    ]
    print_table(_ISOLATED, rows)
    print_blank()


def _print_crossings(placement: Placement) -> None:
    rows: list[Row] = [
        (
            one.tensor,
            Cell(one.type or "", DIM),
            one.source.removesuffix("ExecutionProvider"),
            one.target.removesuffix("ExecutionProvider"),
            ", ".join(path or "(root)" for path in one.target_modules),
        )
        for one in placement.crossings[:_MOST_CROSSINGS]
    ]
    if rows:
        print_blank()
        print_table(_CROSSINGS, rows)
    more = len(placement.crossings) - _MOST_CROSSINGS
    if more > 0:
        print_line(f"and {counted(more, 'tensor')} more (--json has all)", style=DIM)
