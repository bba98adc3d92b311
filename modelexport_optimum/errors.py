"""The errors of this package, in the user's words.

Every message is one line that names the file or option and says what to do. Errors of other
libraries are converted to these where their meaning is known. Every room raises these errors; this
file knows no other room.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
"""The status code that ONNX Runtime's errors begin with: `[ONNXRuntimeError] : 1 : FAIL : `."""

_MAX_LINE = 400
"""Characters of another library's message that are shown: some list the nodes of a graph, or every
architecture that there is. `--verbose` shows the rest, and the log of a batch has it."""

_PLACE = re.compile(
    r"(?:\bException from |\bat )?[\w./+-]*\.(?:cc|cpp|cxx|cu|cuh|h|hpp|inl):\d+(?P<end>:?)"
)
"""A place in C++ sources, with the words that lead to it: `Exception from src/core.cpp:114: `,
`failed at src/node.cpp:106: `, `/onnxruntime_src/core/graph.cc:1 void f(const T&) `."""

_INNERMOST_BRACKETS = re.compile(r"\([^()]*\)|\[[^][]*\]|<[^<>]*>")

_SIGNATURE = re.compile(
    r"[^.;'\"\n\x01]*[\w\x00]\x01+"  # what it returns, its name and arguments; no prose
    r"(?: (?:const|noexcept|&&?))*(?: \x02+)?"
)
"""The signature of a C++ function in a text whose brackets are masked."""


class ModelExportError(Exception):
    """The export or the pass failed. The message is one line for the user."""

    exit_status = 1

    def __str__(self) -> str:
        """Return the message: names in it may have line ends, and keep their blanks."""
        return _lines_joined(super().__str__())


class UsageError(ModelExportError):
    """The command line or an argument is wrong. Nothing was run and nothing was changed."""

    exit_status = 2


class ManifestError(UsageError):
    """Lines of a manifest are wrong. The message has a first line, and one line for each problem.

    Attributes:
        problems: The problems, each with the manifest's name and the line's number.
    """

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        first = f"{name} has {count} error{'s' * (count > 1)}"
        super().__init__("\n".join([first, *self.problems]))

    def __str__(self) -> str:
        """Return the message, a line for each problem below the first."""
        return Exception.__str__(self)


class InvalidModelError(ModelExportError):
    """A `.onnx` file is truncated, is not an ONNX model, or lacks its external data."""


# --- Words for an error ---------------------------------------------------------------------------


def one_line(text: object) -> str:
    """Return an error's message, or another text, on one line; for an empty message, its class."""
    return " ".join(str(text).split()) or type(text).__name__


def _lines_joined(text: str) -> str:
    """Return a text on one line. Unlike `one_line` it keeps blanks, which names may contain."""
    return " ".join(text.splitlines())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it is empty."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = (line.strip() for line in text.splitlines() if line.strip())
    return _shortened(next(lines, type(error).__name__))


@contextlib.contextmanager
def system_errors_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the errors of the operating system.

    Args:
        path: The file that the block works on, for an error that names no file.

    Raises:
        ModelExportError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or os.fspath(path)
        raise ModelExportError(
            f"cannot read or write {where}: {error.strerror or error}"
        ) from error


def in_one_line(error: BaseException) -> str:
    """Return any error as one line for the user."""
    if isinstance(error, ModelExportError):
        return _lines_joined(str(error))
    if isinstance(error, OSError):
        if "usable temporary directory" in str(error):  # of `tempfile`, which names those it tried
            return f"{error.strerror}: set TMPDIR to a directory that can be written"
        where = f"{error.filename}: " if error.filename else ""
        return _lines_joined(f"{where}{error.strerror or error}")
    text = _shortened(one_line(error))
    return f"{type(error).__name__}: {text} (unexpected: please report it with --verbose)"


def onnxruntime_line(text: object) -> str:
    """Return a message of ONNX Runtime on one line, without its status and source locations."""
    message = one_line(_without_places(_STATUS.split(str(text))[-1]))
    return _shortened(re.sub(r"(Exception[\w ]*: )\1+", r"\1", message))


@contextlib.contextmanager
def onnxruntime_errors(doing: str) -> Iterator[None]:
    """Raise errors of ONNX Runtime in the block as one line.

    Args:
        doing: The action in the block, such as "load model.onnx".

    Raises:
        ModelExportError: ONNX Runtime raised something.
    """
    try:
        yield
    except ModelExportError:
        raise
    except Exception as error:  # it raises anything about a model
        raise ModelExportError(f"ONNX Runtime cannot {doing}: {onnxruntime_line(error)}") from error


def _shortened(line: str) -> str:
    """Leave out the middle of a long message: the cause is often at its end."""
    if len(line) <= _MAX_LINE:
        return line
    half = _MAX_LINE // 2
    return f"{line[:half].rstrip()} ... {line[-half:].lstrip()}"


def _without_places(text: str) -> str:
    kept = []
    position = 0
    masked = _masked(text)
    while match := _PLACE.search(text, position):
        before = text[position : match.start()]
        # `failed at node.cpp:106: why`: the colon stays.
        kept.append(
            before.rstrip() + ":" if match[0].startswith("at ") and match["end"] else before
        )
        position = match.end()
        # Without a colon, the function's signature follows.
        if not match["end"] and (signature := _SIGNATURE.match(masked, position)):
            position = signature.end()
    return "".join([*kept, text[position:]])


def _masked(text: str) -> str:
    r"""Put a mark for each character in brackets: `\x01` in (), `\x02` in [with ], else `\x00`."""

    def mark(found: re.Match[str]) -> str:
        inside = found[0]
        sign = "\x01" if inside[0] == "(" else "\x02" if inside.startswith("[with ") else "\x00"
        return sign * len(inside)

    while True:
        text, count = _INNERMOST_BRACKETS.subn(mark, text)
        if not count:
            return text


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """Return the hint after an unknown name, ": did you mean a or b?", or "".

    `cutoff` is difflib's ratio: the smallest similarity of a name, from 0 to 1.
    """
    import difflib  # 5 ms, which `--help` need not pay

    matches = difflib.get_close_matches(name, sorted({*known} - {""}), n=most, cutoff=cutoff)
    shown = (match if match.isprintable() else repr(match) for match in matches)
    return f": did you mean {' or '.join(shown)}?" if matches else ""
