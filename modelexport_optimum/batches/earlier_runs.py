"""The results of earlier batches in a directory: which jobs are done, and what may be replaced."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.batches.records import recipe, source_state
from modelexport_optimum.batches.results import LOGS, record_in
from modelexport_optimum.exporting.source import state_of_directory
from modelexport_optimum.system.files import is_directory, read_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelexport_optimum.batches.jobs import Job
    from modelexport_optimum.batches.results import Record, Results

_REQUESTS = 8
"""Maximum number of concurrent requests to the Hub for the commits of models."""


def collect_pending(directory: Path, results: Results) -> None:
    """Add the records of published jobs whose batch died before it recorded them."""
    for pending in directory.glob(f"{LOGS}/**/*.pending"):
        if (record := published_record(pending)) is not None:
            results.add(Path(record["output"]), record)
            pending.unlink()
    for unfinished in directory.glob(f"{LOGS}/**/.*.pending.*.tmp"):
        unfinished.unlink()


def published_record(pending: Path) -> Record | None:
    """Read the record of a job whose process died after it had published the output.

    The output is that of the job if it has the inode of the directory that was staged.

    Args:
        pending: The file that the job wrote before it published. It is removed if the output was
            not published.

    Returns:
        The record; None if there is no such file, or the output was not published.
    """
    try:
        record = record_in(read_file(pending))
    except FileNotFoundError:
        return None
    if record is None or not _is_inode_of(record.get("inode"), record["output"]):
        pending.unlink()
        return None
    if record["status"] == "ok":
        pending.with_suffix(".log").unlink(missing_ok=True)
    return record


def _is_inode_of(inode: object, directory: str) -> bool:
    return is_directory(directory) and Path(directory).stat().st_ino == inode


def done_before(jobs: Sequence[Job], results: Results) -> dict[Path, Record]:
    """Return the records, by output, of the jobs that do not need to run again.

    A job is done if its record says so, its files are there, and its options, its model and the
    version of this tool are the same.
    """
    candidates = []
    for job in jobs:
        record = results.get(job.output)
        if record is None or record["status"] != "ok":
            continue
        same = recipe(job, record["made"].get("source")) == record["made"]
        files = record.get("files", ())
        if same and all((job.output / one["file"]).is_file() for one in files):
            candidates.append((job, record))

    def is_unchanged(candidate: tuple[Job, Record]) -> bool:
        job, record = candidate
        states = source_state(job), record["made"]["source"]
        return None in states or states[0] == states[1]

    with ThreadPoolExecutor(_REQUESTS) as pool:
        unchanged = list(pool.map(is_unchanged, candidates))
    return {
        job.output: record
        for (job, record), keep in zip(candidates, unchanged, strict=True)
        if keep
    }


def has_failed(job: Job, results: Results) -> bool:
    """Return whether the job ran before and did not succeed."""
    record = results.get(job.output)
    return record is not None and record["status"] != "ok"


def with_overwrite(job: Job, results: Results) -> Job:
    """Let a job replace its output if a batch wrote that and nobody has changed it since."""
    record = results.get(job.output)
    if record is None or "state" not in record or not job.output.is_dir():
        return job
    if state_of_directory(job.output) != record["state"]:
        return job
    return dataclasses.replace(job, arguments={**job.arguments, "overwrite": True})
