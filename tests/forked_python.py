"""Python programs in processes of their own that need not import PyTorch and the exporter again.

A process that imports them takes some 5 s of CPU before it begins. Here a server has imported them,
and each program is run by a copy of the server: with its own arguments, directory, environment,
streams, session and signals. It is for programs of which something else is tested than what they
import, and how they start. What an environment variable changes as a library is imported, it
does not change here.

This file as a program is the server; it ends when the tests do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import util
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO, Self

START_SECONDS = 240
MESSAGE_BYTES = 2**20
"""More than the arguments and the environment of a program have."""


class ForkedPython:
    """A running program, used as `subprocess.Popen` is.

    Attributes:
        pid: Its process.
        returncode: Its exit status, or the negative number of the signal that ended it; None
            while it runs.
    """

    def __init__(
        self,
        server: Path,
        arguments: Sequence[str | Path],
        *,
        cwd: Path,
        stdout: IO[Any],
        stderr: IO[Any],
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        """Start it.

        Args:
            server: Socket of the server: the fixture `python_server`.
            arguments: `-c` and code, `-m` and a module, or a file, as for `python`; then its own.
            cwd: Its current directory.
            stdout: A file.
            stderr: A file.
            env: Its environment; by default this process's.
            start_new_session: Whether it gets a session of its own.
        """
        self.returncode: int | None = None
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(str(server))
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd.absolute()),
            "environment": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        with Path(os.devnull).open("rb") as nothing:
            streams = [nothing.fileno(), stdout.fileno(), stderr.fileno()]
            socket.send_fds(self._server, [json.dumps(asked).encode()], streams)
        self.pid = int(self._server.recv(MESSAGE_BYTES))

    def poll(self) -> int | None:
        """Give its exit status, if it has ended."""
        with contextlib.suppress(TimeoutError):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and give its exit status.

        Raises:
            TimeoutError: It runs on.
        """
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._server, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise TimeoutError(f"process {self.pid} has not ended in {timeout} s")
            self.returncode = int(self._server.recv(MESSAGE_BYTES))
            self._server.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


def run(
    server: Path, arguments: Sequence[str | Path], *, cwd: Path, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end: its exit status, and what it printed."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with ForkedPython(server, arguments, cwd=cwd, stdout=out, stderr=err, **more) as process:
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            [*arguments], process.returncode or 0, out.read(), err.read()
        )


def start_server(path: Path, lives_with: int) -> None:
    """Start a server, which imports first.

    Args:
        path: Where its socket will be.
        lives_with: The process at whose end it ends.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, path, str(lives_with)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- The server -----------------------------------------------------------------------------------


def serve(listener: socket.socket, lives_with: int) -> Callable[[], None] | None:
    """Start a process for each program that is asked for, and tell how each ends.

    Returns:
        In such a process what it is to run; in the server nothing, when it is to end.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    end = os.pidfd_open(lives_with)
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == end:
                    return None
                if key.fd in running:
                    pid, client = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with client, contextlib.suppress(BrokenPipeError):
                        client.send(str(status).encode())
                    continue
                client, _ = listener.accept()
                message, streams, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 3)
                pid = os.fork()
                if pid == 0:
                    for ended, (_, other) in [*running.items(), (end, (0, client))]:
                        os.close(ended)
                        other.close()
                    return functools.partial(become, streams, **json.loads(message))
                for stream in streams:
                    os.close(stream)
                client.send(str(pid).encode())
                ended = os.pidfd_open(pid)
                running[ended] = pid, client
                selector.register(ended, selectors.EVENT_READ)


def become(
    streams: Sequence[int],
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    session: bool,
) -> None:
    """Be the program: run what `python` would run."""
    if session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    util.spawnv_passfds = spawn_copy  # type: ignore[attr-defined]
    kind, *rest = arguments
    if kind == "-c":
        code, *words = rest
        sys.argv = ["-c", *words]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*arguments]
        runpy.run_path(kind, run_name="__main__")


spawn = util.spawnv_passfds  # type: ignore[attr-defined]


def spawn_copy(path: str, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """Start a process of multiprocessing; its fork server, which imports again, as a copy of this.

    Its parent, session and files are those that it has otherwise.
    """
    code = arguments[-1]
    if not code.startswith("from multiprocessing.forkserver import main"):
        return spawn(path, arguments, kept)
    if pid := os.fork():
        return pid
    status = 1
    try:
        numbers = sorted({0, 1, 2, *kept, os.sysconf("SC_OPEN_MAX")})
        for before, after in itertools.pairwise(numbers):
            os.closerange(before + 1, after)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, own)
        exec(code, {"__name__": "__main__"})
        status = 0
    finally:
        os._exit(status)


def end_at_once(statuses: Sequence[int]) -> None:
    """End this process with the status that it is given, if it is given one.

    Python would free each object of the libraries, which takes longer than many a program.
    """
    for status in statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Be the server, and in copies of it the programs."""
    path, lives_with = Path(sys.argv[1]), int(sys.argv[2])
    ended: list[int] = []
    atexit.register(end_at_once, ended)  # the first that is registered is the last that is called
    import modelexport_optimum.batches.preload
    import modelexport_optimum.cli.main  # noqa: F401

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    starting = path.with_suffix(".starting")
    listener.bind(str(starting))
    listener.listen()
    starting.rename(path)  # it is there when it listens
    program = serve(listener, lives_with)
    if program is None:
        return
    try:
        program()
    except SystemExit as exited:
        if not isinstance(exited.code, int):
            raise
        ended.append(exited.code)
    else:
        ended.append(0)


if __name__ == "__main__":
    main()
