"""The commands that look at a tagged export: parse, call one function, print.

Nothing heavy is imported before a command runs.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

from pathlib import Path
from typing import Annotated

import typer

from modelexport_optimum.cli import printing
from modelexport_optimum.cli.completion import (
    complete_class,
    complete_module,
    complete_op,
    complete_viewer,
)
from modelexport_optimum.cli.options import (
    BatchSizes,
    Csv,
    Depth,
    Inputs,
    Json,
    Legend,
    Markdown,
    Modules,
    Overwrite,
    Provider,
    ProviderLibraries,
    ProviderOptions,
    SequenceLengths,
    Sizes,
    TaggedExport,
    option,
)


def inspect(
    path: TaggedExport,
    depth: Depth = None,
    modules: Modules = None,
    classes: Annotated[
        list[str] | None,
        option(
            "--class",
            "Modules of these classes, and their submodules. May be repeated.",
            metavar="PATTERN",
            autocompletion=complete_class,
        ),
    ] = None,
    ops: Annotated[
        list[str] | None,
        option(
            "--op",
            "Count only these operators and the weights that they read. May be repeated.",
            metavar="PATTERN",
            autocompletion=complete_op,
        ),
    ] = None,
    nodes: Annotated[bool, option("--nodes", "List the nodes, one in each row.")] = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    legend: Legend = False,
) -> None:
    """Show the modules, with their operators and parameters, and list their nodes."""
    from modelexport_optimum.cli import view_tables

    with printing.exit_on_error(as_json=as_json):
        style = printing.chosen_format(json=as_json, csv=as_csv, markdown=as_markdown)
        from modelexport_optimum.hierarchy.inspect import inspect as run

        views = run(path, modules=modules or (), classes=classes or (), ops=ops or (), depth=depth)
    if style == "json":
        found = views.nodes_to_dict() if nodes else views.to_dict()
        printing.print_json({"ok": True, **found})
    elif style == "tree" and nodes:
        view_tables.print_nodes(views, legend=legend)
    elif style == "tree":
        view_tables.print_modules(views, narrowed=bool(modules or classes or ops), legend=legend)
    elif nodes:
        printing.print_rows(view_tables.node_rows(views), view_tables.NODE_FIELDS, style)
    else:
        printing.print_rows(view_tables.module_rows(views), view_tables.MODULE_FIELDS, style)
    printing.finish()


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A tagged export, or one .onnx file.")],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="Another export, or another version of A.")
    ],
    as_json: Json = False,
) -> None:
    """Compare two exports by module.

    Exit status 0 if they are the same, 1 if they differ, 2 if they cannot be compared.
    """
    from modelexport_optimum.cli import view_tables

    with printing.exit_on_error(as_json=as_json, status=2):
        from modelexport_optimum.hierarchy.diff import diff as run

        found = run(a, b)
    if as_json:
        printing.print_json({"ok": True, **found.to_dict()})
    else:
        view_tables.print_diff(found)
    printing.finish(0 if found.same else 1, lost=2)


def extract(
    path: TaggedExport,
    module: Annotated[
        str,
        option(
            "--module",
            "The module's path, as inspect shows it.",
            metavar="PATH",
            autocompletion=complete_module,
        ),
    ],
    output: Annotated[Path, option("--output -o", "The .onnx file to write.", metavar="FILE")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one module as a separate model."""
    from modelexport_optimum.cli import view_tables

    stopped = printing.Stopped(
        "every file is complete, either new or unchanged; "
        "run the same command with --overwrite to start again"
    )
    with printing.exit_on_error(as_json=as_json, stopped=stopped):
        from modelexport_optimum.hierarchy.extract import extract as run

        found = run(path, module, output, overwrite=overwrite)
    if as_json:
        printing.print_json({"ok": True, **found.to_dict()})
    else:
        view_tables.print_extracted(found)
    printing.finish(written=True)


def profile(
    path: TaggedExport,
    provider: Provider = "cpu",
    provider_options: ProviderOptions = None,
    provider_libraries: ProviderLibraries = None,
    iterations: Annotated[
        int, option("--iterations", "Number of measured runs, after three warm-up runs.", min=1)
    ] = 20,
    batch_size: BatchSizes = None,
    sequence_length: SequenceLengths = None,
    sizes: Sizes = None,
    inputs: Inputs = None,
    isolated: Annotated[
        bool,
        option(
            "--isolated",
            "Also extract the modules down to --depth and measure each one alone. For providers "
            "that run a graph as one kernel.",
        ),
    ] = False,
    depth: Depth = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
    legend: Legend = False,
) -> None:
    """Measure the time and the memory of each module, with ONNX Runtime's profiler."""
    from modelexport_optimum.cli import profile_tables

    with printing.exit_on_error(as_json=as_json):
        style = printing.chosen_format(json=as_json, csv=as_csv, markdown=as_markdown)
        from modelexport_optimum.profiling.profile import profile as run

        with printing.quiet():
            found = run(
                path,
                provider=provider,
                provider_options=provider_options,
                provider_libraries=provider_libraries,
                iterations=iterations,
                batch_size=batch_size,
                sequence_length=sequence_length,
                sizes=dict(sizes or ()),
                inputs=inputs,
                isolated=isolated,
                depth=depth,
            )
    if style == "json":
        printing.print_json({"ok": True, **found.to_dict()})
    elif style == "tree":
        profile_tables.print_profiles(found, depth=depth, legend=legend)
    else:
        rows = profile_tables.profile_rows(found)
        printing.print_rows(rows, profile_tables.PROFILE_FIELDS, style)
    printing.finish()


def report(
    path: TaggedExport,
    html: Annotated[Path, option("--output -o", "The .html file to write.", metavar="FILE")],
    against: Annotated[
        Path | None,
        typer.Argument(metavar="[B]", help="Another export, to show next to the first."),
    ] = None,
    times: Annotated[
        list[Path] | None,
        option(
            "--profile",
            "Also show the times in this file, the output of profile --json. May be repeated.",
            metavar="FILE",
        ),
    ] = None,
    comparison: Annotated[
        Path | None,
        option(
            "--comparison",
            "Also show the errors in this file, the output of compare --json.",
            metavar="FILE",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one HTML file to share, with a chart, the module tree and the nodes."""
    from modelexport_optimum.cli import view_tables

    with printing.exit_on_error(as_json=as_json):
        from modelexport_optimum.reporting.report import report as run

        written = run(
            path, html, against=against, profile=times, comparison=comparison, overwrite=overwrite
        )
    size = written.stat().st_size
    if as_json:
        printing.print_json({"ok": True, "file": str(written), "bytes": size})
    else:
        view_tables.print_written(written, size)
    printing.finish(written=True)


def view(
    path: TaggedExport,
    viewer: Annotated[
        str | None,
        option(
            "--viewer",
            "model-explorer or netron. By default the first one that is installed.",
            metavar="NAME",
            autocompletion=complete_viewer,
        ),
    ] = None,
    port: Annotated[
        int | None, option("--port", "Port of the viewer. By default a free one.")
    ] = None,
    browser: Annotated[
        bool, option("--browser/--no-browser", "Whether to open the browser.")
    ] = True,
    node_data: Annotated[
        Path | None,
        option(
            "--node-data",
            "Colour the nodes in Model Explorer with the file that compare --node-data wrote.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Open the export in an installed viewer, until Ctrl-C."""
    with printing.exit_on_error(as_json=False):
        from modelexport_optimum.hierarchy.view import view as run

        run(path, viewer=viewer, port=port, browser=browser, node_data=node_data)
