"""A model's skeleton, read from the file: nodes are parsed, weights are skipped.

The file is never parsed as a whole: the fields' keys and lengths are read with `pread`. Field
numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from typing import TYPE_CHECKING, TypeVar

import onnx
from google.protobuf.message import DecodeError

from modelexport_optimum.errors import InvalidModelError, ModelExportError
from modelexport_optimum.onnx_file.external_data import check_external_data
from modelexport_optimum.onnx_file.skeleton import (
    FOLDED_FROM,
    Function,
    Graph,
    Model,
    Node,
    Tensor,
    Value,
)
from modelexport_optimum.onnx_file.wire import LEN, VARINT, FieldReader, length_delimited, varint
from modelexport_optimum.system.files import open_to_read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHOLE_NODE_BYTES = 64 * 1024
"""Nodes up to this size are parsed by protobuf as a whole. A longer node has nested graphs or a
large tensor: its fields are read one by one, so that no weight is ever read."""

SMALL_TENSOR_BYTES = 1024
"""Initializers and Constants up to this size are compared by value, longer ones by name."""

MAX_DEPTH = 100
"""protobuf's own parsers and ONNX Runtime read no message that is nested deeper
(google/protobuf/io/coded_stream.h, default_recursion_limit_)."""

_FOLDED_FROM = FOLDED_FROM.encode()

_MAX_OPSET = 2**31 - 1
"""onnx.defs takes a version as a C int."""

_MAX_ELEMENTS = 2**63 - 1
"""More elements than any file can hold."""

LEFT_IN_FILE = 1000
"""Field number, far from those of onnx.proto, of a placeholder for a large field: it holds the
offset of that field's key in the file."""


def read_model(path: Path, *, fd: int | None = None) -> Model:
    """Read a model's skeleton: nodes, headers of initializers, inputs and outputs; no weight.

    Raises:
        InvalidModelError: The file is not an ONNX model, or is truncated, or has its weights
            outside of its directory.
        ModelExportError: The file cannot be read.
    """
    if fd is None:
        with damage_named(path):
            fd = open_to_read(path)
        try:
            return read_model(path, fd=fd)
        finally:
            os.close(fd)
    size = os.fstat(fd).st_size
    with damage_named(path):
        model = _read_model(path, FieldReader(fd, size), size)
    # Any bytes may pass for protobuf; a model has a version, a graph and an opset.
    if not model.ir_version or not (model.opsets or model.functions):
        raise InvalidModelError(f"{path} is not an ONNX model: check that it is the right file")
    check_external_data(model)
    return model


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Name the file in an error about its content.

    protobuf's own parser accepts some bytes that the reader of fields refuses (groups, padded
    numbers), so even a model that was read may have them.

    Raises:
        InvalidModelError: A message in the file is damaged.
        ModelExportError: The file cannot be read.
    """
    try:
        yield
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModelError(
            f"{path} is not a whole ONNX file ({error}): export it again or copy it again"
        ) from error
    except OSError as error:
        raise ModelExportError(f"cannot read {path}: {error.strerror}") from error


def _read_model(path: Path, reader: FieldReader, size: int) -> Model:
    model = Model(path, size, Graph())
    has_graph = False
    producer = ["", ""]
    for number, wire, value, key, start in reader.fields(0, size):
        end = start + value
        if number == 1 and wire == VARINT:
            model.ir_version = value
        elif number in (2, 3) and wire == LEN:
            producer[number - 2] = reader.text(start, value)
        elif number == 7 and wire == LEN:
            if has_graph:
                raise DecodeError("it has two graphs")
            has_graph = True
            model.graph = _read_graph(reader, start, end, [(key, start, end)])
        elif number == 8 and wire == LEN:
            opset = onnx.OperatorSetIdProto.FromString(reader.read(start, end))
            if not 0 <= opset.version <= _MAX_OPSET:
                raise DecodeError(f"its opset is {opset.version}")
            model.opsets[_text(opset.domain)] = opset.version
        elif number == 14 and wire == LEN:
            model.metadata.append((*_read_entry(reader, start, end), key, end))
        elif number == 25 and wire == LEN:
            if reader.read(key, key + 2) != varint(number << 3 | LEN):
                raise DecodeError("a field's key is padded")
            # Who edits a length takes the key for one byte long: this one's last is meant.
            model.functions.append(_read_function(reader, (key + 1, start, end)))
    if not has_graph:
        raise DecodeError("it has no graph")
    model.producer = (producer[0], producer[1])
    return model


def _read_graph(
    reader: FieldReader, start: int, end: int, enclosing: list[tuple[int, int, int]]
) -> Graph:
    if len(enclosing) > MAX_DEPTH:
        raise DecodeError(f"its graphs are nested more than {MAX_DEPTH} messages deep")
    graph = Graph(enclosing=enclosing)
    for number, wire, value, key, offset in reader.fields(start, end):
        if wire != LEN:
            continue
        following = offset + value
        if number == 1:
            place = [*enclosing, (key, offset, following)]
            graph.nodes.append(_read_node(reader, place))
        elif number == 2:
            graph.name = reader.text(offset, value)
        elif number == 5:
            graph.initializers.append(_read_tensor(reader, offset, following))
        elif number in (11, 12):
            found = _read_value(reader, offset, following)
            (graph.inputs if number == 11 else graph.outputs).append(found)
        elif number == 13 and _FOLDED_FROM in (data := reader.read(offset, following)):
            info = onnx.ValueInfoProto.FromString(data)
            texts = {_text(entry.key): _text(entry.value) for entry in info.metadata_props}
            graph.folded[_text(info.name)] = texts.get(FOLDED_FROM, "")
        elif number == 16:
            graph.metadata.append(_read_entry(reader, offset, following))
    return graph


def _read_entry(reader: FieldReader, start: int, end: int) -> tuple[str, str]:
    """Read an entry of metadata_props."""
    entry = onnx.StringStringEntryProto.FromString(reader.read(start, end))
    return _text(entry.key), _text(entry.value)


def _read_function(reader: FieldReader, place: tuple[int, int, int]) -> Function:
    """Read a FunctionProto, whose nodes have another field number than a graph's."""
    names = {1: "", 10: "", 13: ""}
    body = Graph(enclosing=[place])
    for number, wire, value, key, offset in reader.fields(*place[1:]):
        if wire != LEN:
            continue
        if number in names:
            names[number] = reader.text(offset, value)
        elif number in (4, 5):
            named = Value(reader.text(offset, value), 0, None)
            (body.inputs if number == 4 else body.outputs).append(named)
        elif number == 7:
            body.nodes.append(_read_node(reader, [place, (key, offset, offset + value)]))
    body.name = names[1]
    return Function((names[10], names[1], names[13]), body)


def _read_value(reader: FieldReader, start: int, end: int) -> Value:
    info = onnx.ValueInfoProto.FromString(reader.read(start, end))
    tensor = info.type.tensor_type  # an empty one, if it is no tensor
    return Value(_text(info.name), tensor.elem_type, shape_of(tensor))


def shape_of(tensor: onnx.TypeProto.Tensor) -> tuple[int | str | None, ...] | None:
    """Return the dimensions of a type, each a number, a name or None; None without a rank."""
    if not tensor.HasField("shape"):
        return None
    known = ((dim, dim.WhichOneof("value")) for dim in tensor.shape.dim)
    return tuple(None if field is None else _text(getattr(dim, field)) for dim, field in known)


def _read_tensor(reader: FieldReader, start: int, end: int) -> Tensor:
    if end - start <= SMALL_TENSOR_BYTES:
        small = onnx.TensorProto.FromString(reader.read(start, end))
        header = small
        held = end - start
    else:
        parts = []
        held = 0
        for number, wire, value, key, offset in reader.fields(start, end):
            if number in (1, 2, 8, 12, 13, 14):  # all but the data
                parts.append(reader.read(key, reader.after(wire, value, offset, end)))
            else:
                held += value
        small = None
        header = onnx.TensorProto.FromString(b"".join(parts))
    external = {entry.key: _text(entry.value) for entry in header.external_data}
    location = external.get("location", "") if header.data_location == 1 else ""
    if location:
        held = parse_length(external.get("length", "0"))
    elif small is not None and small.raw_data:
        held = len(small.raw_data)
    name, dims = _text(header.name), tuple(header.dims)
    if dims and (min(dims) < 0 or math.prod(dims) > _MAX_ELEMENTS):
        raise DecodeError(f"the shape of the initializer {name[:100]} is {list(dims)[:8]}")
    value_bytes = None
    if small is not None and not location:
        small.ClearField("name")
        value_bytes = small.SerializeToString(deterministic=True)
    return Tensor(name, dims, header.data_type, held, location, value_bytes)


_T = TypeVar("_T")


def _text(value: _T) -> _T:
    """Return a string value; protobuf returns bytes for a string that is not UTF-8."""
    if isinstance(value, bytes):
        raise DecodeError(f"a text in it is not UTF-8: {value[:32]!r}")
    return value


def parse_length(text: object) -> int:
    """Read an offset or a length of external data.

    Raises:
        DecodeError: It is not a decimal number of 64 bits.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,18}", text):
        raise DecodeError(f"the place of its external data is {text!r:.40}")
    return int(text)


def _read_node(reader: FieldReader, enclosing: list[tuple[int, int, int]]) -> Node:
    key, start, end = enclosing[-1]
    node = Node(key, start, end)
    if end - start <= WHOLE_NODE_BYTES:
        proto = onnx.NodeProto.FromString(reader.read(start, end))
        if proto.ByteSize() != end - start:  # in an unusual encoding: can it be walked?
            for _ in reader.fields(start, end):
                pass
        nested = any(a.HasField("g") or a.graphs or a.type in _GRAPH_TYPES for a in proto.attribute)
    else:
        light = (
            reader.read(key, offset + value)
            for number, wire, value, key, offset in reader.fields(start, end)
            if wire == LEN and number != 5  # the attributes
        )
        proto = onnx.NodeProto.FromString(b"".join(light))
        nested = True
    node.name, node.op_type, node.domain = proto.name, proto.op_type, proto.domain
    node.overload = getattr(proto, "overload", "")  # since onnx 1.16
    node.inputs, node.outputs = tuple(proto.input), tuple(proto.output)
    node.doc_string = proto.doc_string
    node.metadata = [(entry.key, entry.value) for entry in proto.metadata_props]
    texts = [node.name, node.op_type, node.domain, node.doc_string, *node.inputs, *node.outputs]
    if bytes in map(type, itertools.chain(texts, *node.metadata)):  # fast, for each node is here
        raise DecodeError(f"a text of the node {node.name!r:.100} is not UTF-8")
    if nested:
        _read_attributes(reader, node, enclosing)
    else:
        for attribute in proto.attribute:
            _text(attribute.name)
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
            node.attributes[attribute.name] = attribute.SerializeToString(deterministic=True)
    return node


_GRAPH_TYPES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _read_attributes(
    reader: FieldReader, node: Node, enclosing: list[tuple[int, int, int]]
) -> None:
    for number, wire, length, key, start in reader.fields(node.start, node.end):
        if number != 5 or wire != LEN:
            continue
        end = start + length
        place = [*enclosing, (key, start, end)]
        name, kept, graphs, single = "", [], [], False
        for inner, kind, size, inner_key, offset in reader.fields(start, end):
            following = reader.after(kind, size, offset, end)
            if inner == 1 and kind == LEN:
                name = reader.text(offset, size)
            elif inner in (6, 11) and kind == LEN:
                if inner == 6 and single:  # protobuf would merge the two into one
                    raise DecodeError("an attribute holds its graph in two pieces")
                single = single or inner == 6
                span = (inner_key, offset, following)
                graphs.append(_read_graph(reader, offset, following, [*place, span]))
            elif following - inner_key <= SMALL_TENSOR_BYTES:
                kept.append(reader.read(inner_key, following))
            else:
                kept.append(length_delimited(LEFT_IN_FILE, b"%d" % inner_key))
        node.subgraphs.extend((name, graph) for graph in graphs)
        if not graphs:
            node.attributes[name] = b"".join(kept)
