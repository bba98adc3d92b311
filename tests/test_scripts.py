"""The scripts that people copy: each is linted, and run as its system would run it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import forked_python
import pytest
import yaml
from needs import POSIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    ModelDirectory = Callable[[str], Path]

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "scripts" / "batch"
WORKFLOW = SCRIPTS / "github-actions.yml"
WORKFLOWS = [WORKFLOW, *sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))]
BIN = Path(sys.executable).parent
pytestmark = POSIX

OF_MAKE = {"ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
OPTIONS = ["--task", "feature-extraction", "--provider", "cpu"]


def environment(*first: Path, **more: str) -> dict[str, str]:
    """The environment in which the programs of this Python are found, after those of `first`."""
    path = os.pathsep.join([*map(str, first), str(BIN), os.environ["PATH"]])
    # Not what `make test ARGS=...` was given, which a `make` of the tests would take for its own.
    own = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return {**own, "PATH": path, **more}


def start(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str], status: int) -> str:
    """What it printed; it must end with this status."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == status, printed
    return printed


def results(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def workflow(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def workflow_steps(file: Path = WORKFLOW) -> list[dict[str, Any]]:
    return [step for job in workflow(file)["jobs"].values() for step in job["steps"]]


def program(directory: Path, name: str, text: str) -> None:
    """A program that stands in for one of this name."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    (directory / name).chmod(0o755)


# --- Lint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [*sorted(SCRIPTS.glob("*.sh")), REPOSITORY / ".ci" / "run"],
    ids=lambda path: path.name,
)
def test_shell_script_has_no_findings(script: Path) -> None:
    end(start("shellcheck", script, cwd=REPOSITORY), 0)


def test_workflows_are_such_to_github() -> None:
    schema = ["--builtin-schema", "vendor.github-workflows"]
    end(start(BIN / "check-jsonschema", *schema, *WORKFLOWS, cwd=REPOSITORY), 0)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflow_has_no_findings_in_its_shell(file: Path, tmp_path: Path) -> None:
    for step in workflow_steps(file):
        # What GitHub fills in would be code to the shell.
        assert "${{" not in step.get("run", "")
        (tmp_path / "step").write_text(step.get("run", ""))
        end(start("shellcheck", "--shell=bash", tmp_path / "step", cwd=REPOSITORY), 0)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflow_may_read_only_and_names_versions(file: Path) -> None:
    assert workflow(file)["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in workflow_steps(file) if "uses" in step]
    assert used
    assert all(name.rpartition("@")[2].startswith("v") for name in used)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_script_without_arguments_says_how_it_is_used(script: Path, tmp_path: Path) -> None:
    assert "usage: " in end(start("sh", script, cwd=tmp_path), 2)


# --- Run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, python_server: Path) -> Path:
    """A directory with the program, run by `python_server`: the scripts look for it in PATH."""
    directory = tmp_path_factory.mktemp("bin")
    program(
        directory,
        "modelexport-optimum",
        f"""#!{sys.executable}
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from forked_python import ForkedPython
arguments = ["-m", "modelexport_optimum", *sys.argv[1:]]
streams = {{"stdout": sys.stdout, "stderr": sys.stderr}}
with ForkedPython({str(python_server)!r}, arguments, cwd=Path.cwd(), **streams) as process:
    sys.exit(process.wait())
""",
    )
    return directory


@pytest.fixture(scope="module")
def job_server() -> Iterator[dict[str, str]]:
    """A Ray cluster of one node: the variables with which its job server is reached."""
    with ExitStack() as held:
        ports = []
        for _ in range(4):
            taken = held.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports.append(taken.getsockname()[1])
    kinds = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    env = environment(
        RAY_ADDRESS=f"http://127.0.0.1:{ports[1]}",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(),
        RAY_USAGE_STATS_ENABLED="0",
    )
    # Its sockets are in there, whose names may not be long.
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory:
        log = Path(directory) / "log"
        with log.open("w") as file:
            head = subprocess.Popen(
                [
                    *("ray", "start", "--head", "--block", "--num-cpus=2"),
                    *(f"--{kind}={port}" for kind, port in zip(kinds, ports, strict=True)),
                    *("--object-store-memory=100000000", f"--temp-dir={directory}"),
                ],
                env={name: value for name, value in env.items() if name != "RAY_ADDRESS"},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            until = time.monotonic() + 240
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield env
        finally:
            head.terminate()
            head.wait(60)
            os.killpg(head.pid, signal.SIGKILL)  # parts of the job server outlive it


@pytest.fixture(scope="module")
def ray_job(
    job_server: dict[str, str],
    model_directory: ModelDirectory,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.Popen[str]]:
    """A job on it, and where: nothing waits for it as long as other tests are at work."""
    directory = tmp_path_factory.mktemp("ray")
    model = {"model": str(model_directory("bert")), "output": "bert"}
    (directory / "models.jsonl").write_text(json.dumps(model))
    command = ["sh", SCRIPTS / "ray-job.sh", "models.jsonl", directory / "out put", *OPTIONS]
    return directory / "out put", start(*command, cwd=directory, env=job_server)


@pytest.mark.usefixtures("ray_job")
def test_batch_converts_a_directory_and_lists_what_failed(
    tmp_path: Path, model_directory: ModelDirectory, programs: Path
) -> None:
    shutil.copytree(model_directory("bert"), tmp_path / "runs" / "checkpoint 1")
    shutil.copytree(model_directory("bert"), tmp_path / "runs" / "checkpoint 2")
    (tmp_path / "runs" / "checkpoint 2" / "model.safetensors").write_bytes(b"broken")
    (tmp_path / "runs" / "logs").mkdir()
    command = ["sh", SCRIPTS / "batch.sh", "runs", "onnx", *OPTIONS]
    end(start(*command, cwd=tmp_path, env=environment(programs)), 1)
    assert (tmp_path / "onnx" / "checkpoint 1-onnx" / "model.onnx").is_file()
    assert not (tmp_path / "onnx" / "checkpoint 2-onnx").exists()
    (failed,) = (tmp_path / "onnx" / "failed.tsv").read_text().splitlines()
    model, status, error = failed.split("\t")
    assert (model, status) == (str(tmp_path / "runs" / "checkpoint 2"), "failed")
    assert error


def test_batch_passes_a_list_on_and_the_exit_status_back(tmp_path: Path) -> None:
    program(tmp_path / "bin", "modelexport-optimum", '#!/bin/sh\nprintf "<%s>" "$@"\nexit 130\n')
    (tmp_path / "my list.txt").touch()
    command = ["sh", SCRIPTS / "batch.sh", "my list.txt", "out", "--task", "fill-mask"]
    printed = end(start(*command, cwd=tmp_path, env=environment(tmp_path / "bin")), 130)
    assert printed == "<batch><my list.txt><-o><out><--task><fill-mask>"


def slurm_task(number: int, count: int, *arguments: str, cwd: Path, **more: Any) -> Any:
    slurm = {
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_CPUS_PER_TASK": "1",
    }
    return start("sh", SCRIPTS / "slurm.sh", *arguments, cwd=cwd, env=environment(**slurm, **more))


def test_slurm_tasks_convert_each_line_once(
    tmp_path: Path, model_directory: ModelDirectory, programs: Path
) -> None:
    bert = model_directory("bert")
    (tmp_path / "models.txt").write_text(
        "# the same model, twice\n"
        f"'{bert}' -o first\n"
        "\n"
        f"'{bert}' -o second --dtype fp16\n"
        f"'{bert}' -o third --no-constant-folding\n"
    )
    path = environment(programs)["PATH"]
    tasks = [
        slurm_task(number, 2, "models.txt", "out", *OPTIONS, cwd=tmp_path, PATH=path)
        for number in range(2)
    ]
    for task in tasks:
        end(task, 0)
    parts = [results(tmp_path / "out" / f"part-{number}") for number in range(2)]
    assert [sorted(result["line"] for result in part) for part in parts] == [[2, 5], [4]]
    for output in ("part-0/first", "part-1/second", "part-0/third"):
        assert (tmp_path / "out" / output / "model.onnx").is_file()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_slurm_tasks_share_out_every_line(count: int, first: int, tmp_path: Path) -> None:
    """Of an array that begins at 0, or at 1; with more tasks than models, too."""
    program(tmp_path / "bin", "modelexport-optimum", '#!/bin/sh\ncat "$2"\n')
    lines = [f'{{"model": "a b \\\\ {number}"}}' for number in range(5)]
    (tmp_path / "models.jsonl").write_text("\n".join(lines))
    path = environment(tmp_path / "bin")["PATH"]
    taken: Counter[tuple[int, str]] = Counter()
    for number in range(first, first + count):
        printed = end(slurm_task(number, count, "models.jsonl", "o", cwd=tmp_path, PATH=path), 0)
        taken.update((place, line) for place, line in enumerate(printed.splitlines()) if line)
    assert taken == Counter(enumerate(lines))


def test_slurm_signals_the_batch_itself(tmp_path: Path) -> None:
    """`--signal=B:` is for the process that Slurm started."""
    program(tmp_path / "bin", "modelexport-optimum", "#!/bin/sh\necho $$\n")
    (tmp_path / "models.txt").write_text("model\n")
    path = environment(tmp_path / "bin")["PATH"]
    task = slurm_task(0, 1, "models.txt", "out", cwd=tmp_path, PATH=path)
    assert int(end(task, 0)) == task.pid


def test_ray_job_converts_on_a_cluster(ray_job: tuple[Path, subprocess.Popen[str]]) -> None:
    output, job = ray_job
    assert "models.jsonl -o" in end(job, 0)  # the log is followed
    (result,) = results(output)
    assert result["status"] == "ok"
    assert (output / "bert" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("submitted", "told", "status"),
    [(0, "Job 'to-onnx' succeeded", 0), (0, "Job 'to-onnx' was stopped", 1), (1, "", 1)],
)
def test_ray_job_ends_as_the_job(submitted: int, told: str, status: int, tmp_path: Path) -> None:
    program(
        tmp_path / "bin",
        "ray",
        f'#!/bin/sh\ncase "$2" in submit) exit {submitted} ;; status) echo "{told}" ;; esac\n',
    )
    (tmp_path / "models.txt").touch()
    env = environment(tmp_path / "bin", RAY_ADDRESS="http://127.0.0.1:1", TMPDIR=str(tmp_path))
    before = sorted(tmp_path.iterdir())
    command = ["sh", SCRIPTS / "ray-job.sh", "models.txt", "/out"]
    end(start(*command, cwd=tmp_path, env=env), status)
    assert sorted(tmp_path.iterdir()) == before


def test_workflow_converts_and_sums_up(
    tmp_path: Path, model_directory: ModelDirectory, programs: Path
) -> None:
    shutil.copytree(model_directory("bert"), tmp_path / "tiny-bert")
    (tmp_path / "models.txt").write_text("tiny-bert --task feature-extraction\nno|where\n")
    summary = tmp_path / "summary.md"
    env = environment(programs, GITHUB_STEP_SUMMARY=str(summary))
    # As GitHub runs a step. The first installs, and the second fails as a model does.
    steps = [step["run"] for step in workflow_steps() if "run" in step]
    _, batch, sum_up = steps
    end(start("bash", "-e", "-c", batch, cwd=tmp_path, env=env), 1)
    end(start("bash", "-e", "-c", sum_up, cwd=tmp_path, env=env), 0)
    head, _, *rows = summary.read_text().splitlines()
    assert head == "| export | status | seconds | error |"
    failed, done = sorted(rows)
    assert failed.startswith("| no\\|where-onnx | failed | ")
    assert done.startswith("| tiny-bert-onnx | ok | ")
    uploaded = tmp_path / workflow_steps()[-1]["with"]["path"]
    assert (uploaded / "tiny-bert-onnx" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        (["MANIFEST=my models.txt"], "batch my models.txt\n"),
        (
            ["MANIFEST=m.txt", "OUTPUT=out put", "ARGS=--json --workers 2"],
            "batch m.txt -o out put --json --workers 2\n",
        ),
    ],
)
def test_make_batch_runs_the_command(variables: list[str], printed: str) -> None:
    # As if .venv were up to date, which this Python need not be in.
    made = start(
        "make", "-s", "-o", ".venv/.installed", "batch", "RUN=echo", *variables, cwd=REPOSITORY
    )
    assert end(made, 0) == printed


def test_make_batch_says_what_it_needs() -> None:
    made = start("make", "-s", "-o", ".venv/.installed", "batch", cwd=REPOSITORY)
    assert "usage: make batch MANIFEST=" in end(made, 2)


def test_make_help_shows_each_target_once() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""  # make says so where one target has two recipes
    assert sorted(line.split()[1] for line in shown.stdout.splitlines()) == sorted(phony[1].split())


def test_the_gpu_script_runs_without_a_gpu(python_server: Path) -> None:
    """It is the same code but for the provider and the exports, which need CUDA."""
    script = str(REPOSITORY / "scripts" / "gpu")
    small = ["--provider", "cpu", "--small", "--model", "vit", "--iterations", "1"]
    done = forked_python.run(python_server, [script, *small], cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(" ViT ")]
    assert [row[:4] for row in rows] == [
        ["ViT", "fp32", "cpu", "ok"],
        ["ViT", "O3", "cpu", "ok"],
    ]
    assert all(float(time) > 0 for row in rows for time in row[4:6])
    if shutil.which("nvidia-smi") is None:
        assert "there is no GPU here" in end(start(sys.executable, script, cwd=REPOSITORY), 0)
