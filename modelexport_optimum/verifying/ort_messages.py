"""The node that a message of ONNX Runtime names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelexport_optimum.onnx_file.skeleton import walk_nodes
from modelexport_optimum.tags import carriers

if TYPE_CHECKING:
    from modelexport_optimum.onnx_file.skeleton import Graph, Node


def named_node(message: str, graph: Graph) -> Node | None:
    """Return the node that a message names, by its own name or the name of an output.

    If there are several, it is the one with the longest name: a node's name may begin with the name
    of its module.
    """
    found = [
        (len(name), node)
        for node in walk_nodes(graph)
        for name in (node.name, *node.outputs)
        if name in message and _stands_alone(name, message)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _stands_alone(name: str, message: str) -> bool:
    pattern = rf"(?<![\w/.]){re.escape(name)}(?![\w/])"
    return bool(name) and re.search(pattern, message) is not None


def tag_of(node: Node) -> str | None:
    """Return the tag of a node, None if it has none."""
    return carriers.read(node, marked=False).tag or None
