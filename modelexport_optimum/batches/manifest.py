"""The manifest of a batch: what its lines ask for, and everything that is wrong with them.

A line is parsed by Typer, as the command line is. Nothing heavy is imported, and no model is
looked for: a line whose model or task does not exist fails when it runs.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin

import typer
from typer.main import get_command

from modelexport_optimum.batches.jobs import Job
from modelexport_optimum.batches.results import LOGS, RESULTS
from modelexport_optimum.cli.options import Line, line, resources, taking, underscored
from modelexport_optimum.errors import ManifestError, UsageError
from modelexport_optimum.export_run import default_output
from modelexport_optimum.exporting.optimum_export import check_conflicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BATCH_ALONE = {
    *("--workers", "--ray", "--retry-failed", "--force", "--fail-fast"),
    *("--json", "--verbose", "-v", "--help", "--version"),
}
"""Options that a line has not, though one might look for them there."""

_TyperError: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer says of a command line that is wrong. Typer has no public name for it."""


class _LineError(Exception):
    """What is wrong with one line."""


class _Words(NamedTuple):
    """A line as a command line.

    Attributes:
        words: as the shell would split them.
        without: names of parameters that the batch's defaults are not for.
    """

    words: list[str]
    without: frozenset[str] = frozenset()


def read_manifest(
    path: str | os.PathLike[str],
    *,
    directory: str | os.PathLike[str],
    defaults: Mapping[str, Any],
) -> list[Job]:
    """The jobs of a manifest.

    Args:
        path: a text file, each line of which is what one would type after the command; JSON
            lines, if its name ends in `.jsonl`; or "-" for either on standard input.
        directory: the batch's, which outputs are relative to.
        defaults: what the lines do not say, by the names of parameters.

    Raises:
        UsageError: there is nothing to run.
        ManifestError: lines are wrong. All of them are told.
    """
    name, content = _read(path)
    if defaults.get("providers"):
        _check_providers(defaults["providers"])
    as_json = name.lower().endswith(".jsonl")
    if os.fspath(path) == "-":
        as_json = content.lstrip().startswith(b"{")
    place = Path(os.path.abspath(directory))  # noqa: PTH100 (resolve() would follow a link)
    outputs = _Outputs(place)
    jobs, problems = [], []
    for number, raw in enumerate(content.split(b"\n"), 1):
        try:
            words = _from_json(_decoded(raw)) if as_json else _from_text(_decoded(raw))
            if words is not None:
                job = _job(number, words, defaults, place)
                outputs.add(job)
                jobs.append(job)
        except _LineError as error:
            problems.append(f"{name}:{number}: {' '.join(str(error).split())}")
    if problems:
        raise ManifestError(name, problems)
    if not jobs:
        raise UsageError(f"{name} has no models: write one a line")
    return jobs


def _read(path: str | os.PathLike[str]) -> tuple[str, bytes]:
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
        raise _LineError("not UTF-8") from error


# --- Text -----------------------------------------------------------------------------------------


def _from_text(text: str) -> _Words | None:
    try:
        words = list(_split(text))
    except ValueError as error:  # shlex's two
        if "quotation" in str(error):
            raise _LineError("a quotation mark has no second one") from error
        raise _LineError("a backslash ends the line: a model is one line") from error
    if words[:1] == ["export"]:
        del words[0]
    elif not words:
        return None
    return _Words(words)


def _split(text: str) -> Iterator[str]:
    """The words as a POSIX shell has them, up to a comment.

    `shlex` alone would take the second half of `a#b` for a comment, too.
    """
    stream = io.StringIO(text)
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    while (rest := text[stream.tell() :].lstrip(lexer.whitespace)) and not rest.startswith("#"):
        yield lexer.get_token() or ""


# --- JSON -----------------------------------------------------------------------------------------


def _from_json(text: str) -> _Words | None:
    if not text.strip():
        return None
    try:
        document = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _LineError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _LineError('not a JSON object, as {"model": ...} is')
    names = _names()
    words: list[str] = []
    last: list[str] = []
    given: set[str] = set()
    without: set[str] = set()
    for key, value in document.items():
        spelled = underscored(key)
        if spelled not in names:
            raise _LineError(_no_such(key, list(names)))
        name, option = names[spelled]
        if name in given:
            raise _LineError(f"{key} is given twice")
        given.add(name)
        if value is None:
            continue
        values = _as_words(key, value, _kind(name))
        if _kind(name) is bool:
            without.add(name)
            words += [str(option)] if value else []
        elif option:
            without.add(name)
            words += [f"{option}={one}" for one in values]
        else:
            last = ["--", *values]
    return _Words([*words, *last], frozenset(without))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is given twice")
    return found


def _no_constant(name: str) -> Any:  # noqa: ANN401
    raise ValueError(f"{name} is no number")


def _as_words(key: str, value: Any, kind: Any) -> list[str]:  # noqa: ANN401
    """A value as it would stand on a command line.

    Args:
        key: whose value.
        value: of JSON.
        kind: what the option is declared to take.
    """
    wanted = {bool: "true or false", dict: "an object", list: "text or a list of it"}
    if kind is bool and isinstance(value, bool):
        return []
    if kind is dict and isinstance(value, dict):
        return [json.dumps(value)]
    if kind is list and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    if kind in (int, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, float) and value.is_integer()
            return [str(int(value) if whole else value)]
        if key == "memory" and isinstance(value, str):
            return [value]
        raise _LineError(f"{key} must be a number, not {json.dumps(value)}")
    if kind in (str, list) and isinstance(value, str):
        return [value]
    raise _LineError(f"{key} must be {wanted.get(kind, 'text')}, not {json.dumps(value)}")


@functools.cache
def _names() -> dict[str, tuple[str, str | None]]:
    """The parameter and the option, None for the argument, of each name that JSON may have."""
    found: dict[str, tuple[str, str | None]] = {}
    for one in _command().params:
        names = one.opts if one.param_type_name == "option" else []
        for name in (one.name, *names):
            found.setdefault(underscored(name.lstrip("-")), (one.name, next(iter(names), None)))
    return found


@functools.cache
def _kind(name: str) -> Any:  # noqa: ANN401
    """What a parameter takes: bool, int, float, str, list or dict."""
    parameters = {**inspect.signature(line).parameters, **inspect.signature(resources).parameters}
    kind = parameters[name].annotation
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if type(None) in get_args(kind):
        kind = next(one for one in get_args(kind) if one is not type(None))
    kind = get_origin(kind) or kind
    return str if kind in (Literal, Path) else kind


# --- Both -----------------------------------------------------------------------------------------

_app = typer.Typer(add_completion=False, context_settings={"token_normalize_func": underscored})


@_app.command(add_help_option=False)
@taking(line, resources)
def _entry(**given: Any) -> tuple[Line, dict[str, Any]]:  # noqa: ANN401
    asked = {name: given.pop(name) for name in inspect.signature(resources).parameters}
    return line(**given), resources(**asked)


@functools.cache
def _command() -> Any:  # noqa: ANN401
    return get_command(_app)


def _job(number: int, words: _Words, defaults: Mapping[str, Any], directory: Path) -> Job:
    _check_characters(words.words)
    asked = {name: value for name, value in defaults.items() if name not in words.without}
    try:
        context = _command().make_context("", list(words.words), default_map=asked)
        (model, output, arguments), limits = _command().invoke(context)
    except _TyperError as error:
        raise _LineError(_told(error, words.words)) from error
    if not model.strip():
        raise _LineError("the model's name is empty")
    try:
        check_conflicts(arguments["task"], arguments)
        if arguments["providers"]:
            _check_providers(arguments["providers"])
    except UsageError as error:
        raise _LineError(str(error)) from error

    # Another process of the batch may have another current directory.
    model = _expanded(model)
    if os.path.isdir(model):  # noqa: PTH112 (Path's raises for a name that is too long)
        model = os.path.abspath(model)  # noqa: PTH100
    if arguments["cache_dir"]:
        arguments["cache_dir"] = os.path.abspath(_expanded(arguments["cache_dir"]))  # noqa: PTH100
    written = directory / (_expanded(str(output)) if output else default_output(model))
    path = Path(os.path.abspath(written))  # noqa: PTH100 (resolve() would follow a link)
    inside = path.is_relative_to(directory)
    below = path.relative_to(directory if inside else path.anchor)
    log = directory / LOGS / below.parent / f"{below.name}.log"
    return Job(number, model, path, arguments, log, **limits)


def _expanded(name: str) -> str:
    """No shell has done it for a manifest. Python's own raises for a user that is not known."""
    return os.path.expanduser(name)  # noqa: PTH111


def _check_characters(words: list[str]) -> None:
    for word in words:
        if "\0" in word:
            raise _LineError("a character is NUL, which no name can have: is it a text file?")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise _LineError("half of a character is missing (a lone surrogate)") from error


def _check_providers(names: list[str]) -> None:
    from modelexport_optimum.verifying.verify import provider_names

    provider_names(names)


def _told(error: Any, words: list[str]) -> str:  # noqa: ANN401
    """What Typer says, in one line."""
    wrong = getattr(error, "option_name", None)
    if wrong is None or not hasattr(error, "possibilities"):
        return str(error.format_message())
    spelled = [word.partition("=")[0] for word in words]
    shown = next((word for word in spelled if underscored(word) == underscored(wrong)), wrong)
    known = [name for one in _command().params for name in one.opts if name.startswith("-")]
    return _no_such(shown, known)


def _no_such(name: str, known: list[str]) -> str:
    alone = {underscored(one): one for one in _BATCH_ALONE}
    dashes = "" if name.startswith("-") else "--"
    if underscored(dashes + name) in alone:
        return f"{name} is for the whole batch: give it on the command line"
    matches = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {matches[0]}?)" if matches else ""
    return f"No such option: {name}{hint}"


# --- Outputs --------------------------------------------------------------------------------------


class _Outputs:
    """The directories that lines write, none of which may be another's or the batch's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._real = Path(os.path.realpath(directory))
        self._lines: dict[Path, Job] = {}
        self._above: dict[Path, Job] = {}

    def add(self, job: Job) -> None:
        """Take note of a job's output, unless it cannot be."""
        # Two names of a directory are one directory, whether or not its end is there yet.
        path = Path(os.path.realpath(job.output))
        if path == self._real or path in self._real.parents:
            raise _LineError(
                f"would write {self._shown(job)}, which is the batch's own directory or contains "
                "it: give it another -o"
            )
        for name in (LOGS, RESULTS):
            if path.is_relative_to(self._real / name):
                raise _LineError(
                    f"would write {self._shown(job)}, and the batch has its own {name} there: "
                    "give it another -o"
                )
        self._check_others(job, path)
        self._lines[path] = job
        for parent in path.parents:
            self._above.setdefault(parent, job)

    def _check_others(self, job: Job, path: Path) -> None:
        shown, advice = self._shown(job), "give one of them -o"
        if path in self._lines:
            first = self._lines[path]
            raise _LineError(f"would write {shown}, as line {first.line} does: {advice}")
        for parent in path.parents:
            if parent in self._lines:
                other = self._lines[parent]
                raise _LineError(
                    f"would write {shown}, inside of what line {other.line} writes: {advice}"
                )
        if path in self._above:
            other = self._above[path]
            raise _LineError(
                f"would write {shown}, which contains what line {other.line} writes: {advice}"
            )

    def _shown(self, job: Job) -> str:
        relative = os.path.relpath(job.output)
        return str(job.output) if relative.startswith("..") else relative
