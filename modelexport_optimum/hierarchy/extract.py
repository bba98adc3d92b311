"""One module of a tagged model as a separate model.

Nodes are copied unchanged, with their tags, and weights from file to file, without loading them.
(`onnx.utils.Extractor` loads the whole model, and needs the names of the tensors that bound the
part.) `subgraph` finds the nodes of the module.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from modelexport_optimum.errors import ModelExportError, UsageError, first_line
from modelexport_optimum.hierarchy.subgraph import module_subgraph
from modelexport_optimum.hierarchy.tagged_model import (
    graph_of,
    nbytes,
    read_tagged_files,
    type_text,
    unknown,
)
from modelexport_optimum.hierarchy.weights import Weights, external_header, fields
from modelexport_optimum.onnx_file.reader import damage_named, shape_of
from modelexport_optimum.onnx_file.wire import length_delimited, varint
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.providers.session import open_session, unfused_options
from modelexport_optimum.system.atomic_write import replacing, write_all
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.output_files import check_output_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from modelexport_optimum.hierarchy.subgraph import ModuleSubgraph
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.onnx_file.skeleton import Graph, Node, Tensor

    Bytes: TypeAlias = bytes | memoryview

_MODEL_GRAPH, _MODEL_TRAINING = 7, 20
"""Numbers of fields in onnx.proto."""
_GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 2, 5, 11, 12, 13

_VALUES_OF = {_GRAPH_INPUT: "input", _GRAPH_OUTPUT: "output", _GRAPH_VALUE_INFO: "value_info"}

_PAGE_BYTES = 4096
"""ONNX Runtime maps external data that begins at a page into memory, and copies other data."""

_INVENTED = "unk__"
"""The prefix of the names that shape inference generates for dimensions."""

_SHAPE_BYTES = 1024
"""Maximum size of an initializer that may be a shape, whose values decide other shapes."""


@dataclass(frozen=True, slots=True, repr=False)
class Boundary(Displayed):
    """A tensor that enters or leaves the module.

    Attributes:
        name: Its name, the same as in the whole model.
        type: Its type and shape.
    """

    name: str
    type: str


@dataclass(frozen=True, slots=True, repr=False)
class Extracted(Displayed):
    """The model that was written.

    Attributes:
        file: Its file.
        source: The file that the module was extracted from.
        module: The module's path.
        module_class: The module's class.
        inputs: The inputs of the module.
        outputs: The outputs of the module.
        node_count: Number of its nodes, without those in nested graphs.
        bytes: Size of its weights.
    """

    file: Path
    source: Path
    module: str
    module_class: str
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]
    node_count: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {
            "file": str(self.file),
            "source": str(self.source),
            "module": self.module,
            "class": self.module_class,
            "node_count": self.node_count,
            "bytes": self.bytes,
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs],
        }


def extract(
    path: str | os.PathLike[str],
    module: str,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Extracted:
    """Write one module of a tagged model as a separate model.

    Args:
        path: A tagged `.onnx` file, or a directory in which one file has the module.
        module: Module path, as `named_modules()` spells it.
        output: The `.onnx` file to write. Weights that are external data in the model stay
            external, in a file of the same name and `.data`.
        overwrite: Replace an existing file.

    Raises:
        UsageError: There is no such file or module, or the output exists.
        ModelExportError: The module runs several times, or other modules run between its parts, or
            a file cannot be read or written.
    """
    target = Path(output)
    file = _file_with(Path(path), module)
    part = module_subgraph(file, file.modules[module])
    data = target.with_name(f"{target.name}.data")
    is_external = any(tensor.location for tensor in part.weights)
    _check_output(file, target, data if is_external else None, overwrite=overwrite)

    weights = Weights(file.model)
    types = _types(file, part, weights)
    graph: list[Bytes] = [length_delimited(_GRAPH_NAME, (module or "model").encode())]
    graph += [weights.file[node.node.key : node.node.end] for node in part.nodes]
    for message in _initializers(part.weights, weights, data if is_external else None):
        graph += [varint(_GRAPH_INITIALIZER << 3 | 2), varint(len(message)), message]
    for number, names in ((_GRAPH_INPUT, part.inputs), (_GRAPH_OUTPUT, part.outputs)):
        for name in names:
            info = onnx.ValueInfoProto(name=name, type=types[name])
            graph.append(length_delimited(number, info.SerializeToString()))
    size = sum(map(len, graph))
    with replacing(target) as descriptor:
        _write(descriptor, _model_fields(weights.file))
        _write(descriptor, [varint(_MODEL_GRAPH << 3 | 2), varint(size), *graph])
    return Extracted(
        file=target,
        source=file.path,
        module=module,
        module_class=file.modules[module].module_class,
        inputs=tuple(Boundary(name, _text(types[name])) for name in part.inputs),
        outputs=tuple(Boundary(name, _text(types[name])) for name in part.outputs),
        node_count=len(part.nodes),
        bytes=sum(map(nbytes, part.weights)),
    )


def _file_with(path: Path, module: str) -> TaggedFile:
    files = read_tagged_files(path)
    having = [file for file in files if module in file.modules]
    if not having:
        raise unknown("module", module, path, (known for file in files for known in file.modules))
    if len(having) > 1:
        names = ", ".join(str(file.path) for file in having)
        raise UsageError(f"{module or 'the root'} is in several files: give one of {names}")
    return having[0]


def _check_output(file: TaggedFile, target: Path, data: Path | None, *, overwrite: bool) -> None:
    """Refuse to overwrite an input file, or an existing file."""
    locations = {tensor.location for tensor in file.initializers if tensor.location}
    sources = [file.path, *(file.path.parent / location for location in locations)]
    for written in (target, data):
        if written is None or not written.exists():
            continue
        if any(source.exists() and written.samefile(source) for source in sources):
            raise UsageError(f"{written} is the input file: give another file to write")
    check_output_file(target, (".onnx",), overwrite=overwrite)
    if data is not None:
        check_output_file(data, (".data",), overwrite=overwrite)


def _model_fields(model: memoryview) -> list[Bytes]:
    """Return all of a ModelProto but its graph and what it is trained with."""
    without = (_MODEL_GRAPH, _MODEL_TRAINING)
    return [model[key:end] for number, key, _, end in fields(model) if number not in without]


def model_without_graph(weights: Weights) -> onnx.ModelProto:
    """Return a model of the same versions, opsets and functions, with an empty graph."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(b"".join(_model_fields(weights.file)))
    model.graph.name = "part"
    return model


def _initializers(
    tensors: Sequence[Tensor], weights: Weights, data: Path | None
) -> Iterator[Bytes]:
    """Yield the TensorProtos to write, after writing those of external data to a file."""
    external = [tensor for tensor in tensors if tensor.location]
    yield from (weights.message(tensor) for tensor in tensors if not tensor.location)
    if data is None:
        return
    position = 0
    with replacing(data) as descriptor:
        for tensor in external:
            padding = -position % _PAGE_BYTES
            content = weights.data(tensor)
            _write(descriptor, [bytes(padding), content])
            position += padding
            header = external_header(
                tensor, location=data.name, offset=position, length=len(content)
            )
            position += len(content)
            yield header.SerializeToString()


def _write(descriptor: int, chunks: Iterable[Bytes]) -> None:
    for chunk in chunks:
        write_all(descriptor, chunk)


# --- Types ----------------------------------------------------------------------------------------


def _types(file: TaggedFile, part: ModuleSubgraph, weights: Weights) -> dict[str, onnx.TypeProto]:
    """Return the types of the inputs and outputs, from the file or from shape inference."""
    wanted = {*part.inputs, *part.outputs}
    with damage_named(file.path):
        skeleton = _skeleton(file, part, weights)
    with _inference_errors_named(file.path):
        inferred = _inferred(skeleton).graph
    values = itertools.chain(inferred.value_info, inferred.input, inferred.output)
    types = {v.name: v.type for v in values if v.name in wanted and v.type.WhichOneof("value")}
    for kind in types.values():
        for dim in kind.tensor_type.shape.dim if kind.tensor_type.HasField("shape") else ():
            if dim.dim_param.startswith(_INVENTED):
                dim.Clear()
    if types.keys() < wanted:
        with _inference_errors_named(file.path):
            types |= _runtime_types(skeleton, wanted - types.keys())
    unknown_types = sorted(wanted - types.keys())
    if unknown_types:
        raise ModelExportError(
            f"{file.path}: the type of {', '.join(unknown_types)} is not known: "
            "cut the module out of the model before it was optimized or quantized"
        )
    return types


def _inferred(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Infer shapes; those in the file are kept, unless they contradict its operators.

    What rewrites a graph may leave the shape that a value had before.
    """
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except onnx.shape_inference.InferenceError:
        del skeleton.graph.value_info[:]
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)


@contextlib.contextmanager
def _inference_errors_named(path: Path) -> Iterator[None]:
    """Name the file in an error of shape inference; onnx and ONNX Runtime raise anything."""
    try:
        yield
    except Exception as error:
        raise ModelExportError(
            f"{path}: its types cannot be inferred ({first_line(error)[:300]}): check it with "
            "onnx.checker"
        ) from error


def _skeleton(file: TaggedFile, part: ModuleSubgraph, weights: Weights) -> onnx.ModelProto:
    """Return the model without weights, down to the graph of the extracted nodes."""
    model = model_without_graph(weights)
    inner = part.nodes[-1]  # the nodes of a graph come after those around it
    graphs: list[tuple[Graph, Node | None]] = [(graph_of(file, inner), None)]
    while inner.holder is not None:
        graphs.append((graph_of(file, inner.holder), inner.holder.node))
        inner = inner.holder
    for graph, holder in reversed(graphs):
        for node in graph.nodes:
            if node is not holder:
                message = weights.file[node.start : node.end]
                model.graph.node.add().ParseFromString(bytes(message))
        _, start, end = graph.enclosing[-1]
        for number, _, first, last in fields(weights.file[start:end]):
            if number in (_GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO):
                field = _VALUES_OF[number]
                message = weights.file[start + first : start + last]
                getattr(model.graph, field).add().ParseFromString(bytes(message))
        named = {value.name for value in model.graph.input}
        for tensor in graph.initializers:
            if not tensor.location and nbytes(tensor) <= _SHAPE_BYTES:
                model.graph.initializer.add().ParseFromString(bytes(weights.message(tensor)))
            elif tensor.name not in named:
                value = onnx.helper.make_tensor_value_info(
                    tensor.name, tensor.data_type, tensor.dims
                )
                model.graph.input.append(value)
    return model


def _runtime_types(skeleton: onnx.ModelProto, names: Iterable[str]) -> dict[str, onnx.TypeProto]:
    """Return the types that ONNX Runtime infers; it also knows its own operators."""
    del skeleton.graph.output[:]
    skeleton.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    session = open_session(skeleton.SerializeToString(), Provider(CPU), unfused_options())
    types = {}
    for value in session.get_outputs():
        found = re.fullmatch(r"tensor\((\w+)\)", value.type)
        if found:
            elem_type = onnx.TensorProto.DataType.Value(found[1].upper())
            types[value.name] = onnx.helper.make_tensor_type_proto(elem_type, value.shape)
    return types


def _text(kind: onnx.TypeProto) -> str:
    if not kind.HasField("tensor_type"):
        return str(kind.WhichOneof("value"))
    return type_text(kind.tensor_type.elem_type, shape_of(kind.tensor_type))
