"""The modules that hold the parameter that a node reads, found by the names in a graph."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from modelexport_optimum.tags.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from modelexport_optimum.attribution.scopes import Paths
    from modelexport_optimum.module_trees.module_tree import ModuleTree
    from modelexport_optimum.onnx_file.skeleton import Node


class Parameters:
    """The parameters and buffers of a traced module, as the graph's nodes name them.

    Tied parameters are one parameter under several names. An optimizer merges equal parameters and
    keeps one name; then the other names are not in the graph.
    """

    def __init__(self, tree: ModuleTree, base: str, nodes: Iterable[Node]) -> None:
        self._tree = tree
        self._prefix = f"{base}." if base else ""
        named = {name for node in nodes for value in (node.inputs, node.outputs) for name in value}
        # The modules of parameters that are not in the graph, by the parameter's shape.
        self._missing: dict[tuple[int, ...], list[str]] = {}
        for name, shape in tree.tensors.items():
            if not is_inside(name, base):
                continue
            same = tree.tied.get(name, (name,))
            if not any(tied[len(self._prefix) :] in named for tied in same):
                self._missing.setdefault(shape, []).append(_module(name))
        for modules in self._missing.values():
            modules.sort()

    def owner(self, name: str) -> str | None:
        """Return the path of the module that has a parameter or buffer of that name."""
        full = self._prefix + name
        return _module(full) if full in self._tree.tensors else None

    def read_by(self, nodes: Iterable[Node]) -> set[str]:
        """Return the parameters that some nodes read."""
        tensors = self._tree.tensors
        return {name for node in nodes for name in node.inputs if self._prefix + name in tensors}

    def holders(self, name: str) -> list[str]:
        """Return the modules that hold a parameter; a tied parameter has several."""
        full = self._prefix + name
        return [_module(tied) for tied in self._tree.tied.get(full, (full,))]

    def may_hold(self, path: str, name: str) -> bool:
        """Return whether a module or one inside it holds a parameter, or may hold an equal one."""
        if any(is_inside(holder, path) for holder in self.holders(name)):
            return True
        missing = self._missing.get(self._tree.tensors[self._prefix + name], [])
        at = bisect.bisect_left(missing, path)
        return at < len(missing) and is_inside(missing[at], path)

    def may_be_merged(self, name: str, known: Container[str]) -> bool:
        """Return whether the parameter may be an equal one of a module with nodes, or inside it."""
        missing = self._missing.get(self._tree.tensors[self._prefix + name], [])
        return any(path in known or _module(path) in known for path in missing)

    def holding(self, chains: Sequence[Paths], names: Iterable[str]) -> list[Paths]:
        """Return the chains whose last module holds all the parameters; all chains if none does."""
        found = [chain for chain in chains if all(self.may_hold(chain[-1], name) for name in names)]
        return found or list(chains)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
