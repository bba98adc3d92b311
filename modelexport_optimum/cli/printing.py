"""Output that all commands share: stages, errors and JSON; and the end of a command.

Progress and errors go to stderr, results to stdout. The output of other libraries is not shown.
`run_tables` and `view_tables` format the results of each command.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gc
import io
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NoReturn

import typer

from modelexport_optimum.errors import (
    ManifestError,
    ModelExportError,
    UsageError,
    causes,
    in_one_line,
)
from modelexport_optimum.system.signals import terminating_as_exit
from modelexport_optimum.system.standard_streams import (
    lost_output,
    open_descriptor,
    open_standard_streams,
    output_to,
)
from modelexport_optimum.system.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelexport_optimum.export_run import Progress

STAGES = {
    "import": "Import Optimum",
    "load": "Load the model",
    "export": "Export to ONNX",
    "compare": "Compare with PyTorch",
    "tag": "Tag every node",
    "check": "Check config and providers",
    "upload": "Upload to the Hub",
    "strip": "Remove the tags",
}

_SIGPIPE_STATUS = 128 + 13  # Windows has no SIGPIPE
"""The exit status that a shell gives a program whose reader has ended."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet reads as a formula
(https://owasp.org/www-community/attacks/CSV_Injection)."""


# --- A command, from its beginning to its end -----------------------------------------------------


def run_program(app: typer.Typer) -> NoReturn:
    """Run the program, even if its stdout is lost, and exit."""
    open_standard_streams()
    try:
        app()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # while Typer made the commands, before one began
        status = 128 + signal.SIGINT
    if status == 0:  # --help and --version do not call `finish`
        try:
            finish()
        except typer.Exit as ended:
            status = ended.exit_code
    # Python would look through all that PyTorch and transformers made before it lets go of it, a
    # tenth of an export's CPU time.
    gc.freeze()
    sys.exit(status)


@dataclass
class Stopped:
    """What to say when a command is stopped: what it has written, and how to go on."""

    message: str = "nothing was changed; run the same command to start again"


@contextlib.contextmanager
def command(
    stage: str | None = None,
    *,
    as_json: bool = False,
    verbose: bool = False,
    stopped: Stopped | None = None,
) -> Iterator[Progress]:
    """Run a command's function: show its stages, hide other output, print an error in one line.

    `stage` is the only stage of a function that reports none itself.
    """
    with (
        exit_on_error(as_json=as_json, verbose=verbose, stopped=stopped),
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
def exit_on_error(
    *,
    as_json: bool,
    verbose: bool = False,
    status: int | None = None,
    stopped: Stopped | None = None,
) -> Iterator[None]:
    """Print one line about an error or a signal that ends the block, and exit.

    The exit status is the error's or the given one; for a signal it is 128 and the signal's number.
    """
    stopped = stopped or Stopped()
    try:
        with terminating_as_exit():
            yield
    except (typer.Exit, typer.Abort):
        raise
    except SystemExit as error:
        if isinstance(error.code, int) and error.code > 128:
            typer.echo(f"stopped: {stopped.message}", err=True)
        raise
    except (Exception, KeyboardInterrupt) as error:
        # A library that is being imported may convert KeyboardInterrupt to an error of its own.
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            typer.echo(f"stopped: {stopped.message}", err=True)
            raise typer.Exit(128 + signal.SIGINT) from error
        if verbose:
            typer.echo(visible(traceback.format_exc(), keep="\n\t"), err=True)
        problems = error.problems if isinstance(error, ManifestError) else []
        message = str(error).partition("\n")[0] if problems else in_one_line(error)
        if status is None:
            status = error.exit_status if isinstance(error, ModelExportError) else 1
        print_error(message, status, problems, as_json=as_json)
        raise typer.Exit(status) from error


def print_error(
    message: str, status: int, problems: Sequence[str] = (), *, as_json: bool = False
) -> None:
    """Print an error, also as a JSON document on stdout if requested."""
    if as_json:
        more = {"problems": list(problems)} if problems else {}
        print_json({"ok": False, "error": message, "exit_status": status, **more})
    # As rich decides for the tables: https://no-color.org, and terminals without escape sequences.
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    head = "error: " if is_plain else typer.style("error: ", fg="red")
    typer.echo(head, err=True, nl=False)
    typer.echo("\n".join(map(visible, [message, *problems])), err=True)


def finish(status: int = 0, *, written: bool = False, lost: int = 1) -> NoReturn:
    """End a command, whose results are printed.

    Args:
        status: The exit status.
        written: The command has written files, which matter more than its output.
        lost: The exit status if it has written no file, and the results could not be printed.

    Raises:
        typer.Exit: Always; with the status of a program that SIGPIPE ended, if the reader of stdout
            is gone.
    """
    error = lost_output()
    if error is None:
        raise typer.Exit(status)
    if error.errno == errno.EPIPE:
        raise typer.Exit(_SIGPIPE_STATUS)
    problem = f"cannot write to stdout: {error.strerror}"
    if written:
        typer.echo(f"warning: {problem}; the files are written", err=True)
        raise typer.Exit(status)
    print_error(problem, lost)
    raise typer.Exit(lost)


@contextlib.contextmanager
def quiet() -> Iterator[IO[str]]:
    """Discard all output in the block; yields the program's stderr."""
    with contextlib.ExitStack() as stack:
        stream: IO[str] = sys.stderr
        if _descriptor(sys.stderr) == 2:
            stream = stack.enter_context(open_descriptor(os.dup(2), sys.stderr, close=True))
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
    """Show a spinner, and a line for each stage that is done; in a pipe, only the lines."""
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
        SpinnerColumn("dots" if can_draw(stream) else "line"),
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


def can_draw(stream: IO[str]) -> bool:
    """Return whether a stream's encoding has the characters of trees and spinners."""
    try:
        "├─ ⠋ → … ✓".encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- For other programs ---------------------------------------------------------------------------


def print_json(document: object) -> None:
    """Print the only output of a command with `--json`."""
    typer.echo(json.dumps(document, indent=2))


def chosen_format(**formats: bool) -> str:
    """Return the requested format, by default "tree".

    Raises:
        UsageError: Two formats were requested.
    """
    names = [name for name, asked in formats.items() if asked]
    if len(names) > 1:
        raise UsageError(f"--{names[0]} and --{names[1]} exclude one another: give one of them")
    return names[0] if names else "tree"


def print_rows(rows: Iterable[Mapping[str, object]], columns: Sequence[str], style: str) -> None:
    """Print rows, whose cells are by column, as CSV or Markdown."""
    cells = [[row[column] for column in columns] for row in rows]
    if style == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(cell) for cell in row] for row in cells)
        return
    lines = [columns, ["---"] * len(columns), *cells]
    for line in lines:
        typer.echo(f"| {' | '.join(map(_markdown_cell, line))} |")


def _csv_cell(cell: object) -> object:
    """Return a cell that a spreadsheet reads as data, even if it looks like a formula."""
    if isinstance(cell, int | float):
        return cell
    text = str(cell)
    return visible(f"'{text}" if text.startswith(_FORMULA) else text)


def _markdown_cell(cell: object) -> str:
    text = visible(str(cell)).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "&lt;")
