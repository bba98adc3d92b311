"""The manifest: what each line means, and that every error is told with its line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

from modelexport_optimum.batches import manifest
from modelexport_optimum.batches.resources import Resources
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import ManifestError, UsageError
from modelexport_optimum.exporting.options import ExportOptions

if TYPE_CHECKING:
    from modelexport_optimum.batches.jobs import Job


@pytest.fixture(autouse=True)
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, which is also the batch's if no other is named."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(content: str | bytes, name: str = "models.txt", **defaults: Any) -> list[Job]:
    """The jobs of a manifest with this content."""
    raw = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(raw)
    return manifest.read_manifest(name, directory=".", defaults=defaults)


def read_json(*documents: Any, **defaults: Any) -> list[Job]:
    return read("\n".join(map(json.dumps, documents)), "models.jsonl", **defaults)


def problems(content: str | bytes, name: str = "models.txt", **defaults: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(content, name, **defaults)
    count = len(caught.value.problems)
    first = f"{name} has {count} error{'s' * (count > 1)}"
    assert str(caught.value).splitlines() == [first, *caught.value.problems]
    assert caught.value.exit_status == 2
    return caught.value.problems


def problem(content: str | bytes, name: str = "models.txt", **defaults: Any) -> str:
    (only,) = problems(content, name, **defaults)
    return only


# --- Text -----------------------------------------------------------------------------------------


def test_lines_are_what_one_would_type() -> None:
    first, second, third = read(
        "bert --task text-classification --dtype fp16\n"
        "export org/gpt2 --no-constant-folding --variant other --slim\n"
        "-m t5 --model-kwargs '{\"a\": [1]}' --batch-size 3 --sequence_length 5"
    )
    assert (first.line, first.model) == (1, "bert")
    assert first.arguments == ExportOptions(task="text-classification", dtype="fp16").arguments()
    assert (second.line, second.model) == (2, "org/gpt2")
    assert second.arguments["do_constant_folding"] is False
    assert second.arguments["_variant"] == "other"
    assert second.arguments["slim"]
    assert third.model == "t5"
    assert third.arguments["model_kwargs"] == {"a": [1]}
    assert (third.arguments["batch_size"], third.arguments["sequence_length"]) == (3, 5)
    assert all(job.arguments["use_subprocess"] for job in (first, second, third))


def test_output_is_an_argument_as_for_optimum_cli() -> None:
    (job,) = read("--model org/a out")
    assert (job.model, job.output.name) == ("org/a", "out")


def test_short_options_and_values_as_typer_reads_them() -> None:
    first, second, third = read("-morg/a -oout\n-m b --revision --slim\nc --opset=15 -o=d")
    assert (first.model, first.output.name) == ("org/a", "out")
    assert second.arguments["revision"] == "--slim"
    assert not second.arguments["slim"]
    assert (third.arguments["opset"], third.output.name) == (15, "=d")


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("a#b", "a#b"),
        ("a #b", "a"),
        ("a\t# b 'not closed", "a"),
        ("'a #b'", "a #b"),
        ('"a #b" # c', "a #b"),
        ("a'#'b", "a#b"),
        (r"\#a", "#a"),
        (r"a\ #b", "a #b"),
        ("'#a'", "#a"),
        ('"a"#b', "a#b"),
        (r'"a\"b"', 'a"b'),
        ("  a  ", "a"),
        ("-- -a", "-a"),
        ("modèle", "modèle"),
        ("a\u2028b", "a\u2028b"),
    ],
)
def test_words_and_comments_are_those_of_a_shell(text: str, model: str) -> None:
    (job,) = read(f"# {text}\n\n   \n#\n{text}\n")
    assert (job.line, job.model) == (5, model)


def test_words_are_those_of_a_shell_indeed() -> None:
    for text in ("a#b c", "a '#b' #c", r"a \#b", 'a "b"#c', "'' a", r'"a\b" "a\"b"', "a #"):
        done = subprocess.run(
            ["sh", "-c", rf"printf '%s\n' {text}"], capture_output=True, text=True, check=True
        )
        assert list(manifest._split(text)) == done.stdout.splitlines()


@pytest.mark.parametrize(
    "content",
    [b"a\nb\n", b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb", b"\xef\xbb\xbf# a list\r\n\r\na\r\nb"],
)
def test_line_ends_and_byte_order_marks(content: bytes) -> None:
    assert [job.model for job in read(content)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a --dtpye fp16", "No such option: --dtpye: did you mean --dtype?"),
        (
            "a --no-post-proces",
            "No such option: --no-post-proces: did you mean --no-post-process?",
        ),
        ("a -x", "No such option: -x"),
        ("a b", "Got unexpected extra argument"),
        ("a b c", "Got unexpected extra argument (b c): the output is given with -o"),
        ("--task fill-mask", "Missing MODEL"),
        ("export", "Missing MODEL"),
        ("a -m b -o c", "MODEL is given twice, as a and as --model b"),
        ("a --slim=yes", "Option '--slim' does not take a value."),
        ("''", "the model's name is empty"),
        ("a --opset", "Option '--opset' requires an argument."),
        ("a 'b", "a quotation mark is not closed"),
        ("a \\", "the line ends with a backslash: write each model on one line"),
        ("a --model-kwargs {", "Invalid value for '--model-kwargs': '{' is not JSON: "),
        ("a --model-kwargs [1]", "'[1]' is not a JSON object"),
        ("a --opset many", "Invalid value for '--opset': "),
        ("a --dtype fp64", "Invalid value for '--dtype': "),
        ("a --timeout 0", "'0' is not a number of seconds above 0"),
        ("a --timeout nan", "'nan' is not a number"),
        ("a --num-cpus inf", "'inf' is not a number"),
        ("a --num-gpus -1", "'-1' is below 0"),
        ("a --memory 0", "'0' is not a number of bytes above 0, such as "),
        ("a --memory 5XB", "'5XB' is not a number of bytes above 0, such as "),
        ("a --provider cpx", "provider 'cpx' is not known to ONNX Runtime"),
        ("a --task fill-mask-with-past --monolith", "--monolith cannot export fill-mask-with-past"),
        ("a --optimize O4", "--optimize O4 needs a GPU"),
        ("a\0b", "a character is NUL"),
    ],
)
def test_line_that_is_wrong(text: str, message: str) -> None:
    assert problem(f"good\n\n{text}\n").startswith("models.txt:3: ")
    assert message in problem(f"good\n\n{text}\n")


def test_options_of_the_batch_are_not_for_a_line() -> None:
    of_a_line = {flag for known in manifest._flags().values() for flag in known.flags}
    of_the_batch = [
        name
        for one in get_command(app).commands["batch"].params
        if one.param_type_name == "option"
        for name in one.opts
        if name not in of_a_line
    ]
    assert "--json" in of_the_batch
    for name in [*of_the_batch, "--help", "--retry_failed"]:
        assert problem(f"a {name}") == (
            f"models.txt:1: {name} is for the whole batch: give it on the command line"
        )


def test_all_errors_are_told() -> None:
    lines = [f"model-{number} --dtpye fp16" for number in range(500)]
    found = problems("\n".join(lines))
    assert len(found) == 500
    assert found[499].startswith("models.txt:500: No such option")


def test_what_fails_when_it_runs_is_no_error() -> None:
    first, second = read("no/such/model\n./nor-this")
    assert (first.model, second.model) == ("no/such/model", "./nor-this")


def test_mistyped_task_is_among_the_errors() -> None:
    first, second = problems("a --task text-clasification\nb --dtpye fp16\nc --task summarization")
    assert first.startswith(
        "models.txt:1: task text-clasification is unknown: did you mean text-classification or "
    )
    assert second == "models.txt:2: No such option: --dtpye: did you mean --dtype?"
    (only,) = problems('{"model": "a", "task": "fill-masks"}', "models.jsonl")
    assert only.startswith("models.jsonl:1: task fill-masks is unknown: did you mean fill-mask")


def test_gpu_may_be_asked_for() -> None:
    (job,) = read("a --optimize O4", device="cuda")
    assert job.arguments["optimize"] == "O4"
    assert problem("a --device cpu --optimize O4", device="cuda").endswith("or take O1 to O3")


# --- The file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n"])
def test_manifest_without_models(content: str) -> None:
    with pytest.raises(UsageError, match=r"^models\.txt has no models"):
        read(content)


def test_manifest_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"^manifest nothing\.txt does not exist"):
        manifest.read_manifest("nothing.txt", directory=".", defaults={})
    with pytest.raises(UsageError, match=r"^manifest \. is a directory"):
        manifest.read_manifest(".", directory=".", defaults={})


def test_manifest_of_other_characters() -> None:
    assert problem("a\nmodèle\n".encode("latin-1")) == "models.txt:2: not UTF-8"
    assert problems("a\nb".encode("utf-16"))[0] == "models.txt:1: not UTF-8"


@pytest.mark.parametrize(
    ("content", "models"),
    [("a\n# b\nc", ["a", "c"]), ('\n {"model": "a"}\n', ["a"]), ('\ufeff{"model": "a"}', ["a"])],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, content: str, models: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    jobs = manifest.read_manifest("-", directory=".", defaults={})
    assert [job.model for job in jobs] == models


def test_errors_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a -x")))
    with pytest.raises(ManifestError, match=r"^stdin has 1 error\nstdin:1: No such option: -x$"):
        manifest.read_manifest("-", directory=".", defaults={})


# --- JSON lines -----------------------------------------------------------------------------------


def test_json_says_the_same_as_text() -> None:
    text = (
        "org/a --task fill-mask --dtype fp16 --opset 17 --atol 0.5 --provider cpu --provider cuda "
        "--no-constant-folding --slim --overwrite --model-kwargs '{\"b\": [1, null]}' "
        "--subfolder '' --cache_dir /cache --batch_size 3 -o out --timeout 60 --num-gpus 0.5 "
        "--memory 8GB --num-cpus 2"
    )
    document = {
        "model": "org/a",
        "task": "fill-mask",
        "dtype": "fp16",
        "opset": 17,
        "atol": 0.5,
        "providers": ["cpu", "cuda"],
        "no_constant_folding": True,
        "slim": True,
        "overwrite": True,
        "model_kwargs": {"b": [1, None]},
        "subfolder": "",
        "cache-dir": "/cache",
        "batch-size": 3,
        "output": "out",
        "timeout": 60,
        "num_gpus": 0.5,
        "memory": 8e9,
        "num-cpus": 2.0,
    }
    assert read_json(document) == read(text)
    others = {"provider": document.pop("providers"), "o": document.pop("output"), "memory": "8GB"}
    assert read_json({**document, **others}) == read(text)


def test_json_values_are_no_options() -> None:
    (job,) = read_json({"model": "-m", "provider": "cpu", "revision": "--slim", "output": "-o"})
    assert (job.model, job.output.name) == ("-m", "-o")
    assert job.arguments["revision"] == "--slim"
    assert job.arguments["providers"] == ["cpu"]


def test_whole_number_that_is_larger_than_a_float() -> None:
    (job,) = read_json({"model": "a", "opset": 10**400})
    assert job.arguments["opset"] == 10**400


def test_json_overrides_defaults() -> None:
    defaults = {"slim": True, "opset": 15, "providers": ["cpu"], "model_kwargs": {"a": 1}}
    silent, null, other = read_json(
        {"model": "a"},
        {"model": "b", "slim": None, "opset": None, "providers": None, "model_kwargs": None},
        {"model": "c", "slim": False, "opset": 17, "providers": [], "model_kwargs": {}},
        **defaults,
    )
    for name, value in defaults.items():
        assert silent.arguments[name] == null.arguments[name] == value
    assert not other.arguments["slim"]
    assert other.arguments["opset"] == 17
    assert not other.arguments["providers"]
    assert other.arguments["model_kwargs"] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('{"model": "a", "timeout": NaN}', "not JSON: NaN is not a number in JSON"),
        ('{"model": "a", "model": "b"}', "not JSON: model is given twice"),
        ('["a"]', "not a JSON object"),
        ("a --task fill-mask", "not JSON: "),
        ('{"model": "a", "dtpye": "fp16"}', "No such option: dtpye: did you mean dtype?"),
        ('{"model": "a", "workers": 2}', "workers is for the whole batch"),
        ('{"model": "a", "batch-size": 2, "batch_size": 3}', "batch_size is given twice"),
        ('{"model": "a", "provider": "cpu", "providers": []}', "providers is given twice"),
        ('{"task": "fill-mask"}', "Missing MODEL"),
        ('{"model": null}', "Missing MODEL"),
        ('{"model": "a", "m": "b"}', "m is given twice"),
        ('{"model": ""}', "the model's name is empty"),
        ('{"model": 5}', "model must be text, not 5"),
        ('{"model": "a", "task": ["b"]}', 'task must be text, not ["b"]'),
        ('{"model": "a", "output": true}', "output must be text, not true"),
        ('{"model": "a", "slim": 1}', "slim must be true or false, not 1"),
        ('{"model": "a", "slim": "true"}', 'slim must be true or false, not "true"'),
        ('{"model": "a", "opset": true}', "opset must be a whole number, not true"),
        ('{"model": "a", "opset": "17"}', 'opset must be a whole number, not "17"'),
        ('{"model": "a", "opset": 17.5}', "opset must be a whole number, not 17.5"),
        ('{"model": "a", "timeout": 1e400}', "inf is not a number"),
        (f'{{"model": "a", "timeout": {"9" * 400}}}', "9 is not a number"),
        (f'{{"model": "a", "memory": {"9" * 400}}}', "is not a number of bytes above 0"),
        (f'{{"model": "a", "opset": "{"9" * 400}"}}', "opset must be a whole number, not"),
        ('{"model": "a", "providers": ["cpu", 1]}', "providers must be text or a list of it"),
        ('{"model": "a", "model_kwargs": "{}"}', 'model_kwargs must be an object, not "{}"'),
        ('{"model": "a", "memory": [1]}', "memory must be a whole number, not [1]"),
        ('{"model": "a", "memory": -1}', "-1 is not a number of bytes above 0"),
        ('{"model": "a\\u0000b"}', "a character is NUL"),
        ('{"model": "a\\ud800b"}', "half of a character is missing"),
    ],
)
def test_json_that_is_wrong(text: str, message: str) -> None:
    found = problem(f'{{"model": "good"}}\r\n\r\n{text}\r\n', "models.jsonl")
    assert found.startswith("models.jsonl:3: ")
    assert message in found
    assert len(found) < 500


# --- Defaults, resources --------------------------------------------------------------------------


def test_lines_override_defaults() -> None:
    defaults = {"model_kwargs": {"a": 1}, "opset": 15, "providers": ["cpu"], "timeout": 60.0}
    silent, other = read(
        "a\nb --opset 17 --provider cuda --model-kwargs '{\"b\": 2}' --timeout 5 --memory 1k",
        **defaults,
        memory=5,
        slim=True,
    )
    assert silent.arguments == ExportOptions(**_arguments(defaults), slim=True).arguments()
    assert (silent.resources.timeout, silent.resources.memory) == (60, 5)
    assert other.arguments["model_kwargs"] == {"b": 2}
    assert other.arguments["opset"] == 17
    assert other.arguments["providers"] == ["cuda"]
    assert other.arguments["slim"]
    assert (other.resources.timeout, other.resources.memory) == (5, 1000)


def _arguments(defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if name != "timeout"}


def test_jobs_share_no_arguments() -> None:
    first, second = read("a\nb", model_kwargs={"a": {}}, providers=["cpu"])
    first.arguments["model_kwargs"]["a"]["b"] = 1
    first.arguments["providers"].append("cuda")
    assert second.arguments["model_kwargs"] == {"a": {}}
    assert second.arguments["providers"] == ["cpu"]


def test_default_provider_that_is_not_known_is_no_line_s_error() -> None:
    with pytest.raises(UsageError, match="provider 'cpx'") as caught:
        read("a\nb", providers=["cpx"])
    assert not isinstance(caught.value, ManifestError)


def test_resources_have_defaults() -> None:
    (job,) = read("a")
    assert job.resources == Resources(num_cpus=1, num_gpus=0, memory=None, timeout=None)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12", 12),
        ("1.5kB", 1500),
        ("2MB", 2 * 10**6),
        ("3GB", 3 * 10**9),
        ("2KiB", 2048),
        ("2MiB", 2 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("1k", 1000),
        ("1M", 10**6),
        ("1G", 10**9),
        ("'1 gb'", 10**9),
    ],
)
def test_memory(text: str, count: int) -> None:
    (job,) = read(f"a --memory {text}")
    assert job.resources.memory == count


# --- Where things are -----------------------------------------------------------------------------


def test_outputs_and_logs(current: Path) -> None:
    Path("m.txt").write_text("org/a\nb -o sub/c\nd -o /elsewhere/e\nf -o ../g\n")
    batch = current / "exports"
    jobs = manifest.read_manifest("m.txt", directory="exports", defaults={})
    outputs = [batch / "a-onnx", batch / "sub" / "c", Path("/elsewhere/e"), current / "g"]
    assert [job.output for job in jobs] == outputs
    logs = batch / "logs"
    outside = [logs / "elsewhere" / "e.log", logs / f"{(current / 'g').relative_to('/')}.log"]
    assert [job.log for job in jobs] == [logs / "a-onnx.log", logs / "sub" / "c.log", *outside]


def test_home_and_local_models(current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(current / "home"))
    (current / "home" / "mine").mkdir(parents=True)
    (current / "local").mkdir()
    here, home, hub, name = read(
        "./local --cache_dir cache\n~/mine -o ~/out\norg/local --cache_dir ~/c -o x\n"
        + "n" * 300
        + " -o n"
    )
    assert (here.model, here.output) == (str(current / "local"), current / "local-onnx")
    assert here.arguments["cache_dir"] == str(current / "cache")
    assert (home.model, home.output) == (str(current / "home/mine"), current / "home" / "out")
    assert hub.model == "org/local"
    assert hub.arguments["cache_dir"] == str(current / "home" / "c")
    assert name.model == "n" * 300


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("other/bert", "would write bert-onnx, like line 2: give one of them -o"),
        ("a -o bert-onnx/", "would write bert-onnx, like line 2: give one of them -o"),
        ("a -o x/../bert-onnx", "would write bert-onnx, like line 2: give one of them -o"),
        ("a -o link/bert-onnx", "would write link/bert-onnx, like line 2: give one of them -o"),
        ("a -o bert-onnx/b/c", "would write bert-onnx/b/c, inside the output of line 2: "),
        ("a -o .", "would write ., which is the batch's own directory or contains it: "),
        ("a -o ..", "which is the batch's own directory or contains it: "),
        ("a -o link", "would write link, which is the batch's own directory or contains it: "),
        ("a -o logs", "would write logs, and the batch has its own logs there: "),
        ("a -o logs/a", "would write logs/a, and the batch has its own logs there: "),
        ("a -o 'logs/a  b'", "would write logs/a  b, and the batch has its own logs there: "),
        ("a -o results.jsonl", "and the batch has its own results.jsonl there: "),
        ("n" * 229, "-onnx, a name of more than 233 bytes: give it another -o"),
        (f"a -o {'n' * 256}/a", "a name of more than 233 bytes: give it another -o"),
    ],
)
def test_outputs_must_be_apart(current: Path, other: str, message: str) -> None:
    (current / "link").symlink_to(current)
    found = problem(f"# two\norg/bert\n\n{other}\n")
    assert found.startswith("models.txt:4: ")
    assert message in found


def test_output_that_contains_another() -> None:
    found = problem("a -o x/y/z\nb -o x/w\nc -o x\n")
    assert found == (
        "models.txt:3: would write x, which contains the output of line 1: give one of them -o"
    )
    assert len(read("a -o x/y\nb -o x/yz\nc -o logs-of-mine\nd -o x/logs")) == 4


# --- Cost -----------------------------------------------------------------------------------------


def test_checking_is_light() -> None:
    Path("models.txt").write_text("\n".join(f"m{n} --slim --timeout 5" for n in range(500)))
    code = (
        "import sys; from modelexport_optimum.batches.manifest import read_manifest;"
        "print(len(read_manifest('models.txt', directory='.', defaults={})));"
        "print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    heavy = ["torch", "transformers", "optimum", "onnx", "onnxruntime", "numpy", "huggingface_hub"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["500", "[]"]


def test_providers_are_checked_without_torch() -> None:
    Path("models.txt").write_text("a --provider cpu")
    code = (
        "import sys; from modelexport_optimum.batches.manifest import read_manifest;"
        "read_manifest('models.txt', directory='.', defaults={});"
        "print([m for m in ('torch', 'transformers', 'optimum') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


# --- Repositories on the Hub ----------------------------------------------------------------------


def test_two_lines_are_not_uploaded_to_one_repository() -> None:
    told = "would be uploaded to me/a, like line 1: give one of them another --push-to-hub"
    found = problem("a --push-to-hub me/a\nb --push-to-hub me/b\nc --push-to-hub me/a\n")
    assert found == f"models.txt:3: {told}"
    assert problem("a\nb\n", push_to_hub="me/a") == f"models.txt:2: {told}"
    (job,) = read("a --push-to-hub me/a --public\n")
    assert job.arguments["push_to_hub"] == "me/a"
    assert job.arguments["private"] is False


def test_a_repository_that_cannot_be_is_told_at_once() -> None:
    assert problem("a --push-to-hub a//b\n").startswith(
        "models.txt:1: --push-to-hub 'a//b' is not a name on the Hub"
    )
    assert "--public is for --push-to-hub" in problem("a --public\n")
