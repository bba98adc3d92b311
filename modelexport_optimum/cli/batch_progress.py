"""What the user sees of a batch: a line for each model that has ended, a bar, and the table."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.markup import escape

from modelexport_optimum.batches.jobs import Watcher
from modelexport_optimum.cli.printing import (
    STAGES,
    in_bytes,
    new_table,
    print_table,
    quiet,
    shown,
    stdout,
    styled,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.progress import TaskID

    from modelexport_optimum.batches.jobs import Job, Stage
    from modelexport_optimum.batches.run import BatchResult


@contextlib.contextmanager
def batch(*, as_json: bool = False, verbose: bool = False) -> Iterator[Watcher]:
    """Run a batch: quietly, with a line for each model that has ended.

    Args:
        as_json: say a failure as a JSON document on stdout, too.
        verbose: show the log of each model that failed, and an error's traceback.
    """
    with (
        told(as_json=as_json, verbose=verbose),
        quiet() as stream,
        _Bars(stream, verbose=verbose) if stream.isatty() else _Lines(stream, verbose=verbose) as w,
    ):
        yield w


class _Lines(Watcher):
    """What a batch says in a pipe: a line for each model that has ended."""

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
        by = "" if workers is None else f" with {_count(workers, 'worker')}"
        self._say(f"[dim]{_count(len(jobs), 'model')} to export{by}{before}[/]")

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        self._ended += 1
        status = record["status"]
        ended = f"[dim]{self._ended:>{len(str(self._total))}}/{self._total}[/] {styled(status)} "
        took = "" if record["seconds"] is None else f" [dim]{record['seconds']:.1f} s[/]"
        line = f"{ended}{escape(_model(job.model))} -> {escape(shown(job.output))}{took}"
        if status != "ok":
            line += f": {escape(str(record['error']))}"
        if record["log"]:
            line += f" [dim](log: {escape(shown(Path(record['log'])))})[/]"
        self._say(line)
        if self._verbose and record["log"] and Path(record["log"]).is_file():
            self._say(escape(Path(record["log"]).read_text(encoding="utf-8", errors="replace")))

    def stopping(self, reason: str) -> None:
        self._say(f"[yellow]{escape(reason)}: ending what runs; Ctrl-C once more kills it[/]")

    def warned(self, message: str) -> None:
        self._say(f"[yellow]warning:[/] {escape(message)}")

    def _say(self, markup: str) -> None:
        from rich.text import Text

        self._stream.write(f"{Text.from_markup(markup).plain}\n")
        self._stream.flush()


class _Bars(_Lines):
    """The same on a terminal, above a bar and what each worker is doing."""

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
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
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

    def running(self, event: Stage) -> None:
        self._all.update(self._bar, description="Export")
        output = event.job.output
        if event.name == "start" and output in self._rows:  # again, after its worker died
            self._each.remove_task(self._rows.pop(output))
        if output not in self._rows:
            self._rows[output] = self._each.add_task("")
        stage = {**STAGES, "waiting": "Wait for another worker"}.get(event.name, "Start")
        description = f"[dim]{escape(event.worker)}[/] {escape(_model(event.job.model))}: {stage}"
        self._each.update(self._rows[output], description=description)

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        super().finished(job, record)
        self._all.advance(self._bar)
        if job.output in self._rows:
            self._each.remove_task(self._rows.pop(job.output))

    def _say(self, markup: str) -> None:
        self._console.print(markup, soft_wrap=True)


def print_batch(result: BatchResult) -> None:
    """What became of each model of a batch."""
    right = ["nodes", "size", "seconds"]
    table = new_table("", "model", "task", *right, "providers", "error", right=right)
    times = Counter(record["model"] for record in result.records)
    for record in result.records:
        model = _model(record["model"])
        if times[record["model"]] > 1:
            model += f" ({Path(record['output']).name})"
        providers = (
            f"{name.removesuffix('ExecutionProvider')} {status}"
            for name, status in record["providers"].items()
        )
        table.add_row(
            styled(record["status"]),
            escape(model),
            record["task"],
            "" if record["nodes"] is None else f"{record['nodes']:,}",
            "" if record["size"] is None else in_bytes(record["size"]),
            "" if record["seconds"] is None else f"{record['seconds']:.1f}",
            ", ".join(providers),
            escape(record["error"] or ""),
        )
    print_table(table)
    counts = Counter(record["status"] for record in result.records)
    parts = [f"{number} {status}" for status, number in counts.items()]
    before = f" ({result.skipped} done before)" if result.skipped else ""
    stdout().print(
        f"\n{', '.join(parts)}{before} in {result.seconds:.1f} s: "
        f"{escape(shown(result.directory / 'results.jsonl'))}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _model(name: str) -> str:
    """As the user knows it: a directory from here on."""
    return shown(Path(name)) if Path(name).is_absolute() else name
