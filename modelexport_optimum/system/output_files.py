"""The one rule for a file that a command writes, checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def check_output_file(target: Path, suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Refuse an output with another suffix, or an existing one.

    Args:
        target: The file to write.
        suffixes: The endings that it may have, the usual one first.
        overwrite: Whether an existing file is replaced. A directory never is.

    Raises:
        UsageError: The file cannot be written there.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a directory: give a {suffixes[0]} file to write")
    if target.suffix.lower() not in suffixes:
        raise UsageError(f"{target} is not a {suffixes[0]} file: give the output such a name")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists: give another file to write, or --overwrite")
