"""What can go wrong, in the user's words.

Every message is one line that names the file or option and says what to do. Errors
of other libraries are turned into these at the place that knows what they mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class ModelExportError(Exception):
    """The export or the pass failed. The message is one line for the user."""

    exit_status = 1


class UsageError(ModelExportError):
    """The command line is wrong: nothing was tried and nothing was changed."""

    exit_status = 2


class ManifestError(UsageError):
    """Lines of a manifest are wrong. The message is a line for each, below a first one.

    Attributes:
        problems: each with the manifest's name and the line's number.
    """

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        first = f"{name} has {count} error{'s' * (count > 1)}"
        super().__init__("\n".join([first, *self.problems]))


class InvalidModelError(ModelExportError):
    """A `.onnx` file is truncated, foreign, or lacks its external data."""


def in_one_line(error: BaseException) -> str:
    """What went wrong, for the user, whatever was raised."""
    if isinstance(error, ModelExportError):
        message = str(error)
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
    else:
        message = f"{type(error).__name__}: {error} (unexpected: please report it with --verbose)"
    return " ".join(message.split())
