"""Batches on this machine: real models, workers that die, disks that fill, batches that are killed.

Batches of this process share one server that has imported torch (multiprocessing's forkserver);
those that are killed are processes of their own, which are copies of `python_server`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import hub
import onnx
import onnxruntime
import pytest
from disks import mounted
from forked_python import ForkedPython
from schemas import valid
from typer.testing import CliRunner

from modelexport_optimum import batch, read_hierarchy
from modelexport_optimum.batches import run as batch_module
from modelexport_optimum.batches import scheduler
from modelexport_optimum.batches.jobs import Done, Job, Stage
from modelexport_optimum.batches.resources import Resources
from modelexport_optimum.batches.results import Results, only_batch
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    ModelDirectory = Callable[[str], Path]

PATIENCE = """
from modelexport_optimum.batches import scheduler
scheduler._GRACE_SECONDS = 300
"""
"""Run before a batch that must not come to the end of its patience, however busy the machine."""

CUSTOM = "--task text-classification --trust-remote-code --provider cpu"

LIMIT_SECONDS = 10
"""For models that hang: their code must have been reached by then, on a busy machine too."""

KILLS = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
SEGFAULTS = "import ctypes\nctypes.string_at(0)"
EXITS = "import os\nos._exit(7)"
FORKS = f"import os, time\nif os.fork() == 0:\n    time.sleep(20)\n    os._exit(0)\n{KILLS}"
HANGS = "import time\ntime.sleep(1000)"
IGNORES = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{HANGS}"
WAITS = """
import os, time
while os.path.exists({flag!r}):
    time.sleep(0.02)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(place: Path, model_directory: ModelDirectory) -> Callable[..., Path]:
    """Puts a model of the zoo in the current directory; `code` runs when it is loaded."""

    def copy(name: str, zoo_name: str = "custom-code", code: str = "") -> Path:
        shutil.copytree(model_directory(zoo_name), place / name)
        if code:
            with (place / name / "modeling_odd.py").open("a") as file:
                file.write(f"\n{code}\n")
        return place / name

    return copy


class Ran:
    """A batch that was run."""

    def __init__(self, result: Any, directory: Path) -> None:
        self.exit = result.exit_code
        self.out = result.stdout
        self.err = result.stderr
        self.records = records(directory)
        self.status = {output: record["status"] for output, record in self.records.items()}


def records(directory: Path) -> dict[str, dict[str, Any]]:
    """results.jsonl, one record for each output."""
    lines = (directory / "results.jsonl").read_text().splitlines()
    found = [valid(json.loads(line), "results") for line in lines]
    assert len({record["output"] for record in found}) == len(found)
    return {record["output"]: record for record in found}


def run(lines: Sequence[str], *options: str, directory: str = "exports") -> Ran:
    """Run a batch of the current directory."""
    Path("models.txt").write_text("\n".join(lines))
    arguments = ["batch", "models.txt", "-o", directory, *options]
    return Ran(CliRunner().invoke(app, arguments), Path(directory))


def inodes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_ino for path in directory.rglob("*.onnx")
    }


def hidden(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.name.startswith(".")]


# --- One that goes wrong costs itself alone -------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(
    tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory
) -> Iterator[tuple[Path, Ran]]:
    """A batch in which everything happens, and its directory."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("mixed")
        patch.chdir(place)
        for name, code in {
            "killer": KILLS,
            "forks": FORKS,
            "segfault": SEGFAULTS,
            "exits": EXITS,
            "hangs": HANGS,
            "ignores": IGNORES,
        }.items():
            shutil.copytree(model_directory("custom-code"), place / name)
            with (place / name / "modeling_odd.py").open("a") as file:
                file.write(f"\n{code}\n")
        shutil.copytree(model_directory("bert"), place / "truncated")
        weights = place / "truncated" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        patch.setattr(scheduler, "_GRACE_SECONDS", 5)
        lines = [
            f"{model_directory('bert')} --provider cpu",
            f"killer {CUSTOM}",
            f"forks {CUSTOM} --timeout 10",
            "./missing",
            f"{model_directory('vit')} --task text-classification",
            f"hangs {CUSTOM} --timeout {LIMIT_SECONDS}",
            f"ignores {CUSTOM} --timeout {LIMIT_SECONDS}",
            f"segfault {CUSTOM}",
            f"exits {CUSTOM}",
            "truncated",
            f"{model_directory('bert')} -o strict --atol 1e-12 --provider cpu",
            f"{model_directory('gpt2')} --provider cpu",
        ]
        yield place / "exports", run(lines, "--workers", "2")


def test_the_others_go_on(mixed: tuple[Path, Ran]) -> None:
    directory, ran = mixed
    assert ran.exit == 1
    assert ran.status == {
        "bert-onnx": "ok",
        "killer-onnx": "crashed",
        "forks-onnx": "crashed",
        "missing-onnx": "failed",
        "vit-onnx": "failed",
        "hangs-onnx": "timed-out",
        "ignores-onnx": "timed-out",
        "segfault-onnx": "crashed",
        "exits-onnx": "crashed",
        "truncated-onnx": "failed",
        "strict": "check-failed",
        "gpt2-onnx": "ok",
    }
    for name in ("bert-onnx", "gpt2-onnx"):
        onnxruntime.InferenceSession(directory / name / "model.onnx")
        assert all(node.tag.startswith("/") for node in read_hierarchy(directory / name))


def test_outputs_are_whole_or_absent(mixed: tuple[Path, Ran]) -> None:
    directory, _ = mixed
    found = {path.name for path in directory.iterdir()}
    assert found == {"bert-onnx", "gpt2-onnx", "strict", "logs", "results.jsonl"}
    assert hidden(directory) == []


def test_the_record_of_a_model_that_is_well(
    mixed: tuple[Path, Ran], model_directory: ModelDirectory
) -> None:
    directory, ran = mixed
    record = ran.records["bert-onnx"]
    output = directory / "bert-onnx"
    assert record["model"] == str(model_directory("bert"))
    assert record["task"] == "fill-mask"
    assert record["line"] == 1
    assert record["error"] is None
    assert record["log"] is None
    assert record["node_count"] == len(list(read_hierarchy(output)))
    assert {one["file"]: one["bytes"] for one in record["files"]} == {
        path.name: path.stat().st_size for path in output.iterdir()
    }
    assert record["bytes"] == sum(one["bytes"] for one in record["files"])
    assert record["providers"] == [{"provider": "CPUExecutionProvider", "status": "ok"}]
    assert 0 < record["seconds"] < 60
    assert record["made"]["options"] == {"providers": ["cpu"]}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("killer-onnx", "killed (SIGKILL)"),
        ("forks-onnx", "killed (SIGKILL)"),
        ("segfault-onnx", "SIGSEGV"),
        ("exits-onnx", "exit status 7"),
        ("missing-onnx", "missing does not exist"),
        ("vit-onnx", "text-classification"),
        ("hangs-onnx", f"longer than {LIMIT_SECONDS} s (--timeout)"),
        ("ignores-onnx", f"longer than {LIMIT_SECONDS} s (--timeout)"),
        ("truncated-onnx", "truncated"),
        ("strict", "max diff"),
    ],
)
def test_each_error_is_told(mixed: tuple[Path, Ran], output: str, message: str) -> None:
    error = mixed[1].records[output]["error"]
    assert message in error
    assert len(error.splitlines()) == 1
    assert error in mixed[1].out
    assert re.search(rf"/12 .*{re.escape(output)} .*{re.escape(error)} \(log: ", mixed[1].err)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("missing-onnx", "UsageError: model ./missing does not exist"),
        ("vit-onnx", "Traceback (most recent call last)"),
        ("truncated-onnx", "safetensors"),
        ("hangs-onnx", "time.sleep(1000)"),
        ("ignores-onnx", "modeling_odd.py"),
        ("segfault-onnx", "Fatal Python error: Segmentation fault"),
        ("killer-onnx", "SIGKILL"),
        ("strict", "max diff"),
    ],
)
def test_log_has_the_whole_traceback(mixed: tuple[Path, Ran], output: str, text: str) -> None:
    log = Path(mixed[1].records[output]["log"])
    assert log == mixed[0] / "logs" / f"{output}.log"
    assert text in log.read_text()


def test_no_log_of_what_went_well(mixed: tuple[Path, Ran]) -> None:
    directory, ran = mixed
    failed = {f"{name}.log" for name, status in ran.status.items() if status != "ok"}
    assert {path.name for path in (directory / "logs").iterdir()} == failed


def test_table(mixed: tuple[Path, Ran]) -> None:
    lines = mixed[1].out.splitlines()
    header = lines[0].split()
    assert header == ["status", "model", "task", "nodes", "size", "seconds", "providers", "error"]
    assert len(lines) == 1 + 12 + 2
    (gpt2,) = (line for line in lines if "gpt2" in line)
    assert re.match(
        r"ok +\S+gpt2 +text-generation-with-past +\d+ +[\d.]+ kB +\d+\.\d +CPU ok$", gpt2
    )
    assert lines[-1].startswith("2 ok, 4 crashed, 3 failed, 2 timed-out, 1 check-failed in ")


def test_worker_that_dies_when_the_output_is_there(place: Path, model: Callable[..., Path]) -> None:
    code = """
import os, signal, sys
export = sys.modules["modelexport_optimum.export_run"]
publish = export.publish
def publish_and_die(*arguments, **options):
    publish(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
export.publish = publish_and_die
"""
    model("late", code=code)
    ran = run([f"late {CUSTOM}"])
    assert ran.exit == 0
    assert ran.records["late-onnx"]["node_count"] == len(list(read_hierarchy(place / "exports")))
    assert {path.name for path in (place / "exports").iterdir()} == {"late-onnx", "results.jsonl"}


def test_a_script_is_not_run_again_by_the_workers(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As multiprocessing does unless the script has `if __name__ == "__main__"`."""
    script, again = place / "script.py", place / "again"
    script.write_text(f"open({str(again)!r}, 'w').close()")
    main = ModuleType("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    ran = run(["./nothing"])
    assert [record["status"] for record in ran.records.values()] == ["failed"]
    assert not again.exists()


def test_workers_share_out_the_cores(place: Path, model: Callable[..., Path]) -> None:
    from modelexport_optimum.batches.local_pool import available_cores

    code = f"""
import json, onnx, onnxruntime, os, torch
from onnx import helper, TensorProto
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
nodes = [helper.make_node("Relu", ["x"], ["y"])]
graph = helper.make_graph(nodes, "g", [value("x")], [value("y")])
small = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(small.SerializeToString())
with open({str(place / "threads.json")!r}, "w") as file:
    json.dump([torch.get_num_threads(), session.get_session_options().intra_op_num_threads], file)
"""
    model("probe", code=code)
    assert run([f"probe {CUSTOM}"], "--workers", "1").exit == 0
    assert json.loads((place / "threads.json").read_text()) == [available_cores()] * 2
    model("other", code=code)
    lines = [f"other {CUSTOM} -o {number}" for number in range(available_cores())]
    assert run(lines, "--workers", str(available_cores())).exit == 0
    assert json.loads((place / "threads.json").read_text()) == [1, 1]


def test_memory_is_given_back(place: Path, model_directory: ModelDirectory) -> None:
    lines = [f"{model_directory('bert')} -o {number} --provider cpu" for number in range(12)]
    ran = run(lines, "--workers", "1")
    assert ran.exit == 0
    held = [ran.records[str(number)]["memory"] for number in range(12)]
    assert len({record["worker"] for record in ran.records.values()}) == 1
    assert held[-1] < held[1] * 1.02


# --- Again ----------------------------------------------------------------------------------------


def test_what_is_done_is_skipped_and_what_failed_is_retried(
    place: Path, model: Callable[..., Path]
) -> None:
    model("bert", "bert")
    model("gpt2", "gpt2")
    lines = ["bert --provider cpu", "gpt2 --provider cpu", "later --provider cpu"]
    first = run(lines)
    assert (first.exit, first.status["later-onnx"]) == (1, "failed")
    before = inodes(place / "exports")
    assert run(lines).status == first.status
    assert inodes(place / "exports") == before
    shutil.copytree(place / "bert", place / "later")
    again = run(lines)
    assert again.exit == 0
    assert "1 model to export with 1 worker, 2 more are done already" in again.err
    assert inodes(place / "exports").items() > before.items()
    assert not (place / "exports" / "logs").exists()
    done = run(lines)
    assert done.exit == 0
    assert done.err == ""
    assert "3 ok (3 done before)" in done.out
    assert done.records == again.records


@pytest.fixture(scope="module")
def two_are_done(
    tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory
) -> tuple[Path, list[str]]:
    """A directory with two models and a batch that has exported them, and the batch's lines."""
    directory = tmp_path_factory.mktemp("done")
    lines = ["bert --provider cpu", "other --provider cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for name in ("bert", "other"):
            shutil.copytree(model_directory("bert"), name)
        assert run(lines).exit == 0
    return directory, lines


@pytest.fixture
def done(two_are_done: tuple[Path, list[str]], place: Path) -> list[str]:
    """The lines of a batch that is done, in a current directory of its own."""
    shutil.copytree(two_are_done[0], place, dirs_exist_ok=True)
    return [*two_are_done[1]]


def test_what_is_done_may_be_copied_elsewhere(place: Path, done: list[str]) -> None:
    before = inodes(place / "exports")
    ran = run(done)
    assert (ran.exit, ran.err) == (0, "")
    assert inodes(place / "exports") == before


@pytest.mark.parametrize(
    "change", ["options", "model", "version", "file is missing", "--force", "not its own"]
)
def test_what_is_not_done_any_more(place: Path, done: list[str], change: str) -> None:
    lines = done
    before = inodes(place / "exports")
    exports = place / "exports"
    options = []
    if change == "options":
        lines[0] += " --opset 17"
    elif change == "model":
        os.utime(place / "bert" / "model.safetensors")
    elif change == "version":
        text = (exports / "results.jsonl").read_text().splitlines()
        number = next(index for index, line in enumerate(text) if '"bert-onnx"' in line)
        text[number] = re.sub(r'"version": "[^"]+"', '"version": "0.0.1"', text[number])
        (exports / "results.jsonl").write_text("\n".join(text) + "\n")
    elif change == "file is missing":
        (exports / "bert-onnx" / "tokenizer.json").unlink()
        shutil.rmtree(exports / "other-onnx")
    elif change == "--force":
        options = ["--force"]
    else:
        lines[0] += " --opset 17"
        (exports / "bert-onnx" / "mine.txt").write_text("added by hand")
    ran = run(lines, *options)
    if change in ("not its own", "file is missing"):
        assert ran.exit == 1
        assert "exists and is not empty" in ran.records["bert-onnx"]["error"]
        assert inodes(exports)["bert-onnx/model.onnx"] == before["bert-onnx/model.onnx"]
        assert run(lines, "--overwrite").exit == 0
    else:
        assert ran.exit == 0
    after = inodes(exports)
    assert after["bert-onnx/model.onnx"] != before["bert-onnx/model.onnx"]
    same = after["other-onnx/model.onnx"] == before["other-onnx/model.onnx"]
    assert same == (change not in ("--force", "file is missing"))
    if change == "options":
        assert onnx.load(exports / "bert-onnx" / "model.onnx").opset_import[0].version == 17


def test_link_to_nothing_in_a_model(place: Path, model: Callable[..., Path]) -> None:
    (model("bert", "bert") / "notes.txt").symlink_to("gone.txt")
    for _ in range(2):
        assert run(["bert --provider cpu"]).exit == 0


@pytest.mark.usefixtures("done")
def test_own_output_is_still_replaced_after_a_failure(place: Path) -> None:
    assert run(["bert --provider cpu --task image-classification"]).exit == 1
    assert (place / "exports" / "bert-onnx" / "model.onnx").is_file()
    assert run(["bert --provider cpu --opset 17"]).exit == 0


def test_foreign_output_is_not_replaced(place: Path, model: Callable[..., Path]) -> None:
    model("bert", "bert")
    (place / "exports" / "bert-onnx").mkdir(parents=True)
    (place / "exports" / "bert-onnx" / "config.json").write_text("mine")
    ran = run(["bert --provider cpu"])
    assert ran.exit == 1
    assert "exists and is not empty" in ran.records["bert-onnx"]["error"]
    assert (place / "exports" / "bert-onnx" / "config.json").read_text() == "mine"


def test_only_what_failed(place: Path, model: Callable[..., Path]) -> None:
    model("bert", "bert")
    assert run(["bert --provider cpu", "later --provider cpu"]).exit == 1
    for name in ("later", "new"):
        shutil.copytree(place / "bert", place / name)
    lines = ["bert --provider cpu", "later --provider cpu", "new --provider cpu"]
    ran = run(lines, "--retry-failed", "--json")
    assert ran.exit == 1
    statuses = [record["status"] for record in json.loads(ran.out)["records"]]
    assert statuses == ["ok", "ok", "not run"]
    assert run(lines).exit == 0


def test_stop_at_the_first_failure(place: Path, model: Callable[..., Path]) -> None:
    model("hangs", code=HANGS)
    ran = run(
        [f"hangs {CUSTOM}", "./missing", f"hangs {CUSTOM} -o more"], "--fail-fast", "--workers=2"
    )
    assert ran.exit == 1
    assert ran.status == {"missing-onnx": "failed"}
    assert "1 failed" in ran.out
    assert "2 not run" in ran.out
    assert hidden(place / "exports") == []


def test_checks_that_fail_are_exit_status_3(place: Path, model: Callable[..., Path]) -> None:
    model("bert", "bert")
    lines = ["bert --provider cpu --atol 1e-12"]
    ran = run(lines)
    assert ran.exit == 3
    assert (place / "exports" / "bert-onnx" / "model.onnx").is_file()
    assert run(lines).exit == 3


def test_json(place: Path, model: Callable[..., Path]) -> None:
    model("bert", "bert")
    ran = run(["bert --provider cpu", "./missing"], "--json")
    document = valid(json.loads(ran.out), "batch")
    assert (document["ok"], document["exit_status"], ran.exit) == (False, 1, 1)
    assert [record["status"] for record in document["records"]] == ["ok", "failed"]
    assert document["results"] == str(place / "exports" / "results.jsonl")
    again = json.loads(run(["bert --provider cpu", "./missing"], "--json").out)
    for records in (document["records"], again["records"]):
        outputs = [record["output"] for record in records]
        assert outputs == [str(place / "exports" / f"{name}-onnx") for name in ("bert", "missing")]


def test_verbose_shows_the_log(place: Path) -> None:
    ran = run(["./missing"], "--verbose")
    assert "Traceback (most recent call last)" in ran.err


# --- results.jsonl --------------------------------------------------------------------------------


def test_results_that_were_cut_off(place: Path, done: list[str]) -> None:
    file = place / "exports" / "results.jsonl"
    whole = file.read_bytes()
    for length in (1, 100, whole.index(b"}") + 1, len(whole) - 2):
        file.write_bytes(whole + whole[:length])
        ran = run(done)
        assert (ran.exit, ran.err) == (0, "")
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        *("notes of mine", "notes\n", '{"a": 1}\n', "[]\n", "\n"),
        '{"model": "m", "output": "an answer"}\n',
        '{"model": "m", "output": "an answer"}',
    ],
)
def test_results_that_are_something_else(place: Path, content: str) -> None:
    (place / "exports").mkdir()
    file = place / "exports" / "results.jsonl"
    file.write_text(content)
    Path("models.txt").write_text("bert\n")
    result = CliRunner().invoke(app, ["batch", "models.txt", "-o", "exports"])
    assert result.exit_code == 2
    assert "results.jsonl:1: this is not a result of a batch: move the file away" in result.stderr
    assert file.read_text() == content


def test_last_record_counts(place: Path) -> None:
    results = Results(place)
    for status in ("failed", "ok"):
        results.add(place / "a", {"model": "m", "status": status, "made": {}})
    results.add(Path("/elsewhere/b"), {"model": "m", "status": "ok", "made": {}})
    assert len((place / "results.jsonl").read_text().splitlines()) == 3
    read = Results(place)
    read.compact()
    kept = map(json.loads, (place / "results.jsonl").read_text().splitlines())
    assert {record["output"]: record["status"] for record in kept} == {
        "a": "ok",
        "/elsewhere/b": "ok",
    }
    assert read.get(place / "a") == {"model": "m", "status": "ok", "made": {}, "output": "a"}


def test_two_batches_in_one_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelexport_optimum.batches import results

    monkeypatch.setattr(results, "_PATIENCE_SECONDS", 0)
    Path("models.txt").write_text("bert\n")
    with only_batch(place / "exports"):
        result = CliRunner().invoke(app, ["batch", "models.txt", "-o", "exports"])
    assert result.exit_code == 1
    assert "another batch writes in" in result.stderr


# --- Disks ----------------------------------------------------------------------------------------


def test_disk_that_one_model_fills(place: Path, model_directory: ModelDirectory) -> None:
    lines = [f"{model_directory(name)} --provider cpu" for name in ("bert", "t5", "vit")]
    with mounted(place / "disk", "2m"):
        ran = run(lines, "--workers", "1", directory="disk")
        assert ran.exit == 1
        assert ran.status == {"bert-onnx": "ok", "t5-onnx": "failed", "vit-onnx": "ok"}
        assert ran.records["t5-onnx"]["error"].startswith("no space left on the disk of ")
        assert hidden(place / "disk") == []
        assert "No space left" in (place / "disk" / "logs" / "t5-onnx.log").read_text()


def test_disk_that_is_full(place: Path, model_directory: ModelDirectory) -> None:
    Path("models.txt").write_text(f"{model_directory('bert')} --provider cpu")
    disk = place / "disk"
    with mounted(disk, "64k"):
        with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb") as file:
            file.write(bytes(100_000))
        result = CliRunner().invoke(app, ["batch", "models.txt", "-o", "disk"])
        assert result.exit_code == 1
        assert "no space left" in result.stdout.lower()
        assert "warning: cannot write" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (disk / "bert-onnx").exists()
        assert hidden(disk) == []


def test_directory_that_cannot_be_made(place: Path) -> None:
    Path("models.txt").write_text("bert")
    (place / "file").touch()
    result = CliRunner().invoke(app, ["batch", "models.txt", "-o", "file/exports"])
    assert result.exit_code == 1
    assert "cannot write in" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- Signals --------------------------------------------------------------------------------------


class Started:
    """A batch in a process group of its own, as a shell starts it.

    The output goes to files: nobody reads a pipe while others are waited for.
    """

    def __init__(
        self, server: Path, place: Path, lines: Sequence[str], *options: str, before: str = ""
    ) -> None:
        self.exports = place / "exports"
        (place / "models.txt").write_text("\n".join(lines))
        code = f"{before}\nfrom modelexport_optimum.cli.main import main\nmain()"
        with (place / "out").open("w") as out, (place / "err").open("w") as err:
            self.process = ForkedPython(
                server,
                ["-c", code, "batch", "models.txt", "-o", "exports", *options],
                cwd=place,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < deadline, self.said("err")
            assert self.process.poll() is None, self.said("err")
            time.sleep(0.02)

    def until_loading(self, name: str) -> None:
        """Until a model is being loaded: its export has made a directory beside the output."""
        self.until(lambda: any(self.exports.glob(f".{name}-onnx.staging-*/")))

    def signal(self, number: int) -> None:
        """To all of its processes, as Slurm does; a shell's Ctrl-C does not reach the workers."""
        for pid in self.running():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> int:
        """Waits for the batch, and for the last of its processes."""
        status = self.process.wait(240)
        deadline = time.monotonic() + 240
        while self.running():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return status

    def running(self) -> list[int]:
        """The processes of its session that have not ended: workers have groups of their own."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                # One that has ended may wait long for whoever has to ask how.
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def said(self, stream: str) -> str:
        return (self.exports.parent / stream).read_text()

    def left(self) -> set[str]:
        return {path.name for path in self.exports.iterdir()}


def test_signals(
    place: Path,
    model: Callable[..., Path],
    model_directory: ModelDirectory,
    python_server: Path,
) -> None:
    flag = place / "flag"
    flag.touch()
    hangs, ignores = model("hangs", code=HANGS), model("ignores", code=IGNORES)
    waits = model("waits", code=WAITS.format(flag=str(flag)))
    bert = f"{model_directory('bert')} --provider cpu"
    nohup = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    for name in ("once", "twice", "all", "nohup"):
        (place / name).mkdir()
    start = partial(Started, python_server)
    once = start(place / "once", [bert, f"{hangs} {CUSTOM}", "./never"], "--workers", "1")
    twice = start(place / "twice", [f"{ignores} {CUSTOM}"], before=PATIENCE)
    to_all = start(place / "all", [f"{hangs} {CUSTOM}"])
    ignored = start(place / "nohup", [f"{waits} {CUSTOM}"], before=nohup)

    once.until_loading("hangs")
    once.signal(signal.SIGINT)
    twice.until_loading("ignores")
    twice.signal(signal.SIGINT)
    twice.until(lambda: "press Ctrl-C again" in twice.said("err"))
    twice.signal(signal.SIGINT)
    twice.process.wait(240)  # sooner than its patience ends
    to_all.until_loading("hangs")
    to_all.signal(signal.SIGTERM)
    ignored.until_loading("waits")
    ignored.signal(signal.SIGHUP)
    flag.unlink()

    assert once.end() == 128 + signal.SIGINT
    assert "stopped: ending the running exports" in once.said("err")
    assert "1 ok, 2 not run" in once.said("out")
    assert "stopped: finished exports were kept" in once.said("out")
    assert "results.jsonl" in once.said("out")
    assert records(once.exports).keys() == {"bert-onnx"}
    assert once.left() == {"bert-onnx", "results.jsonl"}
    assert twice.end() == 128 + signal.SIGINT
    assert twice.left() == set()
    assert "results.jsonl" not in twice.said("out")
    assert to_all.end() == 128 + signal.SIGTERM
    assert to_all.left() == set()
    assert ignored.end() == 0
    assert ignored.left() == {"waits-onnx", "results.jsonl"}


def test_batches_that_are_killed_and_resumed(
    place: Path,
    model: Callable[..., Path],
    model_directory: ModelDirectory,
    python_server: Path,
) -> None:
    flag = place / "flag"
    flag.touch()
    waits = model("waits", code=WAITS.format(flag=str(flag)))
    bert = f"{model_directory('bert')} --provider cpu"
    lines = [f"{bert} -o one", f"{bert} -o two", f"{waits} {CUSTOM}", f"{bert} -o three"]
    dies = """
import os
from modelexport_optimum.batches.results import Results
Results.add = lambda *_: os._exit(9)
"""
    for name in ("middle", "between"):
        (place / name).mkdir()
    middle = Started(python_server, place / "middle", lines, "--workers", "1")
    between = Started(python_server, place / "between", lines[:1], before=dies)
    middle.until_loading("waits")
    middle.process.kill()

    # While a model is being exported.
    middle.process.wait()
    before = inodes(middle.exports)
    assert before.keys() == {"one/model.onnx", "two/model.onnx"}
    assert set(records(middle.exports)) == {"one", "two"}
    flag.unlink()
    ran = run(lines, directory="middle/exports")
    assert ran.exit == 0
    assert ran.status == dict.fromkeys(("one", "two", "waits-onnx", "three"), "ok")
    assert inodes(middle.exports).items() > before.items()
    assert hidden(middle.exports) == []
    assert middle.end() == -signal.SIGKILL

    # Between the output and its record.
    assert between.end() == 9
    before = inodes(between.exports)
    assert before.keys() == {"one/model.onnx"}
    assert not (between.exports / "results.jsonl").exists()
    ran = run(lines[:1], directory="between/exports")
    assert ran.exit == 0
    assert "(1 done before)" in ran.out
    assert inodes(between.exports) == before
    assert ran.records["one"]["node_count"] == len(list(read_hierarchy(between.exports)))
    assert between.left() == {"one", "results.jsonl"}


# --- The Hub --------------------------------------------------------------------------------------


def test_models_are_fetched_once_and_redone_when_they_change(
    place: Path, model_directory: ModelDirectory
) -> None:
    tasks = ("fill-mask", "feature-extraction", "text-classification")  # two at once, then one
    lines = [f"team/bert --task {task} -o {task} --provider cpu" for task in tasks]
    Path("models.txt").write_text("\n".join(lines))
    batch = ["batch", "models.txt", "-o", "exports", "--workers", "2"]
    asked: list[str] = []
    with hub.serving({"team/bert": model_directory("bert")}, asked) as endpoint:
        first, again, _, changed, forced = hub.run_commands(
            [
                batch,
                [*batch, "--json"],
                [hub.NEW_COMMIT],
                [*batch, "--json"],
                [*batch, "--force", "--force-download", "--json"],
            ],
            place,
            endpoint,
        )
    assert [one["exit"] for one in (first, again, changed, forced)] == [0, 0, 0, 0]
    assert json.loads(again["stdout"])["skipped_count"] == 3
    assert json.loads(changed["stdout"])["skipped_count"] == 0
    fetched = [line for line in asked if line.endswith("/model.safetensors")]
    # Once at first, and once because it was asked for: the other commit has the same file.
    assert len(fetched) == 2
    sources = {record["made"]["source"] for record in records(place / "exports").values()}
    assert sources == {hub.OTHER_COMMIT}


# --- In Python ------------------------------------------------------------------------------------


def test_batch_in_python_is_what_the_docs_show(
    place: Path, model_directory: ModelDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = (Path(__file__).parent.parent / "docs" / "batch.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    bert = model_directory("bert")
    (place / "models.txt").write_text(f"{bert} --provider cpu\n./missing\n", encoding="utf-8")
    exec(compile(block, "batch.md", "exec"), {})
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"ok {bert} {place / 'exports' / 'bert-onnx'}"
    assert second == f"failed ./missing {place / 'exports' / 'missing-onnx'}"
    assert last == "1 0"
    assert {node.module_class for node in read_hierarchy(place / "exports" / "bert-onnx")}
    again = batch("models.txt", "exports", task="feature-extraction", workers=2)
    assert (again.exit_status, again.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtpye": "fp16"}, "No such option: dtpye: did you mean dtype?"),
        ({"slim": 1}, "slim must be true or false, not 1"),
        ({"model": "a"}, "No such option: model"),
        ({"timeout": -1}, "-1 is not a number of seconds above 0"),
        ({"workers": 0}, "--workers must be above 0, not 0"),
        ({"force": True, "retry_failed": True}, "give one of --force and --retry-failed"),
    ],
)
def test_batch_is_called_wrongly(place: Path, options: dict[str, Any], message: str) -> None:
    (place / "models.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(message)):
        batch("models.txt", "exports", **options)
    assert not (place / "exports").exists()


# --- A runner that runs jobs again ----------------------------------------------------------------


class Again:
    """A runner whose workers are slow to come back, as a cluster's; nothing is exported.

    Attributes:
        seconds: The time, which goes on as `wait` is called and not as the machine is busy.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.events: list[list[Any]] = []
        self.cancelled: list[Job] = []

    def has_room(self) -> bool:
        return True

    def start(self, job: Job) -> None:
        done = Done(job, {"model": job.model, "status": "ok", "output": str(job.output)})
        waiting: list[Any] = [[] for _ in range(8)]
        self.events = [[Stage(job, "a", "start")], [Stage(job, "a", "waiting")], *waiting]
        self.events += [[Stage(job, "b", "start"), done]]

    def wait(self, seconds: float) -> list[Any]:
        self.seconds += min(seconds, 0.05)
        return self.events.pop(0)

    def cancel(self, job: Job, *, force: bool) -> None:
        self.cancelled.append(job)

    def close(self) -> None:
        pass


def test_waiting_for_another_worker_is_no_time_of_the_job(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Again()
    monkeypatch.setattr(batch_module, "_runner", lambda *_: (runner, None))
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: runner.seconds))
    job = Job(1, "m", place / "out", place / "log", resources=Resources(timeout=0.2))
    result = batch_module.run_jobs([job], place)
    assert [record["status"] for record in result.records] == ["ok"]
    assert runner.cancelled == []
