"""The command line: its options are Optimum's, its output is for people or for programs."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub.constants import HUGGINGFACE_HUB_CACHE
from schemas import valid
from typer.main import get_command
from typer.testing import CliRunner

import modelexport_optimum
from modelexport_optimum import __version__, export, read_hierarchy
from modelexport_optimum.batches import run as run_module
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.exporting.options import ExportOptions, options_of

if TYPE_CHECKING:
    from collections.abc import Callable

    ModelDirectory = Callable[[str], Path]

REPOSITORY = Path(__file__).parent.parent


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "bert-onnx"
    assert export(model_directory("bert"), output, providers=["cpu"]).ok
    return output


@pytest.fixture
def copy(tmp_path: Path, exported: Path) -> Path:
    """An export to change."""
    shutil.copytree(exported, tmp_path / "bert-onnx")
    return tmp_path / "bert-onnx"


# --- Options --------------------------------------------------------------------------------------


def optimum_options() -> dict[str, argparse.Action]:
    """The options of `optimum-cli export onnx`, by every name they have."""
    from optimum.commands.export.onnx import parse_args_onnx

    parser = argparse.ArgumentParser(add_help=False)
    parse_args_onnx(parser)
    return {name: action for action in parser._actions for name in action.option_strings}


def our_options(command: str = "export") -> dict[str, Any]:
    return {
        name: option
        for option in get_command(app).commands[command].params
        for name in option.opts
        if name.startswith("-")
    }


def test_every_option_of_optimum_is_offered() -> None:
    assert set(optimum_options()) - set(our_options()) == set()


@pytest.mark.parametrize("name", sorted(set(optimum_options()) - {"-m", "--model"}))
def test_option_has_the_default_and_choices_of_optimum(name: str) -> None:
    theirs, ours = optimum_options()[name], our_options()[name]
    default = ours.default
    if name == "--cache_dir":  # depends on the environment, and main_export's own is the same
        default = default or HUGGINGFACE_HUB_CACHE
    assert default == theirs.default
    assert (ours.is_flag or False) == isinstance(theirs, argparse._StoreTrueAction)
    if theirs.choices:
        assert list(options_of(ExportOptions)[ours.name].choices) == list(theirs.choices)


def test_options_reach_optimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_directory: ModelDirectory
) -> None:
    """Each one, at a value that is not its default."""
    import optimum.exporters.onnx

    given: dict[str, Any] = {}

    def spy(model: str, output: Path, **options: Any) -> None:
        given.update(options)
        raise RuntimeError("enough")

    monkeypatch.setattr(optimum.exporters.onnx, "main_export", spy)
    monkeypatch.setattr(
        "modelexport_optimum.exporting.optimum_export.check_options",
        lambda *_, **__: None,
        raising=True,
    )
    monkeypatch.chdir(tmp_path)
    flags = {
        "monolith": True,
        "no_post_process": True,
        "slim": True,
        "no_dynamic_axes": True,
        "trust_remote_code": True,
        "local_files_only": True,
        "force_download": True,
    }
    values: dict[str, Any] = {
        "task": "text-classification",
        "opset": 15,
        "device": "cuda",
        "dtype": "fp16",
        "optimize": "O1",
        "framework": "pt",
        "atol": 0.5,
        "cache_dir": "cache",
        "revision": "v2",
        "subfolder": "",
        "pad_token_id": 7,
        "library_name": "transformers",
        "model_kwargs": {"output_attentions": True},
        "batch_size": 3,
        "sequence_length": 5,
        "num_choices": 6,
        "width": 7,
        "height": 8,
        "num_channels": 9,
        "feature_size": 10,
        "nb_max_frames": 11,
        "audio_sequence_length": 12,
        "point_batch_size": 13,
        "nb_points_per_image": 14,
        "visual_seq_length": 15,
    }
    arguments = [f"--{name.replace('_', '-')}" for name in flags]
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        arguments += [f"--{name.replace('_', '-')}", text]
    arguments += ["--no-constant-folding", "--variant", "other"]
    result = run(model_directory("bert"), *arguments)
    assert "enough" in result.stderr
    assert given == {
        **flags,
        **values,
        "do_constant_folding": False,
        "_variant": "other",
        "use_subprocess": True,
    }


def test_batch_has_every_option_of_export() -> None:
    """For all lines, except what each line has of its own, and what explains export's table."""
    missing = set(our_options()) - set(our_options("batch"))
    assert missing == {"--model", "-m", "--legend"}
    for name, option in our_options("batch").items():
        theirs = our_options().get(name)
        if theirs is not None and option.name != "output":
            assert (option.name, option.default, option.is_flag, option.help) == (
                *(theirs.name, theirs.default, theirs.is_flag, theirs.help),
            )


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the command gave to be run, of which nothing is."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def spy(jobs: Any, directory: Path, **options: Any) -> None:
        calls.append((jobs, {"directory": directory, **options}))
        raise ModelExportError("enough")

    monkeypatch.setattr(run_module, "run_jobs", spy)
    return calls


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.txt").write_text("a\nb --opset 15 --timeout 7\n")
    return "models.txt"


def test_options_reach_batch(batches: list[Any], manifest: str) -> None:
    assert "enough" in run("batch", manifest).stderr
    jobs, options = batches.pop()
    assert [job.model for job in jobs] == ["a", "b"]
    del options["watcher"]
    asked = {"workers": None, "ray": None, "retry_failed": False, "force": False}
    assert options == {"directory": Path(), **asked, "fail_fast": False}
    given = ["--opset", "17", "--timeout", "60", "--num-gpus", "0.5", "--memory", "2GiB", "--slim"]
    given += [
        "--num_cpus",
        "2",
        "--provider",
        "cpu",
        "--model-kwargs",
        '{"a": 1}',
        "--task",
        "auto",
    ]
    given += ["-o", "out", "--workers", "3", "--retry-failed", "--fail-fast"]
    run("batch", *given, manifest)
    jobs, options = batches.pop()
    assert [job.arguments["opset"] for job in jobs] == [17, 15]
    assert [job.resources.timeout for job in jobs] == [60, 7]
    for job in jobs:
        asked = job.resources
        assert (asked.num_gpus, asked.num_cpus, asked.memory) == (0.5, 2, 2 * 2**30)
        assert job.arguments["slim"]
        assert job.arguments["providers"] == ["cpu"]
        assert job.arguments["model_kwargs"] == {"a": 1}
        assert job.output.parent == Path.cwd() / "out"
    del options["watcher"]
    asked = {"workers": 3, "ray": None, "retry_failed": True, "force": False}
    assert options == {"directory": Path("out"), **asked, "fail_fast": True}


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ([], None),
        (["--ray"], ""),
        (["--ray", "--force"], ""),
        (["--ray", "auto"], "auto"),
        (["--ray", "local"], "local"),
        (["--ray", "ray://head:10001"], "ray://head:10001"),
        (["--ray", "10.0.0.1:6379"], "10.0.0.1:6379"),
        (["--ray=head"], "head"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_ray_may_have_an_address(
    batches: list[Any], manifest: str, given: list[str], address: str | None, first: bool
) -> None:
    run("batch", *([*given, manifest] if first else [manifest, *given]))
    ((_, options),) = batches
    assert options["ray"] == address


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--force", "--retry-failed"], "give one of --force and --retry-failed"),
        (["--workers", "0"], "'--workers'"),
        (["--timeout", "0"], "'--timeout'"),
        (["--timeout", "nan"], "'--timeout'"),
        (["--num-gpus", "-1"], "'--num-gpus'"),
        (["--memory", "8XB"], "'--memory'"),
        (["--model-kwargs", "[1]"], "'--model-kwargs'"),
        (["--provider", "cpx"], "provider 'cpx' is not known"),
        (["--model", "a"], "No such option"),
    ],
)
def test_batch_is_called_wrongly(
    batches: list[Any], manifest: str, given: list[str], message: str
) -> None:
    result = run("batch", manifest, *given)
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert batches == []


def test_errors_of_a_manifest_are_all_told(batches: list[Any], manifest: str) -> None:
    Path(manifest).write_text("a --dtpye fp16\nb\nc -o b-onnx\n")
    result = run("batch", manifest)
    assert result.exit_code == 2
    for problem in (
        "models.txt:1: No such option: --dtpye: did you mean --dtype?",
        "models.txt:3: would write b-onnx, like line 2",
    ):
        assert problem in result.stderr
    assert batches == []


def test_manifest_from_standard_input(batches: list[Any]) -> None:
    CliRunner().invoke(app, ["batch", "-"], input="a --slim\nb")
    ((jobs, _),) = batches
    assert [(job.line, job.model, job.arguments["slim"]) for job in jobs] == [
        (1, "a", True),
        (2, "b", False),
    ]


def test_no_token_option() -> None:
    assert not any("token" in name and "pad" not in name for name in our_options("batch"))


def test_both_spellings_are_taken() -> None:
    for name in ("--batch_size", "--batch-size"):
        assert "Invalid value for '--batch_size'" in run("x", name, "many").stderr
    assert "No such option" in run("x", "--batchsize", "2").stderr


# --- Commands -------------------------------------------------------------------------------------


def test_default_command_is_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_directory: ModelDirectory
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_directory("bert"), tmp_path / "tag")
    assert run("--provider", "cpu", "./tag").exit_code == 0
    assert (tmp_path / "tag-onnx" / "model.onnx").is_file()
    result = run("export", "tag", "-o", "named", "--provider", "cpu")
    assert result.exit_code == 0
    first, second = (list(read_hierarchy(tmp_path / name)) for name in ("tag-onnx", "named"))
    assert first == second
    assert run("-m", "tag", "--output", "as-optimum", "--provider", "cpu").exit_code == 0
    assert run("tag", "named").exit_code == 0  # the command, not the directory


def test_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_directory: ModelDirectory
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(model_directory("bert"), "--task", "text-classification")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1] == "bert-onnx  text-classification"
    row = next(line for line in lines if line.startswith("model.onnx"))
    nodes = len(list(read_hierarchy(tmp_path / "bert-onnx")))
    assert re.search(rf"model\.onnx +[\d.]+ [kM]B +{nodes} +\d+ +\d+ +scope \d+, ", row)
    status = {line.split()[0]: line.split()[1] for line in lines if "ExecutionProvider  " in line}
    assert status["CPUExecutionProvider"] == "ok"
    assert len(status) == 3
    assert any(line.startswith("PyTorch") and " ok " in line for line in lines)
    assert "classifier.weight" in lines[-4]
    assert lines[-1] == "  modelexport-optimum inspect bert-onnx"
    assert all(re.fullmatch(r"[A-Z][\w ]+: \d+\.\d s", line) for line in result.stderr.splitlines())


def test_json_is_all_there_is(tmp_path: Path, model_directory: ModelDirectory) -> None:
    """In a process of its own, whose file descriptors Optimum and PyTorch write to."""
    program = [sys.executable, "-m", "modelexport_optimum"]
    command = [*program, model_directory("gpt2"), "-o", tmp_path / "out", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = valid(json.loads(done.stdout), "export")
    assert document["ok"]
    assert document["task"] == "text-generation-with-past"
    size = (tmp_path / "out" / "model.onnx").stat().st_size
    assert {"file": "model.onnx", "bytes": size} in document["files"]
    assert {"output", "model", "tags", "comparison", "verification", "stages"} <= set(document)
    assert all(re.fullmatch(r"[A-Z][\w ]+: \d+\.\d s", line) for line in done.stderr.splitlines())


def test_check_that_fails(tmp_path: Path, model_directory: ModelDirectory) -> None:
    arguments = [model_directory("bert"), "-o", tmp_path / "out", "--provider", "cuda", "--json"]
    result = run(*arguments)
    assert result.exit_code == 3
    assert not json.loads(result.stdout)["ok"]
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert run("verify", tmp_path / "out", "--provider", "cuda").exit_code == 3
    assert run("verify", tmp_path / "out").exit_code == 0


def test_strip_and_tag(copy: Path) -> None:
    file = copy / "model.onnx"
    tagged = file.read_bytes()
    result = run("strip", copy)
    assert result.exit_code == 0
    assert "model.onnx" in result.stdout
    stripped = file.read_bytes()
    assert len(stripped) < len(tagged)
    assert "nothing to strip" in run("strip", file).stdout
    result = run("tag", copy)
    assert result.exit_code == 0
    assert re.search(r"model\.onnx +\d+ +\d+ +\d+ +scope", result.stdout)
    assert valid(json.loads(run("strip", copy, "--json").stdout), "strip") == {
        "ok": True,
        "files": [
            {"file": str(file), "changed": True},
            {"file": str(copy / "config.json"), "changed": True},
        ],
    }
    assert file.read_bytes() == stripped


def test_tag_as_json(copy: Path) -> None:
    document = valid(json.loads(run("tag", copy, "--json").stdout), "tag")
    assert document["ok"]
    assert document["node_count"] == len(list(read_hierarchy(copy)))


def test_explain(copy: Path) -> None:
    node = next(node for node in read_hierarchy(copy) if node.module_path)
    before = (copy / "model.onnx").read_bytes()
    result = run("tag", copy, "--explain", node.name)
    assert result.exit_code == 0
    assert node.tag in result.stdout
    assert node.module_path in result.stdout
    out = run("tag", copy, "--explain", node.name, "--json").stdout
    (paragraph,) = valid(json.loads(out), "explain")["explanations"]
    assert node.tag in paragraph
    assert (copy / "model.onnx").read_bytes() == before


def test_tag_without_classes(copy: Path) -> None:
    (copy / "config.json").rename(copy / "elsewhere.json")
    run("strip", copy)
    result = run("tag", copy)
    assert result.exit_code == 0
    assert "warning: this directory does not say the classes" in result.stdout


def test_verify(copy: Path) -> None:
    result = run("verify", copy, "--provider", "cpu")
    assert result.exit_code == 0
    assert re.search(r"CPUExecutionProvider +ok", result.stdout)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 17}))
    result = run("verify", copy, "--provider", "cpu", "--json")
    assert result.exit_code == 3
    assert not valid(json.loads(result.stdout), "verify")["ok"]


# --- Cost, and what is written about it -----------------------------------------------------------


def test_version() -> None:
    assert run("--version").stdout == f"modelexport-optimum {__version__}\n"


def printed_by(code: str) -> list[str]:
    """Run a Python program in a process of its own, and return the words that it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "module",
    ["modelexport_optimum", "modelexport_optimum.cli.main", "modelexport_optimum.batches.manifest"],
)
def test_import_is_light(module: str) -> None:
    heavy = "torch transformers optimum onnx onnxruntime numpy huggingface_hub google.protobuf"
    code = f"import sys, {module}; print([m for m in {heavy.split()} if m in sys.modules])"
    assert printed_by(code) == ["[]"]


def test_the_end_of_the_program_looks_through_nothing() -> None:
    """The collector would, at the exit of Python: two seconds with PyTorch and transformers."""
    code = (
        "import atexit, gc, sys; from modelexport_optimum.cli.main import main;"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0));"
        "sys.argv = ['modelexport-optimum', '--version']; main()"
    )
    assert printed_by(code)[-1] == "True"


def test_functions_keep_their_names() -> None:
    """The public functions stay functions whatever else was imported before."""
    code = (
        "import modelexport_optimum.export_run, modelexport_optimum.verifying.verify;"
        "from modelexport_optimum import export, verify;"
        "print(callable(export), callable(verify), callable(modelexport_optimum.export))"
    )
    assert printed_by(code) == ["True"] * 3


@pytest.mark.parametrize("script", ["reference.py", "rooms.py", "documents.py"])
def test_what_is_written_from_the_code_is_up_to_date(script: str) -> None:
    command = [sys.executable, REPOSITORY / "scripts" / script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_the_commands() -> None:
    commands = set(get_command(app).commands)
    assert commands <= set(modelexport_optimum.__all__)
    functions = {name for name in modelexport_optimum.__all__ if name[0].islower()}
    assert functions - commands == {"read_hierarchy"}
    for name in modelexport_optimum.__all__:
        assert getattr(modelexport_optimum, name).__name__ == name
    assert set(dir(modelexport_optimum)) == {*modelexport_optimum.__all__, "__version__"}


def test_imports_point_down_the_rooms() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [lint, "--no-cache"],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout
