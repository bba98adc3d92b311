"""Makes this Python like one of Windows or macOS, for `make test-portable`.

Python imports it when it starts, in the tests and in every process that they start, if its
directory stands in PYTHONPATH. It takes away what those systems lack, and lets no file be renamed
or removed that this process has open or mapped, as Windows does. A library that tests need, and
that has a way of its own there, is imported before and keeps what it found.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

OF_OS = (
    "O_DIRECTORY", "O_NOFOLLOW", "chown", "copy_file_range", "fchmod", "fchown", "fork", "forkpty",
    "geteuid", "getegid", "getpgid", "getpgrp", "killpg", "lchown", "memfd_create", "mkfifo",
    "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "sched_getaffinity",
    "setpgid", "setsid", "splice",
)  # fmt: skip
OF_SIGNAL = (
    "SIGHUP", "SIGPIPE", "SIGUSR1", "SIGUSR2", "pthread_kill", "pthread_sigmask", "setitimer",
    "sigpending", "sigwait",
)  # fmt: skip
MODULES = ("fcntl", "grp", "pwd", "resource", "termios")

SHARING_VIOLATION = 32
"""ERROR_SHARING_VIOLATION, what Windows says of a file that is open."""


def take_away() -> None:
    """Take what other systems lack from the standard library."""
    for name in OF_OS:
        delattr(os, name)
    os.supports_dir_fd.clear()
    for name in OF_SIGNAL:
        delattr(signal, name)

    import multiprocessing.context

    import filelock  # noqa: F401 (it locks by msvcrt on Windows, and by fcntl elsewhere)
    import psutil  # noqa: F401 (on Linux it needs `resource`)

    multiprocessing.set_start_method("spawn")
    multiprocessing.context._concrete_contexts.pop("fork")
    multiprocessing.context._concrete_contexts.pop("forkserver")
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]

    open_library = ctypes.CDLL.__init__

    def initialize(self: ctypes.CDLL, name: str | None, *args: Any, **kwargs: Any) -> None:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        open_library(self, name, *args, **kwargs)

    ctypes.CDLL.__init__ = initialize  # type: ignore[method-assign]


def keep_names_of_open_files() -> None:
    """Let no file be renamed, replaced or removed that is open in this process."""
    for name in ("rename", "replace", "remove", "unlink", "rmdir"):
        setattr(os, name, _refusing(getattr(os, name)))


def _refusing(function: Callable[..., None]) -> Callable[..., None]:
    def call(*paths: Any, **kwargs: Any) -> None:
        for path in paths:
            if _is_open(os.path.abspath(os.fsdecode(path))):  # noqa: PTH100
                error = PermissionError(errno.EACCES, "it is used by a process", os.fsdecode(path))
                error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]
                raise error
        function(*paths, **kwargs)

    return call


def _is_open(path: str) -> bool:
    """Tell whether this process has a file open or mapped, or one inside of a directory."""
    if os.path.islink(path):  # noqa: PTH114
        return False
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except FileNotFoundError:  # of the listing itself
            continue
        if target == path or target.startswith(f"{path}/"):
            return True
    maps = Path("/proc/self/maps").read_bytes()
    return f" {path}\n".encode() in maps or f" {path}/".encode() in maps


if sys.platform == "linux":
    take_away()
    keep_names_of_open_files()
