"""The record of a job in results.jsonl, and the data that decide whether the job is done."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from modelexport_optimum.exporting.hub import HubPlace
from modelexport_optimum.exporting.options import ExportOptions
from modelexport_optimum.exporting.source import state_of
from modelexport_optimum.system.version import __version__

if TYPE_CHECKING:
    from modelexport_optimum.batches.jobs import Job

_NOT_IN_THE_OUTPUT = {
    *("overwrite", "cache_dir", "local_files_only", "force_download", "token", "use_subprocess")
}
"""Arguments of `export()` that do not change what is written."""


def source_state(job: Job) -> str | None:
    """Return a text that changes whenever the model of a job changes: see `source.state_of`."""
    return state_of(job.model, HubPlace.among(job.arguments), output=job.output)


def new_record(job: Job) -> dict[str, Any]:
    """Make the record of a job that has not run."""
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
        "log": str(job.log),
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
    """Return the data that decide what a job writes: another recipe gives another export.

    `source` is the result of `source.state_of` for its model.
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
    """Return the current time in the format of records."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
