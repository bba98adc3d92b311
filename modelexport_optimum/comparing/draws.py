"""Random numbers: two runs draw different numbers, although no module is wrong.

So the other side runs with the numbers that the reference drew, if both sides output them
(`torch.rand` and RandomUniform). If one side does not (a Dropout in training outputs only its
result), the random values and everything that depends on them cannot be compared.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from modelexport_optimum.graph_runs.drawn_values import drawn_values
from modelexport_optimum.graph_runs.recorded_run import record_graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modelexport_optimum.comparing.boundary_match import MatchedCall
    from modelexport_optimum.graph_runs.recorded_run import RecordedRun
    from modelexport_optimum.graph_runs.tapped_run import Arrays, TappedRun

REASON = "its outputs depend on random numbers: they cannot be compared"
"""The reason why a module with random values, or after one, is not compared."""


def take_draws(
    run: TappedRun, recorded: RecordedRun, ours: RecordedRun, feeds: Arrays
) -> RecordedRun:
    """Run a graph with the numbers that the reference has drawn, if it draws any.

    `run` continues with these numbers.

    Returns:
        The graph's run with these numbers; `ours` if there are none.
    """
    for name, other in _pairs(recorded, ours):
        if recorded.values.shape(other) == ours.values.shape(name):
            value = recorded.values.get(other)
            run.chosen[name] = value.astype(ours.values.dtype(name), copy=False)
    if not run.chosen:
        return ours
    ours.values.close()
    return record_graph(run, feeds)


def _pairs(recorded: RecordedRun, ours: RecordedRun) -> Iterator[tuple[str, str]]:
    """Yield pairs of random values, matched by their calls, and the others by their order.

    A tag may name a module around the one that draws.
    """
    theirs = {(call.path, call.number): call.draws for call in recorded.calls}
    mine = {(call.path, call.number): call.draws for call in ours.calls}
    same = [key for key in mine if len(mine[key]) == len(theirs.get(key, ()))]
    for key in same:
        yield from zip(mine.pop(key), theirs.pop(key, ()), strict=True)
    others = list(chain(*mine.values())), list(chain(*theirs.values()))
    if len(others[0]) == len(others[1]):
        yield from zip(*others, strict=True)


def leave_out_drawn(
    matched: Iterable[MatchedCall], run: TappedRun, recorded: RecordedRun
) -> set[str]:
    """Undo matches of values that depend on random numbers that the two sides do not share.

    Returns:
        The values of the graph that depend on such numbers.
    """
    drawn = drawn_values(run.graph, known=run.chosen)
    taken = sum(name in run.chosen for call in run.graph.calls for name in call.draws)
    wanted = sum(len(call.draws) for call in recorded.calls)
    is_shared = taken == wanted and (taken or not any(call.drawn for call in recorded.calls))
    if is_shared and not drawn:
        return drawn
    for entry in matched:
        if entry.pairs and (entry.recorded.drawn or not drawn.isdisjoint(entry.pairs)):
            entry.pairs = {}
            entry.reason = REASON
    return drawn
