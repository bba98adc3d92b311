"""The signals that ask a process to end: not every system has all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

TERMINAL_CLOSED = [signal.Signals[name] for name in ("SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""The signal to all processes of a terminal that is closed; the second one on Windows."""

TO_END = [signal.SIGTERM, *TERMINAL_CLOSED]
"""The signals that ask a process to end, besides Ctrl-C."""

_AGAIN_SECONDS = 1.0
"""Time between two attempts to end a block after a signal."""

_asked: list[int] = []
"""The signals that came during a block of `terminating_as_exit`."""

_timers: list[threading.Timer] = []
"""Timers that send a signal again, in case its exception was lost."""


def send_to_self(number: int) -> None:
    """Send a signal to this process; its main thread handles it."""
    if sys.platform == "win32":
        signal.raise_signal(number)  # `os.kill` ends a process there, and no handler is asked
    else:
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def terminating_as_exit(*, interrupt: bool = False) -> Iterator[None]:
    """Convert SIGTERM and similar signals to SystemExit in the block, so that the block cleans up.

    This is done only if there is no other handler, and only in the main thread, because Python
    allows it only there. The exception is raised at any point of the program. It may be lost in a
    destructor, or become another error in an import. Then it is raised again, at the latest at the
    end of the block. One such block may be inside another.

    Args:
        interrupt: Whether the KeyboardInterrupt of Ctrl-C is raised again, too, if it was lost.
    """
    defaults: dict[int, Any] = dict.fromkeys(TO_END, signal.SIG_DFL)
    if interrupt:
        defaults[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.getsignal(number) for number in defaults}
    ours = {n: handler for n, handler in before.items() if handler in (defaults[n], _end)}
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in ours:
        signal.signal(number, _end)
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
        if _end not in ours.values():  # no such block is around this one
            _asked.clear()
        if asked:
            raise _exception_of(asked[0])


def exit_if_asked() -> None:
    """Raise the exception of a signal that came during the block, if it was lost."""
    if _asked:
        raise _exception_of(_asked[0])


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    timer = threading.Timer(_AGAIN_SECONDS, send_to_self, (number,))
    timer.daemon = True
    _timers.append(timer)
    timer.start()
    raise _exception_of(number)


def _exception_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
