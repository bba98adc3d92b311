"""The log of ONNX Runtime while a session is made: it says why a provider took no node."""

from __future__ import annotations

import contextlib
import re
import tempfile
from typing import TYPE_CHECKING

from modelexport_optimum.errors import onnxruntime_line
from modelexport_optimum.system.standard_streams import output_to

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_ENTRY = re.compile(
    r"(?:\x1b\[[\d;]*m)?\d{4}-\d\d-\d\d [\d:.]+ \[(?P<level>[A-Z]):onnxruntime:[^\]]*\] "
    r"(?P<message>.*?)(?:\x1b\[m\n?|(?=\n\d{4}-\d\d)|\Z)",
    re.DOTALL,
)
"""`2026-11-22 16:39:41.835302051 [E:onnxruntime:Default, file.cc:1 f()] message`, in colours."""

_TRACING_ENTRY = re.compile(
    r"^(?:\x1b\[[\d;]*m)?\d{4}-\d\d-\d\dT[\d:.]+Z?(?:\x1b\[[\d;]*m)* +"
    r"(?:\x1b\[[\d;]*m)*(?P<level>WARN|ERROR)(?:\x1b\[[\d;]*m)* +(?P<message>.+)$",
    re.MULTILINE,
)
"""`2026-11-25T05:10:48.151224Z  WARN capability: message`: what providers in Rust log with the
crate tracing, as onnxruntime-ggml does."""


def log_reason(log: str) -> str:
    """Return the first error in the log, else the first warning; "" if there is none."""
    entries = [(entry["level"][0], entry["message"]) for entry in LOG_ENTRY.finditer(log)]
    entries += [(entry["level"][0], entry["message"]) for entry in _TRACING_ENTRY.finditer(log)]
    errors = [message for level, message in entries if level in "EF"]
    printed = re.findall(r"^EP Error (.+)", log, re.MULTILINE)
    warnings = [message for level, message in entries if level == "W"]
    message = next(iter([*errors, *printed, *warnings]), "")
    return onnxruntime_line(message) if message else ""


class Log:
    """The captured output, set at the end of the block."""

    text = ""


@contextlib.contextmanager
def kept_log() -> Iterator[Log]:
    """Capture the output of this process, including its C++ libraries."""
    log = Log()
    with tempfile.TemporaryFile() as file:
        try:
            with output_to(file.fileno()):
                yield log
        finally:
            file.seek(0)
            log.text = file.read().decode(errors="replace")
