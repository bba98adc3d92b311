"""Replacement of a file in one step: at any moment either the old or the new file is complete."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.files import (
    BYTES,
    copy_owner_and_mode,
    remove_and_close,
    rename_over,
)
from modelexport_optimum.system.locks import NoLocksError, lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)

_flushed = contextvars.ContextVar("_flushed", default=True)


@contextlib.contextmanager
def unflushed() -> Iterator[None]:
    """Skip flushes to the disk in the block, for files of an unpublished directory."""
    token = _flushed.set(False)
    try:
        yield
    finally:
        _flushed.reset(token)


def flushes() -> bool:
    """Return whether a file that is replaced now is flushed to the disk."""
    return _flushed.get()


@contextlib.contextmanager
def replacing(path: Path, *, like: int | None = None) -> Iterator[int]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The temporary file is locked while it is written. An unlocked one is left from a killed run, and
    the next run removes it.

    Args:
        path: The file to replace.
        like: An open file, `path` itself, whose mode and owner the new file gets; without it the
            mode follows the umask. It may be closed when the block ends.

    Yields:
        The temporary file's descriptor, open for reading and writing.

    Raises:
        ModelExportError: It cannot be written; `path` is unchanged, and no other file is left.
    """
    try:
        remove_abandoned(path.parent, lambda name: name == path.name)
        temporary, target = _temporary(path, 0o666 if like is None else 0o600)
    except OSError as error:
        raise ModelExportError(f"cannot write in {path.parent}: {error.strerror}") from error
    try:
        yield target
        if like is not None:
            copy_owner_and_mode(like, target)
        if flushes():
            os.fsync(target)
        rename_over(temporary, path, target, *(() if like is None else (like,)))
    except OSError as error:
        remove_and_close(temporary, target)
        raise ModelExportError(
            f"cannot write {path}: {error.strerror}; the file is unchanged"
        ) from error
    except BaseException:
        remove_and_close(temporary, target)
        raise
    with contextlib.suppress(OSError):  # it is on the disk since fsync
        os.close(target)  # and with it the lock


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all bytes; the system takes at most 2 GiB at once."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(descriptor, view[written:])


def remove_abandoned(directory: Path, matches: Callable[[str], bool]) -> None:
    """Remove the temporary files of killed runs with these names, which no live run has locked.

    Without locks nothing is removed, because the files may belong to a live run.

    Raises:
        OSError: The directory cannot be read.
    """
    for temporary in directory.iterdir():
        found = _TEMPORARY.fullmatch(temporary.name)
        if found is None or not matches(found["name"]):
            continue
        with contextlib.suppress(OSError):  # not ours
            # Opening a link would open, or make, what it points to.
            held = lock(temporary) if stat.S_ISREG(temporary.lstat().st_mode) else None
            if held is not None:
                remove_and_close(temporary, held)


def _temporary(path: Path, mode: int) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            target = lock(temporary, mode=mode)
        except NoLocksError:
            target = os.open(temporary, os.O_RDWR | BYTES)
        except BaseException:  # such as a signal
            with contextlib.suppress(OSError):  # the next run does it
                temporary.unlink(missing_ok=True)
            raise
        if target is not None:
            return temporary, target
