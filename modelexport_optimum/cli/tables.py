"""Tables and lines for people: drawn at the width of the terminal, and never broken in a pipe.

If a table is wider than the terminal, text is wrapped and paths are shortened in the middle, down
to a width that people can still read. If that is not enough, columns are left out, in the order
that the table defines, and a line below names them. Columns without such an order always stay.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from modelexport_optimum.cli.printing import can_draw
from modelexport_optimum.system.standard_streams import in_ascii
from modelexport_optimum.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

DIM = "bright_black"

_GAP = "  "

_READABLE = {"path": 28, "name": 16, "text": 30}
"""The width that a column keeps as long as another column can be left out."""

_LEAST = {"path": 10, "name": 8, "text": 16}
"""The width that it keeps in any case, without the lines of a tree."""

_STATUS_STYLES = {
    "ok": "green",
    "differs": "yellow",
    "failed": "red",
    "check-failed": "red",
    "upload-failed": "red",
    "timed-out": "red",
    "crashed": "red",
    "not run": DIM,
    "skipped": DIM,
    "unavailable": DIM,
}

EVIDENCE_LEGEND = {
    "  tracer": "the tracer recorded the module's call while it made the node",
    "  scope": "the node's name contains the module's path",
    "  parameter": "it reads a parameter that only this module has",
    "  data flow": "the nodes that it reads, and the nodes that read it, are of that module",
    "  root": "nothing shows a more exact module than the root",
    "  carrier": "it already had the tag",
}
"""The kinds of evidence, explained."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its title.
        right: Whether it is aligned to the right, as numbers are.
        shrinks: How it gets narrower: a path or a name is shortened in the middle, a text is
            wrapped.
        drop: Its place in the order in which columns are left out; None if it never is.
    """

    name: str
    right: bool = False
    shrinks: Literal["path", "name", "text"] | None = None
    drop: int | None = None


@dataclass(frozen=True)
class Cell:
    """One cell of a row.

    Attributes:
        text: The text.
        style: Its style, in rich's name.
        guide: The lines of a tree before it, which are not shortened.
    """

    text: str
    style: str = ""
    guide: str = ""


Row: TypeAlias = "Sequence[str | Cell]"


def status_cell(status: str) -> Cell:
    """Return a status in its colour."""
    return Cell(status, _STATUS_STYLES.get(status, ""))


def stdout() -> Console:
    """Return the terminal, or its replacement."""
    return Console(file=sys.stdout, highlight=False, markup=False)


def print_line(*parts: str | tuple[str, str], style: str = "") -> None:
    """Print a line without wrapping it, so that it can be pasted."""
    shown = [(_drawn(p), "") if isinstance(p, str) else (_drawn(p[0]), p[1]) for p in parts]
    _print(stdout(), Text.assemble(*shown, style=style))


def print_blank() -> None:
    """Print an empty line."""
    _print(stdout(), Text())


def print_table(
    columns: Sequence[Column], rows: Iterable[Row], *, elsewhere: str = "--json has all"
) -> None:
    """Print a table at the width of the terminal.

    A column that is empty in every row is not shown. `elsewhere` says where the omitted columns
    are.
    """
    console = stdout()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    table = [[_shown(cell) for cell in row] for row in rows]
    used = [index for index in range(len(columns)) if any(row[index].text for row in table)]
    columns = [columns[index] for index in used]
    table = [[row[index] for index in used] for row in table]
    head = [Cell(column.name, DIM) for column in columns]
    kept, widths = _layout(columns, [head, *table], width)
    for row in [head, *table] if any(column.name for column in columns) else table:
        for line in _lines([columns[index] for index in kept], [row[i] for i in kept], widths):
            _print(console, line)
    left_out = [column.name for index, column in enumerate(columns) if index not in kept]
    if left_out:
        note = f"no room for {', '.join(left_out)} in {width} columns; {elsewhere}"
        for part in _wrapped(note, width or len(note)):
            print_line(part, style=DIM)


def print_legend(legend: Mapping[str, str]) -> None:
    """Print the meaning of columns and values."""
    print_blank()
    rows = [(Cell(name, DIM), text) for name, text in legend.items()]
    print_table((Column(""), Column("", shrinks="text")), rows)


def guides(levels: Sequence[int]) -> list[str]:
    """Return the tree lines before each row, from the rows' levels, outer before inner."""
    lines: list[str] = []
    goes_on: set[int] = set()  # the levels on which another row follows below
    for level in reversed(levels):
        before = "".join("│  " if outer in goes_on else "   " for outer in range(1, level))
        own = "├─ " if level in goes_on else "└─ "
        lines.append(before + own if level else "")
        goes_on = {outer for outer in goes_on if outer < level} | {level}
    return lines[::-1]


def shortened(text: str, width: int) -> str:
    """Return a text in at most this many columns, without its middle if necessary."""
    if cell_len(text) <= width:
        return text
    sign = _drawn("…")
    first = (width - len(sign)) // 2
    last = text[::-1]
    last = set_cell_size(last, width - len(sign) - first).rstrip(" ")[::-1]
    return f"{set_cell_size(text, first).rstrip(' ')}{sign}{last}"


def from_here(path: Path, start: Path | None = None) -> str:
    """Return a path relative to the current or another directory, if it is below it."""
    relative = os.path.relpath(path, start)
    return str(path) if relative.startswith("..") else relative


def counted(number: int, noun: str) -> str:
    """Return a number of things: "1 run", "1,081 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- The layout -----------------------------------------------------------------------------------


def _layout(
    columns: Sequence[Column], table: Sequence[Sequence[Cell]], width: int | None
) -> tuple[list[int], list[int]]:
    """Return the columns to show, by index, and the width of each."""
    natural = [
        max(cell_len(row[i].guide + row[i].text) for row in table) for i in range(len(columns))
    ]
    kept = list(range(len(columns)))
    if width is None:
        return kept, natural
    guide = [max(len(row[i].guide) for row in table) for i in range(len(columns))]

    def least(index: int, bounds: dict[str, int]) -> int:
        shrinks = columns[index].shrinks
        if shrinks is None:
            return natural[index]
        return min(natural[index], max(bounds[shrinks], guide[index] + bounds[shrinks] // 2))

    def fits(bounds: dict[str, int]) -> bool:
        gaps = len(_GAP) * (len(kept) - 1)
        return sum(least(index, bounds) for index in kept) + gaps <= width

    order = sorted((c.drop, i) for i, c in enumerate(columns) if c.drop is not None)
    while not fits(_READABLE) and order:
        kept.remove(order.pop(0)[1])
    bounds = _READABLE if fits(_READABLE) else _LEAST
    widths = {index: least(index, bounds) for index in kept}
    room = width - sum(widths.values()) - len(_GAP) * (len(kept) - 1)
    wanting = [index for index in kept if columns[index].shrinks]
    while room > 0 and (wanting := [i for i in wanting if widths[i] < natural[i]]):
        for index in wanting[:room]:
            widths[index] += 1
        room -= len(wanting[:room])
    return kept, [widths[index] for index in kept]


def _lines(columns: Sequence[Column], row: Sequence[Cell], widths: Sequence[int]) -> list[Text]:
    """Return the lines of one row."""
    parts = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        if column.shrinks == "text":
            parts.append(_wrapped(cell.text, width))
        else:
            parts.append([shortened(cell.text, width - len(cell.guide))])
    lines = []
    for number in range(max(map(len, parts))):
        line = Text()
        for column, cell, width, texts in zip(columns, row, widths, parts, strict=True):
            guide = cell.guide if number == 0 else " " * len(cell.guide)
            text = texts[number] if number < len(texts) else ""
            blanks = " " * (width - cell_len(guide) - cell_len(text))
            if column.right:
                line.append(blanks)
            line.append(guide, DIM).append(text, cell.style)
            line.append(_GAP if column.right else blanks + _GAP)
        line.rstrip()
        lines.append(line)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, broken between words; a word that is too long is broken."""
    if cell_len(text) <= width:
        return [text]
    return [line.plain.rstrip() for line in Text(text).wrap(stdout(), width)]


def _shown(cell: str | Cell) -> Cell:
    if isinstance(cell, str):
        return Cell(_drawn(cell))
    return Cell(_drawn(cell.text), cell.style, _drawn(cell.guide))


def _drawn(text: str) -> str:
    """Return a text in the characters that this stdout can show."""
    text = visible(text)
    if text.isascii() or can_draw(sys.stdout):
        return text
    encoding = sys.stdout.encoding
    return "".join(c if c.encode(encoding, "ignore") else in_ascii(c) for c in text)


def _print(console: Console, line: Text) -> None:
    if console.is_terminal:
        console.print(line, soft_wrap=True)
    else:  # rich takes seconds for thousands of lines
        sys.stdout.write(f"{line.plain}\n")


def share_cell(share: float) -> Cell:
    """Return a percentage; large ones are emphasized."""
    return Cell(f"{share:.1%}", "green" if share >= 0.1 else DIM)
