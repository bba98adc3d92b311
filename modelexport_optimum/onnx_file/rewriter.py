"""The file written anew with other bytes for some of its fields, and everything else copied.

`rewrite` changes the bytes of nodes, fixes the lengths of the messages around them, lets the
kernel copy what lies between, and replaces the file atomically.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.onnx_file.skeleton import walk_graphs
from modelexport_optimum.onnx_file.wire import WINDOW_BYTES, FieldReader, pread, varint
from modelexport_optimum.system.atomic_write import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node

# A protobuf message is at most 2 GiB - 1 byte long, and ONNX Runtime reads no longer one.
MAX_MESSAGE_BYTES = 2**31 - 1

_COPY_BYTES = 1024 * 1024


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


def node_bytes(fd: int, node: Node) -> bytes:
    """Reads one node's message from the open file."""
    return pread(fd, node.start, node.end - node.start)


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
        reader = FieldReader(fd, model.size)
        pending = bytearray()
        position = 0
        for edit in [*edits, Edit(model.size, model.size, b"")]:
            if edit.start - position <= WINDOW_BYTES:
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
        data = pread(source, start, min(_COPY_BYTES, end - start))
        _write(target, data)
        start += len(data)
