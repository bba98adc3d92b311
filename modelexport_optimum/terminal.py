"""What the user sees: each stage with its time, the summary, one line for an error.

Progress and errors go to stderr, results to stdout. What other libraries print is kept
from both.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import typer
from rich.markup import escape

from modelexport_optimum.errors import ManifestError, ModelExportError, in_one_line
from modelexport_optimum.jobs import Watcher
from modelexport_optimum.streams import output_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from modelexport_optimum.batch import BatchResult
    from modelexport_optimum.export import ExportResult, Progress
    from modelexport_optimum.htp import TagReport
    from modelexport_optimum.jobs import Job, Stage
    from modelexport_optimum.verify import VerifyReport

_STAGES = {
    "import": "Import Optimum",
    "load": "Load the model",
    "export": "Export to ONNX",
    "compare": "Compare with PyTorch",
    "tag": "Tag every node",
    "check": "Check config and providers",
    "strip": "Take the tags out",
}

_COLOURS = {
    "ok": "green",
    "differs": "yellow",
    "failed": "red",
    "check-failed": "red",
    "timed-out": "red",
    "crashed": "red",
    "not run": "bright_black",
    "skipped": "bright_black",
    "unavailable": "bright_black",
}


@contextlib.contextmanager
def command(
    stage: str | None = None, *, as_json: bool = False, verbose: bool = False
) -> Iterator[Progress]:
    """Run a command's function: quietly, its stages shown, its failure told in one line.

    Args:
        stage: the only stage of a function that reports none itself.
        as_json: say a failure as a JSON document on stdout, too.
        verbose: show what other libraries print, and an error's traceback.
    """
    with (
        _told(as_json=as_json, verbose=verbose),
        contextlib.nullcontext(sys.stderr) if verbose else _quiet() as stream,
        _stages(stream, plain=verbose or not stream.isatty()) as progress,
    ):
        if stage is None:
            yield progress
        else:
            started = time.perf_counter()
            progress(stage, None)
            yield progress
            progress(stage, time.perf_counter() - started)


@contextlib.contextmanager
def _told(*, as_json: bool, verbose: bool) -> Iterator[None]:
    """Tell a failure in one line, and end with its exit status."""
    try:
        yield
    except ManifestError as error:
        _fail(str(error), error.exit_status, error.problems, as_json=as_json, verbose=verbose)
    except ModelExportError as error:
        _fail(str(error), error.exit_status, as_json=as_json, verbose=verbose)
    except Exception as error:
        _fail(in_one_line(error), 1, as_json=as_json, verbose=verbose)


def _fail(
    message: str, status: int, problems: Sequence[str] = (), *, as_json: bool, verbose: bool
) -> NoReturn:
    line = " ".join(message.splitlines()[0].split()) if problems else " ".join(message.split())
    if verbose:
        traceback.print_exc()
    if as_json:
        more = {"problems": list(problems)} if problems else {}
        print_json({"ok": False, "error": line, "exit_status": status, **more})
    typer.secho("error: ", fg="red", err=True, nl=False)
    typer.echo("\n".join([line, *problems]), err=True)
    raise typer.Exit(status)


@contextlib.contextmanager
def _quiet() -> Iterator[IO[str]]:
    """Send what is printed to nowhere; yields our stderr."""
    with contextlib.ExitStack() as stack:
        stream: IO[str] = sys.stderr
        if _descriptor(sys.stderr) == 2:
            stream = stack.enter_context(os.fdopen(os.dup(2), "w", buffering=1))
        else:  # replaced by an object, as in a notebook or a test
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        stack.enter_context(output_to(nowhere))
        yield stream


def _descriptor(stream: IO[str]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _stages(stream: IO[str], *, plain: bool) -> Iterator[Progress]:
    """A spinner with the running stage and a line for each that is done; in a pipe, lines."""
    if plain:

        def write(name: str, seconds: float | None) -> None:
            if seconds is not None:
                stream.write(f"{_STAGES[name]}: {seconds:.1f} s\n")
                stream.flush()

        yield write
        return

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream, highlight=False)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:

        def draw(name: str, seconds: float | None) -> None:
            for running in bar.task_ids:
                bar.remove_task(running)
            if seconds is None:
                bar.add_task(_STAGES[name])
            else:
                console.print(f"[green]✓[/] {_STAGES[name]:28}[dim]{seconds:6.1f} s[/]")

        yield draw


@contextlib.contextmanager
def batch(*, as_json: bool = False, verbose: bool = False) -> Iterator[Watcher]:
    """Run a batch: quietly, with a line for each model that has ended.

    Args:
        as_json: say a failure as a JSON document on stdout, too.
        verbose: show the log of each model that failed, and an error's traceback.
    """
    with (
        _told(as_json=as_json, verbose=verbose),
        _quiet() as stream,
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
        ended = f"[dim]{self._ended:>{len(str(self._total))}}/{self._total}[/] {_status(status)} "
        took = "" if record["seconds"] is None else f" [dim]{record['seconds']:.1f} s[/]"
        line = f"{ended}{escape(_model(job.model))} -> {escape(_shown(job.output))}{took}"
        if status != "ok":
            line += f": {escape(str(record['error']))}"
        if record["log"]:
            line += f" [dim](log: {escape(_shown(Path(record['log'])))})[/]"
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
        stage = _STAGES.get(event.name, "Look for the model")
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
    table = _table("", "model", "task", *right, "providers", "error", right=right)
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
            _status(record["status"]),
            escape(model),
            record["task"],
            "" if record["nodes"] is None else f"{record['nodes']:,}",
            "" if record["size"] is None else _bytes(record["size"]),
            "" if record["seconds"] is None else f"{record['seconds']:.1f}",
            ", ".join(providers),
            escape(record["error"] or ""),
        )
    _print_table(table)
    counts = Counter(record["status"] for record in result.records)
    parts = [f"{number} {status}" for status, number in counts.items()]
    before = f" ({result.skipped} done before)" if result.skipped else ""
    _console().print(
        f"\n{', '.join(parts)}{before} in {result.seconds:.1f} s: "
        f"{escape(_shown(result.directory / 'results.jsonl'))}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_json(document: object) -> None:
    """The one thing on stdout of a command with `--json`."""
    typer.echo(json.dumps(document, indent=2))


def print_export(result: ExportResult) -> None:
    """The summary of a run."""
    console = _console()
    console.print(f"\n[bold]{escape(_shown(result.output))}[/]  {result.task}\n")
    _print_table(_files(result.tags, result.output, result.files))
    others = [name for name in result.files if not _is_model(name)]
    size = _bytes(sum(result.files[name] for name in others))
    console.print(f"[dim]and {escape(', '.join(others))} ({size})[/]\n")
    checks = _checks(result.verification)
    checks.add_row("PyTorch", _status(result.comparison.status), escape(result.comparison.message))
    _print_table(checks)
    for warning in result.warnings:
        console.print(f"\n[yellow]warning:[/] {escape(warning)}")


def print_tags(report: TagReport) -> None:
    """What the pass did, file by file, and by which evidence the nodes were placed."""
    _print_table(_files(report, Path.cwd(), {}))
    if not report.classes_known:
        _console().print(
            "[yellow]warning:[/] the classes cannot be known from this directory, and the tags "
            "have paths alone: give the source model with tag --model"
        )


def _files(report: TagReport, directory: Path, sizes: Mapping[str, int]) -> Table:
    """A row for each file, with its size if that is known.

    Args:
        report: The pass over the `.onnx` files.
        directory: What the names in `sizes` are relative to.
        sizes: Bytes of the files, of which those with weights are shown.
    """
    numbers = [*(["size"] if sizes else []), "nodes", "modules", "attribute"]
    table = _table("file", *numbers, "placed by", right=numbers)
    shown = {_shown(file.path, directory): file for file in report.files}
    for name in sorted({*shown, *filter(_is_model, sizes)}):
        cells = [_bytes(sizes[name])] if sizes else []
        if name in shown:
            file = shown[name]
            cells += [f"{n:,}" for n in (file.nodes, len(file.modules), file.attribute)]
            cells.append(", ".join(f"{kind} {n:,}" for kind, n in file.evidence.items()))
        table.add_row(escape(name), *cells)
    return table


def print_explanation(paragraphs: Sequence[str], *, as_json: bool) -> None:
    """How a node was placed, in each file that has it."""
    if as_json:
        print_json({"ok": True, "nodes": list(paragraphs)})
    else:
        typer.echo("\n\n".join(paragraphs))


def print_stripped(changed: Sequence[Path]) -> None:
    """The files that tags were taken out of."""
    for path in changed:
        typer.echo(f"stripped {_shown(path)}")
    if not changed:
        typer.echo("nothing to strip: there are no tags")


def print_verification(report: VerifyReport) -> None:
    """The result of each check and each provider."""
    _print_table(_checks(report))


def _checks(report: VerifyReport) -> Table:
    table = _table("check", "result", "")
    for check in report.checks:
        table.add_row(check.name, _status(check.status), escape(check.message))
    for provider in report.providers:
        table.add_row(provider.provider, _status(provider.status), escape(provider.message))
    return table


def _console() -> Console:
    from rich.console import Console

    # In a pipe a line must not be broken at the 80 columns that rich assumes there.
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 1000, highlight=False)


def _print_table(table: Table) -> None:
    """Without the blanks that fill up rich's last column."""
    console = _console()
    with console.capture() as capture:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        last = column == columns[-1]
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=not last,
            overflow="fold",
        )
    return table


def _status(status: str) -> str:
    return f"[{_COLOURS.get(status, 'default')}]{status}[/]"


def _is_model(name: str) -> bool:
    return ".onnx" in name


def _shown(path: Path, start: Path | None = None) -> str:
    relative = os.path.relpath(path, start)
    return str(path) if relative.startswith("..") else relative


def _model(name: str) -> str:
    """As the user knows it: a directory from here on."""
    return _shown(Path(name)) if Path(name).is_absolute() else name


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
