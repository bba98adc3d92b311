"""One job of a batch, run in this process: export, and a record of it whatever happens.

The local pool and Ray both run this. It ends the job, never the batch: only what ends the
process is left for the runner to notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import sys
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import in_one_line
from modelexport_optimum.export_run import HUB_OPTIONS, export, files_to_list
from modelexport_optimum.exporting.options import ExportOptions
from modelexport_optimum.exporting.source import state_of, state_of_directory
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.streams import output_to
from modelexport_optimum.system.text import visible
from modelexport_optimum.system.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelexport_optimum.batches.jobs import Job
    from modelexport_optimum.export_run import ExportResult

_NOT_IN_THE_OUTPUT = {
    *("overwrite", "cache_dir", "local_files_only", "force_download", "token", "use_subprocess")
}
"""Arguments of `export()` that do not change what is written."""

_threads = 0
"""What ONNX Runtime's sessions are limited to; 0 as long as they are not."""


def import_all() -> None:
    """Import what an export needs, once for all jobs of this process."""
    import optimum.exporters.onnx.__main__
    import optimum.onnxruntime  # noqa: F401

    import modelexport_optimum.tagging.htp
    import modelexport_optimum.verifying.verify  # noqa: F401


def _limit_threads(count: int) -> None:
    """Let PyTorch and ONNX Runtime use this many threads, unless a session asks for others."""
    global _threads
    import torch

    torch.set_num_threads(count)
    if _threads == 0:
        _limit_sessions()
    _threads = count


def _limit_sessions() -> None:
    """ONNX Runtime has no setting for all sessions of a process.

    By default each starts a thread for every core of the machine.
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


def release_memory() -> int:
    """Give back what the last model took; returns the bytes that the process still holds."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps what was freed unless it is told
        trim(0)
    return resident_bytes()


def resident_bytes() -> int:
    """The memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def convert(job: Job, tell: Callable[[str], None], threads: int) -> dict[str, Any]:
    """Run one job, with all that is printed in its log.

    Args:
        job: what to export. Its log is removed when all is well.
        tell: called with the name of each stage that begins.
        threads: what PyTorch and ONNX Runtime may use.

    Returns:
        The job's record: status "ok", "check-failed" (the files are written) or "failed".
    """
    started = time.perf_counter()
    record = {**new_record(job), "started": now()}

    def seconds() -> float:
        return round(time.perf_counter() - started, 3)

    def note(result: ExportResult, staging: Path) -> None:
        record.update(_described(result, staging), seconds=seconds(), finished=now())
        if record["status"] == "ok":
            record["log"] = None
        else:
            print(record["error"], file=sys.stderr)
        if job.pending is not None:
            with replacing(job.pending) as descriptor:
                os.write(descriptor, json.dumps(record).encode())

    def progress(stage: str, ended: float | None) -> None:
        if ended is None:
            tell(stage)

    try:
        with _logged(job):
            _limit_threads(threads)
            record["made"] = recipe(job, source_state(job))
            export(job.model, job.output, progress=progress, before_publish=note, **job.arguments)
    except Exception as error:
        known = {key: record[key] for key in ("started", "made")}
        record = {**new_record(job), **known, "error": in_one_line(error)}
    if record["status"] == "ok" and job.log is not None:
        job.log.unlink(missing_ok=True)
    return {**record, "seconds": seconds(), "finished": now()}


def source_state(job: Job) -> str | None:
    """What changes whenever the model of a job does: see `source.state_of`."""
    hub = {key: job.arguments[key] for key in HUB_OPTIONS if key in job.arguments}
    return state_of(job.model, output=job.output, **hub)


def new_record(job: Job) -> dict[str, Any]:
    """The record of a job of which nothing is known yet."""
    return {
        "model": job.model,
        "task": job.arguments.get("task", "auto"),
        "output": str(job.output),
        "line": job.line,
        "ok": False,
        "status": "failed",
        "error": None,
        "exit_status": 1,
        "warnings": [],
        "log": None if job.log is None else str(job.log),
        "node_count": None,
        "module_count": None,
        "bytes": None,
        "seconds": None,
        "providers": [],
        "files": [],
        "started": None,
        "finished": None,
        "made": recipe(job, None),
    }


def recipe(job: Job, source: str | None) -> dict[str, Any]:
    """What decides what a job writes: another recipe is another export.

    Args:
        job: the job.
        source: what `source.state_of` tells of its model.
    """
    defaults = ExportOptions().arguments()
    options = {
        name: value
        for name, value in job.arguments.items()
        if name not in _NOT_IN_THE_OUTPUT and value != defaults.get(name)
    }
    content = {"version": __version__, "source": source, "options": options}
    read_back: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return read_back


def now() -> str:
    """The time, as records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _described(result: ExportResult, staging: Path) -> dict[str, Any]:
    failed = [
        f"{check.name}: {check.message}"
        for check in result.verification.checks
        if check.status == "failed"
    ]
    failed += [
        f"{one.provider}: {one.message}"
        for one in result.verification.providers
        if one.status == "failed"
    ]
    if result.comparison.status == "failed":
        failed.append(f"PyTorch: {result.comparison.message}")
    return {
        "task": result.task,
        "ok": result.ok,
        "status": "ok" if result.ok else "check-failed",
        "error": None if result.ok else "; ".join(failed) or "a check failed",
        "exit_status": 0 if result.ok else 3,
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
    """Send what is printed to the job's log, by C++ libraries and crashing processes, too."""
    if job.log is None:
        yield
        return
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
