"""The outputs of a manifest's lines, which must not collide with one another or with the batch.

The repositories on the Hub that they are uploaded to must not collide, either.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.batches.results import LOGS, RESULTS
from modelexport_optimum.errors import UsageError

if TYPE_CHECKING:
    from modelexport_optimum.batches.jobs import Job


_LONGEST_NAME = 255
"""Bytes of a name, on Linux and macOS (NAME_MAX)."""

_LONGEST_OUTPUT = _LONGEST_NAME - len("..pending.01234567.tmp")
"""Maximum bytes of an output's name; a batch adds more characters for its own files next to it."""


class Outputs:
    """The output directories of all lines: no two are the same, and none is the batch's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._real = Path(os.path.realpath(directory))
        self._lines: dict[Path, Job] = {}
        self._above: dict[Path, Job] = {}
        self._repositories: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        """Add a job's output.

        Raises:
            UsageError: Another line, or the batch itself, writes there.
        """
        # Two names of a directory are one directory, whether or not its end is there yet.
        path = Path(os.path.realpath(job.output))
        if path == self._real or path in self._real.parents:
            raise UsageError(
                f"would write {self._shown(job)}, which is the batch's own directory or contains "
                "it: give it another -o"
            )
        *above, last = (len(os.fsencode(part)) for part in path.parts)
        if last > _LONGEST_OUTPUT or max(above) > _LONGEST_NAME:
            raise UsageError(
                f"would write {self._shown(job)}, a name of more than {_LONGEST_OUTPUT} bytes: "
                "give it another -o"
            )
        for name in (LOGS, RESULTS):
            if path.is_relative_to(self._real / name):
                raise UsageError(
                    f"would write {self._shown(job)}, and the batch has its own {name} there: "
                    "give it another -o"
                )
        self._check_others(job, path)
        if (repository := job.arguments.get("push_to_hub")) is not None:
            first = self._repositories.setdefault(repository, job)
            if first is not job:
                raise UsageError(
                    f"would be uploaded to {repository}, like line {first.line}: give one of them "
                    "another --push-to-hub"
                )
        self._lines[path] = job
        for parent in path.parents:
            self._above.setdefault(parent, job)

    def _check_others(self, job: Job, path: Path) -> None:
        shown, advice = self._shown(job), "give one of them -o"
        if path in self._lines:
            first = self._lines[path]
            raise UsageError(f"would write {shown}, like line {first.line}: {advice}")
        for parent in path.parents:
            if parent in self._lines:
                other = self._lines[parent]
                raise UsageError(
                    f"would write {shown}, inside the output of line {other.line}: {advice}"
                )
        if path in self._above:
            other = self._above[path]
            raise UsageError(
                f"would write {shown}, which contains the output of line {other.line}: {advice}"
            )

    def _shown(self, job: Job) -> str:
        relative = os.path.relpath(job.output)
        return str(job.output) if relative.startswith("..") else relative
