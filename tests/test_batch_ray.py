"""Batches on Ray: a cluster of two nodes on this machine, of which one is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from modelexport_optimum import read_hierarchy
from modelexport_optimum.batches import ray_cluster as cluster
from modelexport_optimum.batches import run as batch_module
from modelexport_optimum.batches import scheduler
from modelexport_optimum.batches.jobs import Job, Watcher
from modelexport_optimum.errors import ModelExportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelexport_optimum.batches.jobs import Stage

    ModelDirectory = Callable[[str], Path]

pytest.importorskip("ray", reason="Ray is not installed: pip install 'modelexport-optimum[ray]'")

CUSTOM = "--task text-classification --trust-remote-code --provider cpu"

PATIENT_PROGRAM = """
from modelexport_optimum.batches import scheduler
from modelexport_optimum.cli.main import main
scheduler._GRACE_SECONDS = 600
main()
"""
"""The command; it never kills a job that was asked to end, however busy the machine is."""

SAYS = """
import json, os, pathlib, ray
said = [ray.get_runtime_context().get_assigned_resources(), os.environ["CUDA_VISIBLE_DEVICES"]]
pathlib.Path("{name}.json").write_text(json.dumps(said))
"""
KILLS = f"{SAYS.format(name='killer')}\nimport signal\nos.kill(os.getpid(), signal.SIGKILL)"
HANGS = f"{SAYS.format(name='hangs')}\nimport time\ntime.sleep(1000)"
WAITS = """
import os, pathlib, time
flag = pathlib.Path({flag!r})
flag.with_name(f"worker-{{os.getpid()}}").touch()
while flag.exists():
    time.sleep(0.02)
"""


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """Clusters of these tests are known to nobody else, and need no token in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with a core each, and something that Ray takes for a GPU."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    running = Cluster(initialize_head=True, head_node_args={**node, "num_gpus": 1})
    try:
        running.add_node(**node)
        signal.signal(signal.SIGTERM, before)  # starting nodes changes it
        yield running
    finally:
        running.shutdown()


@pytest.fixture(scope="module")
def without_gpu(
    tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory
) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A batch that asks a local cluster for what it has not; it runs beside the others."""
    place = tmp_path_factory.mktemp("local")
    lines = [f"{model_directory('bert')} --num-gpus {number} -o {number}" for number in (64, 1.5)]
    with batch(place, lines, "--ray", "local") as running:
        yield place, running


def batch(place: Path, lines: list[str], *options: str) -> subprocess.Popen[str]:
    (place / "models.txt").write_text("\n".join(lines))
    command = [sys.executable, "-c", PATIENT_PROGRAM, "batch", "models.txt", "-o", "exports"]
    return subprocess.Popen(
        [*command, *options],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def records(directory: Path) -> dict[str, dict[str, Any]]:
    lines = (directory / "results.jsonl").read_text().splitlines()
    return {record["output"]: record for record in map(json.loads, lines)}


def custom(source: Path, directory: Path, code: str) -> None:
    """A model with code that runs when it is loaded."""
    shutil.copytree(source, directory)
    with (directory / "modeling_odd.py").open("a") as file:
        file.write(f"\n{code}\n")


def hidden(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.name.startswith(".")]


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Recorder(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: dict[str, list[str]] = {}

    def stage_began(self, event: Stage) -> None:
        self.stages.setdefault(event.job.output.name, []).append(event.name)


@pytest.mark.usefixtures("without_gpu")
def test_a_job_that_kills_and_one_that_hangs_cost_themselves_alone(
    nodes: Any,
    model_directory: ModelDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "_GRACE_SECONDS", 5)
    custom(model_directory("custom-code"), tmp_path / "killer", KILLS)
    custom(model_directory("custom-code"), tmp_path / "hangs", HANGS)
    lines = [
        f"killer {CUSTOM}",
        f"{model_directory('bert')} --provider cpu",
        f"hangs {CUSTOM} --timeout 10 --num-gpus 0.5 --memory 100MB",
    ]
    Path("models.txt").write_text("\n".join(lines))
    told = Recorder()
    result = batch_module.batch("models.txt", "exports", ray=nodes.address, watcher=told)
    assert result.exit_status == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # not Ray's
    found = records(tmp_path / "exports")
    assert {output: record["status"] for output, record in found.items()} == {
        "killer-onnx": "crashed",
        "bert-onnx": "ok",
        "hangs-onnx": "timed-out",
    }
    assert found["killer-onnx"]["error"].startswith("its process died 2 times")
    assert "longer than 10 s" in found["hangs-onnx"]["error"]
    assert hidden(tmp_path / "exports") == []
    assert told.stages["killer-onnx"].count("start") == 2
    assert told.stages["bert-onnx"][0] == "start"
    assert told.stages["bert-onnx"][-1] == "check"
    for name, resources, gpu in [
        ("killer", {"CPU": 1}, ""),
        ("hangs", {"CPU": 1, "GPU": 0.5, "memory": 10**8}, "0"),
    ]:
        assert json.loads(Path(f"{name}.json").read_text()) == [resources, gpu]


def test_a_node_that_is_killed_loses_nothing(
    nodes: Any, model_directory: ModelDirectory, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    for name in ("one", "two"):
        custom(model_directory("custom-code"), tmp_path / name, WAITS.format(flag=str(flag)))
    lines = [f"one {CUSTOM}", f"two {CUSTOM}"]
    lines += [f"{model_directory('bert')} -o bert-{number} --provider cpu" for number in range(4)]
    (node,) = nodes.worker_nodes
    raylet = node.all_processes["raylet"][0].process.pid
    with batch(tmp_path, lines, "--ray", nodes.address) as running:
        until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
        workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("worker-*")]
        (lost,) = (pid for pid in workers if parent(pid) == raylet)
        assert len(hidden(tmp_path / "exports")) >= 2
        nodes.remove_node(node, allow_graceful=False)
        with suppress(ProcessLookupError):
            os.kill(lost, signal.SIGKILL)
        flag.unlink()
        _, err = running.communicate(timeout=240)
    found = records(tmp_path / "exports")
    assert running.returncode == 0, err
    assert len(found) == 6
    assert {record["status"] for record in found.values()} == {"ok"}
    (survivor,) = {record["worker"] for record in found.values()}
    assert survivor.endswith(f" {({*workers} - {lost}).pop()}")
    for output in found:
        onnxruntime.InferenceSession(tmp_path / "exports" / output / "model.onnx")
        assert all(node.tag for node in read_hierarchy(tmp_path / "exports" / output))
    assert hidden(tmp_path / "exports") == []


def test_what_no_node_has_is_told(without_gpu: tuple[Path, subprocess.Popen[str]]) -> None:
    place, running = without_gpu
    out, err = running.communicate(timeout=240)
    assert running.returncode == 1
    found = records(place / "exports")
    for output, error in [
        ("64", "no node of the Ray cluster has CPU 1, GPU 64: ask for less, or add one that has"),
        ("1.5", "Ray refuses what it asks for: GPU resource quantities >1 must be whole numbers. "),
    ]:
        assert found[output]["status"] == "failed"
        assert found[output]["error"].startswith(error)
        assert found[output]["error"] in err
    assert len(err.splitlines()) == 3
    assert len(out.splitlines()) == 5


def test_ctrl_c(model_directory: ModelDirectory, tmp_path: Path) -> None:
    """A terminal sends it to all of the batch's process group, which is Ray's as well."""
    (tmp_path / "flag").touch()
    code = WAITS.format(flag=str(tmp_path / "flag"))
    custom(model_directory("custom-code"), tmp_path / "one", code)
    with batch(tmp_path, [f"one {CUSTOM}", f"./none {CUSTOM}"], "--ray", "local") as running:
        until(lambda: list(tmp_path.glob("worker-*")))
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=240)  # it was not killed: patience is longer
    assert running.returncode == 130, err
    assert "stopped: ending the running exports" in err
    assert hidden(tmp_path / "exports") == []
    assert not (tmp_path / "exports" / "one-onnx").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


def test_an_output_that_is_on_a_disk_of_its_own_is_told(tmp_path: Path) -> None:
    """Two machines would be needed: Ray's answer is all that is not real."""
    job = Job(1, "bert", tmp_path / "bert-onnx", tmp_path / "logs" / "bert-onnx.log")
    answer = {"status": "ok", "state": "1", "worker": "elsewhere 1"}
    runner = object.__new__(cluster.RayCluster)
    runner._ray = SimpleNamespace(get=lambda _: answer)
    ended = runner._end(cluster._Task(job, None))
    assert ended.record["status"] == "failed"
    assert "was written on elsewhere 1, and is not on this machine" in ended.record["error"]
    job.pending.parent.mkdir()
    job.pending.touch()
    assert runner._end(cluster._Task(job, None)).record == answer


def test_a_node_with_another_version_is_told(tmp_path: Path) -> None:
    job = Job(1, "bert", tmp_path, tmp_path / "log")
    record = cluster._run_on_node(1, job, None, str(tmp_path), "0.0.1")
    assert record["status"] == "failed"
    assert "is 0.0.1 here" in record["error"]


@pytest.mark.parametrize("given", ["--ray", "RAY_ADDRESS"])
def test_a_cluster_that_does_not_answer(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    if given == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ModelExportError, match=rf"^no Ray cluster answers at {address} \(.*--ray$"):
        cluster.RayCluster("" if given == "RAY_ADDRESS" else address)


def test_an_address_that_is_none() -> None:
    with pytest.raises(ModelExportError, match=r"^Ray cannot be used: Invalid address format"):
        cluster.RayCluster("nowhere")


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'modelexport-optimum\[ray\]'"):
        cluster.RayCluster("127.0.0.1:1")
