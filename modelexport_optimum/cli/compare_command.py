"""The command `compare`: parse, call one function, print. No logic."""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

from pathlib import Path
from typing import Annotated

import typer

from modelexport_optimum.cli import printing
from modelexport_optimum.cli.completion import complete_module, complete_provider, complete_task
from modelexport_optimum.cli.options import Json
from modelexport_optimum.cli.view_commands import chosen_format, named_size


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command()(compare)


def compare(
    a: Annotated[
        Path,
        typer.Argument(metavar="A", help="A tagged export, or one .onnx file."),
    ],
    b: Annotated[
        Path | None,
        typer.Argument(
            metavar="[B]",
            help="Another export, which is compared with A. Without it A is compared with "
            "PyTorch or, on another provider, with itself on the CPU.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|DIR",
            help="What PyTorch runs. By default the source that the export records.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            autocompletion=complete_task,
            help="The task that was exported. By default what config.json says.",
        ),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(
            "--provider",
            metavar="NAME",
            autocompletion=complete_provider,
            help="Execution provider of the side that is compared: cpu, cuda, or any other.",
        ),
    ] = "cpu",
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="Largest relative difference that is none. By default 1e-4, with weights in "
            "float16 1e-2, in bfloat16 5e-2.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Samples to run: the worst is shown.")
    ] = 1,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Run on this text, through the export's tokenizer."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help="Run on a .npz file, arrays by name."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Batch size of inputs that are made up.")
    ] = 2,
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Their number of tokens.")
    ] = 16,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="NAME=N", help="Another dimension of theirs, by name; repeatable."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=0, help="Levels of modules to show. By default all."),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--module",
            metavar="PATTERN",
            autocompletion=complete_module,
            help="Show modules of these paths and what is inside alone, as in inspect.",
        ),
    ] = None,
    node_data: Annotated[
        Path | None,
        typer.Option(
            "--node-data",
            metavar="FILE",
            help="Write each node's own error for Model Explorer (view --node-data FILE).",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Let code run that comes with the model."),
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated rows.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
) -> None:
    """Find the module whose numbers differ: exit status 0 if none does, 1 if one, 2 on trouble."""
    from modelexport_optimum.cli import compare_tables

    named = dict(map(named_size, sizes or ()))
    with printing.exit_on_error(as_json=as_json, status=2):
        style = chosen_format(json=as_json, csv=as_csv, markdown=as_markdown)
        from modelexport_optimum.compare_run import compare as run

        with printing.quiet():
            found = run(
                a,
                b,
                model=model,
                task=task,
                provider=provider,
                tolerance=tolerance,
                samples=samples,
                text=text,
                inputs=inputs,
                batch_size=batch_size,
                sequence_length=sequence_length,
                sizes=named,
                node_data=node_data,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
            )
        shown = found.paths_matching(modules) if modules else None
    if style == "json":
        printing.print_json(found.to_dict())
    elif style == "tree":
        compare_tables.print_comparison(found, depth=depth, shown=shown)
    else:
        rows = compare_tables.rows(found, shown)
        printing.print_rows(rows, compare_tables.MODULE_FIELDS, style)
    printing.finish(0 if found.ok else 1, lost=2)
