"""The display of results: a short text for `repr`, and a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from modelexport_optimum.system.notebook import line, shown, table

_MOST_CHARACTERS = 80
_MOST_ITEMS = 3

_MOST_RESULTS = 5
"""Maximum number of results of one kind, such as files, shown below each other."""


class Displayed:
    """A dataclass with a short, bounded `repr`, and a table in a notebook.

    The generated `repr` of a graph's module contains its nodes, these contain the modules again,
    and so on: with millions of paths it never ends.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Show the class, and each field in a few characters."""
        values = [f"{name}={_short(getattr(self, name))}" for name in _fields_of(self)]
        return f"{type(self).__name__}({', '.join(values)})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the fields, and those that are results in tables below."""
        values = {name: getattr(self, name) for name in _fields_of(self)}
        results = {name: value for name, value in values.items() if _are_results(value)}
        plain = [(name, _text(value)) for name, value in values.items() if name not in results]
        parts = [table(("", ""), plain)]
        for name, value in results.items():
            rows = [{key: _text(cell) for key, cell in _row(item).items()} for item in value]
            parts += [line(name), table(tuple(rows[0]), (tuple(row.values()) for row in rows))]
        return shown(type(self).__name__, *parts)


def several(results: Sequence[Displayed]) -> str:
    """Return the first results below each other."""
    left = len(results) - _MOST_RESULTS
    more = [f"... {left:,} more"] if left > 0 else []
    return "".join([*(one._repr_html_() for one in results[:_MOST_RESULTS]), *more])


def _short(value: Any, depth: int = 1) -> str:  # noqa: ANN401 (a field of any result)
    """Return a value in a few characters: a collection's first items, or a result's name."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        kept = value if len(value) <= _MOST_CHARACTERS else f"{value[:_MOST_CHARACTERS]}..."
        return repr(kept)
    if is_dataclass(value):
        return f"<{type(value).__name__}{_named(value)}>"
    if isinstance(value, Mapping):
        items = [f"{_short(k, 0)}: {_short(v, depth - 1)}" for k, v in _first(value.items())]
        return _joined("{}", items, len(value), depth)
    if isinstance(value, tuple | list | set | frozenset):
        items = [_short(item, depth - 1) for item in _first(value)]
        return _joined("()" if isinstance(value, tuple) else "[]", items, len(value), depth)
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"<{type(value).__name__}>"


def _joined(brackets: str, items: list[str], count: int, depth: int) -> str:
    if depth < 1 and count:
        return f"{brackets[0]}{count:,} items{brackets[1]}"
    more = [f"... {count - len(items):,} more"] if count > len(items) else []
    return f"{brackets[0]}{', '.join(items + more)}{brackets[1]}"


def _first(items: Any) -> list[Any]:  # noqa: ANN401
    return [item for item, _ in zip(items, range(_MOST_ITEMS), strict=False)]


def _named(value: Any) -> str:  # noqa: ANN401
    """Return the name of a result, or its path, which identifies it."""
    for name in ("name", "provider", "file", "module", "path"):
        own = getattr(value, name, None)
        if isinstance(own, str | Path) and str(own):
            return f" {_short(own)}"
    return ""


def _are_results(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, tuple | list) and bool(value) and all(map(is_dataclass, value))


def _row(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the columns of a result: those of its JSON, if there are any."""
    if hasattr(value, "to_dict"):
        row: dict[str, Any] = value.to_dict()
        return row
    return {name: getattr(value, name) for name in _fields_of(value)}


def _text(value: object) -> str:
    return value if isinstance(value, str) else _short(value)


def _fields_of(value: Any) -> list[str]:  # noqa: ANN401
    return [each.name for each in fields(value)]
