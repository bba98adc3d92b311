"""The runner on a Ray cluster: one task a job.

It is Ray that schedules, retries and scales; this asks and listens. A node needs this package
in the same version, the batch's directory at the same path, and its own access to the Hub.
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
from modelexport_optimum.errors import ModelExportError, UsageError, one_line
from modelexport_optimum.system.import_path import forget_current_directory
from modelexport_optimum.system.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelexport_optimum.batches.jobs import Job

_RETRIES = 1
"""How often Ray runs a job again whose process or node died, which it counts alike. A model that
takes its process down does so each time; to lose two nodes under one job is rare, and the next
batch runs it."""

_HIDE_GPUS = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}
"""Hides GPUs from jobs that ask for none, which Ray leaves to us. To Ray, workers with another
environment are others: no job with a GPU gets one in which PyTorch found none before."""

_MOST_CALLS = 100_000
"""At a time, of the ear's: two for each job that runs."""

_CONNECT_SECONDS = 10
"""Ray itself goes on for minutes to try an address where nobody listens."""

_END_SECONDS = 5
"""What killed processes have to be gone in, before their outputs are cleaned up."""

_LOOK_SECONDS = 5
"""Between two looks at the nodes."""

_AUTOSCALER_SECONDS = 600
"""What a cluster has to add a node for jobs that none can run, when nothing else runs. It was
asked for one when the batch began: all jobs are in Ray's queue from then on."""


class _Ear:
    """An actor on the batch's node: hears the tasks, and the batch listens to it."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[tuple[int, str, str]] = asyncio.Queue()

    async def tell(self, number: int, name: str, stage: str) -> None:
        self._heard.put_nowait((number, name, stage))

    async def listen(self) -> list[tuple[int, str, str]]:
        heard = [await self._heard.get()]
        while not self._heard.empty():
            heard.append(self._heard.get_nowait())
        return heard

    async def live(self) -> None:
        """Never ends. Its result is its caller's, and lost when that process dies."""
        await asyncio.Event().wait()

    async def attend(self, number: int, name: str, life: list[Any]) -> None:
        """Notice that a task's process died, which Ray tells nobody while it has retries left."""
        from ray.exceptions import OwnerDiedError, RayError

        try:
            await life[0]
        except OwnerDiedError:
            await self.tell(number, name, "waiting")
        except RayError:  # cancelled, as the task has ended
            pass


def _run(number: int, job: Job, ear: Any, directory: str, version: str) -> dict[str, Any]:  # noqa: ANN401
    """The task, on whatever node."""
    import ray

    name = f"{socket.gethostname()} {os.getpid()}"
    if version != __version__:
        error = f"modelexport-optimum is {version} here and {__version__} there: install one"
        return {**worker.new_record(job), "worker": name, "error": error}
    with contextlib.suppress(FileNotFoundError):  # a name on the Hub needs no directory
        os.chdir(directory)
    forget_current_directory()
    # Ray cancels by it, and a cluster that a shell started in its background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker.import_all()
    life = ear.live.remote()
    ear.attend.remote(number, name, [life])
    ear.tell.remote(number, name, "start")
    try:
        record = worker.convert(
            job,
            lambda stage: ear.tell.remote(number, name, stage),
            max(1, int(job.resources.num_cpus)),
        )
    finally:
        ray.cancel(life)
    return {**record, "worker": name, "memory": worker.release_memory()}


@dataclass
class _Task:
    job: Job
    result: Any
    worker: str | None = None


class RayCluster:
    """A `Runner` on a Ray cluster.

    A job that asks for no GPU sees none, and one that asks has a process to itself, so that
    what the libraries keep of the GPU's memory is given back.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connect, or start a cluster of this machine.

        Args:
            address: host:port, ray://host:port, "auto" or "local"; by default RAY_ADDRESS, or
                the cluster that was last started on this machine, or a new one.

        Raises:
            ModelExportError: there is no such cluster.
            UsageError: Ray is not installed.
        """
        # For ever, by default: what Ray's memory monitor kills is run again and killed again.
        os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
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
            raise ModelExportError(f"Ray cannot be used: {_said(error)}") from error
        self._ray: Any = ray
        self._run: Any = ray.remote(_run)
        self._run_on_gpu: Any = ray.remote(max_calls=1)(_run)
        # On this node, so that no other takes it along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Ear)
        self._ear = actor.options(
            num_cpus=0,
            max_concurrency=_MOST_CALLS,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=here,
        ).remote()
        self._heard = self._ear.listen.remote()
        self._tasks: dict[int, _Task] = {}
        self._refused: list[Done] = []
        self._number = 0
        self._patience = _AUTOSCALER_SECONDS if found else 0
        self._looked = self._moved = time.monotonic()

    def has_room(self) -> bool:
        """Always: it is Ray that queues."""
        return True

    def start(self, job: Job) -> None:
        """Give a job to Ray."""
        run = self._run_on_gpu if job.resources.num_gpus else self._run
        self._number += 1
        self._moved = time.monotonic()
        try:
            result = run.options(
                name=job.model,
                num_cpus=job.resources.num_cpus,
                num_gpus=job.resources.num_gpus,
                memory=job.resources.memory,
                max_retries=_RETRIES,
                retry_exceptions=False,
                runtime_env=None if job.resources.num_gpus else _HIDE_GPUS,
            ).remote(self._number, job, self._ear, str(Path.cwd()), __version__)
        except ValueError as error:  # 1.5 GPUs, as an example
            self._refused.append(_failed(job, f"Ray refuses what it asks for: {_said(error)}"))
        else:
            self._tasks[self._number] = _Task(job, result)

    def wait(self, seconds: float) -> Sequence[Stage | Done | Lost]:
        """What the tasks say, and which have ended."""
        numbers = {task.result: number for number, task in self._tasks.items()}
        ready, _ = self._ray.wait([self._heard, *numbers], timeout=seconds)
        events: list[Stage | Done | Lost] = [*self._refused]
        self._refused.clear()
        if self._heard in ready:
            events += self._listen()
        if numbers:
            ended, _ = self._ray.wait([*numbers], num_returns=len(numbers), timeout=0)
            events += [self._end(self._tasks.pop(numbers[result])) for result in ended]
        return [*events, *self._give_up()]

    def _listen(self) -> list[Stage]:
        stages = []
        for number, name, stage in self._ray.get(self._heard):
            task = self._tasks.get(number)
            if task is None or (stage == "waiting" and task.worker != name):
                continue  # it has ended, or runs again already
            if stage == "waiting":
                task.worker = None
            elif task.worker != name:  # Ray keeps no order
                task.worker = name
                stages.append(Stage(task.job, name, "start"))
            if stage != "start":
                stages.append(Stage(task.job, name, stage))
        self._heard = self._ear.listen.remote()
        return stages

    def _end(self, task: _Task) -> Done | Lost:
        job = task.job
        try:
            record = self._ray.get(task.result)
        except Exception as error:
            return Lost(job, _reason(error))
        if "state" in record and job.pending is not None and not job.pending.exists():
            where = f"{job.output} was written on {record['worker']}, and is not on this machine"
            return _failed(job, f"{where}: give a directory that all nodes share with -o")
        return Done(job, record)

    def _give_up(self) -> list[Done]:
        """The jobs that no node can run, when nothing else runs and no node is added."""
        now = time.monotonic()
        if now < self._looked + _LOOK_SECONDS:
            return []
        self._looked = now
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        stuck = [
            number
            for number, task in self._tasks.items()
            if task.worker is None and not any(_fits(task.job, node) for node in nodes)
        ]
        if len(stuck) < len(self._tasks):
            self._moved = now
        if now < self._moved + self._patience:
            return []
        events = []
        for number in stuck:
            task = self._tasks.pop(number)
            self._ray.cancel(task.result)
            asked = ", ".join(f"{name} {amount:.15g}" for name, amount in _asked(task.job).items())
            error = f"no node of the Ray cluster has {asked}: ask for less, or add one that has"
            events.append(_failed(task.job, error))
        return events

    def cancel(self, job: Job, *, force: bool) -> None:
        """Interrupt a job as Ctrl-C does, or kill its process."""
        for task in self._tasks.values():
            if task.job is job:
                self._ray.cancel(task.result, force=force)

    def close(self) -> None:
        """Kill what runs still, and disconnect: a cluster that was started here ends, too."""
        results = [task.result for task in self._tasks.values()]
        for result in results:
            self._ray.cancel(result, force=True)
        if results:  # it is one when its process has gone
            self._ray.wait(results, num_returns=len(results), timeout=_END_SECONDS)
        self._ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler that Ray puts its own in the place of, for as long as the process lives."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _find(address: str | None) -> str:
    """What `ray.init` will connect to, as its documentation has it; "" if it starts a cluster."""
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        last = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
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


def _asked(job: Job) -> dict[str, float]:
    asked = {
        "CPU": job.resources.num_cpus,
        "GPU": job.resources.num_gpus,
        "memory": job.resources.memory or 0,
    }
    return {name: amount for name, amount in asked.items() if amount}


def _fits(job: Job, node: dict[str, float]) -> bool:
    return all(amount <= node.get(name, 0) for name, amount in _asked(job).items())


def _failed(job: Job, error: str) -> Done:
    return Done(job, {**worker.new_record(job), "error": error})


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
    return f"Ray: {_said(error)}"


def _said(error: Exception) -> str:
    """What an error of Ray's says on one line; some say it in several arguments."""
    return one_line(" ".join(map(str, error.args)) or error)
