"""The nodes in the bodies of model-local functions, placed by the calls of the function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.attribution.placements import DATA_FLOW, ROOT, NodePlacement
from modelexport_optimum.attribution.scopes import common
from modelexport_optimum.onnx_file.skeleton import function_key, walk_graphs

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
    """Place the nodes of all bodies, which stand in or around the modules of the calls.

    A body's node with a record of its own stands there, if that is in or around the module of
    each call; a record of one call is not that of another. Any other stands in the nearest common
    ancestor of the calls.

    They are added to `placed`, which has the graph's nodes, by their start.
    """
    callers: dict[FunctionKey, list[Node]] = {}
    functions = {function.key: function for function in model.functions}
    if not functions:
        return
    for _, graph in walk_graphs(model.graph):
        for node in graph.nodes:
            if function_key(node) in functions:
                callers.setdefault(function_key(node), []).append(node)
    for function in _callers_first(model):
        chains = {placed[call.start].paths for call in callers.get(function.key, ())}
        otherwise = NodePlacement(
            common(chains) if chains else root,
            DATA_FLOW if chains else ROOT,
            f"it is in the body of {function.path}, "
            + ("where that is called" if chains else "which nothing calls"),
        )
        for _, graph in walk_graphs(function.body):
            for node in graph.nodes:
                own = known(node)
                if own is None or not all(_nested(own.paths, chain) for chain in chains):
                    own = otherwise
                placed[node.start] = own
                if function_key(node) in functions:
                    callers.setdefault(function_key(node), []).append(node)


def _nested(one: Paths, other: Paths) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _callers_first(model: Model) -> list[Function]:
    """Return the functions, each after those that call it; a circle is left in file order."""
    functions = {function.key: function for function in model.functions}
    ordered: dict[FunctionKey, Function] = {}
    for function in model.functions:
        stack = [(function, iter(_called(function)))]
        entered = {function.key}
        while stack:
            current, called = stack[-1]
            following = next((key for key in called if key in functions), None)
            if following is None:
                stack.pop()
                ordered.setdefault(current.key, current)
            elif following not in entered and following not in ordered:
                entered.add(following)
                stack.append((functions[following], iter(_called(functions[following]))))
    return list(reversed(ordered.values()))


def _called(function: Function) -> list[FunctionKey]:
    return [function_key(node) for _, graph in walk_graphs(function.body) for node in graph.nodes]
