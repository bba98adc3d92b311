"""The options of the command line, made from the dataclasses of `exporting.options` for Typer.

Nothing heavy is imported here. Options that `export()` or `batch()` takes are not declared here.
"""

# Annotations are no strings here: Typer would evaluate each, a third of what --help takes.

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from modelexport_optimum.cli.completion import complete_module, complete_provider, complete_task
from modelexport_optimum.exporting.options import ExportOptions, Option, options_of

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_COMPLETIONS = {"task": complete_task, "providers": complete_provider}
"""The completion functions of declared options, by name."""


def option(flags: str, text: str, **settings: Any) -> Any:  # noqa: ANN401
    """Declare an option that only one command has, with its flags separated by blanks."""
    return typer.Option(*flags.split(), help=text, **settings)


def typer_option(declared: Option) -> Any:  # noqa: ANN401
    """Return a Typer option for a declared option."""
    settings: dict[str, Any] = {"help": declared.help, "metavar": declared.metavar}
    if not declared.flags:
        return typer.Argument(**settings)
    settings["autocompletion"] = _COMPLETIONS.get(declared.name)
    if declared.read is not None:
        settings["parser"] = _parser(declared.read)
    return typer.Option(*declared.flags, rich_help_panel=declared.group, **settings)


def _parser(read: "Callable[[Any], Any]") -> "Callable[[Any], Any]":
    """Return a parser for Typer that keeps the message of a ValueError, which Typer would drop."""

    def parse(value: Any) -> Any:  # noqa: ANN401
        try:
            return read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


# --- Options that several commands have -----------------------------------------------------------


def _read_size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdecimal():
        raise ValueError(f"{text} is not NAME=N")
    return name, int(size)


def _read_numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"{text} is not a number above 0, nor several such numbers with commas between them"
        )
    return tuple(int(part) for part in parts)


_OPTIONS = options_of(ExportOptions)

Trust = Annotated[bool, typer_option(_OPTIONS["trust_remote_code"])]
ModelKwargs = Annotated[Any, typer_option(_OPTIONS["model_kwargs"])]
Providers = Annotated[list[str] | None, typer_option(_OPTIONS["providers"])]
ProviderOptions = Annotated[list[str] | None, typer_option(_OPTIONS["provider_options"])]
ProviderLibraries = Annotated[list[str] | None, typer_option(_OPTIONS["provider_libraries"])]
Json = Annotated[bool, option("--json", "Print one JSON document on stdout, and nothing else.")]
Legend = Annotated[bool, option("--legend", "Explain the columns and their values.")]
Verbose = Annotated[
    bool, option("--verbose -v", "Show the output of the libraries and the traceback of an error.")
]
Overwrite = Annotated[bool, option("--overwrite", "Replace an existing file.")]

TaggedExport = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="A tagged export, or one tagged .onnx file.")
]
Depth = Annotated[
    int | None, option("--depth", "Levels of modules to show. By default all.", min=0)
]
Modules = Annotated[
    list[str] | None,
    option(
        "--module",
        "Modules with these paths, and their submodules: * matches anything within one part, ** "
        "any number of parts. The first parts may be left out. May be repeated.",
        metavar="PATTERN",
        autocompletion=complete_module,
    ),
]
Csv = Annotated[bool, option("--csv", "Print comma-separated rows.")]
Markdown = Annotated[bool, option("--markdown", "Print a Markdown table.")]

Provider = Annotated[
    str,
    option(
        "--provider",
        "Execution provider to run on: cpu, cuda, or any other.",
        metavar="NAME",
        autocompletion=complete_provider,
    ),
]
BatchSize = Annotated[int, option("--batch-size", "Batch size of the generated inputs.", min=1)]
SequenceLength = Annotated[
    int | None,
    option(
        "--sequence-length",
        "Number of tokens of the generated inputs. By default 16, or fewer if the model takes "
        "fewer.",
        min=1,
    ),
]
BatchSizes = Annotated[
    Any,
    option(
        "--batch-size",
        "Batch size of the generated inputs, by default 1. Several sizes, such as 1,8,32, are "
        "shown side by side.",
        metavar="N[,N...]",
        parser=_parser(_read_numbers),
    ),
]
SequenceLengths = Annotated[
    Any,
    option(
        "--sequence-length",
        "Number of tokens of the generated inputs, by default 128, or fewer if the model takes "
        "fewer. Several numbers, such as 128,512, are shown side by side.",
        metavar="N[,N...]",
        parser=_parser(_read_numbers),
    ),
]
Sizes = Annotated[
    list[Any] | None,
    option(
        "--size",
        "Size of another dimension of the generated inputs, by name. May be repeated.",
        metavar="NAME=N",
        parser=_parser(_read_size),
    ),
]
Inputs = Annotated[
    Path | None,
    option(
        "--inputs",
        "Read the inputs from this .npz file. It has one array for each input, by name.",
        metavar="FILE",
    ),
]


# --- Options that are declared outside of the command line ----------------------------------------


def declared_options(*classes: type, after: str | None = None) -> "Callable[[_Command], _Command]":
    """Add the options that dataclasses declare to a command, which takes them as `**given`.

    Args:
        classes: The dataclasses, in the order of `--help`.
        after: The option after which the command's own options come; by default they are first.
    """
    declared = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=Annotated[one.annotation, typer_option(one)],
        )
        for one in options_of(*classes).values()
    ]

    def decorate(command: _Command) -> _Command:
        signature = inspect.signature(command)
        *own, _given = signature.parameters.values()
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        place = next((i for i, one in enumerate(declared, 1) if one.name == after), 0)
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*declared[:place], *own, *declared[place:]]
        )
        return command

    return decorate
