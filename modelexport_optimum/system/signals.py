"""The signals that ask a process to end: not every system has all of them."""

from __future__ import annotations

import os
import signal
import sys

TERMINAL_CLOSED = [signal.Signals[name] for name in ("SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""The signal to all processes of a terminal that is closed; the second one on Windows."""

TO_END = [signal.SIGTERM, *TERMINAL_CLOSED]
"""The signals that ask a process to end, besides Ctrl-C."""


def send_to_self(number: int) -> None:
    """Send a signal to this process; its main thread handles it."""
    if sys.platform == "win32":
        signal.raise_signal(number)  # `os.kill` ends a process there, and no handler is asked
    else:
        os.kill(os.getpid(), number)
