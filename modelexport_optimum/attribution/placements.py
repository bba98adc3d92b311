"""The modules of the nodes of a file, each with its evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.tags.carriers import CARRIER

if TYPE_CHECKING:
    from modelexport_optimum.attribution.scopes import Paths
    from modelexport_optimum.module_trees.module_tree import ModuleTree
    from modelexport_optimum.onnx_file.skeleton import Node
    from modelexport_optimum.tags.tag_grammar import Chain


EVIDENCE_KINDS = ("tracer", "scope", "parameter", "data flow", "root", CARRIER)
TRACER, SCOPE, PARAMETER, DATA_FLOW, ROOT = EVIDENCE_KINDS[:5]


@dataclass(slots=True)
class NodePlacement:
    """The module of a node, with the evidence.

    Attributes:
        paths: Module paths from the root to the node's own, each inside the one before.
        evidence: One of `EVIDENCE_KINDS`.
        reason: The same in words.
    """

    paths: Paths
    evidence: str
    reason: str


@dataclass(slots=True)
class Attribution:
    """The placements of all nodes of a file, by the node's start.

    Attributes:
        placements: By the start of the node.
        tree: The modules of the model.
        undecided: Number of nodes whose scope fits several modules, or none.
    """

    placements: dict[int, NodePlacement]
    tree: ModuleTree
    undecided: int = 0
    _chains: dict[Paths, Chain] = field(default_factory=dict)

    def chain(self, node: Node) -> Chain:
        """Return the modules from the root to the node's own."""
        paths = self.placements[node.start].paths
        chain = self._chains.get(paths)
        if chain is None:
            chain = self._chains[paths] = tuple(self.tree.modules[path] for path in paths)
        return chain
