"""A witness of fused nodes: what stood in the unfused graph where they stand now.

It imports nothing of ``modelexport_optimum``. The two graphs are of one export, so that a value
that both have is the same; PyTorch's own record says of each node of the unfused one its module.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

RULES = "pkg.onnxscript.rewriter.rule_name"


def record(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the paths of the modules that PyTorch recorded, root first; () if it did not."""
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(metadata.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]
    return tuple(re.sub(r"@\d+", "", p) for p in scopes) if scopes and not scopes[0] else ()


def is_whole(node: onnx.NodeProto) -> bool:
    """Whether a node is one that PyTorch recorded, and stands for no others."""
    return bool(record(node)) and all(entry.key != RULES for entry in node.metadata_props)


def common_chain(chains: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the paths of the nearest module that holds all, root first."""
    first, *others = chains
    for other in others:
        while first != other[: len(first)]:
            first = first[:-1]
    return first


class Replaced:
    """Which nodes of an unfused graph a node of the fused one stands for."""

    def __init__(self, unfused: onnx.GraphProto, fused: onnx.GraphProto) -> None:
        self.unfused = unfused
        self.made = {name: node for node in unfused.node for name in node.output}
        self.inputs = {value.name for value in unfused.input}
        self.fused = {name: node for node in fused.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in fused.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def judge(self, node: onnx.NodeProto, module: str) -> str | None:
        """Compare a module with the nearest one that holds all that a node replaced.

        Returns:
            `nearest`; `coarser` for a module around that one; `part` for one inside of it that may
            hold all, where other new nodes do a part of what was replaced; else `wrong`. None if
            nothing tells.
        """
        own = [name for name in node.output if name in self.made]
        if own:
            chains = self._before(own, set(node.input))
            # What made its values is what it does itself; the rest may be that of other nodes.
            makers = [chain for name in own if (chain := record(self.made[name]))]
            alone = all(name in self.made or name not in self.fused for name in node.input)
            inner = [] if alone else [common_chain(makers)] if makers else chains
        else:
            above = self._known(node, upwards=True)
            chains = self._before(self._known(node, upwards=False), above, below=above)
            inner = chains
        if not chains:
            return None
        nearest = common_chain(chains)
        if module == nearest[-1]:
            return "nearest"
        if module in nearest:
            return "coarser"
        return "part" if any(module in chain for chain in inner) else "wrong"

    def _before(
        self, names: Iterable[str], known: set[str], below: set[str] | None = None
    ) -> list[tuple[str, ...]]:
        """Records of what makes values, back to those that are known or that others still make."""
        found, todo, done = {}, list(names), set(known)
        first = set(todo)
        while todo:
            name = todo.pop()
            if name in done or name not in self.made:
                continue
            done.add(name)
            if name in self.fused and (below is not None or name not in first):
                if below is None:
                    continue
            else:
                found[name] = self.made[name]
            todo += self.made[name].input
        if below is not None:
            after = set(below)
            for node in self.unfused.node:
                if not after.isdisjoint(node.input):
                    after.update(node.output)
            found = {name: node for name, node in found.items() if name in after}
        if any(record(node) and not is_whole(node) for node in found.values()):
            return []  # what PyTorch's own optimizer made of several is no witness
        return [chain for node in found.values() if (chain := record(node))]

    def _known(self, node: onnx.NodeProto, *, upwards: bool) -> set[str]:
        """Return the nearest values before or after a node that the unfused graph has, too."""
        found, todo, done = set(), [node], set()
        while todo:
            current = todo.pop()
            if id(current) in done:
                continue
            done.add(id(current))
            if upwards:
                found.update(n for n in current.input if n in self.made or n in self.inputs)
                todo += [self.fused[n] for n in current.input if n in self.fused and n not in found]
                continue
            for reader in (r for name in current.output for r in self.readers.get(name, ())):
                there = {name for name in reader.output if name in self.made}
                found |= there
                todo += [] if there else [reader]
        return found
