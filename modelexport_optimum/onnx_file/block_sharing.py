"""Edits padded so that a file system may share the weights' blocks between the old and new file.

XFS and Btrfs can share bytes that begin at the same position within a block of both files (man 2
ioctl_ficlonerange). Bytes added before the weights move them. The padding makes them move by whole
blocks.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.onnx_file.rewriter import BLOCK_BYTES, Edit, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelexport_optimum.onnx_file.skeleton import Model

LEAST_SHARED_BYTES = 256 * BLOCK_BYTES
"""Minimum bytes to share: fewer are copied within a millisecond."""


def padded_rewrite(
    fd: int,
    model: Model,
    node_edits: dict[int, list[Edit]],
    model_edits: Sequence[Edit],
    padding: Callable[[int], bytes],
) -> Rewrite:
    """Make a `Rewrite` that moves the longest unedited range by whole blocks.

    The padding is appended to the last node of the main graph before that range. It depends only on
    the position of the range in a block, so a file with the right padding keeps it.

    Args:
        fd: As for `Rewrite`.
        model: As for `Rewrite`.
        node_edits: As for `Rewrite`, for every node of the top graph.
        model_edits: As for `Rewrite`.
        padding: Makes a field of this many bytes or, if that is not possible, of `BLOCK_BYTES`
            more.

    Returns:
        The rewrite. It has no padding if no long range comes after a node, or if the padding does
        not fit into the file.

    Raises:
        ModelExportError: As for `Rewrite`.
    """
    plain = rewrite = Rewrite(fd, model, node_edits, model_edits)
    start, end = rewrite.longest_copy
    before = [node for node in model.graph.nodes if node.end <= start]
    if end - start < LEAST_SHARED_BYTES or not before:
        return plain
    node = before[-1]
    length = 0
    with contextlib.suppress(ModelExportError):  # the file, or a length in it, has no room for it
        # A longer node may have a longer length, and so the graph: not always enough at once.
        while missing := -rewrite.growth_before(start) % BLOCK_BYTES:
            field = padding(length + missing)
            length = len(field)
            edits = [*node_edits[node.start], Edit(node.end, node.end, field)]
            rewrite = Rewrite(fd, model, {**node_edits, node.start: edits}, model_edits)
        return rewrite
    return plain
