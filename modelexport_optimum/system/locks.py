"""A lock that the system gives back when its process dies."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that has none, as Lustre mounted without `flock`."""


class NoLocksError(OSError):
    """The file system has no locks."""


def lock(path: Path, *, shared: bool = False) -> int | None:
    """Take the lock that a file stands for, which is made if it is not there.

    Args:
        path: the file. Who has the lock may remove it.
        shared: with others that take it so.

    Returns:
        The descriptor that holds it; None if another process has it.

    Raises:
        NoLocksError: there are none here.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks no others
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                raise NoLocksError(error.errno, error.strerror, str(path)) from error
            raise
        os.close(descriptor)  # it was removed by who had it before


def share(descriptor: int) -> None:
    """Let others have the lock, too, who take it as shared."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
