"""How a result shows itself: a short text for `repr`, a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from modelexport_optimum.system.text import visible

_MOST_CHARACTERS = 80
_MOST_ITEMS = 3
_MOST_ROWS = 20


class Displayed:
    """A dataclass with a short, bounded `repr`, and a table in a notebook.

    The generated `repr` of a graph's module holds its nodes, theirs the modules again, and so
    on: with millions of paths through them it never ends.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Show the class, and each field on a few characters."""
        values = [f"{name}={_short(getattr(self, name))}" for name in _fields_of(self)]
        return f"{type(self).__name__}({', '.join(values)})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        rows = "".join(
            f"<tr>{_cell('th', name)}<td style='text-align:left'>{_html(getattr(self, name))}</td>"
            for name in _fields_of(self)
        )
        return f"<b>{type(self).__name__}</b><table>{rows}</table>"


def _short(value: Any, depth: int = 1) -> str:  # noqa: ANN401 (a field of any result)
    """Return a value on a few characters: of a collection its first items, of a result its name."""
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
    """Return the name of a result, or its path: what tells it from the others of its kind."""
    for name in ("name", "provider", "file", "module", "path"):
        own = getattr(value, name, None)
        if isinstance(own, str | Path) and str(own):
            return f" {_short(own)}"
    return ""


def _html(value: Any) -> str:  # noqa: ANN401
    """Return a value in a notebook's table: results of one kind as a table, with a row for each."""
    if not isinstance(value, tuple | list) or not value or not all(map(is_dataclass, value)):
        return html.escape(_text(value))
    rows = [_row(item) for item in value[:_MOST_ROWS]]
    head = "".join(_cell("th", name) for name in rows[0])
    body = "".join(
        f"<tr>{''.join(_cell('td', cell) for cell in row.values())}</tr>" for row in rows
    )
    left = len(value) - _MOST_ROWS
    more = f"<p>... {left:,} more</p>" if left > 0 else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _row(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the columns of a result: those of its JSON, if it has some."""
    if hasattr(value, "to_dict"):
        row: dict[str, Any] = value.to_dict()
        return row
    return {name: getattr(value, name) for name in _fields_of(value)}


def _cell(kind: str, value: object) -> str:
    return f"<{kind} style='text-align:left'>{html.escape(_text(value))}</{kind}>"


def _text(value: object) -> str:
    return visible(value) if isinstance(value, str) else _short(value)


def _fields_of(value: Any) -> list[str]:  # noqa: ANN401
    return [each.name for each in fields(value)]
