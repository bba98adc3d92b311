"""The commands: parse, call one function, print. No logic.

Nothing heavy is imported before a command runs, so that `--help` costs no more than that of
a bare Typer app.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from modelexport_optimum import __version__, terminal
from modelexport_optimum.views import commands as view_commands


class _Commands(TyperGroup):
    """What is no command is what `export` is given: a model, or an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own)
        own = [name for option in self.get_params(ctx) for name in option.opts]
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["export", *args]
        return super().parse_args(ctx, args)


def _underscored(name: str) -> str:
    """Optimum spells some options with `_` and others with `-`: both are taken for all."""
    return name.replace("-", "_")


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": _underscored},
    help="Export a Hugging Face model to ONNX, tag every node with its PyTorch module, and "
    "check that ONNX Runtime runs it."
    "\n\nmodelexport-optimum MODEL is short for modelexport-optimum export MODEL.",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"modelexport-optimum {__version__}")
        raise typer.Exit


def _option(name: str, text: str, **settings: Any) -> Any:  # noqa: ANN401
    return typer.Option(*name.split(), help=text, **settings)


def _hub(name: str, text: str) -> Any:  # noqa: ANN401
    return _option(name, text, rich_help_panel="Where the model comes from")


def _graph(name: str, text: str, **settings: Any) -> Any:  # noqa: ANN401
    return _option(name, text, rich_help_panel="The exported graph", **settings)


def _shape(name: str, text: str) -> Any:  # noqa: ANN401
    return _option(name, text, rich_help_panel="Shapes of the example input, if it needs others")


_Json = Annotated[bool, _option("--json", "One JSON document on stdout, nothing else there.")]
_Verbose = Annotated[
    bool, _option("--verbose -v", "Show what the libraries print, and an error's traceback.")
]
_Trust = Annotated[
    bool,
    _option("--trust-remote-code", "Run code that comes with the model. Read it before."),
]
_Providers = Annotated[
    list[str] | None,
    _option(
        "--provider",
        "Execution provider to check: cpu, cuda, tensorrt, or any that ONNX Runtime knows; may "
        "be repeated. By default these three; one that is named must be available.",
        metavar="NAME",
    ),
]
_Path = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="An exported directory, or one .onnx file.")
]


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Name on the Hugging Face Hub, or a directory."),
    ] = None,
    model_option: Annotated[
        str | None, _option("--model -m", "MODEL, as optimum-cli takes it.")
    ] = None,
    output: Annotated[
        Path | None,
        _option(
            "--output -o",
            "Directory to write. By default the last part of the model's name and -onnx, "
            "in the current directory.",
        ),
    ] = None,
    overwrite: Annotated[bool, _option("--overwrite", "Replace an export that is there.")] = False,
    task: Annotated[
        str,
        _option(
            "--task",
            "What the model is for: text-classification, text-generation-with-past, ... "
            "auto finds out.",
        ),
    ] = "auto",
    providers: _Providers = None,
    as_json: _Json = False,
    verbose: _Verbose = False,
    revision: Annotated[str, _hub("--revision", "Branch, tag or commit on the Hub.")] = "main",
    subfolder: Annotated[str, _hub("--subfolder", "Folder that the model is in.")] = "",
    cache_dir: Annotated[
        str | None, _hub("--cache_dir", "Where downloads are kept, if not in the Hub's own cache.")
    ] = None,
    local_files_only: Annotated[
        bool, _hub("--local-files-only", "Take the model from the cache, without network.")
    ] = False,
    force_download: Annotated[
        bool, _hub("--force-download", "Download again what is in the cache.")
    ] = False,
    trust_remote_code: _Trust = False,
    library_name: Annotated[
        Literal["transformers", "diffusers", "timm", "sentence_transformers"] | None,
        _hub("--library-name", "Library of the model. By default its files tell."),
    ] = None,
    framework: Annotated[Literal["pt"], _hub("--framework", "PyTorch, the only one.")] = "pt",
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        _graph("--dtype", "Precision of the exported model. By default fp32."),
    ] = None,
    opset: Annotated[
        int | None, _graph("--opset", "ONNX opset. By default the architecture's own.")
    ] = None,
    device: Annotated[str, _graph("--device", "Device to export on.")] = "cpu",
    optimize: Annotated[
        Literal["O1", "O2", "O3", "O4"] | None,
        _graph(
            "--optimize",
            "Let ONNX Runtime optimize the graph: O1 basic, O2 and fusions for transformers, "
            "O3 and approximated GELU, O4 and mixed precision (needs --device cuda).",
        ),
    ] = None,
    slim: Annotated[bool, _graph("--slim", "Simplify the graph with onnxslim.")] = False,
    monolith: Annotated[
        bool, _graph("--monolith", "One file where Optimum would write several.")
    ] = False,
    no_post_process: Annotated[
        bool, _graph("--no-post-process", "Leave out Optimum's last steps, as merging decoders.")
    ] = False,
    no_dynamic_axes: Annotated[bool, _graph("--no-dynamic-axes", "Fix all shapes.")] = False,
    no_constant_folding: Annotated[
        bool, _graph("--no-constant-folding", "Do not compute constants at export.")
    ] = False,
    variant: Annotated[
        str, _graph("--variant", "Variant of the export, for the models that have some.")
    ] = "default",
    model_kwargs: Annotated[
        dict[str, Any] | None,
        _graph(
            "--model-kwargs",
            "Arguments for the model's forward or for the export of this model.",
            parser=json.loads,
            metavar="JSON",
        ),
    ] = None,
    pad_token_id: Annotated[
        int | None,
        _graph("--pad_token_id", "Padding token, if the task needs it and no tokenizer tells."),
    ] = None,
    atol: Annotated[
        float | None,
        _graph(
            "--atol",
            "How far the outputs may be from PyTorch's: more is a failed check. By default "
            "more than the architecture's tolerance is a warning.",
        ),
    ] = None,
    batch_size: Annotated[int, _shape("--batch_size", "Text: batch size.")] = 2,
    sequence_length: Annotated[int, _shape("--sequence_length", "Text: tokens.")] = 16,
    num_choices: Annotated[int, _shape("--num_choices", "Multiple choice: choices.")] = 4,
    width: Annotated[int, _shape("--width", "Image: width.")] = 64,
    height: Annotated[int, _shape("--height", "Image: height.")] = 64,
    num_channels: Annotated[int, _shape("--num_channels", "Image: channels.")] = 3,
    feature_size: Annotated[int, _shape("--feature_size", "Audio: features.")] = 80,
    nb_max_frames: Annotated[int, _shape("--nb_max_frames", "Audio: frames.")] = 3000,
    audio_sequence_length: Annotated[
        int, _shape("--audio_sequence_length", "Audio: samples.")
    ] = 16000,
    point_batch_size: Annotated[
        int, _shape("--point_batch_size", "Segment Anything: masks for each point.")
    ] = 3,
    nb_points_per_image: Annotated[
        int, _shape("--nb_points_per_image", "Segment Anything: points.")
    ] = 2,
    visual_seq_length: Annotated[
        int, _shape("--visual_seq_length", "Visual sequence length.")
    ] = 16,
) -> None:
    """Export MODEL to ONNX, tag every node with its module, and check the result."""
    if (model is None) == (model_option is None):
        raise typer.BadParameter("give one MODEL", param_hint="MODEL")
    source = model or model_option or ""
    with terminal.command(as_json=as_json, verbose=verbose) as progress:
        from modelexport_optimum import export as run
        from modelexport_optimum.export import default_output

        result = run(
            source,
            output or default_output(source),
            task=task,
            overwrite=overwrite,
            providers=providers,
            progress=progress,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            trust_remote_code=trust_remote_code,
            library_name=library_name,
            framework=framework,
            dtype=dtype,
            opset=opset,
            device=device,
            optimize=optimize,
            slim=slim,
            monolith=monolith,
            no_post_process=no_post_process,
            no_dynamic_axes=no_dynamic_axes,
            do_constant_folding=not no_constant_folding,
            _variant=variant,
            model_kwargs=model_kwargs,
            pad_token_id=pad_token_id,
            atol=atol,
            use_subprocess=True,  # as optimum-cli: on a GPU, ONNX Runtime keeps its memory
            batch_size=batch_size,
            sequence_length=sequence_length,
            num_choices=num_choices,
            width=width,
            height=height,
            num_channels=num_channels,
            feature_size=feature_size,
            nb_max_frames=nb_max_frames,
            audio_sequence_length=audio_sequence_length,
            point_batch_size=point_batch_size,
            nb_points_per_image=nb_points_per_image,
            visual_seq_length=visual_seq_length,
        )
    if as_json:
        terminal.print_json(result.to_dict())
    else:
        terminal.print_export(result)
    raise typer.Exit(0 if result.ok else 3)


@app.command()
def tag(
    path: _Path,
    model: Annotated[
        str | None,
        _option("--model", "The source model, where the directory does not tell the classes."),
    ] = None,
    trust_remote_code: _Trust = False,
    explain: Annotated[
        str | None, _option("--explain", "Say how this node was placed.", metavar="NODE")
    ] = None,
    as_json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """Write the tags on an export that exists already."""
    with terminal.command("tag", as_json=as_json, verbose=verbose):
        from modelexport_optimum import htp

        if explain is None:
            report = htp.tag(path, model=model, trust_remote_code=trust_remote_code)
        else:
            found = htp.explain(path, explain, model=model, trust_remote_code=trust_remote_code)
    if explain is not None:
        terminal.print_explanation(found, as_json=as_json)
    elif as_json:
        terminal.print_json({"ok": True, **report.to_dict()})
    else:
        terminal.print_tags(report)


@app.command()
def strip(path: _Path, as_json: _Json = False, verbose: _Verbose = False) -> None:
    """Take the tags out again: the files are what they were, byte for byte."""
    with terminal.command("strip", as_json=as_json, verbose=verbose):
        from modelexport_optimum import strip as run

        changed = run(path)
    if as_json:
        terminal.print_json({"ok": True, "changed": [str(file) for file in changed]})
    else:
        terminal.print_stripped(changed)


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An exported directory.")],
    providers: _Providers = None,
    task: Annotated[
        str | None, _option("--task", "What the model is for. By default the graphs tell.")
    ] = None,
    trust_remote_code: _Trust = False,
    as_json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """Check the config against the graphs, and run the model on each execution provider."""
    with terminal.command("check", as_json=as_json, verbose=verbose):
        from modelexport_optimum import verify as run

        report = run(directory, providers=providers, task=task, trust_remote_code=trust_remote_code)
    if as_json:
        terminal.print_json(report.to_dict())
    else:
        terminal.print_verification(report)
    raise typer.Exit(0 if report.ok else 3)


view_commands.register(app)


def main() -> None:
    """The program `modelexport-optimum`."""
    app()
