"""The warning that weights are missing in the model's files and were initialized at random."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_ROW = re.compile(r"(.+?)\s*\|\s*(?:MISSING|MISMATCH)\b")
"""A row of transformers 5's table (utils/loading_report.py): the weight's name, and its status."""


@contextlib.contextmanager
def missing_weights_recorded(warnings: list[str]) -> Iterator[None]:
    """Add a line for each model loaded in the block whose files lack some weights."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if "newly initialized" in message or "MISMATCH" in message:
                warnings.append(_in_one_line(message))

    logger, handler = logging.getLogger("transformers"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _in_one_line(message: str) -> str:
    """Return the line of transformers 4, or one with the names in the table of transformers 5."""
    first, *more = _COLOUR.sub("", message).splitlines()
    names = [row[1] for line in more if (row := _ROW.match(line))]
    if not names:
        return first
    return f"{first.replace(' LOAD REPORT from: ', ' of ')}: newly initialized: {', '.join(names)}"
