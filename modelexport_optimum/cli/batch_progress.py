"""The output of `batch`: a line for each model that has ended, a progress bar, and the table."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.markup import escape

from modelexport_optimum.batches.jobs import Watcher
from modelexport_optimum.cli.printing import STAGES, Stopped, can_draw, exit_on_error, quiet
from modelexport_optimum.cli.tables import (
    Column,
    counted,
    from_here,
    print_blank,
    print_line,
    print_table,
    status_cell,
)
from modelexport_optimum.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.progress import TaskID

    from modelexport_optimum.batches.jobs import Job, Stage
    from modelexport_optimum.batches.run import BatchResult


_COLUMNS = (
    Column("status"),
    Column("model", shrinks="path"),
    Column("task", drop=3),
    Column("nodes", right=True, drop=2),
    Column("size", right=True, drop=1),
    Column("seconds", right=True, drop=4),
    Column("providers", drop=0),
    Column("error", shrinks="text"),
)

_STOPPED = Stopped("finished exports were kept; run the same command to do the rest")


@contextlib.contextmanager
def batch(*, as_json: bool = False, verbose: bool = False) -> Iterator[Watcher]:
    """Run a batch without other output, with a line for each model that has ended."""
    with (
        exit_on_error(as_json=as_json, verbose=verbose, stopped=_STOPPED),
        quiet() as stream,
        _Bars(stream, verbose=verbose) if stream.isatty() else _Lines(stream, verbose=verbose) as w,
    ):
        yield w


class _Lines(Watcher):
    """The output of a batch in a pipe: a line for each model that has ended."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._verbose = verbose
        self._stream = stream
        self._total = self._ended = 0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def planned(self, jobs: Sequence[Job], skipped: int, workers: int | None) -> None:
        self._total = len(jobs)
        before = f", {skipped} more are done already" if skipped else ""
        by = "" if workers is None else f" with {counted(workers, 'worker')}"
        self._print((f"{counted(len(jobs), 'model')} to export{by}{before}", "dim"))

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        self._ended += 1
        status = status_cell(record["status"])
        parts = [(f"{self._ended:>{len(str(self._total))}}/{self._total}", "dim"), (" ", "")]
        parts += [(status.text, status.style)]
        parts += [(f" {_model(job.model)} -> {from_here(job.output)}", "")]
        if record["seconds"] is not None:
            parts += [(f" {record['seconds']:.1f} s", "dim")]
        if record["status"] != "ok":
            parts += [(f": {record['error']}", "")]
        if record["log"]:
            parts += [(f" (log: {from_here(Path(record['log']))})", "dim")]
        self._print(*parts)
        for warning in record.get("warnings", ()):  # a record of an earlier version has none
            self.warned(f"{_model(job.model)}: {warning}")
        if self._verbose and record["log"] and Path(record["log"]).is_file():
            log = Path(record["log"]).read_text(encoding="utf-8", errors="replace")
            for line in log.splitlines():
                self._print((line, ""))

    def stopping(self, reason: str) -> None:
        self._print(
            (f"{reason}: ending the running exports; press Ctrl-C again to kill them", "yellow")
        )

    def warned(self, message: str) -> None:
        self._print(("warning:", "yellow"), (f" {message}", ""))

    def _print(self, *parts: tuple[str, str]) -> None:
        self._stream.write("".join(visible(text) for text, _ in parts) + "\n")
        self._stream.flush()


class _Bars(_Lines):
    """The same on a terminal, above a progress bar and the current stage of each worker."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        super().__init__(stream, verbose=verbose)
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(file=stream, highlight=False)
        self._all = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._each = Progress(
            SpinnerColumn("dots" if can_draw(stream) else "line"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        self._rows: dict[Path, TaskID] = {}
        self._live = Live(
            Group(self._all, self._each),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> _Bars:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def planned(self, jobs: Sequence[Job], skipped: int, workers: int | None) -> None:
        super().planned(jobs, skipped, workers)
        self._bar = self._all.add_task("Import Optimum", total=len(jobs))

    def stage_began(self, event: Stage) -> None:
        self._all.update(self._bar, description="Export")
        output = event.job.output
        if event.name == "start" and output in self._rows:  # again, after its worker died
            self._each.remove_task(self._rows.pop(output))
        if output not in self._rows:
            self._rows[output] = self._each.add_task("")
        stage = {**STAGES, "waiting": "Wait for another worker"}.get(event.name, "Start")
        model = escape(visible(_model(event.job.model)))
        description = f"[dim]{escape(event.worker)}[/] {model}: {stage}"
        self._each.update(self._rows[output], description=description)

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        super().finished(job, record)
        self._all.advance(self._bar)
        if job.output in self._rows:
            self._each.remove_task(self._rows.pop(job.output))

    def _print(self, *parts: tuple[str, str]) -> None:
        from rich.text import Text

        text = Text.assemble(*((visible(text), style) for text, style in parts))
        self._console.print(text, soft_wrap=True)


def print_batch(result: BatchResult) -> None:
    """Print the result of each model of a batch."""
    times = Counter(record["model"] for record in result.records)
    rows = []
    for record in result.records:
        model = _model(record["model"])
        if times[record["model"]] > 1:
            model += f" ({Path(record['output']).name})"
        providers = (
            f"{one['provider'].removesuffix('ExecutionProvider')} {one['status']}"
            for one in record["providers"]
        )
        rows.append(
            (
                status_cell(record["status"]),
                model,
                record["task"],
                "" if record["node_count"] is None else f"{record['node_count']:,}",
                "" if record["bytes"] is None else decimal(record["bytes"]),
                "" if record["seconds"] is None else f"{record['seconds']:.1f}",
                ", ".join(providers),
                record["error"] or "",
            )
        )
    print_table(_COLUMNS, rows, elsewhere="results.jsonl has all")
    counts = Counter(record["status"] for record in result.records)
    parts = ", ".join(f"{number:,} {status}" for status, number in counts.items())
    before = f" ({result.skipped:,} done before)" if result.skipped else ""
    print_blank()
    results = result.directory / "results.jsonl"
    where = f": {from_here(results)}" if results.exists() else ""
    print_line(f"{parts}{before} in {result.seconds:.1f} s{where}")
    if result.signal is not None:
        print_line(f"stopped: {_STOPPED.message}")


def _model(name: str) -> str:
    """Return a model as the user knows it: a directory relative to the current one."""
    return from_here(Path(name)) if Path(name).is_absolute() else name
