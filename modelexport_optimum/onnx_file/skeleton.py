"""A model without its weights: the parts of its graphs that the pass needs, and their positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

RANDOM_OPERATORS = frozenset(
    {
        *("Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
"""The operators of ONNX that draw random numbers; Dropout does so in training only."""


FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"
"""The metadata key of a value that names the values folded into it
(onnxscript/optimizer/_constant_folding.py)."""


@dataclass(slots=True)
class Tensor:
    """An initializer's header; its weights stay in the file.

    Attributes:
        name: Name of the value.
        dims: Shape.
        data_type: `onnx.TensorProto.DataType`.
        nbytes: Size of the data, in the file or in its external data file.
        location: External data file, relative to the model's directory, or "".
        value: The serialized tensor without its name, if it is small, else None.
    """

    name: str
    dims: tuple[int, ...]
    data_type: int
    nbytes: int
    location: str
    value: bytes | None


@dataclass(slots=True)
class Node:
    """The parts of a node that the pass needs, and its position in the file.

    Attributes:
        key: Offset of the node's field in the file.
        start: Offset of the node's message, after the field's key and length.
        end: Offset just after it.
        name: Node name.
        op_type: Operator.
        domain: Operator's domain.
        overload: Which of several functions of one name and domain it calls.
        inputs: Names of the values it reads; "" for an omitted optional input.
        outputs: Names of its outputs.
        attributes: The attributes other than nested graphs, name to serialized bytes; a large field
            is replaced by its position in the file.
        doc_string: The node's doc_string.
        metadata: The node's metadata_props in file order.
        subgraphs: Nested graphs, with the name of the attribute that holds each.
    """

    key: int
    start: int
    end: int
    name: str = ""
    op_type: str = ""
    domain: str = ""
    overload: str = ""
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    attributes: dict[str, bytes] = field(default_factory=dict)
    doc_string: str = ""
    metadata: list[tuple[str, str]] = field(default_factory=list)
    subgraphs: list[tuple[str, Graph]] = field(default_factory=list)


@dataclass(slots=True)
class Value:
    """A graph's input or output.

    Attributes:
        name: Name of the value.
        elem_type: `onnx.TensorProto.DataType`, 0 if it is not a tensor.
        shape: A dimension is a number, a name, or None; None if the rank is unknown.
    """

    name: str
    elem_type: int
    shape: tuple[int | str | None, ...] | None


@dataclass(slots=True)
class Graph:
    """A graph.

    Attributes:
        name: Its name.
        nodes: Its nodes in file order.
        initializers: The headers of its initializers.
        inputs: Its inputs.
        outputs: Its outputs.
        metadata: Its own metadata_props, not the model's.
        folded: For a value, the names that onnxscript computed it from (`FOLDED_FROM`), unparsed.
        enclosing: The messages around its nodes, outermost first: offsets of the key, of the
            payload, and of its end.
    """

    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    folded: dict[str, str] = field(default_factory=dict)
    enclosing: list[tuple[int, int, int]] = field(default_factory=list)


FunctionKey = tuple[str, str, str]
"""Domain, name and overload: a node with these is a call of the function."""


@dataclass(slots=True)
class Function:
    """A model-local function (FunctionProto).

    Attributes:
        key: Its domain, name and overload.
        body: Its nodes, as a graph whose inputs and outputs have only names.
    """

    key: FunctionKey
    body: Graph

    @property
    def path(self) -> str:
        """The path of its body, like the paths of nested graphs in `walk_graphs`."""
        return ".".join(part for part in self.key if part)


@dataclass(slots=True)
class Model:
    """A model file's skeleton.

    Attributes:
        path: The file.
        size: Its size in bytes.
        graph: The top graph.
        ir_version: Version of the ONNX IR.
        producer: Producer's name and version.
        opsets: Domain to opset version.
        metadata: The model's metadata_props, each with its range of bytes.
        functions: The model-local functions, in file order.
    """

    path: Path
    size: int
    graph: Graph
    ir_version: int = 0
    producer: tuple[str, str] = ("", "")
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: list[tuple[str, str, int, int]] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)


def walk_graphs(graph: Graph, path: str = "") -> Iterator[tuple[str, Graph]]:
    """Yield the graph and every graph nested in it, outer before inner.

    Args:
        graph: The first graph.
        path: Path of that graph, "" for the main graph.

    Yields:
        The nested graph's path (`node/attribute` joined by `/`) and the graph.
    """
    yield path, graph
    for node in graph.nodes:
        for attribute, subgraph in node.subgraphs:
            yield from walk_graphs(subgraph, nested_path(path, node, attribute))


def nested_path(path: str, node: Node, attribute: str) -> str:
    """Return the path of a graph that a node holds, given that of the node's graph."""
    name = f"{node.name or node.op_type}.{attribute}"
    return f"{path}/{name}" if path else name


def walk_all_graphs(model: Model) -> Iterator[tuple[str, Graph]]:
    """Yield the path and the graph of every graph of a model, bodies of functions last."""
    yield from walk_graphs(model.graph)
    for function in model.functions:
        yield from walk_graphs(function.body, function.path)


def walk_initializers(graph: Graph) -> Iterator[Tensor]:
    """Yield the header of every initializer of the graph and of the graphs nested in it."""
    for _, nested in walk_graphs(graph):
        yield from nested.initializers


def narrowest_float(tensors: Iterable[Tensor]) -> str:
    """Return the type of floating point with the fewest bits of precision, by default float32."""
    from onnx import TensorProto

    found = {tensor.data_type for tensor in tensors}
    for kind, name in ((TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT16, "float16")):
        if kind in found:
            return name
    return "float32"


def wanted_inputs(graph: Graph) -> list[Value]:
    """Return the inputs without an initializer; before IR version 4, weights are inputs, too."""
    given = {tensor.name for tensor in graph.initializers}
    return [value for value in graph.inputs if value.name not in given]


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's initializers, by name."""
    return {tensor.name: tensor.dims for tensor in walk_initializers(model.graph)}


def walk_nodes(graph: Graph) -> Iterator[Node]:
    """Yield every node of the graph and of the graphs nested in it."""
    for _, nested in walk_graphs(graph):
        yield from nested.nodes


def walk_all_nodes(model: Model) -> Iterator[Node]:
    """Yield every node of a model, those of the bodies of functions last."""
    for _, graph in walk_all_graphs(model):
        yield from graph.nodes


def function_key(node: Node) -> FunctionKey:
    """Return the key of the function that a node calls, if the model has that function."""
    return (node.domain, node.op_type, node.overload)
