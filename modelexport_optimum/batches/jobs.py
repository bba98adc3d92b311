"""What a batch is made of: a job, what is heard of it, who runs it, who watches.

Data alone. The local pool and Ray are two runners, and a batch does not know which it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modelexport_optimum.batches.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One line of a manifest: one export.

    Attributes:
        line: where it stands in the manifest, from 1.
        model: a name on the Hub, or a directory.
        output: the absolute path of the directory to write.
        arguments: further arguments of `export()`.
        log: the file that takes what the libraries print, and the traceback.
        resources: what it may take.
    """

    line: int
    model: str
    output: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None
    resources: Resources = Resources()  # noqa: RUF009 (it is frozen)

    @property
    def pending(self) -> Path | None:
        """The file that has the record while the output is published.

        A batch that is killed between that and results.jsonl is told by it.
        """
        return None if self.log is None else self.log.with_suffix(".pending")


@dataclass(frozen=True)
class Stage:
    """A job runs, and this stage of it has begun.

    Attributes:
        job: which.
        worker: what runs it, for the eye.
        name: "start" when the job is taken up, then the stages of `export()`; "waiting" when
            its process died and it will be taken up again.
    """

    job: Job
    worker: str
    name: str


@dataclass(frozen=True)
class Done:
    """A job ended by itself, well or not.

    Attributes:
        job: which.
        record: what `worker.convert` found, as JSON can carry it.
    """

    job: Job
    record: dict[str, Any]


@dataclass(frozen=True)
class Lost:
    """A job ended with its process.

    Attributes:
        job: which.
        reason: one line: what became of the process.
    """

    job: Job
    reason: str


class Runner(Protocol):
    """Runs jobs in other processes, some at a time.

    A job that was started is heard of in `Stage`s, and last in one `Done` or `Lost`.
    """

    def has_room(self) -> bool:
        """Whether `start` may be called."""

    def start(self, job: Job) -> None:
        """Take up a job; returns at once."""

    def wait(self, seconds: float) -> Sequence[Stage | Done | Lost]:
        """What happened, waiting for it no longer than this."""

    def cancel(self, job: Job, *, force: bool) -> None:
        """End a job that was started: in an orderly way, or by force at once.

        A `Lost` follows, unless the job ended by itself before.
        """

    def close(self) -> None:
        """End what is left, by force, and give back everything."""


class Watcher:
    """Is told how a batch goes on; this one says nothing."""

    def planned(self, jobs: Sequence[Job], skipped: int, workers: int | None) -> None:
        """What will be run, how many were done before, and by how many workers if known."""

    def running(self, event: Stage) -> None:
        """A job is in another stage."""

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        """A job has ended."""

    def stopping(self, reason: str) -> None:
        """What runs is being ended."""

    def warned(self, message: str) -> None:
        """Something is wrong that ends no job."""
