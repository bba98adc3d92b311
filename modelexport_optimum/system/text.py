"""Text from a file or a library, made safe for a terminal or a log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters (Unicode's category Cc), the characters that turn the direction of text
(https://trojansource.codes), the two that end a line, and lone surrogates, which stand for the
bytes of a file name that is not UTF-8 (PEP 383)."""


def visible(text: str, keep: str = "") -> str:
    r"""Escape the characters that control a terminal, ESC as `\x1b`, except those to keep."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def listed(names: Sequence[str], most: int, *, none: str = "none") -> str:
    """Return the first names and the number of the others: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or none


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
