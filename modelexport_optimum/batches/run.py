"""Many exports: what is done already, who runs the rest, and what became of each.

`batch()` is the whole of it. A runner (`pool.py`, `cluster.py`) runs the jobs and says what
happens; what that means is decided here. Every output is published by the export itself, so
a batch may end at any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.batches.jobs import Done, Lost, Stage, Watcher
from modelexport_optimum.batches.manifest import read_manifest
from modelexport_optimum.batches.results import LOGS, RESULTS, Results, only_batch
from modelexport_optimum.batches.worker import new_record, now, recipe, source_state
from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.exporting.source import state_of_directory
from modelexport_optimum.exporting.staging import remove_abandoned
from modelexport_optimum.system.display import Displayed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from modelexport_optimum.batches.jobs import Job, Runner
    from modelexport_optimum.batches.results import Record

MAX_WORKERS = 4
"""Unless more are asked for: each holds a model, and what exporting it takes."""

_GRACE_SECONDS = 10
"""What a job that is cancelled has to clean up in, before it is ended by force."""

_POLL_SECONDS = 0.2

_FETCHED = "export"
"""The stage that begins when a model has been fetched and loaded."""


@dataclass(frozen=True, repr=False)
class BatchResult(Displayed):
    """What became of every line.

    Attributes:
        directory: the batch's.
        records: one for each line, in order, as in results.jsonl, but with absolute paths;
            "not run" is the status of what was left out.
        skipped: how many were done before.
        seconds: of the whole.
        signal: what stopped it, if anything.
    """

    directory: Path
    records: list[Record]
    skipped: int
    seconds: float
    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """0 if every line is done, 3 if only checks failed, 128 and more if it was stopped."""
        if self.signal is not None:
            return 128 + self.signal
        statuses = {record["status"] for record in self.records}
        if statuses <= {"ok"}:
            return 0
        return 3 if statuses <= {"ok", "check-failed"} else 1

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can carry it."""
        return {
            "ok": self.exit_status == 0,
            "exit_status": self.exit_status,
            "results": str(self.directory / RESULTS),
            "model_count": len(self.records),
            "skipped_count": self.skipped,
            "seconds": round(self.seconds, 3),
            "records": self.records,
        }


def batch(
    manifest: str | os.PathLike[str],
    directory: str | os.PathLike[str] = ".",
    *,
    workers: int | None = None,
    ray: str | bool | None = None,
    retry_failed: bool = False,
    force: bool = False,
    fail_fast: bool = False,
    watcher: Watcher | None = None,
    **options: Any,  # noqa: ANN401
) -> BatchResult:
    """Export the models of a manifest; one that fails costs itself alone.

    Args:
        manifest: a text file whose lines are what `export` is given, a `.jsonl` file, or "-" for
            standard input.
        directory: where the exports are written, results.jsonl, and the logs of what failed.
        workers: models at a time on this machine; by default one for each core, at most
            `MAX_WORKERS`.
        ray: run on a Ray cluster: its address, or True for that of the environment, or a local
            one where there is none.
        retry_failed: run only what failed before.
        force: run what is done, too.
        fail_fast: stop at the first failure.
        watcher: is told how it goes on.
        **options: defaults for all lines, by the names that a line of JSON has for them: those
            of the command's options, such as `task`, `dtype`, `no_constant_folding`, `timeout`.

    Returns:
        What became of each line.

    Raises:
        UsageError: the manifest or an option is wrong, and nothing was run.
        ModelExportError: nothing was run, and the message says why.
    """
    if force and retry_failed:
        raise UsageError("give one of --force and --retry-failed")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be above 0, not {workers}")
    jobs = read_manifest(manifest, directory=directory, defaults=options)
    return run_jobs(
        jobs,
        directory,
        workers=workers,
        ray="" if ray is True else None if ray is False else ray,
        retry_failed=retry_failed,
        force=force,
        fail_fast=fail_fast,
        watcher=watcher,
    )


def run_jobs(
    jobs: Sequence[Job],
    directory: str | os.PathLike[str],
    *,
    workers: int | None = None,
    ray: str | None = None,
    retry_failed: bool = False,
    force: bool = False,
    fail_fast: bool = False,
    watcher: Watcher | None = None,
) -> BatchResult:
    """Run the jobs of a manifest: see `batch`, whose arguments these are.

    Raises:
        ModelExportError: nothing was run, and the message says why.
    """
    started = time.monotonic()
    place = Path(os.path.abspath(directory))  # noqa: PTH100 (resolve() would follow a link)
    with only_batch(place):
        results = Results(place)
        for pending in place.glob(f"{LOGS}/**/*.pending"):
            if (record := _published(pending)) is not None:
                results.add(Path(record["output"]), record)
                pending.unlink()
        for unfinished in place.glob(f"{LOGS}/**/.*.pending.*.tmp"):
            unfinished.unlink()
        done = {} if force else _done(jobs, results)
        todo = [
            _replacing_its_own(job, results)
            for job in jobs
            if job.output not in done and (not retry_failed or _failed(job, results))
        ]
        run = _Run(todo, results, watcher or Watcher(), fail_fast=fail_fast)
        if todo:
            runner, count = _runner(len(todo), place, workers, ray)
            run.watcher.planned(todo, len(done), count)
            run.through(runner)
        try:
            results.compact()
        except ModelExportError as error:  # it holds all, and some twice
            run.watcher.warned(str(error))
        with contextlib.suppress(OSError):  # there is a log in it
            (place / LOGS).rmdir()
    not_run = {"status": "not run", "exit_status": None, "log": None}
    known = {**done, **run.ended}
    return BatchResult(
        directory=place,
        records=[
            {**known.get(job.output, {**new_record(job), **not_run}), "output": str(job.output)}
            for job in jobs
        ],
        skipped=len(done),
        seconds=time.monotonic() - started,
        signal=run.signal,
    )


def _runner(
    jobs: int, directory: Path, workers: int | None, ray: str | None
) -> tuple[Runner, int | None]:
    if ray is not None:
        from modelexport_optimum.batches.ray_cluster import RayCluster

        return RayCluster(ray), None
    from modelexport_optimum.batches.local_pool import LocalPool, available_cores

    size = min(workers or min(available_cores(), MAX_WORKERS), jobs)
    return LocalPool(size, directory), size


# --- What is done already -------------------------------------------------------------------------


def _done(jobs: Sequence[Job], results: Results) -> dict[Path, Record]:
    """The records of the jobs that are done, and whose model, options and tool are the same."""
    candidates = []
    for job in jobs:
        record = results.get(job.output)
        if record is None or record["status"] != "ok":
            continue
        same = recipe(job, record["made"]["source"]) == record["made"]
        if same and all((job.output / one["file"]).is_file() for one in record["files"]):
            candidates.append((job, record))

    def unchanged(candidate: tuple[Job, Record]) -> bool:
        job, record = candidate
        states = source_state(job), record["made"]["source"]
        return None in states or states[0] == states[1]

    with ThreadPoolExecutor(8) as pool:  # the Hub is asked for each of its models
        kept = list(pool.map(unchanged, candidates))
    return {
        job.output: record for (job, record), keep in zip(candidates, kept, strict=True) if keep
    }


def _failed(job: Job, results: Results) -> bool:
    record = results.get(job.output)
    return record is not None and record["status"] != "ok"


def _replacing_its_own(job: Job, results: Results) -> Job:
    """The job, which may replace what a batch wrote there if nobody has changed that since."""
    record = results.get(job.output)
    if record is None or "state" not in record or not job.output.is_dir():
        return job
    if state_of_directory(job.output) != record["state"]:
        return job
    return dataclasses.replace(job, arguments={**job.arguments, "overwrite": True})


def _published(pending: Path) -> Record | None:
    """The record of an output that is there, by one who died before it could say so.

    The directory that was staged became the output, which is seen by its inode.
    """
    try:
        record: Record = json.loads(pending.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    output = Path(record["output"])
    if not output.is_dir() or output.stat().st_ino != record["inode"]:
        pending.unlink()
        return None
    if record["status"] == "ok":
        pending.with_suffix(".log").unlink(missing_ok=True)
    return record


# --- Running the rest -----------------------------------------------------------------------------


@dataclass
class _Running:
    """A job that was given to the runner.

    Attributes:
        job: which.
        since: when it was taken up, in seconds of `time.monotonic`.
        started: the same, as records have it.
        ending: why it is being ended, if it is.
        until: when it is ended by force.
    """

    job: Job
    since: float | None = None
    started: str | None = None
    ending: str | None = None
    until: float = 0


class _Run:
    """The jobs that are not done, on their way through a runner."""

    def __init__(
        self, jobs: Sequence[Job], results: Results, watcher: Watcher, *, fail_fast: bool
    ) -> None:
        self.watcher = watcher
        self.ended: dict[Path, Record] = {}
        self.signal: int | None = None
        self._waiting = deque(jobs)
        self._running: dict[Path, _Running] = {}
        self._fetched: set[object] = set()
        self._results = results
        self._fail_fast = fail_fast
        self._signals = 0

    def through(self, runner: Runner) -> None:
        """Run them all."""
        try:
            with self._listening():
                while self._waiting or self._running:
                    while (job := self._next(runner)) is not None:
                        self._running[job.output] = _Running(job)
                        runner.start(job)
                    for event in runner.wait(_POLL_SECONDS):
                        self._hear(event)
                    self._end_what_must(runner)
        finally:
            runner.close()
            for output in self._running:
                remove_abandoned(output)

    def _next(self, runner: Runner) -> Job | None:
        """The first job whose model no other is fetching at the moment."""
        if not runner.has_room():
            return None
        fetching = {_fetches(one.job) for one in self._running.values()} - self._fetched - {None}
        for job in self._waiting:
            key = _fetches(job)
            if key in fetching:
                continue
            self._waiting.remove(job)
            if key in self._fetched and job.arguments.get("force_download"):
                arguments = {**job.arguments, "force_download": False}
                return dataclasses.replace(job, arguments=arguments)
            return job
        return None

    def _hear(self, event: Stage | Done | Lost) -> None:
        job = event.job
        running = self._running[job.output]
        if isinstance(event, Stage):
            if event.name == "start":
                running.since, running.started = time.monotonic(), now()
            if event.name == "waiting":
                running.since = None
            if event.name == _FETCHED:
                self._fetched.add(_fetches(job))
            self.watcher.running(event)
            return
        del self._running[job.output]
        self._fetched.add(_fetches(job))
        if self._signals and running.ending is None:  # it heard the signal before us
            running.ending = "stopped"
        if isinstance(event, Done) and event.record["status"] != "failed":
            self._record(job, event.record)
            return
        remove_abandoned(job.output)
        # A process may have died, and Ray run the job again, after the output was published.
        record = _published(job.pending) if job.pending else None
        if record is not None:
            self._record(job, record)
        elif isinstance(event, Done) and running.ending is None:
            self._record(job, event.record)
        elif running.ending == "timed-out":
            reason = f"it took longer than {job.resources.timeout:g} s (--timeout)"
            self._record(job, self._lost(job, "timed-out", reason, running))
        elif isinstance(event, Lost) and running.ending is None:
            self._record(job, self._lost(job, "crashed", event.reason, running))
        elif job.log is not None:
            job.log.unlink(missing_ok=True)

    def _lost(self, job: Job, status: str, reason: str, running: _Running) -> Record:
        times = {"started": running.started, "finished": now()}
        record = {**new_record(job), **times, "status": status, "error": reason}
        if running.since is not None:
            record["seconds"] = round(time.monotonic() - running.since, 3)
        if job.log is not None:
            with contextlib.suppress(OSError), job.log.open("a", encoding="utf-8") as log:
                log.write(f"{reason}\n")  # the record says it, too
        return record

    def _record(self, job: Job, record: Record) -> None:
        """Write what became of a job; what a batch wrote there before remains a batch's."""
        before = self._results.get(job.output)
        if "state" not in record and before is not None and "state" in before:
            record = {**record, "state": before["state"]}
        try:
            self._results.add(job.output, record)
        except ModelExportError as error:
            self.watcher.warned(f"{error}: the next batch will find what became of {job.output}")
        else:
            if job.pending is not None:
                job.pending.unlink(missing_ok=True)
        self.ended[job.output] = record
        self.watcher.finished(job, record)
        if self._fail_fast and record["status"] != "ok":
            self._stop(f"{job.model} failed")

    # --- Ending jobs ---

    def _end_what_must(self, runner: Runner) -> None:
        now = time.monotonic()
        if self._signals:
            self._stop("stopped")
        for running in self._running.values():
            job = running.job
            late = (
                job.resources.timeout
                and running.since
                and now > running.since + job.resources.timeout
            )
            if running.ending is None and late:
                running.ending = "timed-out"
            if running.ending and not running.until:
                running.until = now + _GRACE_SECONDS
                runner.cancel(job, force=False)
            if running.ending and (self._signals > 1 or now > running.until):
                runner.cancel(job, force=True)

    def _stop(self, reason: str) -> None:
        self._waiting.clear()
        going = [running for running in self._running.values() if running.ending is None]
        if going:
            self.watcher.stopping(reason)
        for running in going:
            running.ending = "stopped"

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C and its like end the batch: once in an orderly way, twice by force."""
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        # What is ignored stays so: nohup's SIGHUP, a background job's Ctrl-C.
        numbers = [one for one in numbers if signal.getsignal(one) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._heard) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self.signal = self.signal or number
        if self._signals > 2:  # the runner does not listen
            raise KeyboardInterrupt


def _fetches(job: Job) -> object:
    """What jobs have in common that would fetch the same; None where nothing is fetched."""
    if Path(job.model).expanduser().is_dir():
        return None
    return job.model, *(str(job.arguments.get(name)) for name in ("revision", "cache_dir"))
