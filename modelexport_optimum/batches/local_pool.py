"""The local runner: processes of this machine, each with one job at a time.

One server process imports PyTorch and the exporter, and the workers are forked from it
(multiprocessing's forkserver). So a second worker, or one that replaces a dead worker, costs no
import. Each worker has its own pipe, so that a dead worker cannot leave a lock that others wait
for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from types import ModuleType
from typing import TYPE_CHECKING, Any

from modelexport_optimum.batches.jobs import Done, Lost, Stage
from modelexport_optimum.batches.results import held_by_worker
from modelexport_optimum.system.processes import (
    FORKS,
    ending,
    kill_group,
    lead_group,
    release_memory,
)
from modelexport_optimum.system.signals import TERMINAL_CLOSED, send_to_self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from modelexport_optimum.batches.jobs import Job

_GRACE_SECONDS = 10
"""Time for a worker to clean up after its batch has died, before it ends itself by force."""

_KILL_SECONDS = 1
"""Time for killed processes to disappear."""

_MAX_GROWTH = 512 * 2**20
"""Bytes that a worker may hold after a job beyond those after its first job. A worker that holds
more is replaced, which costs a fork. Libraries that a later job imports stay in memory, and take
less than this."""

_hiding_main = threading.Lock()
"""Held while a process is started: batches may run in several threads."""


def available_cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Worker:
    """A worker process.

    Attributes:
        process: The process object of multiprocessing.
        pipe: Carries jobs to the worker, and names of stages and records back.
        job: Its running job, if any.
        memory: Bytes of memory after its first job; 0 before.
    """

    process: Any
    pipe: Connection
    job: Job | None = None
    memory: int = 0

    @property
    def name(self) -> str:
        return f"worker {self.process.pid}"


class LocalPool:
    """A `Runner` on this machine."""

    def __init__(self, size: int, directory: Path) -> None:
        """Start importing; returns at once.

        Args:
            size: Maximum number of workers. They share the cores.
            directory: The directory of the batch, locked for other batches while a worker lives.
        """
        self._size = size
        self._directory = directory
        self._threads = max(1, available_cores() // size)
        self._workers: list[_Worker] = []
        self._context: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
        if FORKS:
            self._context.set_forkserver_preload(["modelexport_optimum.batches.preload"])
        self._importing = threading.Thread(target=self._import, daemon=True)
        self._importing.start()

    def _import(self) -> None:
        with _environment(self._threads), _main_hidden():
            first = self._context.Process(target=int)
            first.start()
        first.join()

    def has_room(self) -> bool:
        """Return whether a worker is free, or may be started."""
        busy = sum(worker.job is not None for worker in self._workers)
        return not self._importing.is_alive() and busy < self._size

    def start(self, job: Job) -> None:
        """Give a job to a free worker, or to a new one."""
        worker = next((one for one in self._workers if one.job is None), None) or self._fork()
        worker.job = job
        with contextlib.suppress(BrokenPipeError):  # `wait` sees that it is gone
            worker.pipe.send(job)

    def _fork(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        with theirs, _main_hidden():
            process = self._context.Process(
                target=_work, args=(theirs, self._threads, self._directory)
            )
            process.start()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def wait(self, seconds: float) -> Sequence[Stage | Done | Lost]:
        """Return the events of the workers, including those that ended."""
        if self._importing.is_alive():
            self._importing.join(seconds)
            return []
        pipes = [worker.pipe for worker in self._workers]
        # A process that a worker started may hold the pipe open after the worker has ended.
        sentinels = [worker.process.sentinel for worker in self._workers]
        ready = connection.wait([*pipes, *sentinels], seconds)
        events: list[Stage | Done | Lost] = []
        for worker in list(self._workers):
            if worker.pipe in ready:
                events += self._receive(worker)
            elif worker.process.sentinel in ready and not worker.pipe.poll():
                events += self._remove_dead(worker)
        return events

    def _receive(self, worker: _Worker) -> list[Stage | Done | Lost]:
        """Read one message of a worker, or handle its end."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            return [*self._remove_dead(worker)]
        job = worker.job
        if job is None:
            raise AssertionError(f"{worker.name} has no job, and sent {message}")
        if isinstance(message, str):
            return [Stage(job, worker.name, message)]
        worker.job = None
        worker.memory = worker.memory or message["memory"]
        if message["memory"] > worker.memory + _MAX_GROWTH:
            worker.pipe.close()  # upon which it ends
            self._workers.remove(worker)
        return [Done(job, {**message, "worker": worker.name})]

    def _remove_dead(self, worker: _Worker) -> list[Lost]:
        """Remove a worker that has ended, and kill its child processes; its job is lost."""
        worker.process.join()
        kill_group(worker.process.pid, wait=_KILL_SECONDS)
        worker.pipe.close()
        self._workers.remove(worker)
        return [] if worker.job is None else [Lost(worker.job, ending(worker.process.exitcode))]

    def cancel(self, job: Job, *, force: bool) -> None:
        """End the worker of a job: by SIGTERM, so that it cleans up, or by SIGKILL."""
        for worker in self._workers:
            if worker.job is job:
                if force:
                    _kill(worker)
                else:
                    worker.process.terminate()

    def close(self) -> None:
        """Kill the workers that have a job, and let the others end."""
        for worker in list(self._workers):
            if worker.job is not None:
                _kill(worker)
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()


def _kill(worker: _Worker) -> None:
    """Kill a worker and its child processes, which may outlive it and hold an output's lock."""
    kill_group(worker.process.pid, wait=_KILL_SECONDS)
    worker.process.kill()  # of a group if it had the time to lead one


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep multiprocessing from running the caller's script again in each process that it starts.

    So a script that calls `batch()` needs no `if __name__ == "__main__"`.
    """
    with _hiding_main:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set the environment of the fork server: its libraries start no threads and no CUDA driver.

    A process that is forked from one with threads or a CUDA driver cannot use them.
    """
    settings = {
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits for work by spinning takes a core
        "PYTORCH_NVML_BASED_CUDA_CHECK": 1,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONSAFEPATH": 1,  # the current directory may be a model's, with files of any name
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: str(value) for name, value in settings.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, threads: int, directory: Path) -> None:
    """Run jobs as they come through the pipe, in a worker process, until it is closed."""
    lead_group()
    # A terminal sends these to all its processes. The batch ends its workers itself.
    for number in (signal.SIGINT, *TERMINAL_CLOSED):
        signal.signal(number, signal.SIG_IGN)
    batch = multiprocessing.parent_process()
    assert batch is not None
    threading.Thread(target=_end_with, args=(batch,), daemon=True).start()
    from modelexport_optimum.batches import worker

    with held_by_worker(directory):
        if not batch.is_alive():
            return  # another batch may have the directory
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            pipe.send("start")
            record = worker.run_job(job, pipe.send, threads)
            pipe.send({**record, "memory": release_memory()})


def _end_with(batch: BaseProcess) -> None:
    """End this worker when its batch has died, in an orderly way or else by force."""
    batch.join()
    send_to_self(signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    kill_group(os.getpid())
