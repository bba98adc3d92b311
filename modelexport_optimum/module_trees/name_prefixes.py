"""Prefixes by which the names in a graph differ from the names in a model.

An encoder that is exported alone names its modules and parameters relative to the encoder, and
sentence-transformers wraps the model in a module of its own. Then one name is the other name with a
prefix, and most names have the same prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    Prefixes = tuple[str, str]
    """What the model's names have more than the graph's, and the reverse; one of them is ""."""


def pairs_by_prefixes(
    names: Iterable[str], known: Collection[str]
) -> dict[Prefixes, list[tuple[str, str]]]:
    """Pair names in a graph with equal names in a model, or names that differ by a prefix."""
    by_tail: dict[str, list[str]] = {}
    for name in known:
        for tail in _tails(name):
            by_tail.setdefault(tail, []).append(name)
    pairs: dict[Prefixes, list[tuple[str, str]]] = {}
    for name in names:
        for longer in by_tail.get(name, ()):
            pairs.setdefault((longer[: -len(name)], ""), []).append((name, longer))
        for tail in _tails(name):
            if tail != name and tail in known:
                pairs.setdefault(("", name[: -len(tail)]), []).append((name, tail))
    return pairs


def _tails(name: str) -> Iterator[str]:
    """Yield a dotted name, then the same without its first part, and so on."""
    while name:
        yield name
        name = name.partition(".")[2]
