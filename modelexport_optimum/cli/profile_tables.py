"""The output of `profile` for people, and its rows for CSV and Markdown. It measures nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.cli.provider_tables import print_isolated, print_placement
from modelexport_optimum.cli.tables import (
    DIM,
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
    from collections.abc import Iterator, Mapping

    from modelexport_optimum.cli.tables import Row
    from modelexport_optimum.profiling.profile_growth import FileGrowth
    from modelexport_optimum.profiling.profile_report import ProfileReport
    from modelexport_optimum.profiling.profile_result import FileProfile

PROFILE_FIELDS = (
    "file", "branch", "batch_size", "sequence_length", "module", "class", "depth",
    "kernel_count", "ms", "own_ms", "share", "activation_bytes", "own_activation_bytes",
    "parameter_bytes", "own_parameter_bytes", "peak_bytes",
)  # fmt: skip
"""The columns of `profile --csv` and `--markdown`."""

_SLOWEST = 10
"""Maximum rows of the list of the slowest modules."""

_TIMES = (
    Column("module", shrinks="path"),
    Column("class", shrinks="name", drop=4),
    Column("ms", right=True),
    Column("own", right=True, drop=0),
    Column("share", right=True),
    Column("activations", right=True, drop=2),
    Column("parameters", right=True, drop=1),
    Column("peak", right=True, drop=3),
)

_SLOWEST_MODULES = (
    Column("modules", shrinks="path"),
    Column("class", shrinks="name", drop=0),
    Column("", right=True),
    Column("ms", right=True),
    Column("share", right=True),
)

_PROFILE_LEGEND = {
    "ms": "milliseconds of one run in the kernels of the module and its submodules",
    "own": "the same for the module's own kernels",
    "share": "these milliseconds as a fraction of those of all kernels",
    "activations": "bytes of the tensors that these kernels write in one run",
    "parameters": "bytes of the initializers that the operators read, each counted once",
    "peak": "most bytes in use while the module ran, beyond what the session holds between runs",
}

_SIZE_WORDS = {"batch_size": "batch", "sequence_length": "tokens"}


def profile_rows(report: ProfileReport) -> Iterator[dict[str, Any]]:
    """Yield the results of `profile` as rows of `PROFILE_FIELDS`."""
    for profile in report.files:
        file = profile.to_dict()
        for module in file["modules"]:
            row = {**file, "branch": profile.branch_words, **module}
            yield {name: "" if row[name] is None else row[name] for name in PROFILE_FIELDS}


def print_profiles(report: ProfileReport, *, depth: int | None, legend: bool = False) -> None:
    """Print the results of `profile`: the tree of each file, or its times side by side."""
    compared = {growth.name: growth for growth in report.growth}
    placed: set[str] = set()
    for profile in report.files:
        if profile.placement is not None and profile.name not in placed:
            placed.add(profile.name)
            print_placement(profile.placement, depth=depth)
            print_blank()
        if profile.name not in compared:
            _print_profile(profile, depth=depth)
        if profile.isolated is not None:
            if profile.name in compared:
                print_line((profile.name, "bold"), f"  {_sizes_in_words(profile)}")
            print_isolated(profile.isolated)
    for growth in compared.values():
        _print_growth(growth, depth=depth)
    if legend:
        print_legend(_PROFILE_LEGEND)


def _print_profile(profile: FileProfile, *, depth: int | None) -> None:
    print_line(
        (profile.name, "bold"),
        f"  {profile.milliseconds(profile.runs):,.3f} ms per run, "
        f"{profile.milliseconds(profile.kernels):,.3f} ms of it in kernels",
    )
    on = ", ".join(f"{name} {profile.share(time):.0%}" for name, time in profile.providers.items())
    print_line(
        f"{on}; mean of {counted(profile.iterations, 'run')}; {_memory_in_words(profile)}",
        style=DIM,
    )
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
            decimal(module.activations),
            Cell(decimal(module.parameters), DIM),
            "" if module.peak is None else decimal(module.peak),
        )
        for line, module in zip(lines, shown, strict=True)
    ]
    for op_type, (time, kernels) in profile.unplaced.items():
        label = Cell(f"(not placed) {op_type}, {counted(kernels, 'kernel')}", "yellow")
        rows.append((label, "", *_times(profile, time, time), "", "", ""))
    print_table(_TIMES, rows)
    print_blank()
    _print_slowest(profile)


def _print_slowest(profile: FileProfile) -> None:
    """Print the slowest modules; nothing if a provider compiled everything."""
    slowest: list[Row] = [
        (
            Cell(path or "(root)", "bold"),
            Cell(module_class, "cyan"),
            f"{count:,} x" if count > 1 else "",
            f"{profile.milliseconds(time):,.3f}",
            share_cell(profile.share(time)),
        )
        for path, module_class, count, time in profile.repeated()[:_SLOWEST]
    ]
    if not slowest:
        return
    print_line("slowest by their own kernels, repeated modules together", style=DIM)
    print_blank()
    print_table(_SLOWEST_MODULES, slowest)
    print_blank()


def _memory_in_words(profile: FileProfile) -> str:
    activations, parameters = decimal(profile.activations), decimal(profile.parameters)
    memory = f"activations {activations}, parameters {parameters}"
    if profile.peak is None:
        return f"{memory}, this ONNX Runtime does not report the peak"
    return f"{memory}, peak {decimal(profile.peak)} beyond what the session holds"


def _without_repeats(inputs: Mapping[str, str]) -> str:
    """Return the inputs' shapes, with the cache of all layers shown once."""
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
        share_cell(profile.share(total)),
    )


def _print_growth(growth: FileGrowth, *, depth: int | None) -> None:
    names = list(growth.powers)
    what = " x ".join(_SIZE_WORDS[name] for name in names)
    print_line(
        (growth.name, "bold"),
        f"  ms of one run by {what}, and the power of each by which the time grows",
    )
    print_blank()
    sizes = [" x ".join(str(size[name]) for name in names) for size in growth.sizes]
    columns = (
        Column("module", shrinks="path"),
        Column("class", shrinks="name", drop=0),
        *(Column(size, right=True) for size in sizes),
        Column("grows with"),
    )
    shown = [module for module in growth.modules if depth is None or module.depth <= depth]
    lines = guides([module.depth for module in shown])
    times = [f"{ms:,.3f}" for ms in growth.run_ms]
    rows: list[Row] = [(Cell("(a run)", DIM), "", *times, _powers_in_words(growth.powers))]
    for line, module in zip(lines, shown, strict=True):
        name, kind = Cell(module.name, "bold", line), Cell(module.module_class, "cyan")
        times = [f"{ms:,.3f}" for ms in module.ms]
        rows.append((name, kind, *times, _powers_in_words(module.powers)))
    print_table(columns, rows)
    print_blank()


def _powers_in_words(powers: Mapping[str, float]) -> str:
    return ", ".join(
        f"{_SIZE_WORDS[name]}^{round(power, 1) + 0.0}" for name, power in powers.items()
    )


def _sizes_in_words(profile: FileProfile) -> str:
    sizes = {"batch_size": profile.batch_size, "sequence_length": profile.sequence_length}
    return ", ".join(f"{_SIZE_WORDS[name]} {size}" for name, size in sizes.items() if size)
