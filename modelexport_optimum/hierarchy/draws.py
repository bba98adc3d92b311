"""What is drawn at random: no two runs agree on it, and no module is at fault.

So the other side is run with the numbers that the reference drew, where both sides show them
(`torch.rand` and RandomUniform). Where one side does not (a Dropout in training shows its
result alone), what is drawn and all that follows cannot be compared.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.hierarchy.flat_graph import values_after
from modelexport_optimum.onnx_file.skeleton import RANDOM_OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from modelexport_optimum.hierarchy.boundary_match import MatchedCall
    from modelexport_optimum.hierarchy.flat_graph import FlatGraph
    from modelexport_optimum.hierarchy.recorded_run import RecordedRun
    from modelexport_optimum.hierarchy.tapped_run import TappedRun

REASON = "what leaves it depends on numbers that are drawn at random: it cannot be compared"
"""Why a module is not compared that draws, or follows on what is drawn."""


def take_draws(
    run: TappedRun, recorded: RecordedRun, ours: RecordedRun, record: Callable[[], RecordedRun]
) -> RecordedRun:
    """Run a graph with the numbers that the reference has drawn, if it draws any.

    Args:
        run: What runs the graph, and goes on doing so with these numbers.
        recorded: The reference.
        ours: The graph's run with its own numbers.
        record: Runs it once more.

    Returns:
        The graph's run with the numbers that are taken; `ours` if there are none.
    """
    for name, other in _pairs(recorded, ours):
        if recorded.values.shape(other) == ours.values.shape(name):
            value = recorded.values.get(other)
            run.chosen[name] = value.astype(ours.values.dtype(name), copy=False)
    if not run.chosen:
        return ours
    ours.values.close()
    return record()


def _pairs(recorded: RecordedRun, ours: RecordedRun) -> Iterator[tuple[str, str]]:
    """Yield what stands for what: by their calls, and the others by their order.

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
    matched: Iterable[MatchedCall], graph: FlatGraph, run: TappedRun, recorded: RecordedRun
) -> set[str]:
    """Take back matches of what depends on random numbers that the two sides do not share.

    Args:
        matched: The calls of the reference, and what stands for them in the graph.
        graph: The graph.
        run: What runs it, with the numbers that it has taken from the reference.
        recorded: The reference.

    Returns:
        The values of the graph that depend on such numbers.
    """
    drawn = drawn_values(graph, known=run.chosen)
    taken = sum(name in run.chosen for call in graph.calls for name in call.draws)
    wanted = sum(len(call.draws) for call in recorded.calls)
    is_shared = taken == wanted and (taken or not any(call.drawn for call in recorded.calls))
    if is_shared and not drawn:
        return drawn
    for entry in matched:
        if entry.pairs and (entry.recorded.drawn or not drawn.isdisjoint(entry.pairs)):
            entry.pairs = {}
            entry.reason = REASON
    return drawn


def drawn_values(graph: FlatGraph, known: Collection[str] = ()) -> set[str]:
    """Return the values of a graph that are drawn at random, and those that depend on them.

    Args:
        graph: The graph.
        known: Values that are drawn, and given to the graph in place of those it draws.
    """
    drawn = {name for n in graph.nodes if _draws(n.proto, graph) for name in n.makes}
    return values_after(graph, drawn.difference(known))


def _draws(node: onnx.NodeProto, graph: FlatGraph) -> bool:
    """Tell whether a node, or one in a graph that stays nested in it, draws random numbers."""
    if node.op_type == "Dropout":  # which does in training alone, from opset 12 on
        return len(node.input) > 2 and node.input[2] != "" and _is_true(graph, node.input[2])
    nested = (n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node)
    return node.op_type in RANDOM_OPERATORS or any(_draws(inner, graph) for inner in nested)


def _is_true(graph: FlatGraph, name: str) -> bool:
    """Tell whether a value may be true: it is, unless the file says that it is false."""
    if name in graph.makers:
        attributes = graph.makers[name].proto.attribute
        tensors = [a.t for a in attributes if a.name == "value"]
    else:
        header = graph.initializers.get(name)
        message = None if header is None else bytes(graph.weights.message(header))
        tensors = [] if message is None else [onnx.TensorProto.FromString(message)]
    return all(onnx.numpy_helper.to_array(tensor).any() for tensor in tensors)
