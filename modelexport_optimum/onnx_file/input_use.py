"""What the nodes that read a graph's input tell of it.

How many rows a table has that it selects from, how many channels a convolution takes. No weight
is read, their shapes are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.onnx_file.skeleton import walk_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelexport_optimum.onnx_file.skeleton import Graph, Node, Tensor

# What passes token numbers on as they are, from the graph's input to the embedding.
_PASSES_ON = frozenset(
    {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


def conv_channels(graph: Graph, name: str) -> int | None:
    """The channels that the convolution needs that reads the input, None if none does."""
    for node, weight in _weights_met(graph, name, "Conv", 1):
        if len(weight.dims) < 2:  # of no convolution
            continue
        group = 1
        if "group" in node.attributes:
            group = onnx.AttributeProto.FromString(node.attributes["group"]).i
        return weight.dims[1] * group
    return None


def table_rows(graph: Graph, name: str) -> int | None:
    """The rows of the smallest table that the input's numbers select from, None if of none."""
    tables = (weight for _, weight in _weights_met(graph, name, "Gather", 0))
    return min((table.dims[0] for table in tables if table.dims), default=None)


def _weights_met(
    graph: Graph, name: str, op_type: str, position: int
) -> Iterator[tuple[Node, Tensor]]:
    """The nodes of an operator that read a value, with the weight at a position of each.

    The value may go through nodes that pass it on, and the weight through an Identity.
    """
    nested = [inner for _, inner in walk_graphs(graph)]
    nodes = [node for inner in nested for node in inner.nodes]
    weights = {tensor.name: tensor for inner in nested for tensor in inner.initializers}
    names = {name}
    same: dict[str, str] = {}
    for node in nodes:
        if node.op_type in _PASSES_ON and names.intersection(node.inputs[:1]):
            names.update(node.outputs)
        if node.op_type == "Identity" and weights.keys() & set(node.inputs[:1]):
            same.update((output, node.inputs[0]) for output in node.outputs)
    for node in nodes:
        inputs = node.inputs
        if node.op_type == op_type and len(inputs) > 1 and inputs[1 - position] in names:
            weight = weights.get(same.get(inputs[position], inputs[position]))
            if weight is not None:
                yield node, weight
