"""A stdout that is a terminal of a given width, in this process."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

WIDTHS = (60, 80, 120, 200)

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.TextIOWrapper):
    """What is printed to it, as a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def printed(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def printed(
    monkeypatch: pytest.MonkeyPatch, width: int, print_it: Callable[[], None], *, colour: bool
) -> str:
    """What is printed on a terminal, without its colours, which are checked to be there."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color" if colour else "dumb")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        print_it()
    text = terminal.printed
    assert bool(_COLOUR.search(text)) == colour
    return _COLOUR.sub("", text)
