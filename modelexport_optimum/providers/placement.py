"""The provider of each module's nodes, and the tensors that cross between providers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.text import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

_MOST_NAMED = 3
"""Maximum number of modules named in the answer; the rest are counted."""


@dataclass(frozen=True, slots=True, repr=False)
class PlacedModule(Displayed):
    """The nodes of one module, by the provider that took them.

    Attributes:
        module: Module path; "" for the root.
        name: The path relative to its parent, or the root's class.
        module_class: Class name.
        depth: Number of modules that contain it.
        own: Number of its own nodes, by provider.
        total: The same, including its submodules.
        ops: Operators of its own nodes that the requested provider did not take.
    """

    module: str
    name: str
    module_class: str
    depth: int
    own: Mapping[str, int]
    total: Mapping[str, int]
    ops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class Crossing(Displayed):
    """A tensor that one provider writes and another reads.

    Attributes:
        tensor: Its name.
        source: The provider that writes it.
        target: The provider that reads it.
        source_module: The module that writes it; None if not known.
        target_modules: The modules that read it there.
        type: Type and shape in the run, such as float32[1, 16, 64]; None if not known.
        bytes: Its size there.
    """

    tensor: str
    source: str
    target: str
    source_module: str | None
    target_modules: tuple[str, ...]
    type: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Placement(Displayed):
    """Where the nodes of one file run.

    Attributes:
        file: The file.
        provider: The provider that was asked for.
        recorded: ONNX Runtime's own record of every node; else what its profile shows.
        providers: Number of nodes by provider, the one that was asked for first.
        modules: The modules that have nodes, each after the one around it.
        unplaced: Nodes of no module, by provider and operator.
        crossings: What crosses between providers, in the order of the graph.
        reason: Why the provider took no node, in the words of its log; "" if it gave none.
    """

    file: Path
    provider: str
    recorded: bool
    providers: Mapping[str, int]
    modules: tuple[PlacedModule, ...]
    unplaced: tuple[tuple[str, str, int], ...]
    crossings: tuple[Crossing, ...]
    reason: str = ""

    @property
    def node_count(self) -> int:
        """Number of nodes on all providers."""
        return sum(self.providers.values())

    @property
    def fallen_back(self) -> tuple[PlacedModule, ...]:
        """The modules with own nodes on another provider."""
        return tuple(one for one in self.modules if one.own.keys() - {self.provider})

    @property
    def crossing_bytes(self) -> int | None:
        """Bytes of all crossing tensors; None if the size of one is not known."""
        sizes = [one.bytes for one in self.crossings if one.bytes is not None]
        return sum(sizes) if len(sizes) == len(self.crossings) else None

    def answer(self) -> str:
        """Return in one line whether the provider runs the whole model, or what prevents it."""
        taken = self.providers.get(self.provider, 0)
        others = ", ".join(name for name in self.providers if name != self.provider)
        count = f"{taken:,} of {self.node_count:,} nodes"
        if taken == self.node_count:
            return f"{self.provider} runs the whole model: {count}"
        if not taken:
            keeping = self._modules_left(self._operators_in_reason())
            kept = f", kept by {keeping}" if keeping else ""
            why = f": {self.reason}" if self.reason else ""
            return (
                f"{self.provider} runs nothing: all {self.node_count:,} nodes run on "
                f"{others}{kept}{why}"
            )
        keeping = self._modules_left(None)
        if keeping:
            keeping += ", which keep the model from running on it as a whole"
        else:
            added = {op: count for name, op, count in self.unplaced if name != self.provider}
            keeping = f"{_listed(Counter(added))}, which are of no module"
        return f"{self.provider} runs {count}; on {others}: {keeping}"

    def _modules_left(self, blamed: Collection[str] | None) -> str:
        """Return the modules whose nodes of these operators fell back, most nodes first."""
        rows = []
        for path, kind in _kinds(self.fallen_back).items():
            counts = sum((Counter(one.ops) for one in kind), Counter[str]())
            ops = Counter({op: n for op, n in counts.items() if blamed is None or op in blamed})
            if ops:
                rows.append((ops, path if len(kind) > 1 else kind[0].module))
        rows.sort(key=lambda row: -row[0].total())
        named = [f"{path or '(root)'} ({_listed(ops)})" for ops, path in rows]
        return listed(named, _MOST_NAMED, none="")

    def _operators_in_reason(self) -> set[str]:
        """Return the operators in the provider's own message, if it took no node."""
        words = set(re.findall(r"\w+", self.reason))
        return {op for one in self.modules for op in one.ops if op in words}

    def to_dict(self) -> dict[str, Any]:
        """Return the placement as data for JSON."""
        return {
            "file": str(self.file),
            "provider": self.provider,
            "answer": self.answer(),
            "recorded": self.recorded,
            "node_count": self.node_count,
            "providers": [
                {"provider": name, "node_count": count} for name, count in self.providers.items()
            ],
            "modules": [
                {
                    "module": one.module,
                    "class": one.module_class,
                    "depth": one.depth,
                    "own_node_counts": dict(one.own),
                    "node_counts": dict(one.total),
                    "fell_back": bool(one.own.keys() - {self.provider}),
                    "op_counts": dict(one.ops),
                }
                for one in self.modules
            ],
            "unplaced": [
                {"provider": name, "op_type": op_type, "node_count": count}
                for name, op_type, count in self.unplaced
            ],
            "crossing_count": len(self.crossings),
            "crossing_bytes": self.crossing_bytes,
            "crossings": [
                {
                    "tensor": one.tensor,
                    "from": one.source,
                    "to": one.target,
                    "from_module": one.source_module,
                    "to_modules": list(one.target_modules),
                    "type": one.type,
                    "bytes": one.bytes,
                }
                for one in self.crossings
            ],
        }


def _kinds(modules: Iterable[PlacedModule]) -> dict[str, list[PlacedModule]]:
    """Return repeated modules together, by their path with `*` in place of numbers."""
    found: dict[str, list[PlacedModule]] = defaultdict(list)
    for one in modules:
        parts = one.module.split(".")
        found[".".join("*" if part.isdecimal() else part for part in parts)].append(one)
    return found


def _listed(ops: Counter[str]) -> str:
    named = [f"{count:,} {name}" for name, count in ops.most_common(_MOST_NAMED)]
    more = len(ops) - _MOST_NAMED
    return ", ".join(named) + (f" and {more} more operators" if more > 0 else "")
