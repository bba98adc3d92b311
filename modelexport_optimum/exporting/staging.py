"""The output directory: written under a hidden name next to it, and published by one rename.

Whatever happens to a run, the output is absent, unchanged or finished. This module knows
directories, but not their content.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError, UsageError, causes
from modelexport_optimum.system.files import exchange, flush, is_utf8, rename_directory
from modelexport_optimum.system.locks import holding
from modelexport_optimum.system.signals import exit_if_asked, terminating_as_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPORT_MARKS = ("config.json", "model_index.json")
"""Every export has one of these files at its top; a diffusion pipeline has the second.
`--overwrite` replaces only such directories, so that a mistyped output cannot delete a home
directory."""


def check_output(output: str | os.PathLike[str], source: Path | None, *, overwrite: bool) -> Path:
    """Return the absolute path of the output, if it may be written; nothing is created.

    Args:
        output: The directory of the export.
        source: The model's own directory, which must survive.
        overwrite: Whether an existing export may be replaced.
    """
    path = Path(os.path.abspath(output))  # noqa: PTH100 (resolve() would follow a link)
    if not is_utf8(path):
        raise UsageError(
            f"output {path} is not UTF-8, and the libraries cannot write there: "
            "give another directory with -o"
        )
    if path.is_symlink():
        raise UsageError(
            f"output {output} is a symbolic link, and what it points to may be shared: "
            "remove the link, or give another directory with -o"
        )
    if path.exists() and not path.is_dir():
        raise UsageError(f"output {output} is a file: give a directory with -o")
    if path == Path.cwd() or path in Path.cwd().parents:
        raise UsageError(
            f"output {output} is the current directory or contains it: "
            "give the name of a new directory with -o"
        )
    if source is not None:
        resolved, model = path.resolve(), source.resolve()
        if resolved == model or resolved in model.parents:
            raise UsageError(
                f"output {output} is the model's own directory or contains it: "
                "give another directory with -o"
            )
    if os.path.ismount(path):
        raise UsageError(
            f"output {output} is a mount point, which cannot be replaced by a rename: "
            f"give a directory below it, such as -o {path / 'model'}"
        )
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise UsageError(
                f"output {output} exists and is not empty: "
                "give another directory with -o, or --overwrite to replace it"
            )
        if not any((path / mark).is_file() for mark in _EXPORT_MARKS):
            raise UsageError(
                f"output {output} is not an export (it has no config.json), so --overwrite does "
                "not replace it: give another directory with -o"
            )
        _check_removable(path, output)
    return path


def _check_removable(path: Path, output: str | os.PathLike[str]) -> None:
    """Refuse to replace a directory that would stay, hidden, as its files cannot be removed."""
    for place in [path, *path.rglob("*")]:
        if place.is_symlink() or not place.is_dir():
            continue
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(
                f"output {output} cannot be replaced, as the files in {place} cannot be "
                "removed: give another directory with -o"
            )


@contextlib.contextmanager
def staging_directory(output: Path) -> Iterator[Path]:
    """Make a hidden directory next to the output; it is removed after the block if not published.

    It is removed on an exception, on Ctrl-C and on SIGTERM. A live run holds a lock for its output,
    so that no other run writes there, and so that the next run can remove the files of a killed
    run.

    Raises:
        ModelExportError: Another run is writing the output, or it cannot be written.
    """
    missing: list[Path] = []
    directory = output.parent / f"{_prefix(output)}{secrets.token_hex(4)}"
    try:
        with _system_errors_named(output):
            missing += [parent for parent in output.parents if not parent.exists()]
            output.parent.mkdir(parents=True, exist_ok=True)
        with _owned(output):
            with _system_errors_named(output):
                directory.mkdir()
            try:
                with terminating_as_exit(interrupt=True):
                    yield directory
            finally:
                _remove_tree(directory)
    except Exception as error:
        for cause in causes(error):  # Optimum's and PyTorch's errors may wrap it
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ModelExportError(
                    f"no space left on the disk of {cause.filename or output}: free some space, or "
                    "give another disk with -o"
                ) from error
        raise
    finally:
        for parent in missing:  # nearest first; one that is in use by now stays
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def _system_errors_named(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelExportError(
            f"cannot write next to output {output}: {error.strerror}: give a writable directory "
            "with -o"
        ) from error


@contextlib.contextmanager
def flushed_meanwhile(directory: Path) -> Iterator[None]:
    """Flush a directory to the disk while the block runs, which may read the directory.

    Raises:
        ModelExportError: It cannot be written to the disk.
    """
    failures: list[ModelExportError] = []

    def run() -> None:
        try:
            _flush(directory)
        except ModelExportError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join()
    if failures:
        raise failures[0]


def _flush(directory: Path) -> None:
    """Write everything in a directory to the disk, so that it survives a power failure."""
    path = directory
    try:
        for path in [*directory.rglob("*"), directory]:
            if path.is_symlink():
                continue
            try:
                flush(path)
            except FileNotFoundError:  # a temporary file of the check
                continue
    except OSError as error:
        raise ModelExportError(
            f"cannot write {path.name} of the finished export to the disk: {error.strerror}: "
            "give another disk with -o"
        ) from error


def publish(staging: Path, output: Path, *, overwrite: bool) -> None:
    """Rename the staging directory to the output, in one step, when it is on the disk.

    With `overwrite` the old output takes the staging directory's name, which is then removed with
    everything in it.

    Raises:
        SystemExit: The run was asked to end, and the exception was lost before.
        KeyboardInterrupt: The same, after Ctrl-C.
        ModelExportError: The output was written in the meantime, or cannot be written.
    """
    _flush(staging)
    exit_if_asked()
    try:
        if overwrite and output.is_dir() and any(output.iterdir()):
            if not exchange(staging, output):
                _swap_in_two_steps(staging, output)
            return
        rename_directory(staging, output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ModelExportError(
                f"output {output} was written by another program during the export: "
                "export again with another -o, or with --overwrite"
            ) from error
        raise ModelExportError(
            f"cannot rename the finished export to output {output}: {error.strerror}; "
            "the old output is unchanged"
        ) from error


def _prefix(output: Path) -> str:
    return f".{output.name}.staging-"


def _lock_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.staging.lock")


@contextlib.contextmanager
def _owned(output: Path) -> Iterator[None]:
    """Hold an output's lock, if there are locks, and remove the files of killed runs."""
    with contextlib.ExitStack() as stack:
        with _system_errors_named(output):
            held = stack.enter_context(holding(_lock_of(output)))
            if held:
                _remove_stagings(output)
        if held is False:
            raise ModelExportError(
                f"output {output} is being written by another run: "
                "wait for its end, or give another directory with -o"
            )
        yield


def _remove_stagings(output: Path) -> None:
    for left in output.parent.glob(f"{glob.escape(_prefix(output))}*"):
        _remove_tree(left)


def _remove_tree(directory: Path) -> None:
    with contextlib.suppress(OSError):  # rmtree does not ignore those of fstat and close
        shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned(output: Path) -> None:
    """Remove the files of killed runs next to an output, unless a run is writing it.

    Without locks nothing is removed, because the files may belong to a live run.
    """
    locked = _lock_of(output)
    if not os.path.exists(locked):  # noqa: PTH110 (Path's raises for a name that is too long)
        return
    with contextlib.suppress(OSError), holding(locked) as held:  # one that is not ours stays
        if held:
            _remove_stagings(output)


def _swap_in_two_steps(staging: Path, output: Path) -> None:
    """Do the same if the system cannot swap two directories.

    Between the two renames the complete old output is next to its place, and stays there if the
    process dies: directories with that name are never cleaned up.
    """
    aside = output.parent / f".{output.name}.old-{secrets.token_hex(4)}"
    output.rename(aside)
    try:
        staging.rename(output)
    except BaseException:
        aside.rename(output)
        raise
    _remove_tree(aside)
