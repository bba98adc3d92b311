"""What goes wrong in a user's hands: one line that says what to do, the right exit status, and
everything as it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub
import onnx
import pytest
from disks import mounted
from needs import POSIX
from typer.testing import CliRunner

from modelexport_optimum.cli.main import app
from modelexport_optimum.exporting.source import find_source
from modelexport_optimum.system.packages import OTHER_EXPORTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    ModelDirectory = Callable[[str], Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_directory: ModelDirectory) -> Path:
    """A current directory with a model, an export of it, and an export with external data."""
    shutil.copytree(model_directory("bert"), tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory) -> Path:
    """A tagged export."""
    output = tmp_path_factory.mktemp("exported") / "bert-onnx"
    arguments = [str(model_directory("bert")), "-o", str(output), "--provider", "cpu"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return output


def state(directory: Path) -> Mapping[str, Any]:
    """Everything that a run could change below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name, status = str(path.relative_to(directory)), path.lstat()
        found[name] = [status.st_ino, status.st_mode]
        if path.is_file():  # a directory's time also tells of temporary files that are gone
            found[name] += [status.st_mtime_ns, path.read_bytes()]
    return found


def refused(directory: Path, *arguments: str | Path) -> tuple[int, str]:
    """Run a command that must fail and change nothing; its exit status and its one line."""
    before = state(directory)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert state(directory) == before
    assert result.stdout == ""
    line = one_error(result.stderr)
    return result.exit_code, line


def one_error(stderr: str) -> str:
    """The error, which is the last line and the only one beside the stages' times."""
    *stages, line = stderr.splitlines()
    assert all(re.fullmatch(r"[A-Z][\w ]+: \d+\.\d s", stage) for stage in stages), stderr
    assert line.startswith("error: "), stderr
    return line.removeprefix("error: ")


# --- The model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("./nowhere", "/nowhere/at/all", "a/b/c", "nowhere/", "~/nowhere"),
        *("~no-such-user", "~no-such-user/nowhere", "./~nowhere"),
    ],
)
def test_directory_that_does_not_exist(place: Path, name: str) -> None:
    assert refused(place, name) == (
        2,
        f"model {name} does not exist: give a directory or the name on the Hub",
    )


def test_directory_that_is_named_as_a_home_is_found(place: Path) -> None:
    (place / "bert").rename(place / "~no-such-user")
    assert find_source("./~no-such-user").directory == Path("~no-such-user")


@pytest.mark.parametrize("name", ["bert base uncased", "x" * 300])
def test_name_that_the_hub_cannot_have(place: Path, name: str) -> None:
    status, line = refused(place, name)
    assert status == 2
    assert "neither a directory nor a name on the Hub: check the spelling" in line


def test_model_is_a_file(place: Path) -> None:
    status, line = refused(place, "bert/config.json")
    assert status == 2
    assert line.endswith("is a file: give the directory that it is in")


def test_directory_without_config(place: Path) -> None:
    (place / "bert" / "config.json").unlink()
    status, line = refused(place, "bert")
    assert status == 1
    assert line == "model bert has no config.json: give the directory that save_pretrained wrote"


@pytest.mark.parametrize("content", ["{}", "[]", '{"hidden_size": 32}'])
def test_config_that_names_no_model(place: Path, content: str) -> None:
    (place / "bert" / "config.json").write_text(content)
    (place / "bert").rename(place / "empty")  # transformers would find "mpt" in this name
    status, line = refused(place, "empty", "--task", "fill-mask")
    assert status == 1
    assert line.startswith("model empty: config.json has no model_type: write it again")


def test_config_that_is_no_json(place: Path) -> None:
    (place / "bert" / "config.json").write_text('{"model_type": "be')
    status, line = refused(place, "bert", "--task", "fill-mask")
    assert status == 1
    assert "config" in line
    assert "JSON" in line


def test_subfolder_that_does_not_exist(place: Path) -> None:
    status, line = refused(place, "bert", "--subfolder", "nowhere")
    assert (status, line) == (2, "model bert has no subfolder nowhere")


def test_weights_that_are_missing(place: Path) -> None:
    (place / "bert" / "model.safetensors").unlink()
    status, line = refused(place, "bert")
    assert status == 1
    assert "model.safetensors" in line


def test_weights_that_are_truncated(place: Path) -> None:
    weights = place / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    status, line = refused(place, "bert")
    assert status == 1
    assert line.startswith("Optimum cannot export bert: ")


# --- The task and the architecture ----------------------------------------------------------------


def test_unknown_task(place: Path) -> None:
    status, line = refused(place, "bert", "--task", "text-clasification")
    assert status == 2
    assert line.startswith("task text-clasification is unknown: did you mean text-classification")
    status, line = refused(place, "bert", "--task", "xyz")
    assert status == 2
    assert "text-classification" in line


def test_task_that_the_architecture_has_not(place: Path) -> None:
    status, line = refused(place, "bert", "--task", "image-classification")
    assert status == 1
    assert "bert" in line
    assert "fill-mask, multiple-choice, question-answering" in line


def test_task_that_cannot_be_told(place: Path) -> None:
    config = json.loads((place / "bert" / "config.json").read_text())
    del config["architectures"]
    (place / "bert" / "config.json").write_text(json.dumps(config))
    status, line = refused(place, "bert")
    assert status == 2
    assert line == "the task of bert cannot be detected from its config.json: give --task"


def test_architecture_that_optimum_cannot_export(place: Path) -> None:
    import transformers

    config = transformers.CTRLConfig(vocab_size=10, n_embd=8, dff=8, n_layer=1, n_head=1)
    transformers.CTRLLMHeadModel(config).save_pretrained(place / "ctrl")
    status, line = refused(place, "ctrl", "--task", "text-generation")
    assert status == 1
    assert line == (
        f"Optimum cannot export ctrl models: {OTHER_EXPORTER}; "
        "export() in Python takes custom_onnx_configs for them"
    )


def test_architecture_that_transformers_does_not_know(place: Path) -> None:
    config = json.loads((place / "bert" / "config.json").read_text())
    (place / "bert" / "config.json").write_text(json.dumps({**config, "model_type": "bertt"}))
    status, line = refused(place, "bert", "--task", "fill-mask")
    assert status == 1
    assert "`bertt`" in line
    assert line.endswith(OTHER_EXPORTER)


def test_custom_code_is_not_run_unasked(place: Path, model_directory: ModelDirectory) -> None:
    shutil.copytree(model_directory("custom-code"), place / "custom")
    (place / "custom" / "modeling_odd.py").write_text("raise SystemExit('it was run')")
    status, line = refused(place, "custom", "--task", "text-classification")
    assert status == 1
    assert "trust" in line


def test_missing_tokenizer_where_the_task_needs_it(
    place: Path, model_directory: ModelDirectory
) -> None:
    shutil.copytree(model_directory("gpt2"), place / "gpt2")
    for file in place.glob("gpt2/*token*"):
        file.unlink()
    config = json.loads((place / "gpt2" / "config.json").read_text())
    config["pad_token_id"] = None
    (place / "gpt2" / "config.json").write_text(json.dumps(config))
    status, line = refused(place, "gpt2", "--task", "text-classification")
    assert status == 1
    assert "has no tokenizer that can be loaded" in line
    assert "--pad_token_id" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--task", "text-generation-with-past", "--monolith"],
            "--monolith cannot export text-generation-with-past: leave out one of the two",
        ),
        (["--optimize", "O4"], "--optimize O4 needs a GPU: add --device cuda, or take O1 to O3"),
        (["--provider", "nonsense"], "provider 'nonsense' is not known to ONNX Runtime"),
    ],
)
def test_options_that_do_not_go_together(place: Path, arguments: list[str], expected: str) -> None:
    status, line = refused(place, "bert", *arguments)
    assert status == 2
    assert line.startswith(expected)


def test_value_that_an_option_cannot_have(place: Path) -> None:
    before = state(place)
    for arguments in (["--dtype", "fp7"], ["--batch_size", "many"], ["--model-kwargs", "{"]):
        result = CliRunner().invoke(app, ["bert", *arguments])
        assert result.exit_code == 2
        assert arguments[0] in result.stderr
    assert CliRunner().invoke(app, ["bert", "-m", "bert"]).exit_code == 2
    assert CliRunner().invoke(app, ["bert", "output"]).exit_code == 2
    assert CliRunner().invoke(app, ["--task", "fill-mask"]).exit_code == 2
    assert state(place) == before


# --- The Hub --------------------------------------------------------------------------------------


AS_TRANSFORMERS = ["--library-name", "transformers", "--task", "feature-extraction"]


@pytest.fixture(scope="module")
def hub_answers(
    tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory
) -> tuple[Path, Mapping[str, Any]]:
    """The results of commands that talk to a Hub, all in one process, and where they ran."""
    directory = tmp_path_factory.mktemp("hub")
    models = {
        "team/bert": model_directory("bert"),
        "team/gated": model_directory("bert"),
        "team/sentences": model_directory("sentence-transformers"),
    }
    at_revision = ["team/bert", "--revision", "v1", "--provider", "cpu"]
    commands = {
        "missing": ["team/missing"],
        "private": ["team/private"],
        "forbidden": ["team/forbidden"],
        "broken": ["team/broken"],
        "silent": ["team/silent"],
        "revision": ["team/bert", "--revision", "nosuch"],
        "not cached": ["team/bert", "--local-files-only", "-o", "not-cached"],
        "gated": ["team/gated", "--task", "fill-mask"],
        "found": at_revision,
        "cached": [*at_revision, "--local-files-only", "-o", "cached"],
        "sentences": ["team/sentences", "--provider", "cpu", *AS_TRANSFORMERS],
        "": [hub.OUT_OF_ORDER],
        "unreachable, cached": [*at_revision, "-o", "unreachable"],
        "unreachable": ["team/other"],
    }
    with hub.serving(models) as endpoint:
        results = hub.run_commands(list(commands.values()), directory, endpoint)
    return directory, dict(zip(commands, results, strict=True))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("missing", "model team/missing is neither a directory here nor a model on the Hub"),
        ("private", "the Hub refuses access to team/private (401): check your token"),
        ("forbidden", "the Hub refuses access to team/forbidden (403): check your token"),
        ("broken", "answered 503 for team/broken: try again later"),
        ("silent", "cannot be reached to look for team/silent: check the name and the connection"),
        ("revision", "model team/bert has no revision nosuch: check --revision"),
        ("not cached", "model team/bert is not in the Hub's cache: export it once without"),
        ("gated", "model team/gated is gated: ask for access on its page on the Hub"),
        ("unreachable", "answered 503 for team/other: try again later, or export a directory"),
    ],
)
def test_hub_refuses(hub_answers: tuple[Path, Mapping[str, Any]], case: str, expected: str) -> None:
    result = hub_answers[1][case]
    assert result["exit"] == 1
    assert result["stdout"] == ""
    assert expected in one_error(result["stderr"])
    assert "hf_secret" not in result["stderr"]
    assert result["seconds"] < hub.SILENCE_SECONDS


def test_hub_answers(hub_answers: tuple[Path, Mapping[str, Any]]) -> None:
    directory, results = hub_answers
    outputs = {"found": "bert-onnx", "cached": "cached", "unreachable, cached": "unreachable"}
    for case, output in outputs.items():
        assert results[case]["exit"] == 0, results[case]["stderr"]
        names = {path.name for path in (directory / output).iterdir()}
        assert {"model.onnx", "config.json", "tokenizer.json"} <= names
        assert "hf_secret" not in results[case]["stdout"] + results[case]["stderr"]
    assert {path.name for path in directory.iterdir()} == {
        *("cache", "sentences-onnx"),
        *outputs.values(),
    }


def test_a_sentence_transformers_model_of_the_hub_comes_with_its_modules(
    hub_answers: tuple[Path, Mapping[str, Any]], model_directory: ModelDirectory
) -> None:
    directory, results = hub_answers
    assert results["sentences"]["exit"] == 0, results["sentences"]["stderr"]
    output, source = directory / "sentences-onnx", model_directory("sentence-transformers")
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (output / name).read_bytes() == (source / name).read_bytes()
    assert "gives the model's embeddings within" in " ".join(results["sentences"]["stdout"].split())


def test_no_network(place: Path) -> None:
    result = hub.run_commands([["team/bert"]], place, "http://127.0.0.1:9")[0]
    assert result["exit"] == 1
    assert one_error(result["stderr"]) == (
        "the Hub (http://127.0.0.1:9) cannot be reached to look for team/bert: "
        "check the name and the connection, or export a directory"
    )


# --- The output -----------------------------------------------------------------------------------


def test_output_that_exists(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("keep")
    status, line = refused(place, "bert", "-o", "out")
    assert status == 2
    assert line == (
        "output out exists and is not empty: "
        "give another directory with -o, or --overwrite to replace it"
    )
    status, line = refused(place, "bert", "-o", "out", "--overwrite")
    assert status == 2
    assert "is not an export (it has no config.json)" in line


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("bert/config.json", "is a file"),
        (".", "is the current directory or contains it"),
        ("..", "is the current directory or contains it"),
        ("/", "is the current directory or contains it"),
        ("bert", "is the model's own directory or contains it"),
    ],
)
def test_output_that_must_not_be_replaced(place: Path, output: str, expected: str) -> None:
    status, line = refused(place, "bert", "-o", output, "--overwrite")
    assert status == 2
    assert expected in line


def test_output_that_contains_the_model(place: Path) -> None:
    (place / "models").mkdir()
    (place / "models" / "config.json").write_text("{}")
    (place / "bert").rename(place / "models" / "bert")
    status, line = refused(place, "models/bert", "-o", "models", "--overwrite")
    assert status == 2
    assert "is the model's own directory or contains it" in line


@pytest.mark.parametrize("target", ["shared", "nowhere"])
def test_output_that_is_a_link(place: Path, target: str) -> None:
    (place / "shared").mkdir()
    (place / "out").symlink_to(place / target)
    status, line = refused(place, "bert", "-o", "out", "--overwrite")
    assert status == 2
    assert "is a symbolic link" in line


def test_parent_that_is_a_file(place: Path) -> None:
    status, line = refused(place, "bert", "-o", "bert/config.json/out")
    assert status == 1
    assert line.startswith("cannot write next to output")


def test_parents_are_removed_again(place: Path) -> None:
    status, _ = refused(place, "bert", "-o", "new/and/new/out", "--task", "image-classification")
    assert status == 1


def test_full_disk(place: Path) -> None:
    disk = place / "disk"
    with mounted(disk, "64k"):
        status, line = refused(disk, "bert", "-o", disk / "out")
        assert status == 1
        assert line.startswith("no space left on the disk of ")
        assert line.endswith(": free some space, or give another disk with -o")


def test_full_disk_in_the_pass(place: Path, exported: Path) -> None:
    shutil.copytree(exported, place / "out")
    assert CliRunner().invoke(app, ["strip", "out"]).exit_code == 0
    disk = place / "disk"
    size = sum(path.stat().st_size for path in (place / "out").iterdir())
    with mounted(disk, str(size + 100_000)):
        shutil.copytree(place / "out", disk / "out")
        status, line = refused(disk, "tag", disk / "out")
        assert status == 1
        assert "space" in line


def test_output_that_is_a_mount_point(place: Path) -> None:
    with mounted(place / "disk", "8m"):
        status, line = refused(place, "bert", "-o", "disk")
        assert status == 2
        assert "is a mount point" in line


def test_read_only_directory(place: Path) -> None:
    directory = place / "fixed"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        with mounted(directory, "8m"):
            subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
            status, line = refused(place, "bert", "-o", "fixed/out")
    else:
        directory.mkdir(mode=0o500)
        status, line = refused(place, "bert", "-o", "fixed/out")
    assert status == 1
    assert line.startswith("cannot write next to output fixed/out: ") or "fixed/out" in line
    assert line.endswith("give a writable directory with -o")


def test_no_place_for_temporary_files(
    place: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(place / "nowhere")])
    status, line = refused(place, "profile", exported)
    assert status == 1
    assert line.startswith("No usable temporary directory found in ['")
    assert line.endswith("nowhere']: set TMPDIR to a directory that can be written")


@POSIX
def test_paths_that_are_not_utf8(place: Path, exported: Path) -> None:
    name = os.fsdecode(b"x\xff")
    assert refused(place, "bert", "-o", name) == (
        2,
        f"output {place}/x\\udcff is not UTF-8, and the libraries cannot write there: "
        "give another directory with -o",
    )
    shutil.copytree(exported, place / name)
    assert refused(place, "profile", name) == (
        1,
        "ONNX Runtime cannot open x\\udcff/model.onnx, whose path is not UTF-8: rename it",
    )
    assert refused(place, name) == (
        1,
        "model x\\udcff is not UTF-8, and the libraries cannot read it: rename the directory",
    )


@contextlib.contextmanager
def closed(path: Path) -> Iterator[None]:
    """A path without any permission, also when the test itself fails."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


def without_privileges(code: str) -> str:
    """Run code, also where the tests are root's, as somebody whom permissions hold."""
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can lay down its privileges with setpriv alone")
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@POSIX
@pytest.mark.parametrize("name", ["out", "out/onnx"])
def test_export_of_somebody_else_is_not_replaced(place: Path, name: str) -> None:
    (place / "out" / "onnx").mkdir(parents=True)
    (place / "out" / "config.json").write_text("{}")
    (place / name).chmod(0o555)  # else the old one would stay, under a hidden name
    error = without_privileges(
        "from modelexport_optimum.exporting.staging import check_output\n"
        "check_output('out', None, overwrite=True)"
    )
    (place / name).chmod(0o755)
    assert error.splitlines()[-1].endswith(
        f"output out cannot be replaced, as the files in {place / name} cannot be removed: "
        "give another directory with -o"
    )


@POSIX
def test_model_that_may_not_be_read(place: Path) -> None:
    line = "model {} cannot be read: give yourself the right to, or a copy"
    find = "from modelexport_optimum.exporting.source import *\nsource = find_source('bert')\n"
    with closed(place / "bert"):
        assert without_privileges(find).endswith(f"{line.format('bert')}\n")
    with closed(place / "bert" / "model.safetensors"):
        error = without_privileges(
            f"{find}import safetensors\n"
            "from modelexport_optimum.exporting.optimum_errors import errors_explained\n"
            "with errors_explained(source):\n"
            "    safetensors.safe_open(source.directory / 'model.safetensors', 'numpy')"
        )
    assert error.endswith(f"{line.format('bert/model.safetensors')}\n")


# --- Files of tag, strip and verify ---------------------------------------------------------------


@pytest.fixture
def copy(place: Path, exported: Path) -> Path:
    """An export to spoil."""
    shutil.copytree(exported, place / "out")
    return place / "out"


@pytest.mark.parametrize("command", ["tag", "strip", "verify"])
def test_path_that_does_not_exist(place: Path, command: str) -> None:
    status, line = refused(place, command, "nowhere")
    assert status == 2
    assert line.startswith("nowhere does not exist")


@pytest.mark.parametrize("command", ["tag", "strip", "verify"])
def test_directory_without_a_graph(place: Path, command: str) -> None:
    status, line = refused(place, command, "bert")
    assert status == 2
    assert "no .onnx file" in line


@pytest.mark.parametrize("command", ["tag", "strip"])
@pytest.mark.parametrize("content", ["truncated", "foreign", "empty"])
def test_file_that_is_no_model(copy: Path, command: str, content: str) -> None:
    file = copy / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(
        {"truncated": whole[: len(whole) // 2], "foreign": b"%PDF-1.7 hello", "empty": b""}[content]
    )
    for path in (copy, file):
        status, line = refused(copy, command, path)
        assert status == 1
        assert "model.onnx" in line


@pytest.mark.parametrize("command", ["tag", "strip"])
def test_external_data_that_is_missing(copy: Path, command: str) -> None:
    file = copy / "model.onnx"
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="model.onnx_data")
    (copy / "model.onnx_data").unlink()
    status, line = refused(copy, command, copy)
    assert status == 1
    assert "model.onnx_data" in line


@pytest.mark.parametrize("command", ["tag", "strip"])
def test_link_into_a_shared_cache(place: Path, copy: Path, command: str) -> None:
    cache = place / "cache"
    cache.mkdir()
    (copy / "model.onnx").rename(cache / "blob")
    (copy / "model.onnx").symlink_to(cache / "blob")
    (place / "link").symlink_to(copy)
    for path in (copy, copy / "model.onnx", place / "link"):
        status, line = refused(place, command, path)
        assert status == 1
        assert "is a symbolic link" in line


def test_node_that_does_not_exist(copy: Path) -> None:
    status, line = refused(copy, "tag", copy, "--explain", "/no/such/node")
    assert status == 2
    assert line.endswith("has no node named /no/such/node")


def test_blanks_of_a_name_are_kept(place: Path) -> None:
    _, line = refused(place, "inspect", "two  blanks")
    assert line == "two  blanks does not exist: give a .onnx file or an exported directory"


def test_error_as_json(place: Path) -> None:
    result = CliRunner().invoke(app, ["./nowhere", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "ok": False,
        "error": one_error(result.stderr),
        "exit_status": 2,
    }
    assert not list(place.glob("*onnx"))


def test_traceback_only_when_asked(place: Path) -> None:
    assert "Traceback" not in CliRunner().invoke(app, ["./nowhere"]).stderr
    assert "Traceback" in CliRunner().invoke(app, ["./nowhere", "--verbose"]).stderr
    assert not list(place.glob("*onnx"))
