"""A file that is replaced in one step: the old one or the new one is there, whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, like: int | None = None) -> Iterator[int]:
    """Opens a temporary file that becomes `path` when the block ends without an error.

    Args:
        path: The file to replace.
        like: An open file whose mode and owner the new one gets.

    Yields:
        The temporary file's descriptor, open for writing.

    Raises:
        ModelExportError: It cannot be written; `path` is as it was and nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ModelExportError(f"cannot write in {path.parent}: {error.strerror}") from error
    try:
        try:
            yield target
            if like is not None:
                status = os.fstat(like)
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(target, status.st_uid, status.st_gid)
                os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.fsync(target)
        finally:
            os.close(target)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ModelExportError(
            f"cannot write {path}: {error.strerror}; the file is as it was"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
