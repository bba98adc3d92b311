"""The data of a profile in the page of `report`: measures by module, facts and notes.

A file may have several profiles: with several sizes of its inputs, in each branch of a merged
decoder, on several providers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.graph_runs.flat_graph import branch_in_words
from modelexport_optimum.reporting.report_measure import measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.reporting.report_figures import Times
    from modelexport_optimum.reporting.report_measure import Measure


def profile_measures(file: TaggedFile, times: Sequence[Times]) -> list[Measure]:
    """Return memory, placement and times alone of the first run that has them, and all times."""
    found: list[Measure] = []
    for make in (_memory, _placement, _isolated):
        found += next(filter(None, (list(make(file, time)) for time in times)), [])
    for number, (time, label) in enumerate(zip(times, _labels(times), strict=True)):
        found.append(_time(file, time, number, label))
    return found


def profile_facts(times: Sequence[Times]) -> list[tuple[str, str]]:
    """Return the time of a run, for each way in which the file ran, and the first one's peak."""
    facts = [
        (f"a run{label}", f"{time['run_ms']:.3f} ms")
        for time, label in zip(times, _labels(times), strict=True)
    ]
    if times and times[0]["peak_bytes"] is not None:
        facts.append(("peak of a run", decimal(times[0]["peak_bytes"])))
    return facts


def profile_notes(times: Sequence[Times]) -> list[str]:
    """Return sentences about each run."""
    notes = []
    for time, label in zip(times, _labels(times), strict=True):
        inputs = ", ".join(f"{value['name']} {value['type']}" for value in time["inputs"])
        runs = f"{time['iterations']} run{'s' * (time['iterations'] > 1)}"
        notes.append(
            f"{time['kernels_ms']:.3f} ms of a run{label} in kernels on "
            f"{', '.join(row['provider'] for row in time['providers'])}; mean of {runs} of {inputs}"
        )
        added = ", ".join(f"{row['op_type']} {row['ms']:.3f} ms" for row in time["unplaced"])
        if added:
            notes.append(f"Kernels that ONNX Runtime added, and that belong to no module: {added}")
        placement, alone = time["placement"], time["isolated"]
        if placement is not None:
            size = placement["crossing_bytes"]
            crossing = f"; {placement['crossing_count']:,} tensors cross between providers" + (
                f", {decimal(size)}" if size is not None else ""
            )
            notes.append(placement["answer"] + crossing * bool(placement["crossing_count"]))
        if alone is not None:
            notes.append(
                f"Each module alone on {alone['provider']}: {alone['sum_ms']:.3f} ms in sum, "
                f"the whole graph {alone['whole_ms']:.3f} ms"
            )
    return notes


def _labels(times: Sequence[Times]) -> list[str]:
    """Return labels that distinguish the runs of one file, each with a leading blank."""
    columns = [
        {
            "provider": f" on {_short(_provider(time))}",
            "branch": " " + branch_in_words(time["branch"]),
            "batch": f" batch {time['batch_size']}",
            "tokens": f" {time['sequence_length']} tokens",
        }
        for time in times
    ]
    differing = [
        name for name in (columns[0] if columns else ()) if len({one[name] for one in columns}) > 1
    ]
    labels = ["".join(one[name] for name in differing) for one in columns]
    seen = Counter[str]()
    for number, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[number] = f"{label} ({seen[label]})"
    return labels


def _provider(time: Times) -> str:
    """Return the requested provider."""
    name: str = (time["placement"] or time["providers"][0])["provider"]
    return name


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _time(file: TaggedFile, time: Times, number: int, label: str) -> Measure:
    """Return the measure of the kernels' time."""
    return measure(
        f"time-{number}" if number else "time",
        f"Time{label}",
        "ms",
        "Milliseconds of a run in a module's kernels, measured by ONNX Runtime's profiler.",
        _by_module(file, time, "ms"),
        own=_by_module(file, time, "own_ms"),
        rest=sum(row["ms"] for row in time["unplaced"]),
    )


def _by_module(file: TaggedFile, time: Times, key: str, missing: float | None = 0) -> list[Any]:
    """Return a figure of each module of the file, in their order."""
    figures = {row["module"]: row[key] for row in time["modules"] if row[key] is not None}
    return [figures.get(path, missing) for path in file.modules]


def _memory(file: TaggedFile, time: Times) -> Iterator[Measure]:
    """Yield the measures of the kernels' outputs, and of the memory in use."""
    if time["activation_bytes"] is not None:
        own = _by_module(file, time, "own_activation_bytes")
        yield measure(
            "activations",
            "Activations",
            "bytes",
            "Bytes of the tensors that a module's kernels write in one run.",
            _by_module(file, time, "activation_bytes"),
            own=own,
            rest=max(0, time["activation_bytes"] - sum(own)),
        )
    if time["peak_bytes"] is not None:
        yield measure(
            "peak",
            "Peak",
            "bytes",
            "Most bytes in use while a module ran, beyond what the session holds between runs. "
            "The height of a box is its number of operators; a stronger colour is a larger value.",
            _by_module(file, time, "peak_bytes", missing=None),
        )


def _placement(file: TaggedFile, time: Times) -> Iterator[Measure]:
    """Yield the measure of each provider's nodes, if there are several providers."""
    placement = time["placement"]
    if placement is None or len(placement["providers"]) < 2:
        return
    own = {row["module"]: row["own_node_counts"] for row in placement["modules"]}
    for row in placement["providers"]:
        name = row["provider"]
        counts = [own.get(path, {}).get(name, 0) for path in file.modules]
        yield measure(
            f"on {name}",
            f"On {_short(name)}",
            "count",
            f"Operators that {name} took, of those that ONNX Runtime gave to providers.",
            _with_inner(file, counts),
            own=counts,
            rest=max(0, row["node_count"] - sum(counts)),
        )


def _isolated(file: TaggedFile, time: Times) -> Iterator[Measure]:
    """Yield the times of modules measured alone."""
    run = time["isolated"]
    if run is None:
        return
    alone: dict[str, float] = defaultdict(float)
    for row in run["modules"]:
        alone[row["module"]] += row["ms"] or 0.0
    own = [alone.get(path, 0.0) for path in file.modules]
    total: list[float | None] = []
    for path, ms in zip(file.modules, _with_inner(file, own), strict=True):
        total.append(ms if ms or path in alone else None)
    yield measure(
        "alone",
        f"Alone on {_short(run['provider'])}",
        "ms",
        "Milliseconds of a run of a module that was cut out and run alone, all of its calls.",
        total,
        own=own,
    )


def _with_inner(file: TaggedFile, own: Sequence[float]) -> list[float]:
    """Return the values of modules, including their submodules."""
    total = dict(zip(file.modules, own, strict=True))
    for module in reversed(file.modules.values()):
        if module.parent is not None:
            total[module.parent.path] += total[module.path]
    return [total[path] for path in file.modules]
