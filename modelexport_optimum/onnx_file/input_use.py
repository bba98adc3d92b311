"""The requirements of a graph's nodes on its inputs.

Examples are the number of rows of an embedding table that an input indexes, the channels of a
convolution, and the number of position embeddings. No weight is read: shapes and small constants
are enough.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.onnx_file.skeleton import walk_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from modelexport_optimum.onnx_file.skeleton import Graph, Node, Tensor

_PASSES_THROUGH = frozenset(
    {
        *("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Operators that pass numbers on unchanged, from a graph's input to the table that they index; a
Gather and a Slice do, if the numbers are their data."""

_MAKES_MASKS = frozenset({"And", "Equal", "Greater", "Less", "Not"})
"""What compares numbers: its result is a mask, and no position."""

_MAKES_POSITIONS = frozenset(
    {
        *("Add", "Cast", "ConstantOfShape", "CumSum", "Expand", "Flatten", "Gather", "Identity"),
        *("Mul", "Range", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)
"""Operators that compute positions. A difference of two positions, or its logarithm, is relative:
it indexes a table whose number of rows is not a length (T5's buckets)."""


class InputUse:
    """How a graph, with the graphs nested in it, uses its inputs."""

    def __init__(self, graph: Graph) -> None:
        """Index the graph."""
        nested = [inner for _, inner in walk_graphs(graph)]
        self._nodes = [node for inner in nested for node in inner.nodes]
        self._weights = {tensor.name: tensor for inner in nested for tensor in inner.initializers}
        self._makers = {output: node for node in self._nodes for output in node.outputs}
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in self._nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers[name].append(node)

    def conv_channels(self, name: str) -> int | None:
        """Return the channels that the convolution of the input needs, None if none reads it."""
        for node, weight in self._weights_met(name, "Conv", 1):
            if len(weight.dims) < 2:  # of no convolution
                continue
            return weight.dims[1] * (_attribute(node, "group").i or 1)
        return None

    def table_rows(self, name: str) -> int | None:
        """Return the rows of the smallest table that the input indexes, None if it indexes none."""
        tables = (weight for _, weight in self._weights_met(name, "Gather", 0))
        return min((table.dims[0] for table in tables if table.dims), default=None)

    def longest(self) -> int | None:
        """Return the longest sequence with positions, including the cache; None if unlimited.

        A table of positions is indexed by numbers that depend only on a length, or is cut to a
        length.
        """
        found = []
        for node in self._nodes:
            weight = self._weight(node.inputs[0]) if node.inputs else None
            if weight is None or not weight.dims:
                continue
            if node.op_type == "Gather" and len(weight.dims) > 1 and not _attribute(node, "axis").i:
                offset = self._offset(node.inputs[1])
                if offset is not None:
                    found.append(weight.dims[0] - offset)
            elif node.op_type == "Slice":
                found += self._cut_to(node, weight)
        return min((length for length in found if length > 0), default=None)

    def picture_side(self, name: str) -> int | None:
        """Return the side of the square images that the input takes, None if any side is allowed.

        A convolution makes patches of the image. Each patch gets its position from a table that has
        one row for each patch, and up to two rows for tokens before them.
        """
        for node, weight in self._weights_met(name, "Conv", 1):
            strides = _attribute(node, "strides").ints
            if len(weight.dims) != 4 or len({*strides}) != 1:
                continue
            for count in self._position_counts(weight.dims[0]):
                for tokens in range(3):
                    side = math.isqrt(max(0, count - tokens))
                    if side and side * side == count - tokens:
                        return side * int(strides[0])
        return None

    def _position_counts(self, width: int) -> Iterator[int]:
        """Yield the numbers of positions of a width: those of a weight, or of a table's rows."""
        for node in self._nodes:
            for read in node.inputs if node.op_type == "Add" else ():
                weight, maker = self._weight(read), self._makers.get(read)
                if weight is not None and len(weight.dims) == 3:
                    if (weight.dims[0], weight.dims[2]) == (1, width):
                        yield weight.dims[1]
                elif maker is not None and maker.op_type == "Gather" and len(maker.inputs) > 1:
                    table, chosen = self._weight(maker.inputs[0]), self._constant(maker.inputs[1])
                    if table is not None and chosen is not None and table.dims[1:] == (width,):
                        yield chosen.size

    def _weights_met(self, name: str, op_type: str, position: int) -> Iterator[tuple[Node, Tensor]]:
        """Yield the nodes of an operator that read a value, each with the weight at one input.

        The value may go through nodes that pass it on, and the weight through an Identity.
        """
        names = {name}
        waiting = [name]
        while waiting:
            read = waiting.pop()
            for node in self._readers[read]:
                inputs = node.inputs
                if node.op_type == op_type and len(inputs) > 1 and inputs[1 - position] == read:
                    weight = self._weight(inputs[position])
                    if weight is not None:
                        yield node, weight
                is_data = node.op_type == "Concat" or inputs[0] == read
                if node.op_type in _PASSES_THROUGH and is_data:
                    new = [output for output in node.outputs if output not in names]
                    names.update(new)
                    waiting += new

    def _weight(self, name: str) -> Tensor | None:
        maker = self._makers.get(name)
        while maker is not None and maker.op_type == "Identity":
            name = maker.inputs[0]
            maker = self._makers.get(name)
        return self._weights.get(name)

    def _constant(self, name: str) -> np.ndarray | None:
        """Return the value of a small constant."""
        tensor = self._weight(name)
        maker = self._makers.get(name)
        proto = None
        if tensor is not None and tensor.value is not None:
            proto = onnx.TensorProto.FromString(tensor.value)
        elif maker is not None and maker.op_type == "Constant":
            proto = _attribute(maker, "value").t
        if proto is None or proto.data_location == onnx.TensorProto.EXTERNAL:
            return None
        try:
            return onnx.numpy_helper.to_array(proto)
        except (TypeError, ValueError):  # damaged, or of a type that numpy lacks
            return None

    def _offset(self, name: str) -> int | None:
        """Return the last position minus (length - 1); None if there are no positions.

        Positions begin at 0 (`Range`), or at 1 if a mask is summed up (`CumSum`). A model may add
        an offset (OPT and BART 2, RoBERTa the number of its padding token).
        """
        offset = 0
        has_length = False
        seen = {name}
        waiting = [name]
        while waiting:
            maker = self._makers.get(waiting.pop())  # None of an input, or of a weight
            if maker is None or maker.op_type == "Constant" or maker.op_type in _MAKES_MASKS:
                continue
            if maker.op_type in ("Shape", "Size"):
                has_length = True
                continue
            if maker.op_type not in _MAKES_POSITIONS:
                return None
            has_length |= maker.op_type == "CumSum"
            offset += maker.op_type == "CumSum"
            constants = [self._constant(read) for read in maker.inputs]
            if maker.op_type == "Sub" and (len(constants) < 2 or constants[1] is None):
                return None
            if maker.op_type in ("Add", "Sub"):
                sign = 1 if maker.op_type == "Add" else -1
                offset += sign * sum(map(_number, constants))
            for read in maker.inputs:
                if read not in seen:
                    seen.add(read)
                    waiting.append(read)
        return offset if has_length else None

    def _cut_to(self, node: Node, weight: Tensor) -> list[int]:
        """Return the sizes of the axes of a weight that a Slice cuts to a length."""
        if len(node.inputs) < 4:
            return []
        axes, ends = self._constant(node.inputs[3]), self._constant(node.inputs[2])
        if axes is None or ends is not None:
            return []
        inside = range(-len(weight.dims), len(weight.dims))
        return [weight.dims[axis] for axis in axes.reshape(-1).tolist() if axis in inside]


def _attribute(node: Node, name: str) -> onnx.AttributeProto:
    """Return an attribute of a node; one without a value if the node has none of that name."""
    found: onnx.AttributeProto = onnx.AttributeProto.FromString(node.attributes.get(name, b""))
    return found


def _number(constant: np.ndarray | None) -> int:
    """Return a constant as a whole number, 0 if it is not one."""
    if constant is None or constant.size != 1 or constant.dtype.kind not in "iu":
        return 0
    return int(constant.reshape(-1)[0])
