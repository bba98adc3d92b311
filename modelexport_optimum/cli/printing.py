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
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

import typer
from rich.markup import escape

from modelexport_optimum.errors import ManifestError, ModelExportError, in_one_line
from modelexport_optimum.system.streams import output_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from modelexport_optimum.export_run import ExportResult, Progress
    from modelexport_optimum.tagging.tag_report import TagReport
    from modelexport_optimum.verifying.verify import VerifyReport

STAGES = {
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
        told(as_json=as_json, verbose=verbose),
        contextlib.nullcontext(sys.stderr) if verbose else quiet() as stream,
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
def told(*, as_json: bool, verbose: bool) -> Iterator[None]:
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
def quiet() -> Iterator[IO[str]]:
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
                stream.write(f"{STAGES[name]}: {seconds:.1f} s\n")
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
                bar.add_task(STAGES[name])
            else:
                console.print(f"[green]✓[/] {STAGES[name]:28}[dim]{seconds:6.1f} s[/]")

        yield draw


def print_json(document: object) -> None:
    """The one thing on stdout of a command with `--json`."""
    typer.echo(json.dumps(document, indent=2))


def print_export(result: ExportResult) -> None:
    """The summary of a run."""
    console = stdout()
    console.print(f"\n[bold]{escape(shown(result.output))}[/]  {result.task}\n")
    print_table(_files(result.tags, result.output, result.files))
    others = [name for name in result.files if not _is_model(name)]
    size = in_bytes(sum(result.files[name] for name in others))
    console.print(f"[dim]and {escape(', '.join(others))} ({size})[/]\n")
    checks = _checks(result.verification)
    checks.add_row("PyTorch", styled(result.comparison.status), escape(result.comparison.message))
    print_table(checks)
    for warning in result.warnings:
        console.print(f"\n[yellow]warning:[/] {escape(warning)}")


def print_tags(report: TagReport) -> None:
    """What the pass did, file by file, and by which evidence the nodes were placed."""
    print_table(_files(report, Path.cwd(), {}))
    if not report.classes_known:
        stdout().print(
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
    table = new_table("file", *numbers, "placed by", right=numbers)
    by_name = {shown(file.path, directory): file for file in report.files}
    for name in sorted({*by_name, *filter(_is_model, sizes)}):
        cells = [in_bytes(sizes[name])] if sizes else []
        if name in by_name:
            file = by_name[name]
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
        typer.echo(f"stripped {shown(path)}")
    if not changed:
        typer.echo("nothing to strip: there are no tags")


def print_verification(report: VerifyReport) -> None:
    """The result of each check and each provider."""
    print_table(_checks(report))


def _checks(report: VerifyReport) -> Table:
    table = new_table("check", "result", "")
    for check in report.checks:
        table.add_row(check.name, styled(check.status), escape(check.message))
    for provider in report.providers:
        table.add_row(provider.provider, styled(provider.status), escape(provider.message))
    return table


def stdout() -> Console:
    """The terminal, or what stands in its place."""
    from rich.console import Console

    # In a pipe a line must not be broken at the 80 columns that rich assumes there.
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 1000, highlight=False)


def print_table(table: Table) -> None:
    """Without the blanks that fill up rich's last column."""
    console = stdout()
    with console.capture() as capture:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with these columns, of which some are set to the right."""
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


def styled(status: str) -> str:
    """A status in its colour."""
    return f"[{_COLOURS.get(status, 'default')}]{status}[/]"


def _is_model(name: str) -> bool:
    return ".onnx" in name


def shown(path: Path, start: Path | None = None) -> str:
    """A path from here on, or from another start, if it is below."""
    relative = os.path.relpath(path, start)
    return str(path) if relative.startswith("..") else relative


def in_bytes(size: float) -> str:
    """A size for the eye."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
