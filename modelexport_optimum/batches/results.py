"""results.jsonl: what became of each model of a batch, one JSON object a line.

Each record is flushed to the disk before the next is written. Of several records of one output the
last counts; the others are removed when the file is rewritten, at the end of a batch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.system.files import BYTES, read_file, remove_and_close
from modelexport_optimum.system.locks import NoLocksError, lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESULTS = "results.jsonl"
"""Where the records are, in the batch's directory."""

LOGS = "logs"
"""Where the logs of what failed are, in the batch's directory."""

_LOCK = ".batch.lock"
"""Held by a batch that writes in its directory."""

_WORKER_LOCKS = ".batch.worker-*.lock"
"""Each held by a worker as long as it lives, which may be longer than its batch does."""

_PATIENCE_SECONDS = 15
"""Time to wait for another batch's lock: the workers of one that was killed hold it until they
notice."""

_BEGINNING = b'{"model": '
"""The first bytes of every line."""

_ALWAYS = {"model", "output", "status", "made"}
"""Keys that every record has, by which the file is known as ours."""

Record = dict[str, Any]


class Results:
    """The records of a batch's directory, by output."""

    def __init__(self, directory: Path) -> None:
        """Read what earlier batches left in a directory, which need not exist.

        Raises:
            UsageError: results.jsonl is something else.
        """
        self.path = directory / RESULTS
        self._directory = directory
        self._records: dict[Path, Record] = {}
        self._size = 0
        with contextlib.suppress(FileNotFoundError):
            self._read(read_file(self.path))

    def _read(self, content: bytes) -> None:
        *lines, last = content.split(b"\n")
        if not last.startswith(_BEGINNING[: len(last)]) or _parsed(last):
            lines.append(last)
        # Else the machine stopped while the last line was written, and the next record is
        # written over it.
        self._size = len(content) - len(last)
        for number, line in enumerate(lines, 1):
            record = record_in(line)
            if record is None:
                raise UsageError(
                    f"{self.path}:{number}: this is not a result of a batch: "
                    "move the file away, or give another directory with -o"
                )
            self._records[self._directory / record["output"]] = record

    def get(self, output: Path) -> Record | None:
        """Return the last record of an output; None if there is none."""
        return self._records.get(output)

    def add(self, output: Path, record: Record) -> None:
        """Append a record, and flush it to the disk.

        Raises:
            ModelExportError: It cannot be written; the file is unchanged.
        """
        inside = output.is_relative_to(self._directory)
        place = output.relative_to(self._directory) if inside else output
        record = {**record, "output": place.as_posix()}
        self._records[output] = record
        line = json.dumps(record).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | BYTES, 0o666)
            try:
                os.ftruncate(descriptor, self._size)
                os.lseek(descriptor, self._size, os.SEEK_SET)
                if os.write(descriptor, line) != len(line):
                    os.ftruncate(descriptor, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
                self._size += len(line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ModelExportError(f"cannot write {self.path}: {error.strerror}") from error

    def compact(self) -> None:
        """Write the file anew with one line for each output."""
        if not self.path.exists():
            return
        from modelexport_optimum.system.atomic_write import replacing

        lines = [json.dumps(record).encode() + b"\n" for record in self._records.values()]
        if self.path.read_bytes() == b"".join(lines):
            return
        with (
            self.path.open("rb") as like,
            replacing(self.path, like=like.fileno()) as descriptor,
            os.fdopen(descriptor, "wb", closefd=False) as file,
        ):
            file.writelines(lines)
        self._size = sum(map(len, lines))


def record_in(line: bytes) -> Record | None:
    """Return the record that a text is; None if it is none."""
    found = _parsed(line)
    if not isinstance(found, dict) or not found.keys() >= _ALWAYS:
        return None
    files = found.get("files", [])
    known = (
        isinstance(found["output"], str)
        and isinstance(found["made"], dict)
        and isinstance(files, list)
        and all(isinstance(one, dict) and isinstance(one.get("file"), str) for one in files)
    )
    return found if known else None


def _parsed(line: bytes) -> object:
    """Parse a line; None if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@contextlib.contextmanager
def only_batch(directory: Path) -> Iterator[None]:
    """Make the directory, and keep other batches out of it where the file system has locks.

    Raises:
        ModelExportError: Another batch writes there, or it cannot be made.
    """
    locked = directory / _LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        held = _lock_until(locked, deadline)
        taken = held is None or not _remove_locks_of_workers(directory, deadline)
    except NoLocksError:
        locked.unlink(missing_ok=True)
        yield
        return
    except OSError as error:
        raise ModelExportError(
            f"cannot write in {directory}: {error.strerror}: give another directory with -o"
        ) from error
    try:
        if taken:
            raise ModelExportError(
                f"another batch writes in {directory}: "
                "wait for it, or give another directory with -o"
            )
        yield
    finally:
        if held is not None:
            _remove_locks_of_workers(directory, deadline=0)  # of those that were killed
            remove_and_close(locked, held)


def _remove_locks_of_workers(directory: Path, deadline: float) -> bool:
    """Remove the locks that nobody holds; False if somebody still does at the deadline."""
    for path in directory.glob(_WORKER_LOCKS):
        held = _lock_until(path, deadline)
        if held is None:
            return False
        remove_and_close(path, held)
    return True


def _lock_until(path: Path, deadline: float) -> int | None:
    """Take a lock; None if another process still has it at the deadline."""
    while (held := lock(path)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


@contextlib.contextmanager
def held_by_worker(directory: Path) -> Iterator[None]:
    """Keep later batches out of a directory while a worker of one runs, though its batch be dead.

    Who holds it asks whether the batch is alive: if not, a later one may be there already.
    """
    held: int | None = None
    try:
        while held is None:  # a batch that begins takes it for what a dead worker left
            path = directory / _WORKER_LOCKS.replace("*", secrets.token_hex(4))
            held = lock(path)
    except NoLocksError:
        path.unlink(missing_ok=True)
        yield
        return
    try:
        yield
    finally:
        remove_and_close(path, held)
