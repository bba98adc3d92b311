"""The parts of a result in a notebook: headings, tables, trees and treemaps, as plain HTML.

The HTML has no script and no URL, so that untrusted notebooks show it, too. Text has the notebook's
own colour, and all other colours are transparent, so that the same HTML suits light and dark
themes. Names come from models of unknown authors, and are escaped only here.
"""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from modelexport_optimum.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_T = TypeVar("_T")

MOST_ROWS = 30
"""Maximum rows of a table; a tree shows as many levels as fit."""

_MOST_BOXES = 40
"""Maximum boxes of a treemap; the largest are divided first."""

_MOST_CHARACTERS = 120

_WIDTH, _HEIGHT = 100.0, 36.0
"""A treemap's sides, chosen for nearly square boxes at the width of text."""

_LEAST_WIDTH, _LEAST_HEIGHT = 6.0, 3.6
"""Minimum sides of a box with a label."""

_STYLE = """
.modelexport{font-variant-numeric:tabular-nums;max-width:960px}
.modelexport table{border-collapse:collapse;margin:.4em 0}
.modelexport th,.modelexport td{padding:1px 10px;text-align:left;background:none;
border-bottom:1px solid rgba(128,128,128,.25)}
.modelexport .n{text-align:right}
.modelexport .dim{opacity:.65}
.modelexport .ok{color:#2f9e5b}
.modelexport .bad{color:#e0483e}
.modelexport .map{position:relative;height:300px;margin:.4em 0}
.modelexport .map div{position:absolute;overflow:hidden;overflow-wrap:anywhere;font-size:12px;
line-height:15px;box-sizing:border-box;box-shadow:inset 0 0 0 1px rgba(128,128,128,.5)}
.modelexport .map span{display:block;padding:2px 4px}
"""

_GOOD = {"ok", "same"}
_BAD = {"failed", "differs"}


@dataclass(frozen=True)
class Part:
    """A module of a tree, as data for trees and treemaps.

    Attributes:
        level: Number of shown modules that contain it.
        name: Its name in the tree.
        path: Its whole path.
        kind: Its class, which decides its colour.
        size: Its size with its submodules.
        own: Its size alone.
        cells: The other columns of the tree.
    """

    level: int
    name: str
    path: str
    kind: str
    size: float
    own: float
    cells: tuple[str, ...]


def shown(title: str, *parts: str) -> str:
    """Return a whole result: its name, and its parts below each other."""
    return (
        f"<style>{_STYLE}</style><div class='modelexport'><b>{escaped(title)}</b>"
        f"{''.join(parts)}</div>"
    )


def line(text: str, kind: str = "dim") -> str:
    """Return one line; `kind` is "dim", "ok" or "bad"."""
    return f"<div class='{kind}'>{escaped(text)}</div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, with numbers at the right, and the number of omitted rows."""
    every = list(rows)
    head = "".join(f"<th>{escaped(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in every[:MOST_ROWS])
    left = len(every) - MOST_ROWS
    return f"<table><tr>{head}</tr>{body}</table>" + (f"... {left:,} more" if left > 0 else "")


def tree(columns: Sequence[str], parts: Sequence[Part]) -> str:
    """Return a table whose first column is a tree, down to the last level that fits."""
    kept = outermost(parts, lambda part: part.level, MOST_ROWS)
    head = "".join(f"<th>{escaped(name)}</th>" for name in ("module", "class", *columns))
    body = "".join(
        f"<tr><td style='padding-left:{10 + 16 * part.level}px'>{escaped(part.name)}</td>"
        f"<td class='dim'>{escaped(part.kind)}</td>{''.join(map(_number, part.cells))}</tr>"
        for part in kept
    )
    left = len(parts) - len(kept)
    more = f"<div class='dim'>and {left:,} modules inside these</div>" if left else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def outermost(items: Sequence[_T], level: Callable[[_T], int], most: int) -> Sequence[_T]:
    """Return the items of as many levels as fit into a number of rows.

    If the first level does not fit, its first rows are kept.
    """
    count, deepest = 0, 0
    for at, more in sorted(Counter(map(level, items)).items()):
        count += more
        if count <= most:
            deepest = at
    return [item for item in items if level(item) <= deepest] if deepest else items[:most]


# --- The treemap ----------------------------------------------------------------------------------


def treemap(parts: Sequence[Part], written: Callable[[float], str]) -> str:
    """Return boxes as large as the modules' sizes, coloured by class; "" if all are 0."""
    if not parts or parts[0].size <= 0:
        return ""
    boxes = sorted(_divided(parts), key=lambda box: -box[1])
    kinds = {part.kind: number for number, part in reversed(list(enumerate(parts)))}
    colours = {kind: number for number, kind in enumerate(sorted(kinds, key=kinds.__getitem__))}
    sizes = [size for _, size in boxes]
    drawn = []
    for (part, size), (x, y, wide, high) in zip(boxes, _squarified(sizes), strict=True):
        name = part.path or part.name
        text = f"{name}\n{part.kind}\n{written(size)}"
        fits = wide >= _LEAST_WIDTH and high >= _LEAST_HEIGHT
        label = f"<span>{escaped(name)}<br>{escaped(written(size))}</span>" if fits else ""
        drawn.append(
            f"<div title='{escaped(text)}' style='left:{x:.2f}%;top:{y / _HEIGHT:.2%};"
            f"width:{wide:.2f}%;height:{high / _HEIGHT:.2%};"
            f"background:hsla({(colours[part.kind] * 137.508 + 250) % 360:.0f},60%,50%,.3)'>"
            f"{label}</div>"
        )
    return f"<div class='map' role='img' aria-label='sizes by module'>{''.join(drawn)}</div>"


def _divided(parts: Sequence[Part]) -> list[tuple[Part, float]]:
    """Divide the largest module into its submodules, until there are enough boxes."""
    inside: dict[int, list[int]] = {}
    around: list[int] = []
    for index, part in enumerate(parts):
        del around[part.level :]
        if around:
            inside.setdefault(around[-1], []).append(index)
        around.append(index)
    whole, single = {0}, dict[int, float]()
    while True:
        large = [index for index in whole if index in inside]
        largest = max(large, key=lambda index: parts[index].size, default=None)
        if largest is None:
            break
        more = [index for index in inside[largest] if parts[index].size > 0]
        if len(whole) + len(single) + len(more) > _MOST_BOXES:
            break
        whole.remove(largest)
        whole.update(more)
        if parts[largest].own > 0:
            single[largest] = parts[largest].own
    boxes = {**{index: parts[index].size for index in whole}, **single}
    return [(parts[index], size) for index, size in boxes.items() if size > 0]


def _squarified(sizes: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Lay out boxes, the largest first: Bruls, Huizing, van Wijk, Squarified Treemaps (2000)."""
    scale = _WIDTH * _HEIGHT / sum(sizes)
    areas = [size * scale for size in sizes]
    x = y = 0.0
    wide, high = _WIDTH, _HEIGHT
    placed: list[tuple[float, float, float, float]] = []
    while areas:
        side = max(min(wide, high), 1e-9)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(
            areas[:count], side
        ):
            count += 1
        row, areas = areas[:count], areas[count:]
        thick = sum(row) / side
        along = 0.0
        for area in row:
            length = area / thick
            upright = wide >= high
            placed.append(
                (x, y + along, thick, length) if upright else (x + along, y, length, thick)
            )
            along += length
        if wide >= high:
            x, wide = x + thick, wide - thick
        else:
            y, high = y + thick, high - thick
    return placed


def _worst(areas: Sequence[float], side: float) -> float:
    """Return the worst aspect ratio of the boxes in a row."""
    total = sum(areas)
    return max(side**2 * max(areas) / total**2, total**2 / (side**2 * min(areas)))


# --- Text -----------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Return a text for HTML, escaped and shortened, with visible control characters."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}..."
    return html.escape(visible(text, keep="\n"))


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return _number(f"{value:,}")
    text = str(value)
    kind = "ok" if text in _GOOD else "bad" if text in _BAD else ""
    return f"<td class='{kind}'>{escaped(text)}</td>" if kind else f"<td>{escaped(text)}</td>"


def _number(text: str) -> str:
    return f"<td class='n'>{escaped(text)}</td>"
