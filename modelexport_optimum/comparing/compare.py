"""`compare()`: the modules whose numbers differ between two sides, and where the difference begins.

Every module's result is compared with the reference's twice: as the whole graph computes it (the
error), and with the reference's values as inputs of the module (the own error). A module that only
passes on a wrong input has an error but no own error. The graphs run without fusions, because ONNX
Runtime cannot fuse across a value that is read out. The outputs are compared once more with
fusions, as the file is deployed.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING

from modelexport_optimum.comparing.boundary_match import in_shape, kept_difference, match
from modelexport_optimum.comparing.choices import take_choices
from modelexport_optimum.comparing.comparison import (
    Comparison,
    ModuleComparison,
    OutputComparison,
    difference,
    worst,
)
from modelexport_optimum.comparing.deployed_outputs import (
    deployed_outputs,
    deployed_session,
    took_nothing,
)
from modelexport_optimum.comparing.draws import leave_out_drawn, take_draws
from modelexport_optimum.comparing.samples import sample_inputs
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.graph_runs.flat_graph import (
    branch_in_words,
    branches,
    flatten,
    values_after,
)
from modelexport_optimum.graph_runs.recorded_run import record_graph
from modelexport_optimum.graph_runs.tapped_run import TappedRun
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.tags.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import onnxruntime

    from modelexport_optimum.comparing.boundary_match import MatchedCall
    from modelexport_optimum.comparing.file_pairs import FilePair
    from modelexport_optimum.comparing.samples import SampleOptions
    from modelexport_optimum.graph_runs.flat_graph import FlatGraph, FlatNode
    from modelexport_optimum.graph_runs.recorded_run import RecordedRun
    from modelexport_optimum.graph_runs.tapped_run import Arrays


def compare_files(
    pairs: Sequence[FilePair],
    samples: SampleOptions,
    reference: str,
    other: str,
    *,
    provider: Provider,
    tolerance: float,
) -> Comparison:
    """Compare files with their references.

    The reference and the other side are named in words.

    Raises:
        ModelExportError: ONNX Runtime cannot run a side, or the provider took nothing.
    """
    conditions = _Conditions(samples, provider, tolerance)
    rows: list[ModuleComparison] = []
    outputs: list[OutputComparison] = []
    culprits: dict[str, float] = {}
    skipped: list[str] = []
    for pair in pairs:
        choices = branches(pair.file)
        # One session runs all branches, as a model that generates does. A single graph's on the
        # CPU is made when its outputs are compared, so that its weights are not held before.
        session = None
        if len(choices) > 1 or provider.name != CPU:
            session = deployed_session(pair.file.path, provider)
            if took_nothing(session, provider):
                skipped.append(pair.name)
                continue
        for branch in choices:
            calls, results = _compare_branch(pair, branch, session, conditions)
            rows += calls
            outputs += results
            for path, own in _culprits(calls, tolerance).items():
                culprits[path] = max(own, culprits.get(path, 0.0))
    found = Comparison(
        reference=reference,
        other=other,
        tolerance=tolerance,
        culprits=tuple(sorted(culprits, key=lambda path: -culprits[path])),
        modules=tuple(rows),
        outputs=tuple(outputs),
        skipped=tuple(skipped),
    )
    _check_compared(found, [pair.name for pair in pairs], provider)
    return found


def _check_compared(found: Comparison, files: Sequence[str], provider: Provider) -> None:
    """Refuse a comparison of nothing.

    Raises:
        ModelExportError: The provider took nothing, or the two sides have nothing in common.
    """
    if len(found.skipped) == len(files):
        raise ModelExportError(
            f"{provider.name} takes no node of {', '.join(found.skipped)}: there is nothing to "
            f"compare: verify --by-module --provider {provider.name} says why"
        )
    if not found.outputs and not any(row.matched for row in found.modules):
        raise ModelExportError(
            f"{found.other} and {found.reference} have no module and no output in common in "
            f"{', '.join(files)}: compare two exports of one model, for one task"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Conditions:
    """The conditions of the comparison, the same for all files."""

    samples: SampleOptions
    provider: Provider
    tolerance: float


def _compare_branch(
    pair: FilePair,
    branch: dict[str, bool],
    session: onnxruntime.InferenceSession | None,
    conditions: _Conditions,
) -> tuple[list[ModuleComparison], list[OutputComparison]]:
    """Compare one branch of a file on all samples."""
    label = f"{pair.name} ({branch_in_words(branch)})" if branch else pair.name
    graph = flatten(pair.file, branch)
    found = [
        _compare_sample(pair, graph, label, seed, session, conditions)
        for seed in range(conditions.samples.samples)
    ]
    modules, outputs = zip(*found, strict=True)
    return (
        [_merged_modules(calls) for calls in zip(*modules, strict=True)],
        [_merged_outputs(results) for results in zip(*outputs, strict=True)],
    )


def _compare_sample(
    pair: FilePair,
    graph: FlatGraph,
    label: str,
    seed: int,
    session: onnxruntime.InferenceSession | None,
    conditions: _Conditions,
) -> tuple[list[ModuleComparison], list[OutputComparison]]:
    """Compare one graph on one sample of inputs."""
    feeds = sample_inputs(pair, graph, conditions.samples, seed)
    run = TappedRun(graph, conditions.provider)
    recorded = pair.reference.record(graph.branch, feeds)
    ours = take_draws(run, recorded, record_graph(run, feeds), feeds)
    ours = take_choices(run, recorded, ours, feeds, conditions.tolerance)
    with recorded.values, ours.values:
        matched = match(recorded, graph, ours.values)
        drawn = leave_out_drawn(matched, run, recorded)
        own = _own_differences(matched, recorded, ours, run, feeds)
        rows = [_row(entry, recorded, ours, own, label) for entry in matched]
        run.close()  # before the deployed file is loaded
        deployed = deployed_outputs(run, recorded, ours, feeds, label, session)
        # The deployed graph draws and chooses itself, so that what follows is no measure.
        chosen = values_after(graph, run.chosen)
        deployed = [
            dataclasses.replace(row, relative=row.unfused)
            if row.name in chosen and row.unfused is not None
            else row
            for row in deployed
            if row.name not in drawn
        ]
    called = {call.path for call in recorded.calls}
    rows += [
        ModuleComparison(
            call.module.path,
            call.module.module_class,
            call.number,
            label,
            reason="the reference has no such module, or does not call it",
        )
        for call in graph.calls
        if call.module.path not in called
    ]
    return rows, deployed


def _own_differences(
    matched: Sequence[MatchedCall],
    recorded: RecordedRun,
    ours: RecordedRun,
    run: TappedRun,
    feeds: Arrays,
) -> dict[tuple[int, str], float]:
    """Measure the difference of each call with the reference's values as its inputs.

    Calls of one depth do not overlap, so that one run serves all of them: each call reads the
    reference's values instead of another call's results.

    Returns:
        The relative difference by the identity of the call and the name of the value.
    """
    stands_for: dict[str, str] = {}
    wanted: dict[int, dict[str, tuple[int, str]]] = defaultdict(dict)
    for entry in matched:
        for name, other in entry.pairs.items():
            stands_for.setdefault(name, other)
            if entry.call is not None:
                wanted[entry.call.depth].setdefault(name, (id(entry.call), other))
    for entry in matched:
        for name, other in entry.given.items():
            stands_for.setdefault(name, other)
    own: dict[tuple[int, str], float] = {}
    for depth, names in wanted.items():

        def is_replaced(node: FlatNode, name: str, depth: int = depth) -> bool:
            if name not in stands_for:
                return False
            return run.graph.makers[name].call.around(depth) is not node.call.around(depth)

        def replacement(name: str) -> np.ndarray:
            value = in_shape(recorded.values.get(stands_for[name]), ours.values.shape(name))
            return value.astype(ours.values.dtype(name), copy=False)

        # The root reads what the graph is given: its run is that of the whole graph.
        found = (
            run.values(names, feeds, is_replaced, replacement)
            if depth
            else ((name, ours.values.get(name)) for name in names)
        )
        for name, value in found:
            call, other = names[name]
            theirs = in_shape(recorded.values.get(other), value.shape)
            own[call, name] = difference(theirs, value).relative
    return own


def _row(
    entry: MatchedCall,
    recorded: RecordedRun,
    ours: RecordedRun,
    own: Mapping[tuple[int, str], float],
    label: str,
) -> ModuleComparison:
    call = entry.recorded
    blank = ModuleComparison(call.path, call.module_class, call.number, label)
    if not entry.pairs:
        # A module that passes its input on is correct, although it shows no tensor.
        own_none = 0.0 if entry.is_matched else None
        return dataclasses.replace(
            blank, reason=entry.reason, matched=entry.is_matched, own_relative=own_none
        )
    found = worst(
        [
            kept_difference(recorded.values, other, ours.values, name)
            for name, other in entry.pairs.items()
        ]
    )
    # What has no nodes of its own computes nothing, and does nothing wrong.
    own_relative = max(own.get((id(entry.call), name), 0.0) for name in entry.pairs)
    return dataclasses.replace(
        blank,
        **found,
        relative_mean=found["relative"],
        own_relative=own_relative,
        matched=True,
        reason=entry.reason,
    )


def _merged_modules(rows: Sequence[ModuleComparison]) -> ModuleComparison:
    """Return one row for the rows of all samples: the worst figures, and the mean of one."""
    unmeasured = next((row for row in rows if row.relative is None), None)
    if unmeasured is not None:
        return unmeasured
    return dataclasses.replace(
        rows[0],
        **worst(rows),
        relative_mean=sum(row.relative or 0.0 for row in rows) / len(rows),
        own_relative=max(row.own_relative or 0.0 for row in rows),
    )


def _merged_outputs(rows: Sequence[OutputComparison]) -> OutputComparison:
    unfused = [row.unfused for row in rows if row.unfused is not None]
    return dataclasses.replace(
        rows[0],
        relative=max(row.relative for row in rows),
        unfused=max(unfused) if len(unfused) == len(rows) else None,
    )


def _culprits(rows: Sequence[ModuleComparison], tolerance: float) -> dict[str, float]:
    """Return the deepest modules whose own difference is larger than the tolerance."""
    own: dict[str, float] = {}
    for row in rows:
        if row.own_relative is not None and not row.own_relative <= tolerance:
            own[row.path] = max(row.own_relative, own.get(row.path, 0.0))
    return {
        path: value
        for path, value in own.items()
        if not any(other != path and is_inside(other, path) for other in own)
    }
