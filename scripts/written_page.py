"""What the scripts of `make docs` share: a page is written, or compared with what it is to be."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_or_check(page: Path, text: str, source: str) -> None:
    """Write a page; with `--check` write nothing, and exit with the lines that are out of date.

    Args:
        page: Its file.
        text: What it is to be.
        source: What it is written from, for people.
    """
    if "--check" not in sys.argv[1:]:
        page.write_text(text, encoding="utf-8")
        return
    written = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    changes = difflib.unified_diff(written, text.splitlines(), page.name, source, lineterm="")
    if changed := list(changes):
        sys.exit("\n".join([*changed, f"docs/{page.name} is out of date: run `make docs`"]))
