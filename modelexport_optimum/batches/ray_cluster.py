"""The runner on a Ray cluster: one task for each job.

Ray schedules, retries and scales. A node needs this package in the same version, the batch's
directory at the same path, and its own access to the Hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.batches import worker
from modelexport_optimum.batches.jobs import Done, Lost, Stage
from modelexport_optimum.batches.records import new_record
from modelexport_optimum.errors import ModelExportError, UsageError, one_line
from modelexport_optimum.system.import_path import forget_current_directory
from modelexport_optimum.system.private_names import (
    RAY_CURRENT_CLUSTER,
    RAY_HIDE_GPUS,
    RAY_OOM_RETRIES,
)
from modelexport_optimum.system.processes import release_memory
from modelexport_optimum.system.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelexport_optimum.batches.jobs import Job

_RETRIES = 1
"""How often Ray runs a job again after its process or node died; it counts both the same. A model
that crashes its process does so each time. A job that loses two nodes is rare, and the next batch
runs it."""

_HIDE_GPUS = {"env_vars": {RAY_HIDE_GPUS: "1"}}
"""The environment of jobs that request no GPU, which hides all GPUs. Ray keeps worker processes of
different environments apart, so a job with a GPU never gets a process in which PyTorch found none.
"""

_MAX_CALLS = 100_000
"""Maximum number of concurrent calls to the event actor: two per running job."""

_CONNECT_SECONDS = 10
"""Time for a cluster to answer. If nothing listens, Ray itself tries for minutes."""

_END_SECONDS = 5
"""Time for killed processes to disappear, before their outputs are cleaned up."""

_LOOK_SECONDS = 5
"""Time between two checks of the nodes."""

_AUTOSCALER_SECONDS = 600
"""Time for a cluster to add a node for jobs that no node can run, when nothing else runs. All jobs
are in Ray's queue from the beginning of the batch, so Ray knows the requested resources."""


class _Events:
    """The event actor, on the batch's node: tasks report stages to it, and the batch reads them."""

    def __init__(self) -> None:
        self._stages: asyncio.Queue[tuple[int, str, str]] = asyncio.Queue()

    async def report(self, number: int, name: str, stage: str) -> None:
        """Record a stage of a task that runs in the process of this name."""
        self._stages.put_nowait((number, name, stage))

    async def next_stages(self) -> list[tuple[int, str, str]]:
        """Wait for a stage, and return it with all that have come since the last call."""
        stages = [await self._stages.get()]
        while not self._stages.empty():
            stages.append(self._stages.get_nowait())
        return stages

    async def never(self) -> None:
        """Never end. The calling process owns the result, which is lost when that process dies."""
        await asyncio.Event().wait()

    async def report_death(self, number: int, name: str, alive: list[Any]) -> None:
        """Report when the process of a task dies; Ray does not report it while it has retries left.

        Args:
            number: The task's.
            name: The process's.
            alive: The result of `never` that the process owns. It is in a list, because Ray waits
                for a result that is itself an argument.
        """
        from ray.exceptions import OwnerDiedError, RayError

        try:
            await alive[0]
        except OwnerDiedError:
            await self.report(number, name, "waiting")
        except RayError:  # it was cancelled, since the task has ended
            pass


def _run_on_node(
    number: int,
    job: Job,
    events: Any,  # noqa: ANN401 (Ray's handle of the actor)
    directory: str,
    version: str,
) -> dict[str, Any]:
    """Run a job as a task of Ray, on any node, and return its record.

    The current directory and the version of this package are the batch's.
    """
    import ray

    name = f"{socket.gethostname()} {os.getpid()}"
    if version != __version__:
        error = f"modelexport-optimum is {version} here and {__version__} there: install one"
        return {**new_record(job), "worker": name, "error": error}
    with contextlib.suppress(FileNotFoundError):  # a name on the Hub needs no directory
        os.chdir(directory)
    forget_current_directory()
    # Ray cancels by it, and a cluster that a shell started in its background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker.import_all()
    alive = events.never.remote()
    events.report_death.remote(number, name, [alive])
    events.report.remote(number, name, "start")
    try:
        record = worker.run_job(
            job,
            lambda stage: events.report.remote(number, name, stage),
            max(1, int(job.resources.num_cpus)),
        )
    finally:
        ray.cancel(alive)
    return {**record, "worker": name, "memory": release_memory()}


@dataclass
class _Task:
    """A job in Ray's queue.

    Attributes:
        job: The job.
        result: Ray's reference to its record.
        worker: The process that runs it; None while it waits for a process.
    """

    job: Job
    result: Any
    worker: str | None = None


class RayCluster:
    """A `Runner` on a Ray cluster.

    A job that requests no GPU sees none. A job that requests one has its own process, so that the
    GPU memory that the libraries keep is freed at its end.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: `host:port`, ray://host:port, "auto" or "local"; by default RAY_ADDRESS, else
                the cluster that was last started on this machine, else a new one.

        Raises:
            ModelExportError: There is no such cluster.
            UsageError: Ray is not installed.
        """
        # By default what Ray's memory monitor kills is run and killed again for ever.
        os.environ.setdefault(RAY_OOM_RETRIES, str(_RETRIES))
        try:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ImportError as error:
            raise UsageError("--ray needs Ray: pip install 'modelexport-optimum[ray]'") from error
        found = _find(address)
        try:
            with _own_sigterm():
                ray.init(
                    address or None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:
            raise ModelExportError(f"Ray cannot be used: {_message(error)}") from error
        self._ray: Any = ray
        self._run: Any = ray.remote(_run_on_node)
        self._run_on_gpu: Any = ray.remote(max_calls=1)(_run_on_node)
        # The event actor is on this node, so that it is not lost with another.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Events)
        self._events = actor.options(
            num_cpus=0,
            max_concurrency=_MAX_CALLS,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=here,
        ).remote()
        self._next_stages = self._events.next_stages.remote()
        self._tasks: dict[int, _Task] = {}
        self._refused: list[Done] = []
        self._number = 0
        self._patience = _AUTOSCALER_SECONDS if found else 0
        self._last_look = self._last_progress = time.monotonic()

    def has_room(self) -> bool:
        """Return True: Ray has a queue."""
        return True

    def start(self, job: Job) -> None:
        """Submit a job to Ray."""
        run = self._run_on_gpu if job.resources.num_gpus else self._run
        self._number += 1
        self._last_progress = time.monotonic()
        try:
            result = run.options(
                name=job.model,
                num_cpus=job.resources.num_cpus,
                num_gpus=job.resources.num_gpus,
                memory=job.resources.memory,
                max_retries=_RETRIES,
                retry_exceptions=False,
                runtime_env=None if job.resources.num_gpus else _HIDE_GPUS,
            ).remote(self._number, job, self._events, str(Path.cwd()), __version__)
        except ValueError as error:  # 1.5 GPUs, as an example
            self._refused.append(_failed(job, f"Ray refuses what it asks for: {_message(error)}"))
        else:
            self._tasks[self._number] = _Task(job, result)

    def wait(self, seconds: float) -> Sequence[Stage | Done | Lost]:
        """Return the events of the tasks, including those that ended."""
        numbers = {task.result: number for number, task in self._tasks.items()}
        ready, _ = self._ray.wait([self._next_stages, *numbers], timeout=seconds)
        events: list[Stage | Done | Lost] = [*self._refused]
        self._refused.clear()
        if self._next_stages in ready:
            events += self._receive()
        if numbers:
            ended, _ = self._ray.wait([*numbers], num_returns=len(numbers), timeout=0)
            events += [self._end(self._tasks.pop(numbers[result])) for result in ended]
        return [*events, *self._give_up()]

    def _receive(self) -> list[Stage]:
        """Read the stages that the event actor has, and ask it for the next."""
        stages = []
        for number, name, stage in self._ray.get(self._next_stages):
            task = self._tasks.get(number)
            if task is None or (stage == "waiting" and task.worker != name):
                continue  # the task has ended, or runs again already
            if stage == "waiting":
                task.worker = None
            elif task.worker != name:  # "start" may come after later stages: Ray keeps no order
                task.worker = name
                stages.append(Stage(task.job, name, "start"))
            if stage != "start":
                stages.append(Stage(task.job, name, stage))
        self._next_stages = self._events.next_stages.remote()
        return stages

    def _end(self, task: _Task) -> Done | Lost:
        """Return the last event of a task that has ended."""
        job = task.job
        try:
            record = self._ray.get(task.result)
        except Exception as error:
            return Lost(job, _reason(error))
        if "state" in record and not job.pending.exists():
            where = f"{job.output} was written on {record['worker']}, and is not on this machine"
            return _failed(job, f"{where}: give a directory that all nodes share with -o")
        return Done(job, record)

    def _give_up(self) -> list[Done]:
        """End the jobs that no node can run, when nothing else runs and no node is added."""
        now = time.monotonic()
        if now < self._last_look + _LOOK_SECONDS:
            return []
        self._last_look = now
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        stuck = [
            number
            for number, task in self._tasks.items()
            if task.worker is None and not any(_fits(task.job, node) for node in nodes)
        ]
        if len(stuck) < len(self._tasks):
            self._last_progress = now
        if now < self._last_progress + self._patience:
            return []
        events = []
        for number in stuck:
            task = self._tasks.pop(number)
            self._ray.cancel(task.result)
            asked = ", ".join(
                f"{name} {amount:.15g}" for name, amount in _requested(task.job).items()
            )
            error = f"no node of the Ray cluster has {asked}: ask for less, or add one that has"
            events.append(_failed(task.job, error))
        return events

    def cancel(self, job: Job, *, force: bool) -> None:
        """Interrupt a job as Ctrl-C does, or kill its process."""
        for task in self._tasks.values():
            if task.job is job:
                self._ray.cancel(task.result, force=force)

    def close(self) -> None:
        """Kill the running tasks and disconnect, which ends a cluster that was started here."""
        results = [task.result for task in self._tasks.values()]
        for result in results:
            self._ray.cancel(result, force=True)
        if results:  # Ray has the result of a task that was killed when its process is gone
            self._ray.wait(results, num_returns=len(results), timeout=_END_SECONDS)
        self._ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM, which `ray.init` replaces for the life of the process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _find(address: str | None) -> str:
    """Return the address that `ray.init` will connect to; "" if it will start a cluster.

    Raises:
        ModelExportError: No cluster answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        last = Path(os.environ.get("RAY_TMPDIR", "/tmp"), *RAY_CURRENT_CLUSTER)
        address = last.read_text(encoding="utf-8").strip() if last.is_file() else "local"
    if address == "local":
        return ""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise ModelExportError(
                f"no Ray cluster answers at {address} ({error.strerror or error}): start one "
                "with `ray start --head`, or give the address of another with --ray"
            ) from error
    return address


def _requested(job: Job) -> dict[str, float]:
    asked = {
        "CPU": job.resources.num_cpus,
        "GPU": job.resources.num_gpus,
        "memory": job.resources.memory or 0,
    }
    return {name: amount for name, amount in asked.items() if amount}


def _fits(job: Job, node: dict[str, float]) -> bool:
    return all(amount <= node.get(name, 0) for name, amount in _requested(job).items())


def _failed(job: Job, error: str) -> Done:
    return Done(job, {**new_record(job), "error": error})


def _reason(error: Exception) -> str:
    from ray import exceptions

    if isinstance(error, exceptions.TaskCancelledError):
        return "it was cancelled"
    if isinstance(error, exceptions.WorkerCrashedError):
        return f"its process died {_RETRIES + 1} times, as it does when memory runs out"
    if isinstance(error, exceptions.OutOfMemoryError):
        return "Ray killed it as memory ran out on its node: ask for as much as it takes (--memory)"
    if isinstance(error, exceptions.NodeDiedError):
        return "its node died, as its process or node did before"
    if isinstance(error, exceptions.RayTaskError):  # of the task's traceback, the error
        return f"its node cannot run it: {str(error).strip().splitlines()[-1]}"
    return f"Ray: {_message(error)}"


def _message(error: Exception) -> str:
    """Return the message of one of Ray's errors on one line; some have it in several arguments."""
    return one_line(" ".join(map(str, error.args)) or error)
