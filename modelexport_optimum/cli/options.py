"""The options of one export, declared once: for `export`, for `batch` and for a manifest's lines.

Nothing heavy is imported here. `export` takes `line`; a line of a manifest takes `resources`,
too; and what `batch` is given of both are the defaults of its lines.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

import inspect
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_UNITS = {
    **{"": 1, "k": 10**3, "m": 10**6, "g": 10**9},
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}
"""Bytes of what may follow a number, in any case."""


class Line(NamedTuple):
    """What `export` is given, and what a line of a manifest says.

    Attributes:
        model: a name on the Hub, or a directory.
        output: the directory to write, None for the default.
        arguments: further arguments of `export()`.
    """

    model: str
    output: Path | None
    arguments: dict[str, Any]


# --- Kinds of options -----------------------------------------------------------------------------


def underscored(name: str) -> str:
    """Optimum spells some options with `_` and others with `-`: both are taken for all."""
    return name.replace("-", "_")


def option(name: str, text: str, **settings: Any) -> Any:  # noqa: ANN401
    """An option with these names."""
    return typer.Option(*name.split(), help=text, **settings)


def _hub(name: str, text: str) -> Any:  # noqa: ANN401
    return option(name, text, rich_help_panel="Where the model comes from")


def _graph(name: str, text: str, **settings: Any) -> Any:  # noqa: ANN401
    return option(name, text, rich_help_panel="The exported graph", **settings)


def _shape(name: str, text: str) -> Any:  # noqa: ANN401
    return option(name, text, rich_help_panel="Shapes of the example input, if it needs others")


def _resource(name: str, text: str, **settings: Any) -> Any:  # noqa: ANN401
    return option(name, text, rich_help_panel="Each model", **settings)


# --- Their values ---------------------------------------------------------------------------------
# A default of a batch comes parsed already, and says the same again.


def _json_object(value: Any) -> dict[str, Any]:  # noqa: ANN401
    try:
        found = json.loads(value if isinstance(value, str) else json.dumps(value))
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{value!r} is not a JSON object: give {{...}}")
    return found


def _seconds(value: Any) -> float:  # noqa: ANN401
    seconds = _number(value)
    if seconds <= 0:
        raise typer.BadParameter(f"{value!r} is not a number of seconds above 0")
    return seconds


def _amount(value: Any) -> float:  # noqa: ANN401
    amount = _number(value)
    if amount < 0:
        raise typer.BadParameter(f"{value!r} is below 0")
    return amount


def _number(value: Any) -> float:  # noqa: ANN401
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"{value!r} is not a number")
    return number


def _bytes(value: Any) -> int:  # noqa: ANN401
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", value.strip(), re.ASCII)
    size = _UNITS.get(found[2].lower()) if found else None
    if found is None or size is None or not (count := int(float(found[1]) * size)):
        raise typer.BadParameter(
            f"{value!r} is not a number of bytes above 0, such as 8000000000, 8GB or 7.5GiB"
        )
    return count


# --- The options ----------------------------------------------------------------------------------

Trust = Annotated[
    bool,
    option("--trust-remote-code", "Run code that comes with the model. Read it before."),
]
Providers = Annotated[
    list[str] | None,
    option(
        "--provider",
        "Execution provider to check: cpu, cuda, tensorrt, or any that ONNX Runtime knows; may "
        "be repeated. By default these three; one that is named must be available.",
        metavar="NAME",
    ),
]


def line(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Name on the Hugging Face Hub, or a directory."),
    ] = None,
    model_option: Annotated[
        str | None, option("--model -m", "MODEL, as optimum-cli takes it.")
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "--output -o",
            "Directory to write. By default the last part of the model's name and -onnx, "
            "in the current directory.",
        ),
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", "Replace an export that is there.")] = False,
    task: Annotated[
        str,
        option(
            "--task",
            "What the model is for: text-classification, text-generation-with-past, ... "
            "auto finds out.",
        ),
    ] = "auto",
    providers: Providers = None,
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
    trust_remote_code: Trust = False,
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
            parser=_json_object,
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
) -> Line:
    """One export as it is asked for."""
    if (model is None) == (model_option is None):
        raise typer.BadParameter("give one MODEL", param_hint="MODEL")
    arguments = {
        "task": task,
        "overwrite": overwrite,
        "providers": providers,
        "revision": revision,
        "subfolder": subfolder,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "trust_remote_code": trust_remote_code,
        "library_name": library_name,
        "framework": framework,
        "dtype": dtype,
        "opset": opset,
        "device": device,
        "optimize": optimize,
        "slim": slim,
        "monolith": monolith,
        "no_post_process": no_post_process,
        "no_dynamic_axes": no_dynamic_axes,
        "do_constant_folding": not no_constant_folding,
        "_variant": variant,
        "model_kwargs": model_kwargs,
        "pad_token_id": pad_token_id,
        "atol": atol,
        "use_subprocess": True,  # as optimum-cli: on a GPU, ONNX Runtime keeps its memory
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "num_choices": num_choices,
        "width": width,
        "height": height,
        "num_channels": num_channels,
        "feature_size": feature_size,
        "nb_max_frames": nb_max_frames,
        "audio_sequence_length": audio_sequence_length,
        "point_batch_size": point_batch_size,
        "nb_points_per_image": nb_points_per_image,
        "visual_seq_length": visual_seq_length,
    }
    return Line(model or model_option or "", output, arguments)


def resources(
    timeout: Annotated[
        float | None,
        _resource(
            "--timeout",
            "End a model that takes longer.",
            parser=_seconds,
            metavar="SECONDS",
        ),
    ] = None,
    num_cpus: Annotated[
        float | None,
        _resource(
            "--num-cpus",
            "Processor cores that Ray is asked for. By default 1.",
            parser=_amount,
            metavar="NUMBER",
        ),
    ] = None,
    num_gpus: Annotated[
        float | None,
        _resource(
            "--num-gpus",
            "GPUs that Ray is asked for, or a fraction of one. By default none.",
            parser=_amount,
            metavar="NUMBER",
        ),
    ] = None,
    memory: Annotated[
        int | None,
        _resource(
            "--memory",
            "Memory that Ray is asked for: 8000000000, 8GB, 7.5GiB.",
            parser=_bytes,
            metavar="BYTES",
        ),
    ] = None,
) -> dict[str, Any]:
    """What one model may take, as a `Job` has it: what was given alone."""
    asked = {"timeout": timeout, "num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory}
    return {name: value for name, value in asked.items() if value is not None}


def taking(
    *functions: "Callable[..., Any]", without: tuple[str, ...] = (), after: str | None = None
) -> "Callable[[_Command], _Command]":
    """Give a command the options of these functions, which it takes as `**given`.

    Args:
        functions: whose parameters are options.
        without: the parameters to leave out.
        after: the parameter behind which the command's own stand; by default they are first.
    """

    def decorate(command: _Command) -> _Command:
        signature = inspect.signature(command)
        *own, _given = signature.parameters.values()
        taken = [
            parameter
            for function in functions
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in without
        ]
        place = next((i for i, one in enumerate(taken, 1) if one.name == after), 0)
        parameters = [*taken[:place], *own, *taken[place:]]
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters
        )
        return command

    return decorate
