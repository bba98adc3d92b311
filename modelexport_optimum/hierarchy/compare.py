"""`compare()`: which module's numbers differ between two sides, and whose fault it is.

Every module's result is compared with the reference's, once as the whole graph computes it
(the error) and once with the reference's values fed to the module (its own part of it). A
module that only hands on a wrong input has an error and no own one. The graphs run without
fusions, since ONNX Runtime cannot fuse across a value that is looked at; the outputs are
compared once more as the file is deployed.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.example_inputs.archive import load
from modelexport_optimum.example_inputs.dimensions import Wishes
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.hierarchy.boundary_match import in_shape, match
from modelexport_optimum.hierarchy.choices import outputs_after, take_choices
from modelexport_optimum.hierarchy.comparison import (
    LARGEST_SHOWN,
    Comparison,
    ModuleComparison,
    OutputComparison,
    difference,
    tolerance_of,
    worst,
)
from modelexport_optimum.hierarchy.deployed_outputs import (
    deployed_outputs,
    deployed_session,
    took_nothing,
)
from modelexport_optimum.hierarchy.flat_graph import branch_in_words, branches, flatten
from modelexport_optimum.hierarchy.recorded_run import record_graph
from modelexport_optimum.hierarchy.tagged_model import TaggedFile, read_tagged
from modelexport_optimum.hierarchy.tapped_run import TappedRun
from modelexport_optimum.onnx_file.find import onnx_files
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.tagging.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnxruntime

    from modelexport_optimum.hierarchy.boundary_match import MatchedCall
    from modelexport_optimum.hierarchy.flat_graph import FlatGraph, FlatNode
    from modelexport_optimum.hierarchy.recorded_run import RecordedRun
    from modelexport_optimum.hierarchy.tapped_run import Arrays


LENGTH = 16
"""Tokens of the inputs that are made up: few, since the values of every module are kept."""


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What both sides are run on.

    Attributes:
        batch_size: Size of dimensions that are a batch's.
        sequence_length: Number of tokens; None for 16, or as many as the model takes.
        sizes: Sizes of dimensions by name.
        file: A `.npz` file with inputs, instead.
        arrays: Inputs by name, before those that are made up.
        samples: Number of samples.
    """

    batch_size: int = 2
    sequence_length: int | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    file: Path | None = None
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    samples: int = 1


class Reference(Protocol):
    """The side that is right: PyTorch, or an export."""

    def inputs(self, branch: Mapping[str, bool], seed: int) -> Arrays | None:
        """Inputs that fit a graph, by name; None if the reference has none to give."""

    def record(self, branch: Mapping[str, bool], feeds: Arrays) -> RecordedRun:
        """Run what the graph computes."""


@dataclass(frozen=True, slots=True)
class ExportReference:
    """A tagged file as the reference, on the CPU."""

    file: TaggedFile

    def inputs(self, branch: Mapping[str, bool], seed: int) -> Arrays | None:
        """Give none: an export says nothing of inputs."""
        return None

    def record(self, branch: Mapping[str, bool], feeds: Arrays) -> RecordedRun:
        """Run the file."""
        graph = flatten(self.file, dict(branch))
        return record_graph(graph, TappedRun(graph), feeds)


@dataclass(frozen=True, slots=True)
class FilePair:
    """One file of the other side with what it is compared to.

    Attributes:
        name: The file's path in its directory.
        file: The file.
        reference: What it is compared to.
    """

    name: str
    file: TaggedFile
    reference: Reference


def compare_files(
    pairs: Sequence[FilePair],
    samples: SampleOptions,
    *,
    reference: str,
    other: str,
    provider: Provider | None = None,
    tolerance: float,
) -> Comparison:
    """Compare files with what they are to be compared to.

    Args:
        pairs: The files.
        samples: What both sides are run on.
        reference: The reference, in words.
        other: The other side, in words.
        provider: Execution provider of the other side; by default the CPU's.
        tolerance: Largest relative difference that is none.

    Raises:
        ModelExportError: ONNX Runtime cannot run a side, or the provider took nothing.
    """
    on = provider or Provider(CPU)
    rows: list[ModuleComparison] = []
    outputs: list[OutputComparison] = []
    culprits: dict[str, float] = {}
    skipped: list[str] = []
    for pair in pairs:
        choices = branches(pair.file)
        # One session runs all branches, as a model that generates does. A single graph's on the
        # CPU is made when its outputs are compared, so that its weights are not held before.
        session = None
        if len(choices) > 1 or on.name != CPU:
            session = deployed_session(pair.file.path, on)
            if took_nothing(session, on):
                skipped.append(pair.name)
                continue
        for branch in choices:
            label = f"{pair.name} ({branch_in_words(branch)})" if branch else pair.name
            graph = flatten(pair.file, branch)
            found = [
                _compare_sample(pair, graph, label, samples, seed, on, session, tolerance)
                for seed in range(samples.samples)
            ]
            merged = [_merged_modules(calls) for calls in zip(*(f[0] for f in found), strict=True)]
            rows += merged
            outputs += [_merged_outputs(o) for o in zip(*(f[1] for f in found), strict=True)]
            for path, own in _culprits(merged, tolerance).items():
                culprits[path] = max(own, culprits.get(path, 0.0))
    if len(skipped) == len(pairs):
        raise ModelExportError(
            f"{on.name} takes no node of {', '.join(skipped)}: there is nothing to compare: "
            f"verify --by-module --provider {on.name} says why"
        )
    return Comparison(
        reference=reference,
        other=other,
        tolerance=tolerance,
        culprits=tuple(sorted(culprits, key=lambda path: -culprits[path])),
        modules=tuple(rows),
        outputs=tuple(outputs),
        skipped=tuple(skipped),
    )


def _compare_sample(
    pair: FilePair,
    graph: FlatGraph,
    label: str,
    samples: SampleOptions,
    seed: int,
    provider: Provider,
    session: onnxruntime.InferenceSession | None,
    tolerance: float,
) -> tuple[list[ModuleComparison], list[OutputComparison]]:
    """Compare one graph on one sample of inputs."""
    feeds = _feeds(pair, graph, samples, seed)
    run = TappedRun(graph, provider)
    recorded = pair.reference.record(graph.branch, feeds)
    ours = record_graph(graph, run, feeds)
    ours = take_choices(
        graph, run, recorded, ours, lambda: record_graph(graph, run, feeds), feeds, tolerance
    )
    with recorded.values, ours.values:
        matched = match(recorded, graph, ours.values)
        own = _own_differences(matched, recorded, ours, graph, run, feeds)
        rows = [_row(entry, recorded, ours, own, label) for entry in matched]
        deployed = deployed_outputs(
            pair.file.path, graph, recorded, ours, feeds, provider, label, session
        )
        # The deployed graph makes its own choices, so that what follows from them is no measure.
        chosen = outputs_after(graph, set(run.chosen))
        deployed = [
            dataclasses.replace(row, relative=row.unfused)
            if row.name in chosen and row.unfused is not None
            else row
            for row in deployed
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


def _feeds(pair: FilePair, graph: FlatGraph, samples: SampleOptions, seed: int) -> Arrays:
    """The inputs of a graph: from a file, from the reference, or from what the graph says."""
    if samples.file is not None:
        return load(samples.file, pair.file.path, pair.file.model.graph)
    feeds = None if samples.arrays else pair.reference.inputs(graph.branch, seed)
    if samples.arrays:
        feeds = _with_arrays(pair.file, samples)
    if feeds is None:
        # Both branches of a merged decoder get as many new tokens. OpenVINO 1.24 keeps the branch
        # of the first run, as in generation, but only while the inputs have the same shapes.
        wishes = Wishes(
            samples.batch_size, samples.sequence_length, samples.sizes, LENGTH, one_step=False
        )
        feeds = generate(
            pair.file.path,
            pair.file.model.graph,
            wishes,
            branch=graph.branch,
            seed=seed,
        ).arrays
    wanted = {value.name for value in graph.inputs}
    read = {name for node in graph.nodes for name in node.reads}
    missing = (wanted & read) - feeds.keys()
    if missing:
        raise ModelExportError(
            f"{pair.file.path} reads {', '.join(sorted(missing))}, which Optimum does not give "
            "to the model that PyTorch runs: was it exported from another one, or for another task?"
        )
    return {name: array for name, array in feeds.items() if name in wanted}


def _with_arrays(file: TaggedFile, samples: SampleOptions) -> Arrays:
    """The arrays that are given, and the other inputs of their length."""
    first = next(iter(samples.arrays.values()))
    wishes = Wishes(first.shape[0], first.shape[1], samples.sizes)
    made = generate(file.path, file.model.graph, wishes).arrays
    for name, array in samples.arrays.items():
        if name in made and made[name].shape == array.shape:
            made[name] = array.astype(made[name].dtype)
    return made


def _own_differences(
    matched: Sequence[MatchedCall],
    recorded: RecordedRun,
    ours: RecordedRun,
    graph: FlatGraph,
    run: TappedRun,
    feeds: Arrays,
) -> dict[tuple[int, str], float]:
    """What differs in each call when it is fed the reference's values.

    Calls of one depth do not overlap, so that one run serves all of them: each reads the
    reference's values wherever it reads what another call has made.

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
            return graph.makers[name].call.around(depth) is not node.call.around(depth)

        def replacement(name: str) -> np.ndarray:
            value = in_shape(recorded.values.get(stands_for[name]), ours.values.shape(name))
            return value.astype(ours.values.dtype(name), copy=False)

        for name, value in run.replaced(set(names), feeds, is_replaced, replacement):
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
        # What hands on what it is given does nothing wrong, though it shows no tensor.
        own_none = 0.0 if entry.is_matched else None
        return dataclasses.replace(
            blank, reason=entry.reason, matched=entry.is_matched, own_relative=own_none
        )
    found = worst(
        [
            difference(
                in_shape(recorded.values.get(other), ours.values.shape(name)),
                ours.values.get(name),
            )
            for name, other in entry.pairs.items()
        ]
    )
    # What has no nodes of its own computes nothing, and does nothing wrong.
    own_relative = max((own.get((id(entry.call), name), 0.0) for name in entry.pairs), default=0.0)
    return dataclasses.replace(
        blank,
        max_abs=found.max_abs,
        relative=found.relative,
        relative_mean=found.relative,
        snr_db=found.snr_db,
        cosine=found.cosine,
        own_relative=own_relative,
        matched=True,
        reason=entry.reason,
    )


def _merged_modules(rows: Sequence[ModuleComparison]) -> ModuleComparison:
    """One row of the rows of all samples: the worst figures, and the mean of one."""
    figures = [row for row in rows if row.relative is not None]
    if len(figures) < len(rows):
        return next(row for row in rows if row.relative is None)

    def largest(name: str) -> float:
        return max(float(getattr(row, name)) for row in rows)

    def smallest(name: str) -> float:
        return min(float(getattr(row, name)) for row in rows)

    return dataclasses.replace(
        rows[0],
        max_abs=largest("max_abs"),
        relative=largest("relative"),
        relative_mean=sum(float(row.relative or 0.0) for row in rows) / len(rows),
        snr_db=smallest("snr_db"),
        cosine=smallest("cosine"),
        own_relative=largest("own_relative"),
    )


def _merged_outputs(rows: Sequence[OutputComparison]) -> OutputComparison:
    unfused = [row.unfused for row in rows if row.unfused is not None]
    return dataclasses.replace(
        rows[0],
        relative=max(row.relative for row in rows),
        unfused=max(unfused) if len(unfused) == len(rows) else None,
    )


def _culprits(rows: Sequence[ModuleComparison], tolerance: float) -> dict[str, float]:
    """The deepest modules whose own difference is larger than the tolerance."""
    own: dict[str, float] = {}
    for row in rows:
        if row.own_relative is not None and not row.own_relative <= tolerance:
            own[row.path] = max(row.own_relative, own.get(row.path, 0.0))
    return {
        path: value
        for path, value in own.items()
        if not any(other != path and is_inside(other, path) for other in own)
    }


def node_data(found: Comparison, file: TaggedFile) -> dict[str, Any]:
    """The own error of each node's module, as Model Explorer reads it.

    Args:
        found: A comparison of one file.
        file: That file.

    Returns:
        `ModelNodeData` of model_explorer/node_data_builder.py, for the graph of the file.
    """
    own: dict[str, float] = {}
    for row in found.modules:
        if row.own_relative is not None:
            own[row.path] = max(row.own_relative, own.get(row.path, 0.0))
    results = {
        node.name: {"value": min(own[node.module.path], LARGEST_SHOWN)}
        for node in file.nodes
        if node.name and node.module is not None and node.module.path in own
    }
    gradient = [{"stop": 0, "bgColor": "white"}, {"stop": 1, "bgColor": "red"}]
    graph = {"name": "own error", "results": results, "gradient": gradient}
    return {file.model.graph.name: graph}


def default_tolerance(pairs: Sequence[FilePair]) -> float:
    """The tolerance of the narrowest type that either side holds weights of."""
    files = [pair.file for pair in pairs]
    files += [p.reference.file for p in pairs if isinstance(p.reference, ExportReference)]
    return tolerance_of(files)


def export_pairs(reference: Path, other: Path) -> list[FilePair]:
    """Pair the files of two exports by their paths in the two directories.

    Raises:
        UsageError: A path does not exist, or the two have no file in common.
        ModelExportError: A file is not tagged.
    """
    theirs = _by_name(reference)
    ours = _by_name(other)
    if len(theirs) == len(ours) == 1:
        common = [(next(iter(theirs)), next(iter(ours)))]
    else:
        common = [(name, name) for name in ours if name in theirs]
    if not common:
        raise UsageError(
            f"{reference} and {other} have no file of the same name: give one file of each"
        )
    return [
        FilePair(
            ours_name, read_tagged(ours[ours_name]), ExportReference(read_tagged(theirs[name]))
        )
        for name, ours_name in common
    ]


def _by_name(path: Path) -> dict[str, Path]:
    files = onnx_files(path)
    top = path if path.is_dir() else path.parent
    return {file.relative_to(top).as_posix(): file for file in files}
