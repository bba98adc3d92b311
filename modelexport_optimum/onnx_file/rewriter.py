"""A rewrite of the file with other bytes for some of its fields; everything else is copied.

`Rewrite` knows before it writes whether the rewrite is possible. It adjusts the lengths of the
messages that contain the edited fields, lets the kernel copy the bytes between them, reads the new
file back, and replaces the old file atomically.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from modelexport_optimum.errors import InvalidModelError, ModelExportError
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import walk_all_graphs
from modelexport_optimum.onnx_file.wire import WINDOW_BYTES, FieldReader, pread, varint
from modelexport_optimum.system.atomic_write import flushes, replacing, write_all
from modelexport_optimum.system.files import copy_in_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node

    Span = tuple[int, int, int]
    """A message in the file: its key's start, its payload's start, its payload's end."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""Maximum size of a protobuf message, 2 GiB - 1 byte; ONNX Runtime reads no longer one."""

BLOCK_BYTES = 4096
"""The default block size of the file systems that share blocks between files, XFS and Btrfs. With
another block size, and on other file systems, bytes are copied."""

_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class Edit:
    """A change of the file: these bytes instead of those from start to end."""

    start: int
    end: int
    data: bytes

    @property
    def growth(self) -> int:
        """Number of bytes by which the file grows."""
        return len(self.data) - (self.end - self.start)


def node_bytes(fd: int, node: Node) -> bytes:
    """Read one node's message from the open file."""
    return pread(fd, node.start, node.end - node.start)


class Rewrite:
    """Edits of one file that were checked and can be written."""

    def __init__(
        self, fd: int, model: Model, node_edits: dict[int, list[Edit]], model_edits: Sequence[Edit]
    ) -> None:
        """Order the edits, and add those of the lengths of all messages around them.

        Args:
            fd: The file that `model` was read from, open for reading.
            model: Its skeleton.
            node_edits: Edits inside nodes' own fields, by the node's start.
            model_edits: Edits of the model's own fields, outside its graph.

        Raises:
            ModelExportError: The file would be larger than protobuf's limit, or has a padded length
                that cannot be restored.
        """
        self._fd = fd
        self._model = model
        self.node_edits = node_edits
        # What is appended to an inner message comes before what is appended to an outer one
        # that ends at the same place.
        depth = {
            node.start: len(nested.enclosing)
            for _, nested in walk_all_graphs(model)
            for node in nested.nodes
        }
        ordered = [
            (edit.start, edit.end, -depth[start], edit)
            for start, own in node_edits.items()
            for edit in own
        ]
        ordered += [(e.start, e.end, 0, e) for e in _length_edits(model, node_edits)]
        ordered += [(e.start, e.end, 0, e) for e in model_edits]
        ordered.sort(key=lambda placed: placed[:3])
        self._edits = [edit for *_, edit in ordered]
        self._size = model.size + sum(edit.growth for edit in self._edits)
        if self._size > MAX_MESSAGE_BYTES:
            raise ModelExportError(
                f"{model.path} would grow from {model.size} to {self._size} bytes with its tags, "
                f"past protobuf's limit of {MAX_MESSAGE_BYTES}: save its weights as external data "
                "(FORCE_ONNX_EXTERNAL_DATA=1 makes Optimum do so) and tag that; "
                "the file is unchanged"
            )

    @property
    def longest_copy(self) -> tuple[int, int]:
        """The beginning and the end of the longest unedited range of the main graph."""
        _, start, end = self._model.graph.enclosing[0]
        edits = [edit for edit in self._edits if start <= edit.start and edit.end <= end]
        starts = [start, *(edit.end for edit in edits)]
        ends = [*(edit.start for edit in edits), end]
        return max(zip(starts, ends, strict=True), key=lambda stretch: stretch[1] - stretch[0])

    def growth_before(self, position: int) -> int:
        """Return by how many bytes a position of the old file moves."""
        return sum(edit.growth for edit in self._edits if edit.end <= position)

    def write(self, check: Callable[[Model], str | None]) -> None:
        """Write the new file next to the old one, and rename it over the old one.

        Before the rename, the new file is flushed to the disk, gets the old file's mode, and is
        read back. So if the process is killed at any moment, one complete file remains.

        Args:
            check: Returns what is wrong with the skeleton that was read back, or None.

        Raises:
            ModelExportError: It cannot be written, or does not read back as expected. The old file
                is unchanged, and no other file is left.
        """
        path = self._model.path
        with replacing(path, like=self._fd) as target:
            try:
                self._write_to(target)
                written = read_model(path, fd=target)
                wrong = _difference(self._model, written) or check(written)
            except (DecodeError, InvalidModelError) as error:
                wrong = f"it ({error.__cause__ or error})"
            if os.fstat(target).st_size != self._size:
                wrong = "its length"
            if wrong:
                raise ModelExportError(
                    f"{path} cannot be rewritten: {wrong} does not read back as expected; "
                    "the file is unchanged (please report it with the file)"
                )

    def _write_to(self, target: int) -> None:
        reader = FieldReader(self._fd, self._model.size)
        pending = bytearray()
        position = 0
        for edit in [*self._edits, Edit(self._model.size, self._model.size, b"")]:
            if edit.start - position <= WINDOW_BYTES:
                pending += reader.read(position, edit.start)
            else:
                write_all(target, pending)
                pending.clear()
                _copy(self._fd, position, edit.start, target)
            pending += edit.data
            if len(pending) > _COPY_BYTES:
                write_all(target, pending)
                pending.clear()
            position = edit.end
        write_all(target, pending)


def _length_edits(model: Model, node_edits: dict[int, list[Edit]]) -> list[Edit]:
    """Return the edits of the lengths of edited nodes and of all messages around them."""
    growth: dict[Span, int] = {}
    parent: dict[Span, Span | None] = {}
    for _, nested in walk_all_graphs(model):
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
    edits = []
    # A message begins before what it holds: from the last to the first is inside out.
    for span in sorted(parent, reverse=True):
        key, start, end = span
        new = _length(model, span, end - start + growth.get(span, 0))
        edit = Edit(key + 1, start, new)
        edits.append(edit)
        outer = parent[span]
        if outer is not None:
            growth[outer] = growth.get(outer, 0) + growth.get(span, 0) + edit.growth
    return edits


def _length(model: Model, span: Span, length: int) -> bytes:
    """Return a message's new length, padded to the old width if the old length was padded.

    When the edits are undone, the padding shows the width of the old length.
    """
    key, start, end = span
    number, width = varint(length), start - key - 1
    if width == len(varint(end - start)):
        return number
    if width <= len(number):
        raise ModelExportError(
            f"{model.path}: a length at byte {key + 1} is padded to {width} bytes, which could not "
            "be restored: save the model again with onnx.save; the file is unchanged"
        )
    padding = b"\x80" * (width - len(number) - 1) + b"\0"
    return number[:-1] + bytes([number[-1] | 0x80]) + padding


def _difference(old: Model, new: Model) -> str | None:
    """Return the part of a model's skeleton that differs, although tags do not change it."""
    for what in ("ir_version", "producer", "opsets"):
        if getattr(old, what) != getattr(new, what):
            return what
    if [function.key for function in old.functions] != [f.key for f in new.functions]:
        return "functions"
    graphs = list(walk_all_graphs(old)), list(walk_all_graphs(new))
    if [path for path, _ in graphs[0]] != [path for path, _ in graphs[1]]:
        return "the nesting of its graphs"
    for (path, before), (_, after) in zip(*graphs, strict=True):
        found = _graph_difference(before, after)
        if found:
            return f"{found} of the graph {path or before.name}"
    return None


def _graph_difference(old: Graph, new: Graph) -> str | None:
    for what in ("name", "initializers", "inputs", "outputs"):
        if getattr(old, what) != getattr(new, what):
            return what
    if len(old.nodes) != len(new.nodes):
        return "the number of nodes"
    for before, after in zip(old.nodes, new.nodes, strict=True):
        for what in ("name", "op_type", "domain", "inputs", "outputs"):
            if getattr(before, what) != getattr(after, what):
                return f"{what} of the node {before.name or before.op_type}"
    return None


def _copy(source: int, start: int, end: int, target: int) -> None:
    """Copy bytes to the target's position, in the kernel if possible.

    A file system that shares blocks shares all whole blocks. It waits until the old file is on the
    disk; if the flush comes later, the bytes are copied.
    """
    if flushes():
        head = min(start + -start % BLOCK_BYTES, end)
        write_all(target, pread(source, start, head - start))
        start = head
    start = copy_in_kernel(source, start, end, target)
    while start < end:
        data = pread(source, start, min(_COPY_BYTES, end - start))
        write_all(target, data)
        start += len(data)
