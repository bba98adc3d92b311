"""The module of each node of the graph that ONNX Runtime built from a tagged file.

A node still has its tag, or was fused from several nodes. The module of a fused node is the nearest
module that contains all nodes of the file between its inputs and its outputs. A node that ONNX
Runtime added computes no value of the file, and has no module.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from modelexport_optimum.onnx_file.skeleton import walk_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule
    from modelexport_optimum.onnx_file.skeleton import Model, Node

_BLOCKED = "_nchwc"
"""ONNX Runtime names a convolution in its blocked layout after its output
(onnxruntime/core/optimizer/nchwc_transformer.cc)."""


class Places:
    """Find the modules of an optimized graph's nodes.

    Args:
        file: The tagged file.
        optimized: The graph that ONNX Runtime built; if None, the modules of the file's own nodes
            are found.
    """

    def __init__(self, file: TaggedFile, optimized: Model | None) -> None:
        self._file = file
        self._by_tag = {node.tag: node.module for node in file.nodes if node.module is not None}
        self._makers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(file.nodes):
            for output in node.node.outputs:
                self._makers[output].append(index)
        nodes: list[Node] = []
        self._values: set[str] = set()
        graph = file.model.graph if optimized is None else optimized.graph
        for _, nested in walk_graphs(graph):
            nodes += nested.nodes
            self._values.update(tensor.name for tensor in nested.initializers)
            self._values.update(value.name for value in nested.inputs)
        self._values.update(name for node in nodes for name in _values_made(node))
        # A node that is still there may give its value under another name.
        there = {(node.name, node.op_type) for node in nodes}
        kept = (node.node for node in file.nodes if (node.name, node.op_type) in there)
        self._values.update(output for node in kept for output in node.outputs)
        same: dict[tuple[str, str], list[TaggedModule | None]] = defaultdict(list)
        for built in nodes:
            same[built.name, built.op_type].append(self._place(built))
        self._modules = {key: nearest_around(modules) for key, modules in same.items()}

    def module(self, name: str, op_type: str) -> TaggedModule | None:
        """Return the module of the nodes of that name and operator, if they have one."""
        return self._modules.get((name, op_type))

    def _place(self, node: Node) -> TaggedModule | None:
        # Its doc_string may be ONNX Runtime's own text, and even look like a tag.
        own = self._by_tag.get(node.doc_string.partition("\n")[0])
        if own is not None:
            return own
        fused: set[int] = set()
        waiting = _values_made(node)
        while waiting:
            for index in self._makers.get(waiting.pop(), ()):
                if index not in fused:
                    fused.add(index)
                    read = self._file.nodes[index].node.inputs
                    waiting += [name for name in read if name not in self._values]
        return nearest_around(self._file.nodes[index].module for index in fused)


def _values_made(node: Node) -> list[str]:
    """Return a node's outputs, by their names in the file."""
    value, blocked, _ = node.name.partition(_BLOCKED)
    return [*node.outputs, *([value] if blocked else [])]


def nearest_around(modules: Iterable[TaggedModule | None]) -> TaggedModule | None:
    """Return the nearest module that contains all of these; None if one of them is None."""
    common: list[TaggedModule] | None = None
    for module in modules:
        if module is None:
            return None
        chain = [module, *module.around()][::-1]
        if common is not None:
            chain = [a for a, b in zip(common, chain, strict=False) if a is b]
        common = chain
    return common[-1] if common else None
