"""What can go wrong, in the user's words.

Every message is one line that names the file or option and says what to do. Errors
of other libraries are turned into these at the place that knows what they mean.
"""

from __future__ import annotations


class ModelExportError(Exception):
    """The export or the pass failed. The message is one line for the user."""

    exit_status = 1


class UsageError(ModelExportError):
    """The command line is wrong: nothing was tried and nothing was changed."""

    exit_status = 2


class InvalidModelError(ModelExportError):
    """A `.onnx` file is truncated, foreign, or lacks its external data."""
