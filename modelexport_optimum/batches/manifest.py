"""The manifest of a batch: the jobs of its lines, and everything that is wrong with them.

Each line, text or JSON, becomes a `Job` with the declared options (`exporting.options`,
`resources`). Nothing heavy is imported unless a task is not known. Whether a model exists is not
checked here: such a line fails when it runs.
"""

from __future__ import annotations

import copy
import functools
import io
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.batches.jobs import Job
from modelexport_optimum.batches.outputs import Outputs
from modelexport_optimum.batches.resources import Resources
from modelexport_optimum.batches.results import LOGS
from modelexport_optimum.errors import ManifestError, UsageError, did_you_mean, first_line
from modelexport_optimum.export_run import default_output
from modelexport_optimum.exporting.options import (
    ExportOptions,
    ModelAndOutput,
    Option,
    check_conflicts,
    instance_of,
    normalized,
    options_of,
)
from modelexport_optimum.exporting.tasks import check_task
from modelexport_optimum.system.files import expand_user, is_directory
from modelexport_optimum.system.json_files import parse_json
from modelexport_optimum.uploading.upload import check_repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_OF_EACH_LINE = (ModelAndOutput, ExportOptions, Resources)
"""The dataclasses of the options that a line may have."""

_OF_ALL_LINES = (ExportOptions, Resources)
"""The dataclasses of the options that a batch may give defaults for."""

_OF_THE_BATCH = {
    *("--workers", "--ray", "--retry-failed", "--force", "--fail-fast"),
    *("--json", "--verbose", "-v", "--help", "-h", "--version"),
}
"""Options of the whole batch, which a user might write in a line."""


def read_manifest(
    path: str | os.PathLike[str],
    *,
    directory: str | os.PathLike[str],
    defaults: Mapping[str, Any],
) -> list[Job]:
    """Return the jobs of a manifest.

    Args:
        path: A text file with the arguments of the command on each line; JSON lines, if its name
            ends in `.jsonl`; or "-" for either on standard input.
        directory: The directory of the batch; outputs are relative to it.
        defaults: Options of all lines, by name; the options of a line itself win.

    Raises:
        UsageError: There is nothing to run, or a default is wrong.
        ManifestError: Lines are wrong. The message names each of them.
    """
    name, content = _content(path)
    given = _values(defaults, _OF_ALL_LINES)
    _check_providers(given)
    as_json = name.lower().endswith(".jsonl")
    if os.fspath(path) == "-":
        as_json = content.lstrip().startswith(b"{")
    place = Path(os.path.abspath(directory))  # noqa: PTH100 (resolve() would follow a link)
    outputs = Outputs(place)
    jobs, problems = [], []
    for number, raw in enumerate(content.split(b"\n"), 1):
        try:
            line = _from_json(_decoded(raw)) if as_json else _from_text(_decoded(raw))
            if line is not None:
                job = _job(number, {**copy.deepcopy(given), **line}, place)
                outputs.add(job)
                jobs.append(job)
        except UsageError as error:
            problems.append(f"{name}:{number}: {first_line(error)}")
    if problems:
        raise ManifestError(name, problems)
    if not jobs:
        raise UsageError(f"{name} has no models: write one on each line")
    return jobs


def _content(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    if os.fspath(path) == "-":
        return "stdin", sys.stdin.buffer.read().removeprefix(b"\xef\xbb\xbf")
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"manifest {path} is a directory: give a file, or - for standard input")
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(
            f"manifest {path} does not exist: give a file, or - for standard input"
        ) from error
    except OSError as error:
        raise UsageError(f"manifest {path} cannot be read: {error.strerror}") from error
    return os.fspath(path), content.removeprefix(b"\xef\xbb\xbf")


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError("not UTF-8") from error


# --- Text -----------------------------------------------------------------------------------------


def _from_text(text: str) -> dict[str, Any] | None:
    """Return the options of a text line; None if it is blank."""
    try:
        words = list(_split(text))
    except ValueError as error:  # shlex's two
        if "quotation" in str(error):
            raise UsageError("a quotation mark is not closed") from error
        raise UsageError("the line ends with a backslash: write each model on one line") from error
    if words[:1] == ["export"]:
        del words[0]
    elif not words:
        return None
    _check_characters(words)
    return _parsed(words)


def _split(text: str) -> Iterator[str]:
    """Yield the words of a line as a POSIX shell does, up to a comment.

    `shlex` alone would also treat the second half of `a#b` as a comment.
    """
    stream = io.StringIO(text)
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    while (rest := text[stream.tell() :].lstrip(lexer.whitespace)) and not rest.startswith("#"):
        yield lexer.get_token() or ""


def _parsed(words: list[str]) -> dict[str, Any]:
    """Return the options of a command line, parsed like that of the command itself."""
    given: dict[str, Any] = {}
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            arguments += rest
        elif word == "-" or not word.startswith("-"):
            arguments.append(word)
        else:
            flag, equals, value = word.partition("=")
            if not word.startswith("--"):  # -oDIRECTORY
                flag, value, equals = word[:2], word[2:], word[2:]
            option = _flags().get(normalized(flag))
            if option is None:
                flags = (name for known in _flags().values() for name in known.flags)
                raise UsageError(_no_such(flag, flags))
            if option.kind is bool:
                if equals:
                    raise UsageError(f"Option {flag!r} does not take a value.")
                given[option.name] = True
                continue
            if not equals:
                try:
                    value = next(rest)
                except StopIteration:
                    raise UsageError(f"Option {flag!r} requires an argument.") from None
            if option.kind is list:
                given.setdefault(option.name, []).append(value)
            else:
                given[option.name] = _read(option, option.from_text, value)
    if len(arguments) > 1:
        extra = " ".join(arguments[1:])
        raise UsageError(f"Got unexpected extra argument ({extra}): the output is given with -o")
    return {**given, **dict(zip(["model"], arguments, strict=False))}


@functools.cache  # a manifest may have many lines
def _flags() -> dict[str, Option]:
    options = options_of(*_OF_EACH_LINE).values()
    return {normalized(flag): option for option in options for flag in option.flags}


# --- JSON -----------------------------------------------------------------------------------------


def _from_json(text: str) -> dict[str, Any] | None:
    """Return the options of a line that is a JSON object; None if it is blank."""
    if not text.strip():
        return None
    try:
        document = parse_json(text, constants=False)
    except ValueError as error:
        raise UsageError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError('not a JSON object, as {"model": ...} is')
    return _values(document, _OF_EACH_LINE)


def _values(document: Mapping[str, Any], classes: Iterable[type]) -> dict[str, Any]:
    """Return options by their fields' names; `document` may use any of an option's names.

    A value of None counts as not given.
    """
    names = _names(*classes)
    given: set[str] = set()
    values: dict[str, Any] = {}
    for key, value in document.items():
        option = names.get(normalized(key))
        if option is None:
            raise UsageError(_no_such(key, names))
        if option.name in given:
            raise UsageError(f"{key} is given twice")
        given.add(option.name)
        if value is None:
            continue
        try:
            values[option.name] = _read(option, option.from_json, value)
        except TypeError as error:
            raise UsageError(f"{key} {error}") from error
        _check_characters(value if isinstance(value, list) else [str(value)])
    return values


@functools.cache
def _names(*classes: type) -> dict[str, Option]:
    """Return options by every name that JSON may use: the fields' names and the flags' names.

    `model` is an argument and also the flag `--model`; here the flag's option stands for both.
    """
    return {
        normalized(name.lstrip("-")): option
        for option in options_of(*classes).values()
        for name in (option.name, *option.flags)
    }


# --- Both -----------------------------------------------------------------------------------------


def _read(option: Option, reader: Callable[[Any], Any], value: Any) -> Any:  # noqa: ANN401
    try:
        return reader(value)
    except ValueError as error:
        raise UsageError(f"Invalid value for '{option.flags[0]}': {error}") from error


def _job(number: int, values: Mapping[str, Any], directory: Path) -> Job:
    """Return the job of a line, with the batch's defaults for missing values."""
    model, output = instance_of(ModelAndOutput, values).resolve()
    arguments = instance_of(ExportOptions, values).arguments()
    check_task(arguments["task"])
    check_conflicts(arguments["task"], arguments)
    _check_providers(arguments)
    check_repository(arguments["push_to_hub"], private=arguments["private"])

    # Another process of the batch may have another current directory.
    model = expand_user(model)
    if is_directory(model):
        model = os.path.abspath(model)  # noqa: PTH100
    if arguments["cache_dir"]:
        arguments["cache_dir"] = os.path.abspath(expand_user(arguments["cache_dir"]))  # noqa: PTH100
    written = directory / (expand_user(str(output)) if output else default_output(model))
    path = Path(os.path.abspath(written))  # noqa: PTH100 (resolve() would follow a link)
    inside = path.is_relative_to(directory)
    below = path.relative_to(directory if inside else path.anchor)
    log = directory / LOGS / below.parent / f"{below.name}.log"
    return Job(number, model, path, log, arguments, instance_of(Resources, values))


def _check_characters(words: Iterable[str]) -> None:
    for word in words:
        if "\0" in word:
            raise UsageError("a character is NUL, which no name can have: is it a text file?")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UsageError("half of a character is missing (a lone surrogate)") from error


def _check_providers(arguments: Mapping[str, Any]) -> None:
    given = [
        arguments.get(name) for name in ("providers", "provider_options", "provider_libraries")
    ]
    if any(given):
        from modelexport_optimum.verifying.verify import chosen_providers

        chosen_providers(*given)


def _no_such(name: str, known: Iterable[str]) -> str:
    of_the_batch = {normalized(one) for one in _OF_THE_BATCH}
    dashes = "" if name.startswith("-") else "--"
    if normalized(dashes + name) in of_the_batch:
        return f"{name} is for the whole batch: give it on the command line"
    return f"No such option: {name}{did_you_mean(name, known, most=1)}"
