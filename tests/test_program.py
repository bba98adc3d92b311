"""The program around its commands: mistyped words, help, completion, Ctrl-C."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import pytest
import typer
from forked_python import ForkedPython
from typer.main import get_command
from typer.testing import CliRunner

from modelexport_optimum import errors, export, strip
from modelexport_optimum.cli import help_page, printing
from modelexport_optimum.cli.main import app
from modelexport_optimum.exporting import tasks
from modelexport_optimum.system.private_names import COMPLETION_SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable

    ModelDirectory = Callable[[str], Path]

COMMANDS = list(get_command(app).commands)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shown(result: Any) -> str:
    """What is on stderr, without the frame around it."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)


# --- What is mistyped -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_mistyped_command_is_told_which_one_was_meant(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in (command[:1] + command[2:] if len(command) > 4 else command + "s", command + "e"):
        result = run(word, "DIR")
        assert result.exit_code == 2
        found = re.search(
            r"There is no command (.*): did you mean (.*)\? To export a model", shown(result)
        )
        assert found is not None, shown(result)
        assert found[1] == word
        assert command in found[2].split(" or ")


def test_names_of_models_are_no_mistyped_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("opt", "bart", "gpt2", "t5-small", "org/verfy", "./verfy"):
        assert "There is no command" not in shown(run(name, "--opset", "many"))
    (tmp_path / "verfy").mkdir()
    assert "There is no command" not in shown(run("verfy", "--opset", "many"))
    assert "There is no command" not in shown(run("export", "tags", "--opset", "many"))


@pytest.mark.parametrize("command", COMMANDS)
def test_mistyped_option_is_told_which_one_was_meant(command: str) -> None:
    params = get_command(app).commands[command].params
    flags = [flag for param in params for flag in param.opts if flag.startswith("--")]
    assert flags
    for option in flags:
        mistyped = f"{option[:-2]}{option[-1]}{option[-2]}"  # --jsno
        if mistyped in flags or mistyped == option:
            continue
        result = run(command, mistyped, "x")
        assert result.exit_code == 2
        found = re.search(r"No such option: (\S+): did you mean (\S+)\?", shown(result))
        assert found is not None, shown(result)
        (closest,) = difflib.get_close_matches(mistyped, flags, n=1)
        assert found.groups() == (mistyped, closest)
        assert closest == option or {closest, option} == {"--model", "--module"}


def test_wrong_command_line_is_json_if_that_was_asked_for() -> None:
    for arguments in (
        ["x", "--taks", "a"],
        ["inspect"],
        ["batch"],
        ["verify", "a", "b"],
        ["export"],
    ):
        result = run(*arguments, "--json")
        document = json.loads(result.stdout)
        assert (result.exit_code, document["ok"], document["exit_status"]) == (2, False, 2)
        assert document["error"] in shown(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "Missing MODEL: give a name on the Hugging Face Hub, or a directory"),
        (["x", "out"], "(out): the output is given with -o"),
        (["batch", "models.txt", "out"], "(out): the output is given with -o"),
        (["batch"], "Missing argument 'MANIFEST'"),
        (["a", "--model", "b", "-o", "c"], "MODEL is given twice, as a and as --model b"),
        (["a", "--framework", "tf"], "Invalid value for '--framework': 'tf' is not one of 'pt'."),
    ],
)
def test_what_is_missing_or_too_much(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in shown(result)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["tag", ""], "DIR|FILE"),
        (["verify", ""], "DIR"),
        (["compare", "a", ""], "[B]"),
        (["export", "x", "--output="], "--output"),
        (["report", "a", "-o", "x.html", "--profile", "b", "--profile", ""], "--profile"),
        (["batch", "-o", "", "models.txt"], "--output"),
    ],
)
def test_an_empty_path_is_not_the_current_directory(arguments: list[str], name: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"{name} is empty: give a path" in shown(result)


def test_an_option_that_is_no_path_may_be_empty(exported: Path) -> None:
    assert "is empty" not in shown(run("inspect", exported, "--module", ""))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[" * 100_000, "it is nested too deep"),
        (f'{{"a": {"9" * 5000}}}', "a whole number has too many digits"),
    ],
)
def test_json_that_python_cannot_read_is_a_wrong_value(value: str, problem: str) -> None:
    result = run("export", "x", "--model-kwargs", value)
    assert result.exit_code == 2
    assert f"is not JSON: {problem}" in shown(result)


def test_output_may_be_an_argument_as_for_optimum_cli(
    tmp_path: Path, model_directory: ModelDirectory
) -> None:
    output = tmp_path / "out"
    result = run("export", "--model", model_directory("bert"), output, "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert (output / "model.onnx").is_file()


# --- Help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None) -> None:
    arguments = [] if command is None else [command]
    short, long = run(*arguments, "-h"), run(*arguments, "--help")
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert "<bool>" not in short.stdout
    rows = re.findall(r"│ +(--[\w-]+)(.*?)│\n", short.stdout)
    assert all(re.search(r"\w{3}", text) for _, text in rows), rows


@pytest.mark.parametrize("width", [50, 80, 120])
def test_help_shows_first_what_a_newcomer_needs(width: int) -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": str(width)})
    assert max(map(len, result.stdout.splitlines())) <= width
    panels = re.findall(r"╭─ (.+?) ─+╮\n(.*?)╰", result.stdout, re.DOTALL)
    shown = {title: re.findall(r"^│ (\S+)", text, re.MULTILINE) for title, text in panels}
    assert next(iter(shown)) == help_page.FIRST
    assert shown[help_page.FIRST] == ["export", "inspect", "report"]
    assert list(shown)[-1] == "Options"
    assert shown.pop("Options") == [
        *("--version", "--install-completion", "--show-completion", "--help,"),
    ]
    assert sorted(chain(*shown.values())) == sorted(COMMANDS)


# --- Tasks ----------------------------------------------------------------------------------------


def test_tasks_are_those_of_optimum() -> None:
    from optimum.exporters.tasks import TasksManager

    assert set(tasks.TASKS) == set(TasksManager.get_all_tasks())
    assert {*tasks.TASKS, *tasks.SYNONYMS} == tasks.optimum_tasks()
    with_past = {
        task.removesuffix("-with-past")
        for libraries in TasksManager._SUPPORTED_MODEL_TYPE.values()
        for exporters in [libraries]
        for task in exporters.get("onnx", {})
        if task.endswith("-with-past")
    }
    assert with_past == set(tasks.WITH_PAST)


def test_task_of_another_version_of_optimum_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "optimum_tasks", lambda: {"smell-classification"})
    tasks.check_task("smell-classification-with-past")


# --- Completion -----------------------------------------------------------------------------------


def completed(*words: str | Path) -> list[str]:
    """What bash offers for the last word."""
    environment = {
        "_MODELEXPORT_OPTIMUM_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["modelexport-optimum", *map(str, words)]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="modelexport-optimum")
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout.split()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "bert-onnx"
    assert export(model_directory("bert"), output, providers=["cpu"]).ok
    return output


def test_commands_and_options_are_completed() -> None:
    assert completed("insp") == ["inspect"]
    assert "--fail-fast" in completed("batch", "models.txt", "--fa")
    assert "--task" in completed("bert", "--ta")


def test_files_after_batch_are_the_shell_s() -> None:
    assert completed("batch", "mod") == []
    assert completed("batch", "") == []


def test_values_are_completed() -> None:
    assert completed("bert", "--task", "text-cl") == ["text-classification"]
    assert "text-generation-with-past" in completed("batch", "m", "--task", "text-generation")
    assert completed("verify", "out", "--task", "fill") == ["fill-mask"]
    assert "cpu" in completed("bert", "--provider", "cp")
    assert completed("profile", "out", "--provider", "tensor") == ["tensorrt"]
    assert completed("view", "out", "--viewer", "n") == ["netron"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_one_command_installs_completion(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("modelexport-optimum")
    script = f"""
        PATH={shlex.quote(str(program.parent))}:$PATH
        {program.name} --install-completion || exit 1
        source ~/.bashrc
        for line in "insp" "x --task text-cl" "view out --viewer n"; do
            COMP_WORDS=({program.name} $line)
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            $(complete -p {program.name} | grep -o "_[a-z_]*completion") {program.name}
            echo "offered: ${{COMPREPLY[@]}}"
        done
    """
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=home, capture_output=True, text=True, check=True
    )
    offered = re.findall("offered: (.*)", done.stdout)
    assert offered == ["inspect", "text-classification", "netron"]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        *(".bashrc", "modelexport-optimum.sh"),
    }


def test_the_script_for_zsh_offers_something_at_the_first_tab() -> None:
    result = CliRunner().invoke(
        app,
        ["--show-completion", "zsh"],
        env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        prog_name="modelexport-optimum",
    )
    script = COMPLETION_SCRIPTS.get()["zsh"]
    calls = re.findall(r'funcstack\[1\] == "_%\(prog_name\)s" .*\n  (.*)', script)
    assert calls == ['%(complete_func)s "$@"'], result.output


def test_modules_are_completed_from_the_file(exported: Path, tmp_path: Path) -> None:
    assert "bert.encoder.layer.0.attention" in completed(
        "inspect", exported, "--module", "bert.encoder.layer.0.att"
    )
    assert completed("extract", exported / "model.onnx", "--module", "bert.emb")[0] == (
        "bert.embeddings"
    )
    assert completed("inspect", exported, "--class", "BertLay") == ["BertLayer"]
    assert completed("inspect", exported, "--op", "MatM") == ["MatMul"]
    assert completed("inspect", tmp_path / "none", "--module", "b") == []
    assert completed("inspect", "--module", "b") == []


def test_completing_modules_is_quick(exported: Path) -> None:
    code = (
        "import sys, time\n"
        "from modelexport_optimum.cli.main import app\n"
        "try: app(prog_name='modelexport-optimum')\n"
        "except SystemExit: pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'onnxruntime') if m in sys.modules]\n"
        "print(heavy, time.process_time(), file=sys.stderr)"
    )
    environment = {
        "_MODELEXPORT_OPTIMUM_COMPLETE": "complete_bash",
        "COMP_WORDS": f"modelexport-optimum inspect {exported} --module bert.enc",
        "COMP_CWORD": "4",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "bert.encoder" in done.stdout.split()
    heavy, _, seconds = done.stderr.strip().rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 3  # of the processor: the machine may be busy


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_export_that_is_stopped_says_what_was_kept(
    number: int,
    status: int,
    tmp_path: Path,
    model_directory: ModelDirectory,
    python_server: Path,
) -> None:
    command = ["-m", "modelexport_optimum", model_directory("bert"), "-o", "out"]
    with (
        TemporaryFile("w+") as err,
        ForkedPython(python_server, command, cwd=tmp_path, stdout=err, stderr=err) as process,
    ):
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob(".out.staging-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(240) == status
        err.seek(0)
        shown = err.read()
    assert shown.splitlines()[-1] == (
        "stopped: nothing was written or replaced; run the same command to start again"
    )
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_that_a_library_made_its_own_error_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As what C++ initializes does (pybind11): "ImportError: initialization failed"."""
    with pytest.raises(typer.Exit) as ended, printing.exit_on_error(as_json=False):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stopped:
            raise ImportError("initialization failed") from stopped
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == (
        "stopped: nothing was changed; run the same command to start again\n"
    )


STOPS_WHILE_WRITING = """
import os, time
os.fsync = lambda _: time.sleep(240)  # what is written is on no disk yet
from modelexport_optimum.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("command", "number", "kept"),
    [
        ("tag .", "SIGTERM", "every file is complete, either tagged or unchanged"),
        ("tag .", "SIGHUP", "every file is complete, either tagged or unchanged"),
        ("strip .", "SIGTERM", "every file is complete, either stripped or unchanged"),
        ("extract . --module bert -o a.onnx", "SIGTERM", "every file is complete, either new"),
        ("report . -o a.html", "SIGTERM", "nothing was changed"),
    ],
)
def test_command_that_is_stopped_while_it_writes_says_what_was_kept(
    command: str, number: str, kept: str, tmp_path: Path, exported: Path, python_server: Path
) -> None:
    place = tmp_path / "export"
    shutil.copytree(exported, place)
    if command == "tag .":
        strip(place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with (
        TemporaryFile("w+") as err,
        ForkedPython(
            python_server,
            ["-c", STOPS_WHILE_WRITING, *command.split()],
            cwd=place,
            stdout=err,
            stderr=err,
        ) as process,
    ):
        deadline = time.monotonic() + 240
        # A signal between the making of the file and its first byte may leave it to the next run.
        while not any(path.stat().st_size for path in place.glob(".*.tmp")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.Signals[number])
        assert process.wait(240) == 128 + signal.Signals[number]
        err.seek(0)
        shown = err.read()
    assert shown.splitlines()[-1].startswith(f"stopped: {kept}")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


# --- Messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "is_red"),
    [("TERM", "xterm", True), ("TERM", "dumb", False), ("NO_COLOR", "1", False)],
)
def test_an_error_has_the_colour_that_the_terminal_takes(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_red: bool
) -> None:
    for variable in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["inspect", "nowhere"], color=True)
    assert result.stderr.startswith("\x1b[31merror: \x1b[0mnowhere" if is_red else "error: nowhere")


def test_ctrl_c_before_a_command_begins_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "open_standard_streams", lambda: None)
    monkeypatch.setattr(typer.main, "get_command", interrupted)
    with pytest.raises(SystemExit) as ended:
        printing.run_program(app)
    assert ended.value.code == 130


def interrupted(_app: object) -> None:
    raise KeyboardInterrupt


def test_messages_of_other_libraries_are_short() -> None:
    names = ", ".join(f"architecture-{number}" for number in range(500))
    error = ValueError(f"Unrecognized model. It should be one of {names}\nand more")
    for line in (errors.first_line(error), errors.in_one_line(error)):
        assert "Unrecognized model. It should be one of architecture-0, " in line
        assert " ... " in line
        assert len(line) < 500
