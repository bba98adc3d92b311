"""Where this process prints to, C++ libraries included."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def output_to(descriptor: int) -> Iterator[None]:
    """Send what is printed in the block to a file, whoever prints it.

    It works on the process's file descriptors, which is why only a program of its own does
    it and no function of the library.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(descriptor, number)
        stack.callback(_flush)
        yield


def _flush() -> None:
    # What cannot be printed, to a full disk as an example, undoes nothing that was done.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
