"""Runs of a flat graph in ONNX Runtime that can read out or replace any of its values.

ONNX Runtime gets the weights directly from the file. Long graphs run in pieces, so that not all
values that are read out are in memory at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from modelexport_optimum.errors import ModelExportError, onnxruntime_errors
from modelexport_optimum.hierarchy.extract import model_without_graph
from modelexport_optimum.hierarchy.weights import array_or_none, external_header
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.providers.session import open_session, unfused_options

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    import onnxruntime

    from modelexport_optimum.graph_runs.flat_graph import FlatGraph, FlatNode
    from modelexport_optimum.onnx_file.skeleton import Tensor

    Arrays: TypeAlias = dict[str, np.ndarray]

VALUES_PER_PIECE = 256
"""Maximum bytes of the values read out in one piece of a run: those of some hundred modules."""

_EMBEDDED_BYTES = 1024
"""Initializers up to this size are stored in the model itself: shapes and scalars, which operators
need when a session is built."""

_NUMPY_TYPES = {
    getattr(onnx.TensorProto, name)
    for name in (
        "FLOAT", "DOUBLE", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16",
        "UINT32", "UINT64", "BOOL",
    )
}  # fmt: skip
"""Types of elements that NumPy has."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some nodes of a graph as a separate model.

    Attributes:
        model: The model, without its weights.
        weights: The weights, mapped from the file.
        feeds: The inputs of the run.
    """

    model: bytes
    weights: Arrays
    feeds: dict[str, Any]

    def open(
        self, provider: Provider, options: onnxruntime.SessionOptions
    ) -> onnxruntime.InferenceSession:
        """Make a session. It needs the weights as long as this part holds them."""
        import onnxruntime as ort

        options.add_external_initializers(
            list(self.weights),
            [ort.OrtValue.ortvalue_from_numpy(array) for array in self.weights.values()],
        )
        return open_session(self.model, provider, options)


class TappedRun:
    """Runs of one flat graph, or of parts of it."""

    def __init__(self, graph: FlatGraph, provider: Provider | None = None) -> None:
        """Prepare runs on a provider, by default the CPU's."""
        self.graph = graph
        self.provider = provider or Provider(CPU)
        self._base = model_without_graph(graph.weights)
        self._arrays: Arrays = {}
        self.chosen: Arrays = {}
        """Values by name that replace the graph's own values wherever a node reads them."""

    def values(
        self,
        wanted: Collection[str],
        feeds: Arrays,
        is_replaced: Callable[[FlatNode, str], bool] | None = None,
        replacement: Callable[[str], np.ndarray] | None = None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Run the graph and yield the wanted values, in the order of the graph.

        Args:
            wanted: Names of the values.
            feeds: What the graph is run on.
            is_replaced: Whether a node reads another value instead of the one with this name.
            replacement: Returns that other value, by the name.
        """
        nodes, stand_ins = self._needed(wanted, is_replaced)
        live: dict[str, Any] = dict(feeds)
        last_read = {name: index for index, node in enumerate(nodes) for name in node.reads}
        for start, end in _pieces(nodes, wanted):
            piece = nodes[start:end]
            for other in {name for node in piece for name in node.reads if name in stand_ins}:
                name = stand_ins[other]
                if name in self.chosen or replacement is None:
                    live[other] = self.chosen[name]
                else:
                    live[other] = replacement(name)
            made = [name for node in piece for name in node.makes]
            outputs = [name for name in made if name in wanted or last_read.get(name, -1) >= end]
            found = self._run(piece, outputs, live)
            found |= {name: self.chosen[name] for name in outputs if name in self.chosen}
            yield from ((name, found[name]) for name in outputs if name in wanted)
            live = {
                name: value
                for name, value in {**live, **found}.items()
                if name not in stand_ins and last_read.get(name, -1) >= end
            }

    def _needed(
        self, wanted: Iterable[str], is_replaced: Callable[[FlatNode, str], bool] | None
    ) -> tuple[list[FlatNode], dict[str, str]]:
        """Return the nodes that compute the values, and the names for which their stand-ins are."""
        todo = set(wanted)
        needed = []
        stand_ins: dict[str, str] = {}
        for node in reversed(self.graph.nodes):
            if todo.isdisjoint(node.makes):
                continue
            others = {
                name: f"{name} of the reference"
                for name in node.proto.input
                if name in self.chosen or (is_replaced is not None and is_replaced(node, name))
            }
            stand_ins.update((other, name) for name, other in others.items())
            needed.append(_with_inputs(node, others) if others else node)
            todo.update(needed[-1].reads)
        return needed[::-1], stand_ins

    def _run(
        self, nodes: Sequence[FlatNode], outputs: Sequence[str], live: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run some nodes on known values."""
        # OpenVINO cannot read a graph that gives an input or a constant as an output.
        known = _not_computed(nodes, live)
        known = {name: known[name] for name in outputs if name in known}
        outputs = [name for name in outputs if name not in known]
        if not outputs:
            return known
        part = self.part(nodes, outputs, live)
        options = unfused_options()
        # Each session runs once: weights need not be laid out for the next run.
        options.add_session_config_entry("session.disable_prepacking", "1")
        with onnxruntime_errors(f"run {self.graph.file.path}"):
            session = part.open(self.provider, options)
            return known | dict(zip(outputs, session.run(outputs, part.feeds), strict=True))

    def part(
        self, nodes: Sequence[FlatNode], outputs: Sequence[str], live: Mapping[str, Any]
    ) -> Part:
        """Make a separate model of some nodes, with its inputs."""
        model = onnx.ModelProto()
        model.CopyFrom(self._base)
        made = {name for node in nodes for name in node.makes}
        model.graph.node.extend(node.proto for node in nodes)
        weights: Arrays = {}
        feeds: dict[str, Any] = {}
        for name in dict.fromkeys(name for node in nodes for name in node.reads):
            tensor = self.graph.initializers.get(name)
            if name in made:
                continue
            if tensor is not None and _is_embedded(tensor):
                message = self.graph.weights.message(tensor)
                model.graph.initializer.add().ParseFromString(bytes(message))
            elif tensor is not None:
                model.graph.initializer.append(external_header(tensor, location="handed over"))
                weights[name] = self._array(tensor)
            elif name in self.graph.branch:
                value = np.array([self.graph.branch[name]])
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
            elif name in live:
                feeds[name] = live[name]
                model.graph.input.append(onnx.ValueInfoProto(name=name, type=_type_of(live[name])))
            else:
                raise ModelExportError(
                    f"{self.graph.file.path} reads {name!r:.100} before any node computes it: "
                    "the file is damaged, export it again"
                )
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return Part(model.SerializeToString(), weights, feeds)

    def close(self) -> None:
        """Release the weights; a further run reads them again."""
        self._arrays.clear()
        self.graph.weights.release()

    def _array(self, tensor: Tensor) -> np.ndarray:
        if tensor.name not in self._arrays:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            data = np.frombuffer(self.graph.weights.data(tensor), dtype)
            aligned = np.require(data, requirements=["ALIGNED"])
            if aligned is not data:
                self.graph.weights.release()
            self._arrays[tensor.name] = aligned.reshape(tensor.dims)
        return self._arrays[tensor.name]


def _with_inputs(node: FlatNode, others: Mapping[str, str]) -> FlatNode:
    """Return a node that reads other values in the place of some."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.input[:] = [others.get(name, name) for name in proto.input]
    return replace(node, proto=proto, reads=tuple(others.get(name, name) for name in node.reads))


def _not_computed(nodes: Iterable[FlatNode], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of Constants, and the outputs of Identity nodes on given values."""
    known = {}
    for node in nodes:
        if node.proto.op_type == "Identity":
            (name,) = node.proto.input
            if name in feeds:
                known[node.makes[0]] = feeds[name]
        elif node.proto.op_type == "Constant":
            for attribute in node.proto.attribute:
                # ONNX Runtime says what is wrong with a damaged one.
                array = array_or_none(attribute.t) if attribute.name == "value" else None
                if array is not None:
                    known[node.makes[0]] = array
    return known


def _is_embedded(tensor: Tensor) -> bool:
    is_small = not tensor.location and tensor.nbytes <= _EMBEDDED_BYTES
    return is_small or tensor.data_type not in _NUMPY_TYPES


def _type_of(value: Any) -> onnx.TypeProto:  # noqa: ANN401
    """Return the type with the shape, without which some providers (OpenVINO) take no node."""
    if isinstance(value, list):
        return onnx.helper.make_sequence_type_proto(_element_type(value[0], None))
    return _element_type(value, value.shape)


def _element_type(value: np.ndarray, shape: Sequence[int] | None) -> onnx.TypeProto:
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_type_proto(elem_type, shape)


def _pieces(nodes: Sequence[FlatNode], wanted: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield the beginning and the end of each piece of a list of nodes."""
    start = count = 0
    for index, node in enumerate(nodes, start=1):
        count += sum(name in wanted for name in node.makes)
        if count >= VALUES_PER_PIECE:
            yield start, index
            start, count = index, 0
    if start < len(nodes):
        yield start, len(nodes)


def whole_feeds(
    session: onnxruntime.InferenceSession, feeds: Arrays, branch: Mapping[str, bool]
) -> Arrays:
    """Return the inputs for a whole file; zeros for inputs that the branch does not read."""
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    given = {**feeds, **{name: np.array([value]) for name, value in branch.items()}}
    for value in session.get_inputs():
        if value.name not in given:
            shape = [dim if isinstance(dim, int) else 1 for dim in value.shape]
            given[value.name] = np.zeros(shape, dtypes.get(value.type, np.int64))
    return {value.name: given[value.name] for value in session.get_inputs()}
