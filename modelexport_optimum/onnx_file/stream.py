"""The `.onnx` file as a stream: walk its nodes, replace them, copy everything else.

The file is never parsed as a whole. `read_model` reads the fields' keys and lengths with
`pread`, parses nodes, and steps over weights; `rewrite` changes the bytes of nodes, fixes
the lengths of the messages around them, lets the kernel copy what lies between, and
replaces the file atomically. This module knows protobuf and onnx.proto, and nothing of
modules, tags or PyTorch.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; the
wire format is https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError

from modelexport_optimum.errors import InvalidModelError, ModelExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VARINT, I64, LEN, I32 = 0, 1, 2, 5

# A protobuf message is at most 2 GiB - 1 byte long, and ONNX Runtime reads no longer one.
MAX_MESSAGE_BYTES = 2**31 - 1

# Nodes up to this size are handed to protobuf whole. A longer one holds nested graphs or a
# large tensor: its fields are walked, so that no weight is ever read.
WHOLE_NODE_BYTES = 64 * 1024

# Initializers and Constants up to this size are compared by value, longer ones by name.
SMALL_TENSOR_BYTES = 1024

# Number of a field, far from those of onnx.proto, that stands for a large one by its place.
_LEFT_IN_FILE = 1000

_WINDOW_BYTES = 256 * 1024
_COPY_BYTES = 1024 * 1024


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
    """What the pass needs of a node, and where the node lies in the file.

    Attributes:
        key: Offset of the node's field in the file.
        start: Offset of the node's message, after the field's key and length.
        end: Offset just after it.
        name: Node name.
        op_type: Operator.
        domain: Operator's domain.
        inputs: Names of the values it reads; "" where an optional input is left out.
        outputs: Names of the values it makes.
        attributes: The attributes other than nested graphs, name to serialized bytes, in
            which the place of a large field in the file stands for the field.
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
    """A graph: its nodes in file order, its initializers' headers, its inputs and outputs."""

    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    # The messages around its nodes, outermost first: key's, payload's start, payload's end.
    enclosing: list[tuple[int, int, int]] = field(default_factory=list)


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
        metadata: The model's metadata_props, each with the range of bytes that it takes.
        functions: (domain, name) of the model-local functions.
    """

    path: Path
    size: int
    graph: Graph
    ir_version: int = 0
    producer: tuple[str, str] = ("", "")
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: list[tuple[str, str, int, int]] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)


def walk_graphs(graph: Graph, path: str = "") -> Iterator[tuple[str, Graph]]:
    """Yields the graph and every graph nested in it, outer before inner.

    Args:
        graph: Where to begin.
        path: Name of that graph in what is yielded, "" for the top graph.

    Yields:
        The nested graph's path (`node/attribute` joined by `/`) and the graph.
    """
    yield path, graph
    for node in graph.nodes:
        for attribute, subgraph in node.subgraphs:
            name = f"{node.name or node.op_type}.{attribute}"
            yield from walk_graphs(subgraph, f"{path}/{name}" if path else name)


def walk_nodes(graph: Graph) -> Iterator[Node]:
    """Yields every node of the graph and of the graphs nested in it."""
    for _, nested in walk_graphs(graph):
        yield from nested.nodes


class _Reader:
    """Random access to an open file through one window, so that little is ever held."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._start = 0
        self._window = b""

    def read(self, start: int, end: int) -> bytes:
        if not 0 <= start <= end <= self.size:
            raise DecodeError("a field reaches past the end of the file")
        offset = start - self._start
        if offset >= 0 and end - self._start <= len(self._window):
            return self._window[offset : offset + end - start]
        if end - start > _WINDOW_BYTES:
            return _pread(self.fd, start, end - start)
        self._start, self._window = start, os.pread(self.fd, _WINDOW_BYTES, start)
        return self._window[: end - start]

    def varint(self, position: int, end: int) -> tuple[int, int]:
        data = self.read(position, min(position + 10, end))
        value = 0
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise DecodeError("a number does not end")

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yields (number, wire type, value, key's start, payload's start) of each field.

        The value is the number of a VARINT, else the payload's length in bytes.
        """
        position = start
        while position < end:
            key_start = position
            key, position = self.varint(position, end)
            number, wire = key >> 3, key & 7
            if key < 0x80 and position != key_start + 1:
                raise DecodeError("a field's key is padded")
            if wire == VARINT:
                value, following = self.varint(position, end)
            elif wire == LEN:
                value, position = self.varint(position, end)
                following = position + value
            elif wire in (I64, I32):
                value = 8 if wire == I64 else 4
                following = position + value
            else:
                raise DecodeError(f"wire type {wire}")
            if number == 0 or following > end:
                raise DecodeError("a field reaches past its message")
            yield number, wire, value, key_start, position
            position = following

    def after(self, wire: int, value: int, start: int, end: int) -> int:
        """Where the field ends whose payload begins at start."""
        return self.varint(start, end)[1] if wire == VARINT else start + value

    def text(self, start: int, length: int) -> str:
        return self.read(start, start + length).decode()


def _pread(fd: int, start: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(fd, length, start)
        if not part:
            raise DecodeError("the file ends early")
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts)


def read_model(path: Path, *, fd: int | None = None) -> Model:
    """Reads a model's skeleton: nodes, headers of initializers, inputs and outputs.

    Args:
        path: The `.onnx` file.
        fd: The file, if it is open already.

    Returns:
        The model, without weights; memory grows with the number of nodes and initializers.

    Raises:
        InvalidModelError: The file is not an ONNX model, or is truncated.
        ModelExportError: The file cannot be read.
    """
    if fd is None:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
        try:
            return read_model(path, fd=fd)
        finally:
            os.close(fd)
    size = os.fstat(fd).st_size
    try:
        model = _read_model(path, _Reader(fd, size), size)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModelError(
            f"{path} is not a whole ONNX file ({error}): export it again or copy it anew"
        ) from error
    except OSError as error:
        raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
    # Any bytes may pass for protobuf; a model has a version, a graph and an opset.
    if not model.ir_version or not (model.opsets or model.functions):
        raise InvalidModelError(f"{path} is not an ONNX model: check that it is the right file")
    return model


def _read_model(path: Path, reader: _Reader, size: int) -> Model:
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
            model.opsets[opset.domain] = opset.version
        elif number == 14 and wire == LEN:
            entry = onnx.StringStringEntryProto.FromString(reader.read(start, end))
            model.metadata.append((entry.key, entry.value, key, end))
        elif number == 25 and wire == LEN:
            names = {1: "", 10: ""}
            for inner, kind, length, _, offset in reader.fields(start, end):
                if inner in names and kind == LEN:
                    names[inner] = reader.text(offset, length)
            model.functions.add((names[10], names[1]))
    if not has_graph:
        raise DecodeError("it has no graph")
    model.producer = (producer[0], producer[1])
    return model


def _read_graph(
    reader: _Reader, start: int, end: int, enclosing: list[tuple[int, int, int]]
) -> Graph:
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
            info = onnx.ValueInfoProto.FromString(reader.read(offset, following))
            (graph.inputs if number == 11 else graph.outputs).append(_value(info))
    return graph


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        return Value(info.name, 0, None)
    if not tensor.HasField("shape"):
        return Value(info.name, tensor.elem_type, None)
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        known = dim.WhichOneof("value")
        shape.append(None if known is None else getattr(dim, known))
    return Value(info.name, tensor.elem_type, tuple(shape))


def _read_tensor(reader: _Reader, start: int, end: int) -> Tensor:
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
    external = {entry.key: entry.value for entry in header.external_data}
    location = external.get("location", "") if header.data_location == 1 else ""
    if location:
        held = int(external.get("length", "0"))
    elif small is not None and small.raw_data:
        held = len(small.raw_data)
    name, dims = header.name, tuple(header.dims)
    value_bytes = None
    if small is not None and not location:
        small.ClearField("name")
        value_bytes = small.SerializeToString(deterministic=True)
    return Tensor(name, dims, header.data_type, held, location, value_bytes)


def _read_node(reader: _Reader, enclosing: list[tuple[int, int, int]]) -> Node:
    key, start, end = enclosing[-1]
    node = Node(key, start, end)
    if end - start <= WHOLE_NODE_BYTES:
        proto = onnx.NodeProto.FromString(reader.read(start, end))
        nested = any(a.type in _GRAPH_TYPES or a.HasField("g") for a in proto.attribute)
    else:
        proto = onnx.NodeProto.FromString(b"".join(_light_fields(reader, start, end)))
        nested = True
    node.name, node.op_type, node.domain = proto.name, proto.op_type, proto.domain
    node.inputs, node.outputs = tuple(proto.input), tuple(proto.output)
    node.doc_string = proto.doc_string
    node.metadata = [(entry.key, entry.value) for entry in proto.metadata_props]
    if nested:
        _read_attributes(reader, node, enclosing)
    else:
        for attribute in proto.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
            node.attributes[attribute.name] = attribute.SerializeToString(deterministic=True)
    return node


_GRAPH_TYPES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _light_fields(reader: _Reader, start: int, end: int) -> Iterator[bytes]:
    for number, wire, value, key, offset in reader.fields(start, end):
        if wire == LEN and number != 5:
            yield reader.read(key, offset + value)


def _read_attributes(reader: _Reader, node: Node, enclosing: list[tuple[int, int, int]]) -> None:
    for number, wire, length, key, start in reader.fields(node.start, node.end):
        if number != 5 or wire != LEN:
            continue
        end = start + length
        place = [*enclosing, (key, start, end)]
        name, kept, graphs = "", [], []
        for inner, kind, size, inner_key, offset in reader.fields(start, end):
            following = reader.after(kind, size, offset, end)
            if inner == 1 and kind == LEN:
                name = reader.text(offset, size)
            elif inner in (6, 11) and kind == LEN:
                span = (inner_key, offset, following)
                graphs.append(_read_graph(reader, offset, following, [*place, span]))
            elif following - inner_key <= SMALL_TENSOR_BYTES:
                kept.append(reader.read(inner_key, following))
            else:
                kept.append(length_delimited(_LEFT_IN_FILE, b"%d" % inner_key))
        node.subgraphs.extend((name, graph) for graph in graphs)
        if not graphs:
            node.attributes[name] = b"".join(kept)


def varint(value: int) -> bytes:
    """Encodes a number as protobuf does."""
    if value < 0x80:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    return bytes((value & 0x7F | 0x80,)) + varint(value >> 7)


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def length_delimited(number: int, payload: bytes) -> bytes:
    """Encodes a field of wire type LEN."""
    return varint(number << 3 | LEN) + varint(len(payload)) + payload


@dataclass(slots=True)
class Edit:
    """A change of the file: these bytes instead of those from start to end."""

    start: int
    end: int
    data: bytes

    @property
    def growth(self) -> int:
        """Bytes that the file gains by it."""
        return len(self.data) - (self.end - self.start)


def bytes_fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields (number, key's start, payload's start, end) of each field of a message.

    Args:
        data: A serialized message.

    Raises:
        DecodeError: The bytes are not a message.
    """
    reader = _BytesReader(data)
    for number, wire, value, key, start in reader.fields(0, len(data)):
        yield number, key, start, reader.after(wire, value, start, len(data))


class _BytesReader(_Reader):
    def __init__(self, data: bytes) -> None:
        super().__init__(-1, len(data))
        self._window = data


def node_bytes(fd: int, node: Node) -> bytes:
    """Reads one node's message from the open file."""
    return _pread(fd, node.start, node.end - node.start)


def rewrite(
    fd: int, model: Model, node_edits: dict[int, list[Edit]], model_edits: Sequence[Edit]
) -> None:
    """Applies the edits and replaces the file atomically.

    The new file is written beside the old one, flushed to the disk, given the old one's
    mode, and renamed over it: killed at any moment, one of the two is there, whole.

    Args:
        fd: The file that `model` was read from, open for reading.
        model: Its skeleton.
        node_edits: Edits inside nodes' own fields, by the node's start.
        model_edits: Edits of the model's own fields, outside its graph.

    Raises:
        ModelExportError: The file would pass protobuf's limit, or cannot be written. The old
            file is as it was, and nothing else is left.
    """
    edits = [*_with_lengths(model.graph, node_edits), *model_edits]
    edits.sort(key=lambda edit: (edit.start, edit.end))
    size = model.size + sum(edit.growth for edit in edits)
    if size > MAX_MESSAGE_BYTES:
        raise ModelExportError(
            f"{model.path} would grow from {model.size} to {size} bytes with its tags, past "
            f"protobuf's limit of {MAX_MESSAGE_BYTES}: save its weights as external data "
            "(FORCE_ONNX_EXTERNAL_DATA=1 makes Optimum do so) and tag that; "
            "the file is as it was"
        )
    with replacing(model.path, like=fd) as target:
        reader = _Reader(fd, model.size)
        pending = bytearray()
        position = 0
        for edit in [*edits, Edit(model.size, model.size, b"")]:
            if edit.start - position <= _WINDOW_BYTES:
                pending += reader.read(position, edit.start)
            else:
                _write(target, pending)
                pending.clear()
                _copy(fd, position, edit.start, target)
            pending += edit.data
            if len(pending) > _COPY_BYTES:
                _write(target, pending)
                pending.clear()
            position = edit.end
        _write(target, pending)


def _with_lengths(graph: Graph, node_edits: dict[int, list[Edit]]) -> list[Edit]:
    """The edits of nodes, and of the lengths of all messages around them."""
    edits = [edit for own in node_edits.values() for edit in own]
    growth: dict[tuple[int, int, int], int] = {}
    parent: dict[tuple[int, int, int], tuple[int, int, int] | None] = {}
    for _, nested in walk_graphs(graph):
        changed = [node for node in nested.nodes if node_edits.get(node.start)]
        if not changed:
            continue
        outer = None
        for span in nested.enclosing:
            parent[span] = outer
            outer = span
        for node in changed:
            span = (node.key, node.start, node.end)
            parent[span] = outer
            growth[span] = sum(edit.growth for edit in node_edits[node.start])
    # A message begins before what it holds: from the last to the first is inside out.
    for span in sorted(parent, reverse=True):
        key, start, end = span
        old, new = varint(end - start), varint(end - start + growth.get(span, 0))
        width = start - key - 1
        if width > len(old):  # padded by whoever wrote it, and so it stays
            new = _padded(new, width)
        edit = Edit(key + 1, start, new)
        edits.append(edit)
        outer = parent[span]
        if outer is not None:
            growth[outer] = growth.get(outer, 0) + growth.get(span, 0) + edit.growth
    return edits


def _padded(number: bytes, width: int) -> bytes:
    if len(number) >= width:
        return number
    return number[:-1] + bytes([number[-1] | 0x80]) + b"\x80" * (width - len(number) - 1) + b"\0"


def _write(fd: int, data: bytes | bytearray) -> None:
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])


def _copy(source: int, start: int, end: int, target: int) -> None:
    """Copies bytes to the target's position, in the kernel where it can."""
    while start < end and hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(source, target, end - start, offset_src=start)
        except OSError as error:
            # The file systems that cannot do it say one of these (man 2 copy_file_range).
            if error.errno not in (
                errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF
            ):  # fmt: skip
                raise
            break
        if not copied:
            break
        start += copied
    while start < end:
        data = _pread(source, start, min(_COPY_BYTES, end - start))
        _write(target, data)
        start += len(data)


@contextlib.contextmanager
def replacing(path: Path, *, like: int | None = None) -> Iterator[int]:
    """Opens a temporary file that becomes `path` when the block ends without an error.

    Args:
        path: The file to replace.
        like: An open file whose mode and owner the new one gets.

    Yields:
        The temporary file's descriptor, open for writing.

    Raises:
        ModelExportError: It cannot be written; `path` is as it was and nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ModelExportError(f"cannot write in {path.parent}: {error.strerror}") from error
    try:
        try:
            yield target
            if like is not None:
                status = os.fstat(like)
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(target, status.st_uid, status.st_gid)
                os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.fsync(target)
        finally:
            os.close(target)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ModelExportError(
            f"cannot write {path}: {error.strerror}; the file is as it was"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
