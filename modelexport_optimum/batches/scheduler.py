"""The scheduler of a batch: it starts and ends jobs through a runner, and records their results.

A runner starts and ends processes and reports events; the scheduler decides what an event means.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelexport_optimum.batches.earlier_runs import published_record
from modelexport_optimum.batches.jobs import Done, Lost, Stage
from modelexport_optimum.batches.records import new_record, now
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.exporting.staging import remove_abandoned
from modelexport_optimum.system.files import is_directory
from modelexport_optimum.system.signals import TO_END

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import FrameType

    from modelexport_optimum.batches.jobs import Job, Runner, Watcher
    from modelexport_optimum.batches.results import Record, Results

_GRACE_SECONDS = 10
"""Time for a cancelled job to clean up, before it is ended by force."""

_POLL_SECONDS = 0.2
"""Time between two checks of the clock and of signals."""

_STAGE_AFTER_FETCHING = "export"
"""The stage that begins when a model has been fetched and loaded."""


@dataclass
class _StartedJob:
    """A job that runs or waits in the runner.

    Attributes:
        job: The job.
        since: When a worker started it, by `time.monotonic`; None while it waits.
        started: The same time, in the format of records.
        end_reason: "timed-out" or "stopped" once it is being ended.
        deadline: When it is ended by force, by `time.monotonic`; 0 until it is cancelled.
    """

    job: Job
    since: float | None = None
    started: str | None = None
    end_reason: str | None = None
    deadline: float = 0

    def is_late(self, at: float) -> bool:
        """Return whether it has exceeded its time limit."""
        timeout = self.job.resources.timeout
        return timeout is not None and self.since is not None and at > self.since + timeout


class Scheduler:
    """Runs jobs with a runner, and records their results.

    Attributes:
        records: The records of the jobs that have ended, by output.
        signal: The first signal that was received, if any.
    """

    def __init__(
        self, jobs: Sequence[Job], results: Results, watcher: Watcher, *, fail_fast: bool
    ) -> None:
        """Prepare to run jobs in this order."""
        self.records: dict[Path, Record] = {}
        self.signal: int | None = None
        self._waiting = deque(jobs)
        self._started: dict[Path, _StartedJob] = {}
        self._fetched: set[object] = set()
        self._results = results
        self._watcher = watcher
        self._fail_fast = fail_fast
        self._signals = 0

    def run(self, runner: Runner) -> None:
        """Run all jobs, until the last has ended or a signal ends them."""
        try:
            with self._handling_signals():
                while self._waiting or self._started:
                    while (job := self._next_job(runner)) is not None:
                        self._started[job.output] = _StartedJob(job)
                        runner.start(job)
                    for event in runner.wait(_POLL_SECONDS):
                        self._handle(event)
                    self._end_jobs(runner)
        finally:
            runner.close()
            for output in self._started:
                remove_abandoned(output)

    def _next_job(self, runner: Runner) -> Job | None:
        """Take the first waiting job whose model no other job is downloading, if there is room."""
        if not runner.has_room():
            return None
        fetching = {_download(one.job) for one in self._started.values()} - self._fetched - {None}
        for job in self._waiting:
            download = _download(job)
            if download in fetching:
                continue
            self._waiting.remove(job)
            if download in self._fetched and job.arguments.get("force_download"):
                arguments = {**job.arguments, "force_download": False}
                return dataclasses.replace(job, arguments=arguments)
            return job
        return None

    # --- Events ---

    def _handle(self, event: Stage | Done | Lost) -> None:
        started = self._started[event.job.output]
        if isinstance(event, Stage):
            self._note_stage(started, event)
            return
        job = event.job
        del self._started[job.output]
        self._fetched.add(_download(job))
        if self._signals and started.end_reason is None:  # the signal came to its process, too
            started.end_reason = "stopped"
        if isinstance(event, Done) and event.record["status"] != "failed":
            self._record(job, event.record)
            return
        remove_abandoned(job.output)
        record = self._record_of_failure(event, started)
        if record is not None:
            self._record(job, record)
        else:
            job.log.unlink(missing_ok=True)

    def _note_stage(self, started: _StartedJob, event: Stage) -> None:
        if event.name == "start":
            started.since, started.started = time.monotonic(), now()
        elif event.name == "waiting":
            started.since = None
        elif event.name == _STAGE_AFTER_FETCHING:
            self._fetched.add(_download(event.job))
        self._watcher.stage_began(event)

    def _record_of_failure(self, event: Done | Lost, started: _StartedJob) -> Record | None:
        """Make the record of a job that failed or was ended; None if the batch was stopped."""
        job = event.job
        # A process may die, and Ray run the job again, after the output was published.
        record = published_record(job.pending)
        if record is not None:
            return record
        if started.end_reason == "timed-out":
            reason = f"it took longer than {job.resources.timeout:g} s (--timeout)"
            return _record_of_lost_job(started, "timed-out", reason)
        if started.end_reason is not None:
            return None
        if isinstance(event, Done):
            return event.record
        return _record_of_lost_job(started, "crashed", event.reason)

    def _record(self, job: Job, record: Record) -> None:
        """Write the record of a job that has ended."""
        before = self._results.get(job.output)
        if "state" not in record and before is not None and "state" in before:
            # What a batch wrote there before may still be replaced by the next.
            record = {**record, "state": before["state"]}
        try:
            self._results.add(job.output, record)
        except ModelExportError as error:
            self._watcher.warned(f"{error}: the next batch will find what became of {job.output}")
        else:
            job.pending.unlink(missing_ok=True)
        self.records[job.output] = record
        self._watcher.finished(job, record)
        if self._fail_fast and record["status"] != "ok":
            self._stop(f"{job.model} failed")

    # --- Ending jobs ---

    def _end_jobs(self, runner: Runner) -> None:
        """Cancel the jobs that are late or that a signal ends, and kill those that do not end."""
        at = time.monotonic()
        if self._signals:
            self._stop("stopped")
        for started in self._started.values():
            if started.end_reason is None and started.is_late(at):
                started.end_reason = "timed-out"
            if started.end_reason is None:
                continue
            if not started.deadline:
                started.deadline = at + _GRACE_SECONDS
                runner.cancel(started.job, force=False)
            if self._signals > 1 or at > started.deadline:
                runner.cancel(started.job, force=True)

    def _stop(self, reason: str) -> None:
        """Start no further job, and end the running ones."""
        self._waiting.clear()
        to_end = [started for started in self._started.values() if started.end_reason is None]
        if to_end:
            self._watcher.stopping(reason)
        for started in to_end:
            started.end_reason = "stopped"

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """End the batch on Ctrl-C, SIGTERM or SIGHUP: first in an orderly way, then by force.

        An ignored signal stays ignored: SIGHUP under nohup, Ctrl-C of a background job.
        """
        numbers = [signal.SIGINT, *TO_END]
        if threading.current_thread() is not threading.main_thread():
            numbers = []  # Python handles signals in its main thread alone
        numbers = [one for one in numbers if signal.getsignal(one) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self.signal = self.signal or number
        if self._signals > 2:  # the runner does not return
            raise KeyboardInterrupt


def _record_of_lost_job(started: _StartedJob, status: str, reason: str) -> Record:
    """Make the record of a job whose process ended, and write the reason to its log."""
    job = started.job
    times = {"started": started.started, "finished": now()}
    record = {**new_record(job), **times, "status": status, "error": reason}
    if started.since is not None:
        record["seconds"] = round(time.monotonic() - started.since, 3)
    with contextlib.suppress(OSError), job.log.open("a", encoding="utf-8") as log:
        log.write(f"{reason}\n")  # the record has it, whether or not it can be written
    return record


def _download(job: Job) -> object:
    """Return a key for the download of a job, equal for equal downloads; None for a directory."""
    if is_directory(job.model):
        return None
    return job.model, *(str(job.arguments.get(name)) for name in ("revision", "cache_dir"))
