"""The commands: parse, call one function, print. No logic.

Nothing heavy is imported before a command runs, so that `--help` costs no more than that of
a bare Typer app.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from modelexport_optimum.batches.resources import Resources
from modelexport_optimum.cli import compare_command, help_page, printing, view_commands
from modelexport_optimum.cli.completion import complete_task
from modelexport_optimum.cli.options import (
    Depth,
    Json,
    Legend,
    ProviderLibraries,
    ProviderOptions,
    Providers,
    Trust,
    Verbose,
    declared_options,
    option,
)
from modelexport_optimum.cli.program import CONTEXT, BatchCommand, Command, Commands
from modelexport_optimum.errors import UsageError
from modelexport_optimum.exporting.options import ExportOptions, ModelAndOutput, instance_of
from modelexport_optimum.system.version import __version__

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="Export a Hugging Face model to ONNX, tag every node with its PyTorch module, and "
    "check that ONNX Runtime runs it."
    "\n\nmodelexport-optimum MODEL is short for modelexport-optimum export MODEL.",
)

_command = functools.partial(app.command, cls=Command)
"""Registers a command of the program."""


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"modelexport-optimum {__version__}")
        raise typer.Exit


_Path = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="An exported directory, or one .onnx file.")
]

_Directory = Annotated[Path | None, typer.Argument(metavar="DIR", help="An exported directory.")]
_ByModule = Annotated[
    bool, option("--by-module", "Show which provider took the nodes of each module.")
]
_ListProviders = Annotated[
    bool, option("--list-providers", "Only list the providers of this machine.")
]
_Task = Annotated[
    str | None,
    option(
        "--task",
        "Task of the model. By default detected from the graphs.",
        autocompletion=complete_task,
    ),
]
_SourceDirectory = Annotated[
    Path | None,
    option(
        "--model",
        "Directory of the source model. Check that the export has all its files and gives the "
        "same embeddings.",
    ),
]


@app.callback()
def _main(
    version: Annotated[
        bool,
        option("--version", "Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


@_command(rich_help_panel=help_page.FIRST)
@declared_options(ModelAndOutput, ExportOptions, after="providers")
def export(
    as_json: Json = False,
    legend: Legend = False,
    verbose: Verbose = False,
    **given: Any,  # noqa: ANN401
) -> None:
    """Export MODEL to ONNX, tag every node with its module, and check the result."""
    arguments = instance_of(ExportOptions, given).arguments()
    stopped = printing.Stopped(
        "nothing was written or replaced; run the same command to start again"
    )
    with printing.command(as_json=as_json, verbose=verbose, stopped=stopped) as progress:
        model, output = instance_of(ModelAndOutput, given).resolve()
        from modelexport_optimum.export_run import default_output
        from modelexport_optimum.export_run import export as run

        def show_stage(stage: str, seconds: float | None) -> None:
            if stage == "upload":
                stopped.message = "the export is written, but was not uploaded"
            progress(stage, seconds)

        result = run(model, output or default_output(model), progress=show_stage, **arguments)
    if as_json:
        printing.print_json(result.to_dict())
    else:
        from modelexport_optimum.cli import run_tables

        run_tables.print_export(result, legend=legend)
    if result.upload is not None and not result.upload.ok:
        printing.print_error(result.upload.message, result.exit_status)
    printing.finish(result.exit_status, written=True)


@_command(cls=BatchCommand, rich_help_panel=help_page.EXPORTS)
@declared_options(Resources, ExportOptions)
def batch(
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="A text file with the arguments of export on each line, a .jsonl file, or - for "
            "standard input.",
        ),
    ],
    output: Annotated[
        Path,
        option("--output -o", "Directory for the exports, the results and the logs."),
    ] = Path(),
    workers: Annotated[
        int | None,
        option(
            "--workers",
            "Number of models to export at the same time. By default one for each core, at most 4.",
            min=1,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        option(
            "--ray",
            "Run on a Ray cluster: the one at this address. Without an address, the one that the "
            "environment names, or a local one.",
            metavar="[ADDRESS]",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, option("--retry-failed", "Run only the models that failed before.")
    ] = False,
    force: Annotated[bool, option("--force", "Run all models, even those that are done.")] = False,
    fail_fast: Annotated[bool, option("--fail-fast", "Stop at the first failure.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    **given: Any,  # noqa: ANN401
) -> None:
    """Export many models. The options of export are the defaults for all lines of MANIFEST.

    Exit status 0 if all are done, 1 if one failed, 3 if a check failed, 4 if an upload failed.
    """
    from modelexport_optimum.cli import batch_progress

    with batch_progress.batch(as_json=as_json, verbose=verbose) as watcher:
        from modelexport_optimum.batches.run import batch as run

        result = run(
            manifest,
            output,
            workers=workers,
            ray=ray,
            retry_failed=retry_failed,
            force=force,
            fail_fast=fail_fast,
            watcher=watcher,
            **given,
        )
    if as_json:
        printing.print_json(result.to_dict())
    else:
        batch_progress.print_batch(result)
    printing.finish(result.exit_status, written=True)


@_command(rich_help_panel=help_page.EXPORTS)
def tag(
    path: _Path,
    model: Annotated[
        str | None,
        option(
            "--model", "The source model, if the directory does not say the classes of its modules."
        ),
    ] = None,
    trust_remote_code: Trust = False,
    explain: Annotated[
        str | None,
        option("--explain", "Explain how the module of this node was found.", metavar="NODE"),
    ] = None,
    as_json: Json = False,
    legend: Legend = False,
    verbose: Verbose = False,
) -> None:
    """Write the tags into an existing export."""
    stopped = printing.Stopped(
        "every file is complete, either tagged or unchanged; run the same command to tag the rest"
    )
    with printing.command("tag", as_json=as_json, verbose=verbose, stopped=stopped):
        if explain is None:
            from modelexport_optimum.tagging.htp import tag as run

            report = run(path, model=model, trust_remote_code=trust_remote_code)
        else:
            from modelexport_optimum.tagging.explain import explain as say

            found = say(path, explain, model=model, trust_remote_code=trust_remote_code)
    from modelexport_optimum.cli import run_tables

    if explain is not None:
        if as_json:
            printing.print_json({"ok": True, "explanations": found})
        else:
            run_tables.print_explanation(found)
    elif as_json:
        printing.print_json({"ok": True, **report.to_dict()})
    else:
        run_tables.print_tags(report, legend=legend, trusted=trust_remote_code)
    printing.finish(written=explain is None)


@_command(rich_help_panel=help_page.EXPORTS)
def strip(path: _Path, as_json: Json = False, verbose: Verbose = False) -> None:
    """Remove the tags: this restores the files byte for byte."""
    stopped = printing.Stopped(
        "every file is complete, either stripped or unchanged; "
        "run the same command to strip the rest"
    )
    with printing.command("strip", as_json=as_json, verbose=verbose, stopped=stopped):
        from modelexport_optimum.tagging.htp import strip as run

        changed = run(path)
    if as_json:
        files = [{"file": str(file), "changed": True} for file in changed]
        printing.print_json({"ok": True, "files": files})
    else:
        from modelexport_optimum.cli import run_tables

        run_tables.print_stripped(changed)
    printing.finish(written=True)


@_command(rich_help_panel=help_page.EXPORTS)
def verify(
    directory: _Directory = None,
    providers: Providers = None,
    provider_options: ProviderOptions = None,
    provider_libraries: ProviderLibraries = None,
    by_module: _ByModule = False,
    depth: Depth = None,
    list_providers: _ListProviders = False,
    task: _Task = None,
    model: _SourceDirectory = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare the config with the graphs, and run the model on each execution provider."""
    if list_providers:
        _list_providers(provider_libraries, as_json=as_json)
        return
    with printing.command("check", as_json=as_json, verbose=verbose):
        if directory is None:
            raise UsageError("Missing argument 'DIR': give an exported directory")
        from modelexport_optimum.verify_run import verify as run

        report = run(
            directory,
            providers=providers,
            provider_options=provider_options,
            provider_libraries=provider_libraries,
            by_module=by_module,
            task=task,
            model=model,
            trust_remote_code=trust_remote_code,
        )
    if as_json:
        printing.print_json(report.to_dict())
    else:
        from modelexport_optimum.cli import run_tables

        run_tables.print_verification(report, depth=depth)
    printing.finish(0 if report.ok else 3)


def _list_providers(libraries: list[str] | None, *, as_json: bool) -> None:
    from modelexport_optimum.cli import provider_tables

    with printing.exit_on_error(as_json=as_json), printing.quiet():
        from modelexport_optimum.providers.listing import list_providers

        found = list_providers(libraries=libraries)
    if as_json:
        printing.print_json({"ok": True, **found.to_dict()})
    else:
        provider_tables.print_providers(found)
    printing.finish()


for _first_view in (view_commands.inspect, view_commands.report):
    _command(rich_help_panel=help_page.FIRST)(_first_view)
for _view in (
    view_commands.diff,
    view_commands.extract,
    view_commands.profile,
    view_commands.view,
    compare_command.compare,
):
    _command(rich_help_panel=help_page.VIEWS)(_view)


def main() -> None:
    """Run the program `modelexport-optimum`."""
    printing.run_program(app)
