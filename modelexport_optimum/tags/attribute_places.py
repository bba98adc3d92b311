"""The nodes on which the attribute does not change the graph that ONNX Runtime builds."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING

from modelexport_optimum.onnx_file.skeleton import function_key
from modelexport_optimum.onnx_file.wire import bytes_fields
from modelexport_optimum.tags.carriers import ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from modelexport_optimum.onnx_file.skeleton import FunctionKey, Graph, Model, Node


COPIED_BY_FUSION = frozenset(
    {
        "Elu", "HardSigmoid", "LeakyRelu", "ParametricSoftplus", "Relu", "ScaledTanh", "Selu",
        "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""ONNX Runtime's Gemm + activation fusion copies the attributes of these operators to the fused
node as `activation_<name>`, which its schema then refuses
(onnxruntime/core/optimizer/gemm_activation_fusion.cc)."""

PASSED_THROUGH = frozenset({"Cast", "Dropout", "Identity", "Transpose"})
"""ONNX Runtime drops these operators or moves them elsewhere (identity_elimination.cc,
dropout_elimination.cc, cast_elimination.cc, transpose_optimizer.cc), so nodes that read their
output may become equal to nodes that read their input."""


def attribute_places(model: Model, tags: Mapping[int, str]) -> set[int]:
    """Find the starts of nodes whose attribute does not change the graph of ONNX Runtime.

    Its common-subexpression elimination merges nodes that compute the same value, unless their
    attributes differ. So every node gets a number for the value that it computes, and the attribute
    is safe if all nodes with one number share a tag. It is never written in the body of a function,
    because ONNX Runtime copies the body to each call.
    """
    numbers = _ValueNumbers({function.key for function in model.functions})
    numbers.visit(model.graph, {})
    shared: dict[int, str | None] = {}
    for start, number in numbers.of_node.items():
        shared[number] = tags[start] if shared.get(number, tags[start]) == tags[start] else None
    return {
        start
        for start, number in numbers.of_node.items()
        if shared[number] is not None and start not in numbers.refused
    }


class _ValueNumbers:
    """Numbers the nodes of a graph and its nested graphs by what they compute."""

    def __init__(self, functions: set[FunctionKey]) -> None:
        self.of_node: dict[int, int] = {}
        self.refused: set[int] = set()
        # A model-local function takes the attributes that it declares, and no others.
        self._functions = functions
        self._numbers: dict[object, int] = {}
        self._constants: set[int] = set()

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _constant(self, key: object) -> int:
        number = self._number(("constant", key))
        self._constants.add(number)
        return number

    def visit(self, graph: Graph, outer: MutableMapping[str, int]) -> None:
        values: MutableMapping[str, int] = ChainMap({}, outer) if outer else {}
        for value in graph.inputs:
            values[value.name] = self._number((id(graph), value.name))
        for tensor in graph.initializers:
            by_value = tensor.value if tensor.value is not None else (id(graph), tensor.name)
            values[tensor.name] = self._constant(by_value)
        for node in graph.nodes:
            for _, nested in node.subgraphs:
                self.visit(nested, values)
            inputs = tuple(values.get(name, -1) if name else -2 for name in node.inputs)
            if node.subgraphs:
                number = self._number(node.start)
            elif node.op_type == "Constant" and not node.domain:
                number = self._constant(_constant_value(node))
            elif inputs and self._constants.issuperset(inputs):
                # ONNX Runtime computes it once and for all: its value may equal any other.
                number = self._constant(("computed", node.op_type, len(inputs)))
            else:
                own = (item for item in node.attributes.items() if item[0] != ATTRIBUTE)
                number = self._number((node.domain, node.op_type, inputs, tuple(sorted(own))))
            self.of_node[node.start] = number
            called = function_key(node) in self._functions
            if called or node.op_type in COPIED_BY_FUSION:
                self.refused.add(node.start)
            passes = node.op_type in PASSED_THROUGH and not node.domain
            for index, name in enumerate(node.outputs):
                values[name] = self._number((number, index)) if index else number
            if passes and inputs and node.outputs:
                values[node.outputs[0]] = inputs[0]


def _constant_value(node: Node) -> bytes:
    """Return a Constant's tensor as an initializer of the same value would be serialized."""
    value = node.attributes.get("value", b"")
    for number, _, start, end in bytes_fields(value):
        if number == 5:
            return value[start:end]
    return b"".join(data for name, data in sorted(node.attributes.items()) if name != ATTRIBUTE)
