"""The nodes in the bodies of model-local functions, placed by the calls of the function."""

from __future__ import annotations

from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from modelexport_optimum.attribution.placements import DATA_FLOW, ROOT, NodePlacement
from modelexport_optimum.attribution.scopes import common
from modelexport_optimum.onnx_file.skeleton import function_key, walk_nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelexport_optimum.attribution.scopes import Paths
    from modelexport_optimum.onnx_file.skeleton import Function, FunctionKey, Model, Node


def place_bodies(
    model: Model,
    root: Paths,
    placed: dict[int, NodePlacement],
    known: Callable[[Node], NodePlacement | None],
) -> None:
    """Place the nodes of all bodies, in or around the modules of the calls.

    A node of a body with its own record belongs to the module of that record, if the module is in
    or around the module of each call; a record of one call does not hold for another call. Any
    other node belongs to the nearest common ancestor of the calls. The nodes are added to `placed`,
    which has the graph's nodes, by their start.
    """
    if not model.functions:
        return
    callers: dict[FunctionKey, list[Node]] = defaultdict(list)
    for node in walk_nodes(model.graph):
        callers[function_key(node)].append(node)
    for function in _callers_first(model):
        chains = {placed[call.start].paths for call in callers[function.key]}
        otherwise = NodePlacement(
            common(chains) if chains else root,
            DATA_FLOW if chains else ROOT,
            f"it is in the body of {function.path}, "
            + ("where that is called" if chains else "which nothing calls"),
        )
        for node in walk_nodes(function.body):
            own = known(node)
            if own is None or not all(_nested(own.paths, chain) for chain in chains):
                own = otherwise
            placed[node.start] = own
            callers[function_key(node)].append(node)


def _nested(one: Paths, other: Paths) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _callers_first(model: Model) -> list[Function]:
    """Return the functions, each after the functions that call it."""
    called: dict[FunctionKey, list[FunctionKey]] = {}
    for function in model.functions:  # a damaged file may have two of one key
        keys = map(function_key, walk_nodes(function.body))
        called.setdefault(function.key, []).extend(keys)
    try:
        ordered = list(TopologicalSorter(called).static_order())
    except CycleError:  # which ONNX forbids, and ONNX Runtime refuses
        ordered = list(called)
    place = {key: number for number, key in enumerate(reversed(ordered))}
    return sorted(model.functions, key=lambda function: place[function.key])
