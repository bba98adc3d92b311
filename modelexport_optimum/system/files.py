"""File calls that not every system has, each with its replacement on other systems.

Windows has the fewest. It has no descriptors of directories, cannot rename or remove an open file,
and changes the line ends of a file that is not opened in binary mode.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BYTES: int = getattr(os, "O_BINARY", 0)
"""A flag for `os.open`; without it Windows opens a file in text mode."""

_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
"""A flag for `os.open`; without it the opening of a pipe waits for a writer. Windows has no pipes
among files."""

_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)
NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
"""0 if directories cannot be opened, as on Windows."""

_ACCESS_DENIED, _SHARING_VIOLATION = 5, 32
"""The error codes of Windows for an open file (System Error Codes)."""

_MOUNT_POINT = 0xA0000003
"""The tag of Windows for a link from one directory to another (IO_REPARSE_TAG_MOUNT_POINT)."""

_RENAME_EXCHANGE = 2
"""From linux/fs.h: swap two names in one step."""

_AT_FDCWD = -100


def expand_user(name: str) -> str:
    """Return a path with `~` replaced: a shell does not do it for a name in quotes or in a file.

    `Path.expanduser` raises an error for an unknown user.
    """
    return os.path.expanduser(name)  # noqa: PTH111


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a directory; `Path.is_dir` raises an error for too long a name."""
    return os.path.isdir(path)  # noqa: PTH112


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is UTF-8, without which Rust and C++ libraries open no file."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def open_to_read(path: str | os.PathLike[str]) -> int:
    """Open a file for reading bytes, and return its descriptor.

    Raises:
        OSError: It cannot be read, or is a directory, a pipe (reading it could wait forever) or a
            device (it may have no end).
    """
    descriptor = os.open(path, os.O_RDONLY | BYTES | _NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file.

    Raises:
        OSError: As for `open_to_read`.
    """
    with os.fdopen(open_to_read(path), "rb") as file:
        return file.read()


def read_at(descriptor: int, length: int, start: int) -> bytes:
    """Read at most this many bytes from a position in a file; the file's own position stays."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, start)
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, length)
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def copy_in_kernel(source: int, start: int, end: int, target: int) -> int:
    """Copy bytes to the target's position in the kernel, as far as it can.

    Returns:
        The position of the first byte that is still to be copied.
    """
    while start < end and hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(source, target, end - start, offset_src=start)
        except OSError as error:
            # The file systems that cannot do it say one of these (man 2 copy_file_range).
            if error.errno not in (
                errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF
            ):  # fmt: skip
                raise
            break
        if not copied:
            break
        start += copied
    return start


def open_inside(directory: Path, parts: Sequence[str]) -> int:
    """Open a file for reading by its path below a directory, without following links.

    Raises:
        OSError: There is a link (ELOOP or ENOTDIR), or the file cannot be opened.
    """
    if not _DIRECTORY:
        return _open_checked(directory, parts)
    descriptor = os.open(directory, os.O_RDONLY | _DIRECTORY)
    try:
        for index, part in enumerate(parts, 1):
            flags = _NONBLOCK if index == len(parts) else _DIRECTORY
            inner = os.open(part, os.O_RDONLY | NOFOLLOW | flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_checked(directory: Path, parts: Sequence[str]) -> int:
    """Do the same by checking each part first, then that the opened file is the checked one."""
    path, seen = directory, directory.stat()
    for part in parts:
        path /= part
        seen = path.lstat()
        if stat.S_ISLNK(seen.st_mode) or getattr(seen, "st_reparse_tag", 0) == _MOUNT_POINT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    descriptor = os.open(path, os.O_RDONLY | BYTES | _NONBLOCK)
    if os.path.samestat(os.fstat(descriptor), seen):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def copy_owner_and_mode(source: int, target: int) -> None:
    """Give an open file the owner and mode of another, if the system has them."""
    status = os.fstat(source)
    if hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.fchown(target, status.st_uid, status.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(target, stat.S_IMODE(status.st_mode))


def flush(path: Path) -> None:
    """Flush a file, or a directory's entries, to the disk."""
    flags = os.O_RDONLY
    if not _DIRECTORY:
        if path.is_dir():
            return
        flags = os.O_RDWR | BYTES  # Windows flushes no file that is open for reading alone
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_over(path: Path, target: Path, *descriptors: int) -> None:
    """Rename a file over another one.

    Args:
        path: The file.
        target: Its new name.
        descriptors: The descriptors of the two files in this process. If the system cannot rename
            open files, they are closed and redirected to the null device.
    """
    try:
        path.replace(target)
    except PermissionError as error:
        if not _is_open(error):
            raise
        with Path(os.devnull).open("rb") as nowhere:
            for descriptor in descriptors:
                os.dup2(nowhere.fileno(), descriptor, inheritable=False)
        path.replace(target)


def rename_directory(path: Path, target: Path) -> None:
    """Rename a directory; the new name may be that of an empty directory.

    Raises:
        OSError: It cannot be renamed; with ENOTEMPTY or EEXIST if the new name is taken.
    """
    try:
        path.rename(target)
    except FileExistsError:
        target.rmdir()  # Windows takes no name that is taken
        path.rename(target)


def remove_and_close(path: Path, descriptor: int) -> None:
    """Remove an open and locked file, and close it, as far as the system allows."""
    is_open = False
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # the next run removes it
        is_open = _is_open(error)
    with contextlib.suppress(OSError):  # a lock is gone with its descriptor
        os.close(descriptor)
    if is_open:
        with contextlib.suppress(OSError):  # another process has opened it
            path.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two directories in one step; return False if the system cannot."""
    renameat2 = c_function("renameat2")
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def c_function(name: str) -> Any:  # noqa: ANN401 (ctypes')
    """Return a function of the C library of this process; None if it does not have it."""
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name, None)
    except TypeError:  # on Windows a library has to be named
        return None


def _is_open(error: OSError) -> bool:
    return getattr(error, "winerror", None) in (_ACCESS_DENIED, _SHARING_VIOLATION)
