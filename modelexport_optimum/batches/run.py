"""`batch()`: many exports. It skips those that are done, runs the rest, and returns all results.

Each export publishes its own output by one rename, so a batch may end at any moment.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.batches import earlier_runs
from modelexport_optimum.batches.jobs import Watcher
from modelexport_optimum.batches.manifest import read_manifest
from modelexport_optimum.batches.records import new_record
from modelexport_optimum.batches.results import LOGS, RESULTS, Results, only_batch
from modelexport_optimum.batches.scheduler import Scheduler
from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.packages import require_optimum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelexport_optimum.batches.jobs import Job, Runner
    from modelexport_optimum.batches.results import Record

MAX_WORKERS = 4
"""Maximum number of workers by default: each needs memory for a model and its export."""


@dataclass(frozen=True, repr=False)
class BatchResult(Displayed):
    """The results of all lines.

    Attributes:
        directory: The directory of the batch.
        records: One record for each line, in order, as in results.jsonl, but with absolute paths;
            the status of a line that was left out is "not run".
        skipped: Number of lines that were done in earlier runs.
        seconds: Duration of the batch.
        signal: The signal that stopped the batch, if any.
    """

    directory: Path
    records: list[Record]
    skipped: int
    seconds: float
    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """0 if every line is done, 3 if only checks failed, 4 if only uploads, 1 otherwise.

        It is 128 and more if the batch was stopped.
        """
        if self.signal is not None:
            return 128 + self.signal
        statuses = {record["status"] for record in self.records}
        if statuses <= {"ok"}:
            return 0
        if statuses <= {"ok", "upload-failed"}:
            return 4
        return 3 if statuses <= {"ok", "check-failed", "upload-failed"} else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data for JSON."""
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
    """Export the models of a manifest. If one fails, the others continue.

    Args:
        manifest: A text file with the arguments of `export` on each line, a `.jsonl` file, or "-"
            for standard input.
        directory: Directory for the exports, results.jsonl, and the logs of failures.
        workers: Number of models to export at the same time on this machine; by default one for
            each core, at most `MAX_WORKERS`.
        ray: Run on a Ray cluster: its address, or True for the cluster that the environment names,
            or a local one.
        retry_failed: Run only the models that failed before.
        force: Run all models, even those that are done.
        fail_fast: Stop at the first failure.
        watcher: Receives the events of the batch.
        **options: Defaults for all lines, by their names in a line of JSON, which are those of the
            command's options, such as `task`, `dtype`, `no_constant_folding`, `timeout`.

    Returns:
        The result of each line.

    Raises:
        UsageError: The manifest or an option is wrong, and nothing was run.
        ModelExportError: Nothing was run, and the message says why.
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
    """Run the jobs of a manifest. The arguments are those of `batch`."""
    started = time.monotonic()
    place = Path(os.path.abspath(directory))  # noqa: PTH100 (resolve() would follow a link)
    with only_batch(place):
        results = Results(place)
        earlier_runs.collect_pending(place, results)
        done = {} if force else earlier_runs.done_before(jobs, results)
        to_run = [
            earlier_runs.with_overwrite(job, results)
            for job in jobs
            if job.output not in done
            and (not retry_failed or earlier_runs.has_failed(job, results))
        ]
        watcher = watcher or Watcher()
        scheduler = Scheduler(to_run, results, watcher, fail_fast=fail_fast)
        if to_run:
            runner, count = _runner(len(to_run), place, workers, ray)
            watcher.planned(to_run, len(done), count)
            scheduler.run(runner)
        try:
            results.compact()
        except ModelExportError as error:  # every record is there, and some twice
            watcher.warned(str(error))
        with contextlib.suppress(OSError):  # a job failed, and its log is there
            (place / LOGS).rmdir()
    records = {**done, **scheduler.records}
    return BatchResult(
        directory=place,
        records=[
            {**records.get(job.output, _not_run(job)), "output": str(job.output)} for job in jobs
        ],
        skipped=len(done),
        seconds=time.monotonic() - started,
        signal=scheduler.signal,
    )


def _not_run(job: Job) -> Record:
    return {**new_record(job), "status": "not run", "exit_status": None, "log": None}


def _runner(
    jobs: int, directory: Path, workers: int | None, ray: str | None
) -> tuple[Runner, int | None]:
    """Return the runner, and the number of jobs at the same time; None if Ray decides."""
    if ray is not None:
        from modelexport_optimum.batches.ray_cluster import RayCluster

        return RayCluster(ray), None
    require_optimum()
    from modelexport_optimum.batches.local_pool import LocalPool, available_cores

    size = min(workers or min(available_cores(), MAX_WORKERS), jobs)
    return LocalPool(size, directory), size
