"""The values of a graph that are random, or depend on random values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.graph_runs.flat_graph import values_after
from modelexport_optimum.hierarchy.weights import array_or_none
from modelexport_optimum.onnx_file.skeleton import RANDOM_OPERATORS

if TYPE_CHECKING:
    from collections.abc import Collection

    from modelexport_optimum.graph_runs.flat_graph import FlatGraph


def drawn_values(graph: FlatGraph, known: Collection[str] = ()) -> set[str]:
    """Return the values of a graph that are random and not known, and those that depend on them."""
    drawn = {name for n in graph.nodes if _draws(n.proto, graph) for name in n.makes}
    return values_after(graph, drawn.difference(known))


def _draws(node: onnx.NodeProto, graph: FlatGraph) -> bool:
    """Return whether a node, or one in a graph nested in it, draws random numbers."""
    if node.op_type == "Dropout":  # which does in training alone, from opset 12 on
        return len(node.input) > 2 and node.input[2] != "" and _is_true(graph, node.input[2])
    nested = (n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node)
    return node.op_type in RANDOM_OPERATORS or any(_draws(inner, graph) for inner in nested)


def _is_true(graph: FlatGraph, name: str) -> bool:
    """Return whether a value may be true, which it may unless the file says that it is false."""
    if name in graph.makers:
        attributes = graph.makers[name].proto.attribute
        tensors = [a.t for a in attributes if a.name == "value"]
    else:
        header = graph.initializers.get(name)
        message = None if header is None else bytes(graph.weights.message(header))
        tensors = [] if message is None else [onnx.TensorProto.FromString(message)]
    arrays = [array_or_none(tensor) for tensor in tensors]
    return all(array is None or array.any() for array in arrays)
