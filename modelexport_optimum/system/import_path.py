"""The import path without the current directory, which may be a model's."""

from __future__ import annotations

import sys
from pathlib import Path


def forget_current_directory() -> None:
    """Remove the current directory from `sys.path`, so that no file there replaces a library.

    `python -m`, multiprocessing's server (`python -c`) and Ray put it first; the program
    `modelexport-optimum` has no such entry. It stays if this package itself is in it, as in a
    checkout.
    """
    current = Path.cwd()
    if Path(__file__).parents[2] == current:
        return
    sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() != current]
