"""Locks between processes, which the system releases when a process dies, and between threads."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from modelexport_optimum.system.files import BYTES, NOFOLLOW, remove_and_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ONE_THREAD = threading.RLock()
"""An export, or a model built without weights, changes globals of PyTorch and of Optimum: the
tracing state (torch.onnx.utils), `Module.register_parameter` (accelerate's init_empty_weights). So
only one thread of a process may do it at a time."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""The errors of a file system without locks, such as Lustre mounted without `flock`."""

_FLAGS = os.O_RDWR | os.O_CREAT | NOFOLLOW | BYTES
"""Flags to open a lock: NFS locks only files that are open for writing, and following a link could
make a file elsewhere."""

_POLL_SECONDS = 0.05

_logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_one_thread(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function so that only one thread of the process runs it at a time."""

    @functools.wraps(function)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with ONE_THREAD:
            return function(*args, **kwargs)

    return alone


class NoLocksError(OSError):
    """The file system has no locks."""


def lock(path: Path, *, mode: int = 0o666) -> int | None:
    """Take the lock of a file, which is made if it does not exist.

    Args:
        path: The file. The holder of the lock may remove it.
        mode: Mode of a new file, reduced by the umask.

    Returns:
        The descriptor that holds it; None if another process has it.

    Raises:
        NoLocksError: The file system has no locks.
        OSError: The file cannot be made.
    """
    from filelock import lock_descriptor  # 0.1 s, for who writes alone

    while True:
        descriptor = os.open(path, _FLAGS, mode)
        try:
            is_free = lock_descriptor(descriptor, blocking=False)
            if is_free and _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                raise NoLocksError(error.errno, error.strerror, str(path)) from error
            raise
        os.close(descriptor)
        if not is_free:
            return None
        # Else it was removed by who had it before.


@contextlib.contextmanager
def holding(path: Path, *, wait: float = 0, what: str = "") -> Iterator[bool | None]:
    """Hold the lock of a file during the block, and then remove the file.

    Args:
        path: The file.
        wait: Seconds to wait for another process that holds the lock.
        what: What is locked, for a line that is logged if another process holds the lock.

    Yields:
        True; False if another process still holds the lock; None if the file system has no locks.

    Raises:
        OSError: The file cannot be made.
    """
    deadline = time.monotonic() + wait
    try:
        held = lock(path)
        if held is None and what:
            _logger.warning("waiting for another run that works on %s", what)
        while held is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            held = lock(path)
    except NoLocksError:
        path.unlink(missing_ok=True)
        yield None
        return
    if held is None:
        yield False
        return
    try:
        yield True
    finally:
        remove_and_close(path, held)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
