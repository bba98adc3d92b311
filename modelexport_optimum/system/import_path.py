"""The import path without the current directory, which may be a model's."""

from __future__ import annotations

import sys
from pathlib import Path


def forget_current_directory() -> None:
    """Take the current directory off `sys.path`, so that no file there stands for a library.

    `python -m`, multiprocessing's server (`python -c`) and Ray put it in front; the program
    `modelexport-optimum` has no such entry. It stays where this package itself lies in it, as in a
    checkout.
    """
    current = Path.cwd()
    if Path(__file__).parents[2] == current:
        return
    sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() != current]
