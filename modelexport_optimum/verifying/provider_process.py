"""Runs on a provider in a separate process: a crash there does not end this process.

A server process imports PyTorch and Optimum once, and forks for each run, so that no run finds the
device in the state of another run. If the system cannot fork, the server does one run itself. It
ends after some time without a request, and when its parent ends. A request is a folder with
`plan.pickle`; the run adds the other files to it.

The fork server of multiprocessing is not used: a process has only one, and the batch or the user's
program decides what that imports.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelexport_optimum.providers.messages import log_reason
from modelexport_optimum.system.files import BYTES
from modelexport_optimum.system.lean_imports import EXPORTER, import_lean
from modelexport_optimum.system.packages import has_optimum
from modelexport_optimum.system.processes import (
    FORKS,
    apart_with,
    end_of_pipe,
    ending,
    kill_group,
)
from modelexport_optimum.verifying.provider_run import run
from modelexport_optimum.verifying.run_plan import Run

if TYPE_CHECKING:
    from modelexport_optimum.providers.choice import Provider
    from modelexport_optimum.system.processes import PipeEnd
    from modelexport_optimum.verifying.run_plan import RunPlan

_PLAN, _RUN, _LOG, _AT = "plan.pickle", "run.pickle", "log", "at"
"""The files of a request: the plan, the result, the output, and the current stage."""

_IDLE_SECONDS = 60
"""Seconds that a server waits for another run before it ends."""

_START_SECONDS = 300
"""Time for a server to import PyTorch and Optimum: seconds, or minutes on a cold disk."""

_waiting: list[_Server] = []
"""The idle servers of this process."""


def start_importing() -> None:
    """Start a server, so that it imports while other work goes on."""
    _waiting.append(_waiting_server() or _Server())


def run_in_child(plan: RunPlan, provider: Provider, seconds: float) -> Run:
    """Run on a provider in another process; if that ends early, the error says how."""
    with tempfile.TemporaryDirectory(prefix="modelexport-optimum-") as name:
        folder = Path(name)
        (folder / _PLAN).write_bytes(pickle.dumps((plan, provider)))
        started = time.perf_counter()
        ended = _serve(folder, seconds)
        log = _read(folder / _LOG)
        result: Run
        if ended:
            stage, file = _read(folder / _AT).partition("\n")[::2]
            result = Run(file=file or None, seconds=time.perf_counter() - started)
            result.stage = stage or result.stage
            result.error = ": ".join(filter(None, (ended, _last_words(log))))
        else:
            result = pickle.loads((folder / _RUN).read_bytes())
        result.log = log
        return result


def _last_words(log: str) -> str:
    """Return why a process ended, from its output: a C++ exception, or ONNX Runtime's log."""
    thrown = re.findall(r"^ *what\(\): *(.+)", log, re.MULTILINE)
    return thrown[-1] if thrown else log_reason(log)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _serve(folder: Path, seconds: float) -> str:
    """Send a request to a server; return how its process ended, "" if it answered."""
    server = _waiting_server() or _Server()
    try:
        if not server.begin(folder):  # it had ended, of idleness
            server.kill()
            server = _Server()
            if not server.begin(folder):
                server.kill()
                return f"its process did not start: {server.last_words()}"
        status = server.finish(seconds)
        if status is None:
            server.kill()
            return f"it was ended, after {seconds:.0f} s without a result"
    except BaseException:  # an interrupt
        server.kill()
        raise
    if FORKS:
        _waiting.append(server)
    return ending(status) if status else ""


def _waiting_server() -> _Server | None:
    while _waiting:
        server = _waiting.pop()
        if server.owner == os.getpid():  # a fork of this process has what was not its own
            return server
    return None


class _Server:
    """The client side of a server.

    Attributes:
        owner: The process that started it.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._pipe, theirs = multiprocessing.Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it is there as long as the server)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _program(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                **apart_with(theirs.fileno()),  # it goes when we do
            )

    def begin(self, folder: Path) -> bool:
        """Send it a request; return False if it has ended, or does not start."""
        try:
            self._pipe.send(folder)
            return self._pipe.poll(_START_SECONDS) and bool(self._pipe.recv())
        except (EOFError, ConnectionError):
            return False

    def finish(self, seconds: float) -> int | None:
        """Return the exit code of the process of a run, None if it has not ended in time."""
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, ConnectionError):  # it ended itself, as where it does not fork
            return self._process.wait()

    def kill(self) -> None:
        """End it and its forks."""
        kill_group(self._process.pid)
        self._process.wait()

    def last_words(self) -> str:
        """Return the last line that it printed."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it gave no reason")


# --- In the server --------------------------------------------------------------------------------


def _program(descriptor: int) -> str:
    """Return the program of a server, with the import path of this process."""
    return (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from {__name__} import serve; serve({descriptor}, forks={FORKS})"
    )


def serve(descriptor: int, *, forks: bool) -> None:
    """Answer requests until none comes for a while, or the parent process has ended.

    Args:
        descriptor: The server's end of the pipe; on Windows its handle.
        forks: Whether each run gets its own process; otherwise the first run is the last.
    """
    # A fork cannot use the driver of CUDA, nor a tokenizer's threads, that were there before it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if has_optimum():
        import_lean(EXPORTER)
        import optimum.onnxruntime.modeling_decoder
        import optimum.onnxruntime.modeling_seq2seq  # noqa: F401 (with it, all but diffusion)

    gc.freeze()  # the collector would touch, and so copy, what the processes share
    with end_of_pipe(descriptor) as pipe:
        while pipe.poll(_IDLE_SECONDS):
            try:
                folder = pipe.recv()
            except EOFError:
                return
            pipe.send(True)  # it begins
            if not forks:
                threading.Thread(target=_end_with_pipe, args=(pipe,), daemon=True).start()
                _answer(folder)
            pipe.send(_fork(folder, pipe))


def _end_with_pipe(pipe: PipeEnd) -> None:
    """End this process at once when the process that started it has ended."""
    pipe.poll(None)
    os._exit(1)


def _fork(folder: Path, pipe: PipeEnd) -> int:
    """Run in a fork and return its exit code; it is killed when the parent process has ended."""
    context: Any = multiprocessing.get_context("fork")
    process = context.Process(target=_answer, args=(folder,))
    process.start()
    while process.exitcode is None:
        # What it started may keep the sentinel from being ready when it is gone itself.
        if pipe in connection.wait([process.sentinel, pipe], 1):
            process.kill()
    return int(process.exitcode)


def _answer(folder: Path) -> NoReturn:
    """Run the request in a folder, write the answer there, and end the process.

    It ends at once, because the unloading of a provider is not checked.
    """
    status = 1
    try:
        log = os.open(folder / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BYTES, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        plan, provider = pickle.loads((folder / _PLAN).read_bytes())
        result = run(plan, provider, at=lambda *at: _note(folder, *at))
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / _RUN).write_bytes(pickle.dumps(result))
        status = 0
    except BaseException:  # such as an exit, or a disk that is full
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _note(folder: Path, stage: str, file: str | None) -> None:
    """Write the current stage to a file, in case the process crashes."""
    (folder / _AT).write_text(f"{stage}\n{file or ''}", encoding="utf-8")
