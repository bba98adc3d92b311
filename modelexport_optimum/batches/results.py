"""results.jsonl: the result of each model of a batch, one JSON object on each line.

Each record is flushed to the disk before the next is written. If an output has several records, the
last one counts; the others are removed when the file is rewritten, at the end of a batch.
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
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.files import BYTES, read_file
from modelexport_optimum.system.locks import holding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESULTS = "results.jsonl"
"""The file of the records, in the batch's directory."""

LOGS = "logs"
"""The directory of the logs of failed jobs, in the batch's directory."""

_LOCK = ".batch.lock"
"""Held by a batch that writes in its directory."""

_WORKER_LOCKS = ".batch.worker-*.lock"
"""Each lock is held by a worker as long as it lives, which may be longer than its batch."""

_PATIENCE_SECONDS = 15
"""Time to wait for another batch's lock: the workers of a killed batch hold it until they notice.
"""

_BEGINNING = b'{"model": '
"""The first bytes of every line."""

_ALWAYS = {"model", "output", "status", "made"}
"""Keys of every record. A file without them is not a file of results."""

Record = dict[str, Any]


class Results:
    """The records of a batch's directory, by output."""

    def __init__(self, directory: Path) -> None:
        """Read the records of earlier batches in a directory, which may not exist.

        Raises:
            UsageError: results.jsonl is another kind of file.
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
        """Rewrite the file with one line for each output."""
        if not self.path.exists():
            return
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
    """Parse a record; None if the text is not a record."""
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
    """Make the directory, and lock it for other batches if the file system has locks.

    Raises:
        ModelExportError: Another batch writes there, or the directory cannot be made.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(holding(directory / _LOCK, wait=_PATIENCE_SECONDS))
            if held:
                stack.callback(_remove_locks_of_workers, directory, 0)  # of killed workers
                held = _remove_locks_of_workers(directory, deadline)
        except OSError as error:
            raise ModelExportError(
                f"cannot write in {directory}: {error.strerror}: give another directory with -o"
            ) from error
        if held is False:
            raise ModelExportError(
                f"another batch writes in {directory}: "
                "wait for it, or give another directory with -o"
            )
        yield


def _remove_locks_of_workers(directory: Path, deadline: float) -> bool:
    """Remove unused locks; return False if one is still held at the deadline."""
    for path in directory.glob(_WORKER_LOCKS):
        with holding(path, wait=deadline - time.monotonic()) as held:
            if held is False:
                return False
    return True


@contextlib.contextmanager
def held_by_worker(directory: Path) -> Iterator[None]:
    """Lock a directory for later batches while a worker runs, even if its batch is dead.

    The holder must check whether its batch is alive: if not, a later batch may already run.
    """
    while True:
        with holding(directory / _WORKER_LOCKS.replace("*", secrets.token_hex(4))) as held:
            if held is not False:
                yield
                return
        # Else a batch that just begins took the lock for one of a dead worker.
