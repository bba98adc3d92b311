"""The choices of TopK nodes, where the two sides differ by rounding alone.

Scores that are equal up to rounding may have another order on another machine, and a TopK that does
not sort may return any order. Then everything after it differs (the expert of a token, the queries
of a decoder), although no module is wrong. So the other side runs with the choices of the
reference, if its own scores allow them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from modelexport_optimum.graph_runs.recorded_run import record_graph

if TYPE_CHECKING:
    from modelexport_optimum.graph_runs.flat_graph import FlatNode
    from modelexport_optimum.graph_runs.recorded_run import RecordedRun
    from modelexport_optimum.graph_runs.tapped_run import Arrays, TappedRun


def differing_choices(recorded: RecordedRun, ours: RecordedRun) -> Arrays:
    """Return the choices of the reference that differ from a graph's, by the graph's value."""
    theirs = {(call.path, call.number): call.choices for call in recorded.calls}
    found: Arrays = {}
    for call in ours.calls:
        names = theirs.get((call.path, call.number), ())
        if len(names) != len(call.choices):
            continue
        for name, other in zip(call.choices, names, strict=True):
            value = recorded.values.get(other)
            mine = ours.values.get(name)
            if value.shape == mine.shape and not np.array_equal(value, mine):
                found[name] = value.astype(mine.dtype)
    return found


def take_choices(
    run: TappedRun, recorded: RecordedRun, ours: RecordedRun, feeds: Arrays, tolerance: float
) -> RecordedRun:
    """Run a graph with the choices of the reference, if its own are not the same.

    `run` continues with these choices. Scores are equal whose relative difference is not larger
    than the tolerance.

    Returns:
        The graph's run with the choices of the reference; `ours` if they are the same.
    """
    given = run.chosen
    choices = differing_choices(recorded, ours)
    while choices:
        run.chosen = given | choices
        makers = run.graph.makers
        scored = {makers[name].proto.input[0]: name for name in choices}
        made = {score for score in scored if score in makers}
        scores = {**feeds, **dict(run.values(made, feeds))}
        refused = {
            name
            for score, name in scored.items()
            if score not in scores
            or not _are_top(scores[score], choices[name], makers[name], tolerance)
        }
        if not refused:
            ours.values.close()
            return record_graph(run, feeds)
        choices = {n: value for n, value in choices.items() if n not in refused}
    run.chosen = given
    return ours


def _are_top(scores: np.ndarray, indices: np.ndarray, node: FlatNode, tolerance: float) -> bool:
    """Return whether scores at indices are the largest (or smallest), up to rounding."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}
    axis, largest = given.get("axis", -1), given.get("largest", 1)
    if indices.ndim != scores.ndim:
        return False
    size, count = scores.shape[axis], indices.shape[axis]
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= size:
        return False
    scores = scores.astype(np.float64)
    places = range(size - count, size) if largest else range(count)
    best = np.take(np.sort(scores, axis), places, axis)
    chosen = np.sort(np.take_along_axis(scores, indices, axis), axis)
    finite = np.abs(scores[np.isfinite(scores)])
    with np.errstate(invalid="ignore"):
        gaps = np.where(best == chosen, 0.0, np.abs(best - chosen))
    return bool((gaps <= tolerance * finite.max(initial=0.0)).all())
