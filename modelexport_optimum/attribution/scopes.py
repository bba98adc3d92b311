"""The modules that a scope in a node's name may stand for. Names and a tree in, candidates out.

A name has the labels of the calls that were open, from the outside in (`node_names`). A module that
is never called has no label in it, and several modules may have the same label.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from modelexport_optimum.tags.node_names import spellings
from modelexport_optimum.tags.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from modelexport_optimum.module_trees.module_tree import ModuleTree

Paths = tuple[str, ...]
"""Paths of modules from the root down, each inside the one before."""


def inside(chain: Paths, path: str) -> Paths:
    """Return the chain with one more module, without those that it is not inside of."""
    return (*(outer for outer in chain if is_inside(path, outer) and path != outer), path)


def common(chains: Iterable[Paths]) -> Paths:
    """Return the nearest common ancestor of chains of modules."""
    shared: Paths | None = None
    for chain in chains:
        if shared is None:
            shared = chain
        while shared != chain[: len(shared)]:
            shared = shared[:-1]
    return shared or ("",)


class Scopes:
    """The scopes of a graph that was traced from one module of a tree.

    `ruled_out` returns whether, for labels and a module, no call with these labels was a call of
    this module.
    """

    def __init__(
        self,
        tree: ModuleTree,
        base: str,
        ruled_out: Callable[[str, str], bool] | None = None,
    ) -> None:
        self.tree = tree
        self.base = base
        self.root: Paths = ("", base) if base else ("",)
        self._ruled_out = ruled_out
        self._prefix = f"{base}." if base else ""
        self._first: dict[str, str] = {}
        self._order: dict[str, int] = {}
        by_label: dict[str, list[str]] = {}
        for path, module in tree.modules.items():
            if path == base or not path.startswith(self._prefix):
                continue
            self._order[path] = len(self._order)
            self._first.setdefault(module.primary, path)
            if module.has_forward:
                by_label.setdefault(self._label(path), []).append(path)
        self._by_label = {label: sorted(paths) for label, paths in by_label.items()}
        self._parts = sorted({label.count("/") + 1 for label in by_label})
        self._chains: dict[str, list[Paths]] = {"": [self.root]}
        self._handed: set[str] = set()

    def first(self, path: str) -> str:
        """Return the one path that stands for a module under all its paths."""
        primary = self.tree.modules[path].primary
        return self._first.get(primary, primary)

    def _label(self, path: str) -> str:
        parts = self.first(path)[len(self._prefix) :].split(".")
        start = len(parts) - 1
        while start and parts[start].isnumeric():
            start -= 1
        return ".".join(parts if parts[start].isnumeric() else parts[start:])

    def chains(self, labels: str) -> list[Paths]:
        """Return the chains of modules that may have been called with labels that have no count.

        Returns:
            Every chain whose modules have the labels, one for each module at the end; none if
            there is no such module.
        """
        found = self._chains.get(labels)
        if found is not None:
            return found
        split = labels.split("/")
        for end in range(2, len(split) + 1):
            prefix = "/".join(split[:end])
            if prefix not in self._chains:
                self._chains[prefix] = self._chains_at(split[:end], prefix)
        return self._chains[labels]

    def _chains_at(self, split: list[str], labels: str) -> list[Paths]:
        """Return the chains, once those of all shorter prefixes are known."""
        # A tree that was made of tags or names may lack the module that a label means. There,
        # a module counts only if its caller holds it, with no callable module between the two.
        whole = self.tree.whole
        for held in (True, False) if whole else (True,):
            by_module: dict[str, Paths] = {}
            for parts in self._parts:
                if parts >= len(split):
                    break
                head, label = "/".join(split[:-parts]), "/".join(split[-parts:])
                for caller in self._chains[head]:
                    for path in self._labelled(label, caller[-1] if held else self.base):
                        chain = inside(caller, path)
                        if not whole and self.passed_over(chain):
                            continue
                        known = by_module.get(path, chain)
                        by_module[path] = (*common((known[:-1], chain[:-1])), path)
            if by_module:
                if not held:
                    self._handed.add(labels)
                break
        chains = [
            chain
            for path, chain in by_module.items()
            if self._ruled_out is None or not self._ruled_out(labels, path)
        ]
        if not self.tree.classes_known:
            # The tree is made of these very scopes: the nearest module is the scope itself.
            least = min(map(self.passed_over, chains), default=0)
            chains = [chain for chain in chains if self.passed_over(chain) == least]
        return chains

    def _labelled(self, label: str, outer: str) -> list[str]:
        """Return the modules of a label inside another, each by the first of its paths there."""
        paths = self._by_label.get(label, [])
        prefix = f"{outer}." if outer else ""
        low = bisect.bisect_left(paths, prefix)
        high = bisect.bisect_left(paths, prefix + chr(0x10FFFF)) if prefix else len(paths)
        found: dict[str, str] = {}
        for path in sorted(paths[low:high], key=self._order.__getitem__):
            found.setdefault(self.first(path), path)
        return list(found.values())

    def passed_over(self, chain: Paths) -> int:
        """Return the number of callable modules that a chain skips."""
        modules = self.tree.modules
        passed, outer, called = 0, chain[-1], set(chain)
        while outer not in ("", self.base):
            outer = outer.rpartition(".")[0]
            module = modules.get(outer)
            passed += module is not None and module.has_forward and outer not in called
        return passed

    def spellings(self, scope: str) -> list[str]:
        """Return the labels that a scope in a name stands for: as it is, and without a count.

        Labels that fit only a module that was passed to its caller come last.
        """
        found = [labels for labels in spellings(scope) if self.chains(labels)]
        return [labels for labels in found if labels not in self._handed] or found

    def candidates(self, scope: str) -> list[Paths]:
        """Return all chains that a scope in a name may stand for."""
        found = [chain for labels in self.spellings(scope) for chain in self.chains(labels)]
        return list(dict.fromkeys(found))

    def longest(self, scope: str) -> Paths:
        """Return the innermost known module of a scope that cannot be resolved completely."""
        while scope:
            scope = scope.rpartition("/")[0]
            found = self.chains(scope)
            if found:
                return common(found)
        return self.root
