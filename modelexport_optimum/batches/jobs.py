"""What a batch is made of: a job, the events of one, the interface of a runner, and a watcher.

Data alone. The local pool and Ray are two runners, and a batch does not know which one it has.
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
        line: Where it stands in the manifest, from 1.
        model: A name on the Hub, or a directory.
        output: The absolute path of the directory to write.
        arguments: Further arguments of `export()`.
        log: The file that takes what the libraries print, and the traceback.
        resources: What it may take.
    """

    line: int
    model: str
    output: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None
    resources: Resources = Resources()  # noqa: RUF009 (it is frozen)

    @property
    def pending(self) -> Path | None:
        """The file that has the record until results.jsonl has it.

        By it the next batch knows of an output that was published just before this one died.
        """
        return None if self.log is None else self.log.with_suffix(".pending")


@dataclass(frozen=True)
class Stage:
    """A stage of a job has begun.

    Attributes:
        job: The job.
        worker: The name of the process that runs it, for people.
        name: "start" when the job is taken up, then the stages of `export()`; "waiting" when
            its process died and it will be taken up again.
    """

    job: Job
    worker: str
    name: str


@dataclass(frozen=True)
class Done:
    """A job has ended by itself, well or not.

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
        reason: What became of the process, in one line.
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
        """Take up a job, and return at once."""

    def wait(self, seconds: float) -> Sequence[Stage | Done | Lost]:
        """Return the events since the last call, after this many seconds at most."""

    def cancel(self, job: Job, *, force: bool) -> None:
        """End a job that was started: in an orderly way, or at once by force.

        `Lost` is its last event, unless it ended by itself before.
        """

    def close(self) -> None:
        """End by force what still runs, and release everything."""


class Watcher:
    """Is called as a batch goes on. This one does nothing: derive from it what you need."""

    def planned(self, jobs: Sequence[Job], skipped: int, workers: int | None) -> None:
        """Note that jobs will be run, besides those done before, by so many workers if known."""

    def stage_began(self, event: Stage) -> None:
        """Note that a stage of a job has begun."""

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        """Note that a job has ended."""

    def stopping(self, reason: str) -> None:
        """Note that the jobs that run are being ended, for this reason."""

    def warned(self, message: str) -> None:
        """Note that something went wrong that ends no job."""
