"""The options of one export, declared once.

The command `export`, the defaults of `batch`, the lines of a manifest and the keyword arguments of
`export()` are all derived from these dataclasses. The name, type and default of a field are those
of the option; its `Option` has the rest. This file does not know Typer and imports nothing heavy.
"""

# Annotations are no strings here: each field's kind is read from its annotation.

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from modelexport_optimum.errors import UsageError
from modelexport_optimum.system.json_files import parse_json

_Declaring = TypeVar("_Declaring")


@dataclass(frozen=True)
class Option:
    """The option for one field of a dataclass.

    Attributes:
        name: The name of the field, of the parameter and of the key in JSON.
        annotation: The field's type.
        default: The field's default.
        flags: The flags, such as `--output` and `-o`; none for an argument.
        help: One or two sentences.
        group: Its heading in `--help`; None for "Options".
        metavar: The placeholder for the value in `--help`.
        read: Converts the typed text, or a value of JSON, to the value; raises ValueError.
    """

    name: str
    annotation: Any
    default: Any
    flags: tuple[str, ...]
    help: str
    group: str | None = None
    metavar: str | None = None
    read: Callable[[Any], Any] | None = None

    @property
    def kind(self) -> type:
        """The type without `None` and without parameters: `list` for `list[str] | None`."""
        return _kind_and_choices(self.annotation)[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The only allowed values; empty if all values of the type are allowed."""
        return _kind_and_choices(self.annotation)[1]

    def from_text(self, text: Any) -> Any:  # noqa: ANN401
        """Read one value from typed text.

        Raises:
            ValueError: It is none; the message says why.
        """
        if self.read is not None:
            return self.read(text)
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(map(repr, self.choices))}.")
        if self.kind in (int, float):
            try:
                return self.kind(text)
            except ValueError as error:
                noun = "integer" if self.kind is int else "float"
                raise ValueError(f"{text!r} is not a valid {noun}.") from error
        return self.kind(text)

    def from_json(self, value: Any) -> Any:  # noqa: ANN401
        """Read a value of JSON, or of Python.

        Raises:
            TypeError: It has the wrong type; the message names the right one.
            ValueError: It is none; the message says why.
        """
        kind = self.kind
        if kind is list and isinstance(value, str):
            value = [value]
        if kind is Path and isinstance(value, Path):
            value = str(value)
        if not self._is_of_kind(value):
            wanted = _WANTED.get(kind, "text")
            raise TypeError(f"must be {wanted}, not {json.dumps(value, default=repr)}")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON knows one kind of numbers
        if kind in (bool, list):
            return value
        return self.from_text(value if self.read is not None else str(value))

    def _is_of_kind(self, value: Any) -> bool:  # noqa: ANN401
        kind = self.kind
        if kind is bool:
            return isinstance(value, bool)
        if kind is list:
            return isinstance(value, list) and all(isinstance(one, str) for one in value)
        if kind is dict:
            return isinstance(value, dict)
        if kind in (int, float):
            if isinstance(value, str):  # such as 8GB
                return self.read is not None
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            is_whole = isinstance(value, int) or value.is_integer()
            return kind is float or self.read is not None or is_whole
        return isinstance(value, str)


_WANTED = {
    bool: "true or false",
    dict: "an object",
    list: "text or a list of it",
    int: "a whole number",
    float: "a number",
}


@functools.cache
def _kind_and_choices(annotation: Any) -> tuple[type, tuple[str, ...]]:  # noqa: ANN401
    alternatives = [one for one in get_args(annotation) if one is not type(None)]
    if type(None) in get_args(annotation):
        (annotation,) = alternatives
    if get_origin(annotation) is Literal:
        return str, get_args(annotation)
    return get_origin(annotation) or annotation, ()


def option(flags: str, help_text: str, default: Any = None, **settings: Any) -> Any:  # noqa: ANN401
    """Declare a field of a dataclass as an option: its flags are separated by blanks."""
    declared = {"flags": tuple(flags.split()), "help": help_text, **settings}
    return dataclasses.field(default=default, metadata={"option": declared})


def options_of(*classes: type) -> Mapping[str, Option]:
    """Return the options that dataclasses declare, by name."""
    return {
        field.name: Option(field.name, field.type, field.default, **field.metadata["option"])
        for one in classes
        for field in dataclasses.fields(one)
    }


def instance_of(declaring: type[_Declaring], values: Mapping[str, Any]) -> _Declaring:
    """Return an instance of a dataclass of options, from those values that it declares."""
    return declaring(**{name: values[name] for name in options_of(declaring) if name in values})


def normalized(name: str) -> str:
    """Return a name with `_` instead of `-`: Optimum uses both spellings."""
    return name.replace("-", "_")


def read_json_object(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a JSON object, read from text or given as one, or raise a ValueError."""
    try:
        found = parse_json(value if isinstance(value, str) else json.dumps(value))
    except ValueError as error:
        raise ValueError(f"{value!r:.100} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{value!r:.100} is not a JSON object: give {{...}}")
    return found


# --- The options ----------------------------------------------------------------------------------

_hub_option = functools.partial(option, group="Where the model comes from")
_upload_option = functools.partial(option, group="Upload to the Hub")
_graph_option = functools.partial(option, group="The exported graph")
_shape_option = functools.partial(
    option, group="Shapes of the example input, to change the defaults"
)


@dataclass(frozen=True, kw_only=True)
class ModelAndOutput:
    """The model and the output, which each export has for itself.

    Attributes are documented by their options' help.
    """

    model: str | None = option("", "Name on the Hugging Face Hub, or a directory.", metavar="MODEL")
    model_option: str | None = option("--model -m", "The same as MODEL, as in optimum-cli.")
    output: Path | None = option(
        "--output -o",
        "Directory to write. By default NAME-onnx in the current directory, where NAME is the "
        "last part of the model's name.",
    )

    def resolve(self) -> tuple[str, Path | None]:
        """Return the model and the output, None for the default.

        Raises:
            UsageError: No model or two models are given.
        """
        model, output = self.model, self.output
        if self.model_option is not None:
            if model is not None and output is None:
                output = Path(model)  # optimum-cli export onnx --model MODEL OUTPUT
            elif model is not None:
                raise UsageError(
                    f"MODEL is given twice, as {model} and as --model {self.model_option}: "
                    "leave out one of the two"
                )
            model = self.model_option
        if model is None:
            raise UsageError("Missing MODEL: give a name on the Hugging Face Hub, or a directory")
        if not model.strip():
            raise UsageError("the model's name is empty")
        return model, output


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export.

    Attributes are documented by their options' help. Names, defaults and choices are those of
    `optimum-cli export onnx`, if it has them.
    """

    overwrite: bool = option("--overwrite", "Replace an existing export.", default=False)
    task: str = option(
        "--task",
        "Task of the model: text-classification, text-generation-with-past, ... auto detects it.",
        default="auto",
    )
    providers: list[str] | None = option(
        "--provider",
        "Execution provider to check: cpu, cuda, tensorrt, or any that ONNX Runtime knows. May be "
        "repeated. By default these three; a provider that you name must be available.",
        metavar="NAME",
    )
    provider_options: list[str] | None = option(
        "--provider-option",
        "Option of the provider that --provider names besides cpu. May be repeated.",
        metavar="KEY=VALUE",
    )
    provider_libraries: list[str] | None = option(
        "--provider-library",
        "Library of a provider that is neither in ONNX Runtime nor in an installed package. May "
        "be repeated.",
        metavar="NAME=PATH",
    )
    push_to_hub: str | None = _upload_option(
        "--push-to-hub",
        "Upload the finished export, with a model card, to this repository on the Hub. It is "
        "created if it does not exist.",
        metavar="REPO",
    )
    public: bool = _upload_option(
        "--public", "Make the repository public. By default it is private.", default=False
    )
    model_card: bool = _upload_option(
        "--model-card", "Write the model card into the export, as README.md.", default=False
    )
    revision: str = _hub_option("--revision", "Branch, tag or commit on the Hub.", default="main")
    subfolder: str = _hub_option("--subfolder", "Folder of the model inside MODEL.", default="")
    cache_dir: str | None = _hub_option(
        "--cache_dir", "Directory for downloads. By default the Hub's own cache."
    )
    local_files_only: bool = _hub_option(
        "--local-files-only",
        "Use the model in the cache, without network.",
        default=False,
    )
    force_download: bool = _hub_option(
        "--force-download", "Download the model again, even if it is in the cache.", default=False
    )
    trust_remote_code: bool = option(
        "--trust-remote-code",
        "Run code that comes with the model. Read it first.",
        default=False,
    )
    library_name: Literal["transformers", "diffusers", "timm", "sentence_transformers"] | None = (
        _hub_option("--library-name", "Library of the model. By default detected from its files.")
    )
    framework: Literal["pt"] = _hub_option("--framework", "Only PyTorch.", default="pt")
    dtype: Literal["fp32", "fp16", "bf16"] | None = _graph_option(
        "--dtype", "Precision of the exported model. By default fp32."
    )
    opset: int | None = _graph_option("--opset", "ONNX opset. By default the architecture's own.")
    device: str = _graph_option("--device", "Device to export on.", default="cpu")
    optimize: Literal["O1", "O2", "O3", "O4"] | None = _graph_option(
        "--optimize",
        "Optimize the graph with ONNX Runtime. O1: basic optimizations; O2: also fusions for "
        "transformers; O3: also approximated GELU; O4: also mixed precision (needs --device cuda).",
    )
    slim: bool = _graph_option("--slim", "Simplify the graph with onnxslim.", default=False)
    monolith: bool = _graph_option(
        "--monolith", "Write one file, even if Optimum would write several.", default=False
    )
    no_post_process: bool = _graph_option(
        "--no-post-process",
        "Skip Optimum's last steps, such as merging decoders.",
        default=False,
    )
    no_dynamic_axes: bool = _graph_option("--no-dynamic-axes", "Fix all shapes.", default=False)
    no_constant_folding: bool = _graph_option(
        "--no-constant-folding",
        "Do not compute constant parts of the graph at export.",
        default=False,
    )
    variant: str = _graph_option(
        "--variant",
        "Variant of the export, for models that have variants.",
        default="default",
    )
    model_kwargs: dict[str, Any] | None = _graph_option(
        "--model-kwargs",
        "Arguments for the model's forward, or for the export of this model.",
        metavar="JSON",
        read=read_json_object,
    )
    pad_token_id: int | None = _graph_option(
        "--pad_token_id",
        "Padding token, if the task needs one and the tokenizer does not have it.",
    )
    atol: float | None = _graph_option(
        "--atol",
        "Largest allowed difference from PyTorch's outputs; a larger one is a failed check. "
        "By default a difference above the architecture's tolerance is only a warning.",
    )
    batch_size: int = _shape_option("--batch_size", "Text: batch size.", default=2)
    sequence_length: int = _shape_option("--sequence_length", "Text: tokens.", default=16)
    num_choices: int = _shape_option("--num_choices", "Multiple choice: choices.", default=4)
    width: int = _shape_option("--width", "Image: width.", default=64)
    height: int = _shape_option("--height", "Image: height.", default=64)
    num_channels: int = _shape_option("--num_channels", "Image: channels.", default=3)
    feature_size: int = _shape_option("--feature_size", "Audio: features.", default=80)
    nb_max_frames: int = _shape_option("--nb_max_frames", "Audio: frames.", default=3000)
    audio_sequence_length: int = _shape_option(
        "--audio_sequence_length", "Audio: samples.", default=16000
    )
    point_batch_size: int = _shape_option(
        "--point_batch_size", "Segment Anything: masks for each point.", default=3
    )
    nb_points_per_image: int = _shape_option(
        "--nb_points_per_image", "Segment Anything: points.", default=2
    )
    visual_seq_length: int = _shape_option(
        "--visual_seq_length", "Visual sequence length.", default=16
    )

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `export()`, three of which have other names.

        Two have the names of Optimum's `main_export`, and `private` that of huggingface_hub.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["private"] = not values.pop("public")
        values["do_constant_folding"] = not values.pop("no_constant_folding")
        values["_variant"] = values.pop("variant")
        # As optimum-cli does: on a GPU, ONNX Runtime keeps its memory until its process ends.
        values["use_subprocess"] = True
        return values


def check_conflicts(task: str, options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be used together, before Optimum is imported.

    Raises:
        UsageError: Two options cannot be used together.
    """
    if task.endswith("-with-past") and options.get("monolith"):
        raise UsageError(f"--monolith cannot export {task}: leave out one of the two")
    if options.get("optimize") == "O4" and not str(options.get("device")).startswith("cuda"):
        raise UsageError("--optimize O4 needs a GPU: add --device cuda, or take O1 to O3")
