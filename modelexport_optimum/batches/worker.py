"""One job of a batch, run in this process: an export, and a record of its result in every case.

The local pool and Ray both call `run_job`. An error ends the job and is written to its record; the
runner notices when the process dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from modelexport_optimum.batches.records import new_record, now, recipe, source_state
from modelexport_optimum.errors import in_one_line
from modelexport_optimum.export_run import export, files_to_list
from modelexport_optimum.exporting.source import state_of_directory
from modelexport_optimum.system.atomic_write import replacing, write_all
from modelexport_optimum.system.lean_imports import EXPORTER, import_lean
from modelexport_optimum.system.standard_streams import output_to
from modelexport_optimum.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelexport_optimum.batches.jobs import Job
    from modelexport_optimum.export_run import ExportResult

_threads = 0
"""Maximum number of threads of a session of ONNX Runtime; 0 for no limit."""


def import_all() -> None:
    """Import what an export needs, once for all jobs of this process."""
    import_lean(EXPORTER)
    import optimum.onnxruntime  # noqa: F401

    import modelexport_optimum.tagging.htp
    import modelexport_optimum.verifying.verify  # noqa: F401


def _limit_threads(count: int) -> None:
    """Let PyTorch and ONNX Runtime use this many threads, unless a session sets its own number."""
    global _threads
    import torch

    torch.set_num_threads(count)
    if _threads == 0:
        _limit_sessions()
    _threads = count


def _limit_sessions() -> None:
    """Let each new session of ONNX Runtime use `_threads` threads.

    By default a session starts a thread for every core of the machine, and ONNX Runtime has no
    setting for all sessions of a process.
    """
    from onnxruntime import InferenceSession, SessionOptions

    create = InferenceSession.__init__

    def initialize(
        session: InferenceSession,
        path_or_bytes: Any,  # noqa: ANN401
        sess_options: Any = None,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        options = sess_options or SessionOptions()
        if options.intra_op_num_threads == 0:
            options.intra_op_num_threads = _threads
        create(session, path_or_bytes, options, *args, **kwargs)

    InferenceSession.__init__ = initialize


def run_job(job: Job, report_stage: Callable[[str], None], threads: int) -> dict[str, Any]:
    """Run one job, and write its output to its log.

    Args:
        job: The job. Its log is removed if it succeeds.
        report_stage: Called with the name of each stage that begins.
        threads: Maximum number of threads of PyTorch, and of each session of ONNX Runtime.

    Returns:
        The job's record: status "ok", "check-failed" or "upload-failed" (the files are written), or
        "failed".
    """
    started = time.perf_counter()
    record = {**new_record(job), "started": now()}

    def seconds() -> float:
        return round(time.perf_counter() - started, 3)

    def write_pending(result: ExportResult, staging: Path) -> None:
        described = _described(result, staging)
        record.update(described, **_verdict(result, job), seconds=seconds(), finished=now())
        with replacing(job.pending) as descriptor:
            write_all(descriptor, json.dumps(record).encode())

    def progress(stage: str, seconds_taken: float | None) -> None:
        if seconds_taken is None:  # it begins
            report_stage(stage)

    try:
        with _logged(job):
            _limit_threads(threads)
            record["made"] = recipe(job, source_state(job))
            result = export(
                job.model,
                job.output,
                progress=progress,
                before_publish=write_pending,
                **job.arguments,
            )
            record.update(_verdict(result, job))
            if record["error"] is not None:
                print(record["error"], file=sys.stderr)
    except Exception as error:
        known = {key: record[key] for key in ("started", "made")}
        record = {**new_record(job), **known, "error": in_one_line(error)}
    if record["status"] == "ok":
        job.log.unlink(missing_ok=True)
    return {**record, "seconds": seconds(), "finished": now()}


def _verdict(result: ExportResult, job: Job) -> dict[str, Any]:
    """Return the part of a record that has the status.

    The upload comes after the publication. If the process dies in between, its record says that the
    upload failed.
    """
    if not result.checks_ok:
        rows = result.check_rows
        failed = [f"{name}: {message}" for name, status, message in rows if status == "failed"]
        return _failure("check-failed", 3, "; ".join(failed) or "a check failed")
    if result.upload is not None and not result.upload.ok:
        return _failure("upload-failed", 4, result.upload.message)
    if result.upload is None and job.arguments.get("push_to_hub") is not None:
        return _failure("upload-failed", 4, "its process ended before it was uploaded")
    return {"ok": True, "status": "ok", "error": None, "exit_status": 0, "log": None}


def _failure(status: str, exit_status: int, error: str) -> dict[str, Any]:
    return {"ok": False, "status": status, "error": error, "exit_status": exit_status}


def _described(result: ExportResult, staging: Path) -> dict[str, Any]:
    """Return the part of a record that describes the export."""
    return {
        "task": result.task,
        "warnings": list(result.warnings),
        "node_count": result.tags.node_count,
        "module_count": result.tags.module_count,
        "bytes": sum(result.files.values()),
        "providers": [
            {"provider": one.provider, "status": one.status}
            for one in result.verification.providers
        ],
        "files": files_to_list(result.files),
        "state": state_of_directory(staging),
        "inode": staging.stat().st_ino,
    }


@contextlib.contextmanager
def _logged(job: Job) -> Iterator[None]:
    """Write all output to the job's log, also from C++ libraries and during a crash."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w", encoding="utf-8") as log, output_to(log.fileno()):
        faulthandler.enable(log)
        if job.resources.timeout is not None:
            faulthandler.dump_traceback_later(job.resources.timeout, file=log)
        try:
            yield
        except BaseException:
            print(visible(traceback.format_exc(), keep="\n\t"), file=sys.stderr)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
