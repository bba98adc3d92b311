"""The signals that ask a process to end: not every system has all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

TERMINAL_CLOSED = [signal.Signals[name] for name in ("SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""The signal to all processes of a terminal that is closed; the second one on Windows."""

TO_END = [signal.SIGTERM, *TERMINAL_CLOSED]
"""The signals that ask a process to end, besides Ctrl-C."""

_AGAIN_SECONDS = 1.0
"""Between two attempts to leave a block that was asked to end."""

_asked: list[int] = []
"""The signals that have come while a block of `terminating_as_exit` runs."""

_timers: list[threading.Timer] = []
"""Each sends a signal once more, in case the exception that it raised is lost."""


def send_to_self(number: int) -> None:
    """Send a signal to this process; its main thread handles it."""
    if sys.platform == "win32":
        signal.raise_signal(number)  # `os.kill` ends a process there, and no handler is asked
    else:
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def terminating_as_exit() -> Iterator[None]:
    """Turn SIGTERM and its like into SystemExit in the block, so that cleaning up is done.

    Only where nobody else has a handler, and only in the main thread, where Python allows it.
    SystemExit is raised wherever the program is just then. It may be lost, in a destructor, or
    become another error, in an import: then it is raised again, at the latest as the block ends.
    One such block may be inside another.
    """
    before = {number: signal.getsignal(number) for number in TO_END}
    ours = {n: handler for n, handler in before.items() if handler in (signal.SIG_DFL, _exit)}
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in ours:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_IGN)
        while _timers:
            timer = _timers.pop()
            timer.cancel()
            timer.join()
        for number, handler in ours.items():
            signal.signal(number, handler)
        asked = list(_asked)
        if _exit not in ours.values():  # no such block is around this one
            _asked.clear()
        if asked:
            raise SystemExit(128 + asked[0])


def exit_if_asked() -> None:
    """Raise the SystemExit that a signal in the block has raised, in case it was lost."""
    if _asked:
        raise SystemExit(128 + _asked[0])


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    timer = threading.Timer(_AGAIN_SECONDS, send_to_self, (number,))
    timer.daemon = True
    _timers.append(timer)
    timer.start()
    raise SystemExit(128 + number)
