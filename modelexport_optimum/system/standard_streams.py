"""The standard streams of this process, including the output of C++ libraries."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_ASCII = {
    **{"│": "|", "├": "|", "└": "`", "─": "-", "━": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+"},
    **{"→": "->", "…": "...", "✓": "+", "•": "*", "—": "-"},
}
"""Replacements for characters that the encoding of a terminal or a file lacks."""

_ASCII_ERRORS = "modelexport-optimum-ascii"
"""The name of the error handler (see `codecs`) that inserts them."""


@contextlib.contextmanager
def output_to(descriptor: int) -> Iterator[None]:
    """Redirect all output in the block to a file, including that of C++ libraries.

    It changes the process's file descriptors, so only programs use it, and no function of the
    library.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(descriptor, number)
        stack.callback(_flush)
        yield


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Drop what Python libraries print, log and warn of in the block."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _flush() -> None:
    # What cannot be printed, to a full disk as an example, undoes nothing that was done.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()


class _Descriptor(io.RawIOBase):
    """A file descriptor that keeps its first error, and drops what is written after it.

    So a closed reader or a full disk does not stop the program half-way: it calls `lost_output` at
    its end.
    """

    def __init__(self, number: int, *, close: bool = False) -> None:
        super().__init__()
        # Of a Windows console `open` makes one that writes characters, whatever its code page.
        self._raw = open(number, "wb", buffering=0, closefd=close)  # noqa: SIM115
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._raw.close()

    def write(self, data: Any, /) -> int | None:  # noqa: ANN401
        if self.error is None:
            try:
                return self._raw.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def open_descriptor(number: int, like: TextIO | None, *, close: bool = False) -> TextIO:
    """Return a text stream for a descriptor that never raises and encodes every character.

    Its encoding is that of `like`, or UTF-8.
    """
    codecs.register_error(_ASCII_ERRORS, _in_ascii)
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(number, close=close)),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors=_ASCII_ERRORS,
        line_buffering=number != 1 or os.isatty(number),
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(map(in_ascii, text)), error.end


def in_ascii(character: str) -> str:
    r"""Return an ASCII replacement: for a box character a similar one, else its `\u` escape."""
    return _ASCII.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")


def open_standard_streams() -> None:
    """Give this program a stdout and a stderr that never raise.

    A descriptor that the shell closed (`>&-`) becomes /dev/null. Otherwise the next opened file
    would get its number, and the output of libraries.
    """
    closed: dict[int, OSError] = {}
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as problem:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            closed[number] = problem
    sys.stdout = open_descriptor(1, sys.__stdout__)
    sys.stderr = open_descriptor(2, sys.__stderr__)
    descriptor = _descriptor_of(sys.stdout)
    if descriptor is not None:
        descriptor.error = closed.get(1)


def lost_output() -> OSError | None:
    """Return why output on stdout was lost, if it was; only once."""
    sys.stdout.flush()
    descriptor = _descriptor_of(sys.stdout)
    if descriptor is None or descriptor.error is None:
        return None
    error, descriptor.error = descriptor.error, None
    return error


def _descriptor_of(stream: TextIO) -> _Descriptor | None:
    """Return the descriptor behind a stream, if it is one of `open_descriptor`."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Descriptor) else None
