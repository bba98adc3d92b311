"""The command `compare`: parse, call one function, print. No logic."""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

from pathlib import Path
from typing import Annotated

import typer

from modelexport_optimum.cli import printing
from modelexport_optimum.cli.completion import complete_task
from modelexport_optimum.cli.options import (
    BatchSize,
    Csv,
    Depth,
    Inputs,
    Json,
    Markdown,
    ModelKwargs,
    Modules,
    Overwrite,
    Provider,
    ProviderLibraries,
    ProviderOptions,
    SequenceLength,
    Sizes,
    Trust,
    option,
)

_A = Annotated[Path, typer.Argument(metavar="A", help="A tagged export, or one .onnx file.")]
_B = Annotated[
    Path | None,
    typer.Argument(
        metavar="[B]",
        help="Another export, to compare with A. Without B, A is compared with PyTorch. "
        "With --provider, it is compared with itself on the CPU.",
    ),
]
_Model = Annotated[
    str | None,
    option(
        "--model",
        "The model that PyTorch runs. By default the source that the export records.",
        metavar="NAME|DIR",
    ),
]
_Task = Annotated[
    str | None,
    option(
        "--task",
        "Task of the export. By default detected from config.json.",
        autocompletion=complete_task,
    ),
]
_Tolerance = Annotated[
    float | None,
    option(
        "--tolerance",
        "Largest relative difference that does not count. By default 1e-4; 1e-2 with float16 "
        "weights, 5e-2 with bfloat16 weights.",
        min=0.0,
    ),
]
_Samples = Annotated[
    int, option("--samples", "Number of inputs to run; the worst is shown.", min=1)
]
_Text = Annotated[str | None, option("--text", "Run on this text, with the export's tokenizer.")]
_NodeData = Annotated[
    Path | None,
    option(
        "--node-data",
        "Write each node's own error for Model Explorer (view --node-data FILE).",
        metavar="FILE",
    ),
]


def compare(
    a: _A,
    b: _B = None,
    model: _Model = None,
    task: _Task = None,
    provider: Provider = "cpu",
    provider_options: ProviderOptions = None,
    provider_libraries: ProviderLibraries = None,
    tolerance: _Tolerance = None,
    samples: _Samples = 1,
    text: _Text = None,
    inputs: Inputs = None,
    batch_size: BatchSize = 2,
    sequence_length: SequenceLength = None,
    sizes: Sizes = None,
    depth: Depth = None,
    modules: Modules = None,
    node_data: _NodeData = None,
    overwrite: Overwrite = False,
    model_kwargs: ModelKwargs = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
) -> None:
    """Find the module whose numbers differ.

    Exit status 0 if none differs, 1 if one differs, 2 if they cannot be compared.
    """
    with printing.exit_on_error(as_json=as_json, status=2):
        style = printing.chosen_format(json=as_json, csv=as_csv, markdown=as_markdown)
        from modelexport_optimum.cli import compare_tables
        from modelexport_optimum.compare_run import compare as run

        with printing.quiet():
            found = run(
                a,
                b,
                model=model,
                task=task,
                provider=provider,
                provider_options=provider_options,
                provider_libraries=provider_libraries,
                tolerance=tolerance,
                samples=samples,
                text=text,
                inputs=inputs,
                batch_size=batch_size,
                sequence_length=sequence_length,
                sizes=dict(sizes or ()),
                node_data=node_data,
                overwrite=overwrite,
                model_kwargs=model_kwargs,
                trust_remote_code=trust_remote_code,
            )
        shown = found.paths_matching(modules) if modules else None
    if style == "json":
        printing.print_json(found.to_dict())
    elif style == "tree":
        compare_tables.print_comparison(found, depth=depth, shown=shown)
    else:
        printing.print_rows(compare_tables.rows(found, shown), compare_tables.MODULE_FIELDS, style)
    printing.finish(0 if found.ok else 1, lost=2)
