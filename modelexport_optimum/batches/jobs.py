"""The parts of a batch: a job, the events of a job, the interface of a runner, and a watcher.

These are plain data. The local pool and Ray are two runners, and a batch does not know which one it
has.
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
        line: Number of the line in the manifest, from 1.
        model: A name on the Hub, or a directory.
        output: The absolute path of the directory to write.
        log: The file for the output of the libraries, and the traceback.
        arguments: Further arguments of `export()`.
        resources: Its limits and the resources to request.
    """

    line: int
    model: str
    output: Path
    log: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()  # noqa: RUF009 (it is frozen)

    @property
    def pending(self) -> Path:
        """The file with the record until the record is in results.jsonl.

        It tells the next batch about an output that was published just before this batch died.
        """
        return self.log.with_suffix(".pending")


@dataclass(frozen=True)
class Stage:
    """A stage of a job has begun.

    Attributes:
        job: The job.
        worker: The displayed name of the process that runs it.
        name: "start" when the job starts, then the stages of `export()`; "waiting" when its process
            died and it will start again.
    """

    job: Job
    worker: str
    name: str


@dataclass(frozen=True)
class Done:
    """A job has ended by itself, with or without success.

    Attributes:
        job: The job.
        record: What `worker.run_job` returned.
    """

    job: Job
    record: dict[str, Any]


@dataclass(frozen=True)
class Lost:
    """A job has ended with its process.

    Attributes:
        job: The job.
        reason: Why the process ended, in one line.
    """

    job: Job
    reason: str


class Runner(Protocol):
    """Runs jobs in other processes, several at a time.

    The events of a job that was started are any number of `Stage`, then one `Done` or `Lost`.
    """

    def has_room(self) -> bool:
        """Tell whether `start` may be called."""

    def start(self, job: Job) -> None:
        """Start a job, and return at once."""

    def wait(self, seconds: float) -> Sequence[Stage | Done | Lost]:
        """Return the events since the last call, after this many seconds at most."""

    def cancel(self, job: Job, *, force: bool) -> None:
        """End a started job: in an orderly way, or at once by force.

        `Lost` is its last event, unless it ended by itself before.
        """

    def close(self) -> None:
        """End by force what still runs, and release everything."""


class Watcher:
    """Receives the events of a batch. Does nothing by itself: override the methods you need."""

    def planned(self, jobs: Sequence[Job], skipped: int, workers: int | None) -> None:
        """Handle the start, with the number of jobs done before and of workers, if known."""

    def stage_began(self, event: Stage) -> None:
        """Handle the beginning of a stage of a job."""

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        """Handle the end of a job."""

    def stopping(self, reason: str) -> None:
        """Handle that the running jobs are being ended, for this reason."""

    def warned(self, message: str) -> None:
        """Handle a problem that does not end a job."""
