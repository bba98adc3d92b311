"""Start and end of processes on each kind of system, and the reason why one ended, in words."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from modelexport_optimum.system.files import c_function

if TYPE_CHECKING:
    if sys.platform == "win32":
        PipeEnd = connection.PipeConnection
    else:
        PipeEnd = connection.Connection

FORKS = hasattr(os, "fork") and sys.platform != "darwin"
"""Whether a process with imported libraries may be forked: Apple's libraries do not survive it."""


def ending(status: int) -> str:
    """Return how a process ended, from its exit code in `subprocess`."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    name = signal.Signals(-status).name
    if name == "SIGKILL":
        return f"its process was killed ({name}), as the system does when memory runs out"
    return f"its process was ended by {name}"


def apart_with(pipe: int) -> dict[str, Any]:
    """Return arguments of `subprocess.Popen`: the process has one of our pipes.

    Ctrl-C in this terminal does not reach it, and `kill_group` ends it with its child processes.

    Args:
        pipe: The descriptor of the pipe's end, on Windows its handle.
    """
    if sys.platform == "win32":
        os.set_handle_inheritable(pipe, True)
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [pipe]})
        return {"startupinfo": startup, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"pass_fds": [pipe], "start_new_session": True}


def end_of_pipe(pipe: int) -> PipeEnd:
    """Return the end of a pipe that `apart_with` passed to this process."""
    if sys.platform == "win32":
        return connection.PipeConnection(pipe)
    return connection.Connection(pipe)


def lead_group() -> None:
    """Make this process the leader of a group with all its later child processes."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def kill_group(leader: int, *, wait: float = 0) -> None:
    """Kill a process and its child processes, which would otherwise continue.

    On a system without process groups, the children are found only while the process lives.

    Args:
        leader: The leader of a group.
        wait: Seconds to wait until its child processes have ended.
    """
    deadline = time.monotonic() + wait
    if hasattr(os, "killpg") and hasattr(signal, "SIGKILL"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
            while time.monotonic() < deadline:
                os.killpg(leader, 0)
                time.sleep(0.01)
        return
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader)
        started = process.children(recursive=True)
        for each in (*started, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(started, wait)  # whose child the leader is waits for it


def release_memory() -> int:
    """Return freed memory of this process to the system.

    Returns:
        The bytes of its memory that are in RAM.
    """
    import psutil

    gc.collect()
    trim = c_function("malloc_trim")
    if trim is not None:  # glibc keeps freed memory until this is called
        trim(0)
    return int(psutil.Process().memory_info().rss)
