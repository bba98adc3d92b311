"""The views' commands: parse, call one function, print. No logic.

Nothing heavy is imported before a command runs.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelexport_optimum.errors import ModelExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

_Path = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="A tagged export, or one tagged .onnx file.")
]
_Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the program."""
    app.command()(inspect)
    app.command()(diff)
    app.command()(extract)
    app.command()(profile)
    app.command()(report)
    app.command()(view)


@contextlib.contextmanager
def failing(*, as_json: bool, status: int | None = None) -> "Iterator[None]":
    """Tells an error in one line, and ends the program.

    Args:
        as_json: Tell it as a JSON document on stdout, too.
        status: The exit status, if it is not the error's own.
    """
    try:
        yield
    except (ModelExportError, OSError) as error:
        line = " ".join(str(error).split())
        code = status if status is not None else getattr(error, "exit_status", 1)
        if as_json:
            typer.echo(json.dumps({"ok": False, "error": line, "exit_status": code}, indent=2))
        typer.secho("error: ", fg="red", err=True, nl=False)
        typer.echo(line, err=True)
        raise typer.Exit(code) from error


def inspect(
    path: _Path,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=0, help="Levels of modules to show. By default all."),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--module",
            metavar="PATTERN",
            help="Modules of these paths and what is inside: * is anything within one part, ** "
            "any number of parts, and the first parts may be left out. May be repeated.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="PATTERN", help="Modules of these classes and what is inside."
        ),
    ] = None,
    ops: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="PATTERN", help="These operators and what they read alone."),
    ] = None,
    nodes: Annotated[
        bool,
        typer.Option("--nodes", help="List the nodes; with --json their names, for quantizers."),
    ] = False,
    as_json: _Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated rows.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
) -> None:
    """Show the modules, with their operators and parameters, and list their nodes."""
    from modelexport_optimum.cli import view_tables

    with failing(as_json=as_json):
        style = view_tables.chosen(json=as_json, csv=as_csv, markdown=as_markdown)
        from modelexport_optimum.hierarchy.inspect import inspect as run

        views = run(path, modules=modules or (), classes=classes or (), ops=ops or (), depth=depth)
    if nodes:
        view_tables.print_nodes(views, style, of_directory=path.is_dir())
    else:
        view_tables.print_modules(views, style, narrowed=bool(modules or classes or ops))


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A tagged export, or one .onnx file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, or another version of it.")],
    as_json: _Json = False,
) -> None:
    """Compare two exports by module: exit status 0 if they are the same, 1 if not, 2 on trouble."""
    from modelexport_optimum.cli import view_tables

    with failing(as_json=as_json, status=2):
        from modelexport_optimum.hierarchy.diff import diff as run

        found = run(a, b)
    if as_json:
        view_tables.print_json(found.to_dict())
    else:
        view_tables.print_diff(found)
    raise typer.Exit(0 if found.same else 1)


def extract(
    path: _Path,
    module: Annotated[
        str,
        typer.Option("--module", metavar="PATH", help="The module's path, as inspect shows it."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .onnx file to write.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: _Json = False,
) -> None:
    """Cut one module out, as a model of its own."""
    from modelexport_optimum.cli import view_tables as printing

    with failing(as_json=as_json):
        from modelexport_optimum.hierarchy.extract import extract as run

        found = run(path, module, output, overwrite=overwrite)
    if as_json:
        printing.print_json({"ok": True, **found.to_dict()})
    else:
        printing.print_extracted(found)


def _named_size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdecimal():
        raise typer.BadParameter(f"{text} is not NAME=N")
    return name, int(size)


def profile(
    path: _Path,
    provider: Annotated[
        str,
        typer.Option(
            "--provider", metavar="NAME", help="Execution provider: cpu, cuda, or any other."
        ),
    ] = "cpu",
    iterations: Annotated[
        int, typer.Option("--iterations", min=1, help="Runs to measure, after three to warm up.")
    ] = 20,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Batch size of inputs that are made up.")
    ] = 1,
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Their number of tokens.")
    ] = 128,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="NAME=N", help="Another dimension of theirs, by name; repeatable."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="FILE", help="Real inputs instead: a .npz file, arrays by name."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=0, help="Levels of modules to show. By default all."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Show where the time of a run goes, by module, with ONNX Runtime's profiler."""
    from modelexport_optimum.cli import view_tables

    named = dict(map(_named_size, sizes or ()))
    with failing(as_json=as_json):
        from modelexport_optimum.hierarchy.profile import profile as run

        found = run(
            path,
            provider=provider,
            iterations=iterations,
            batch_size=batch_size,
            sequence_length=sequence_length,
            sizes=named,
            inputs=inputs,
        )
    if as_json:
        view_tables.print_json({"ok": True, **found.to_dict()})
    else:
        for file in found.files:
            view_tables.print_profile(file, depth=depth)


def report(
    path: _Path,
    html: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .html file to write.")
    ],
    times: Annotated[
        Path | None,
        typer.Option(
            "--profile", metavar="FILE", help="Show these times too: what profile --json printed."
        ),
    ] = None,
) -> None:
    """Write one HTML file to share: charts, the tree, and how every node was placed."""
    with failing(as_json=False):
        from modelexport_optimum.hierarchy.report import report as run

        written = run(path, html, profile=times)
    typer.echo(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")


def view(
    path: _Path,
    viewer: Annotated[
        str | None,
        typer.Option(
            "--viewer", metavar="NAME", help="model-explorer or netron. By default what is there."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port to serve on. By default a free one.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether to open the browser.")
    ] = True,
) -> None:
    """Open a viewer that is installed on this machine, until Ctrl-C."""
    with failing(as_json=False):
        from modelexport_optimum.hierarchy.view import view as run

        run(path, viewer=viewer, port=port, browser=browser)
