"""Code that comes with a model: it leaves a file if it runs, and none is there unless trusted."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub
import onnx
import pytest
import torch
from typer.testing import CliRunner

from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.own_code.guard import own_code_refused
from modelexport_optimum.own_code.named_code import find_own_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    ModelDirectory = Callable[[str], Path]

MARK = "it-ran"
"""The file that planted code leaves in the current directory."""

PLANTED = f"""\
from pathlib import Path
Path({MARK!r}).touch()
from sentence_transformers.models import Normalize
from torch.nn import Tanh

class Evil(Normalize):
    pass
"""


@contextlib.contextmanager
def importable(directory: Path) -> Iterator[None]:
    """Let Python look for modules in a directory.

    pytest's own `syspath_prepend` puts the whole path back, without what libraries have added to it
    for imports of theirs that come later (onnxruntime.transformers).
    """
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(directory) in sys.path:
            sys.path.remove(str(directory))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory, where Python looks for modules, too; and a cache for code."""
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    with importable(current):
        yield current


@pytest.fixture
def bert(place: Path, model_directory: ModelDirectory) -> Path:
    return shutil.copytree(model_directory("bert"), place / "bert")


@pytest.fixture
def sentences(place: Path, model_directory: ModelDirectory) -> Path:
    return shutil.copytree(model_directory("sentence-transformers"), place / "sentences")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def edit(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **entries}))


def plant(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PLANTED)


def last_line(result: Result) -> str:
    return result.stderr.splitlines()[-1]


def ran(place: Path) -> bool:
    """Whether planted code ran, in this process or another; and forget it."""
    found = (place / MARK).exists()
    (place / MARK).unlink(missing_ok=True)
    for name in [name for name in sys.modules if name.partition(".")[0] == "evil_mod"]:
        del sys.modules[name]
    return found


# --- What would run -------------------------------------------------------------------------------


def test_what_names_code(tmp_path: Path) -> None:
    """Every file of every library that names a class, and what they name that is no code."""
    library, st = tmp_path / "sentences", "sentence_transformers.models"
    for folder, content in (
        ("modules.json", [
            {"idx": 0, "name": "0", "path": "", "type": f"{st}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Own", "type": "evil_mod.Evil"},
            {"idx": 2, "name": "2", "path": "2_System", "type": "os.system"},
            {"idx": 3, "name": "3", "path": "3_Exec", "type": "builtins.exec"},
            {"idx": 8, "name": "8", "path": "8_No", "type": "sentence_transformers.util.http_get"},
            {"idx": 9, "name": "9", "path": "9_No", "type": f"{st}.os;import x"},
            {"idx": 4, "name": "4", "path": "4_Dense", "type": f"{st}.Dense"},
            {"idx": 5, "name": "5", "path": "5_Router", "type": f"{st}.Router"},
            {"idx": 6, "name": "6", "path": "6_Fine", "type": f"{st}.Dense"},
            {"idx": 7, "name": "7", "path": "7_Words", "type": f"{st}.Words"},
        ]),
        ("config.json", {"auto_map": {"AutoConfig": "own.Config"}, "tokenizer_class": "Bert"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Slow", None]}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"A": "other/repo--own.P"}}}),
        ("4_Dense/config.json", {"activation_function": "evil_mod.run"}),
        ("5_Router/router_config.json", {"types": {
            "a": "sentence_transformers.models.Dense", "b": "evil_mod.Route",
        }}),
        ("5_Router/a/config.json", {"activation_function": "evil_mod.inner"}),
        ("6_Fine/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}),
        ("7_Words/config.json", {"tokenizer_class": "evil_mod.Tokenizer"}),
        ("custom_generate/generate.py", ""),
    ):  # fmt: skip
        path = library / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    found = {str(one): one.needed for one in find_own_code(library)}
    assert found == {
        "own.Config in config.json": False,
        "own.Slow in tokenizer_config.json": False,
        "other/repo--own.P in processor_config.json": False,
        "generate in custom_generate/generate.py": False,
        "evil_mod.Evil in modules.json": True,
        "os.system in modules.json": True,
        "builtins.exec in modules.json": True,
        "sentence_transformers.util.http_get in modules.json": True,
        "sentence_transformers.models.os;import x in modules.json": True,
        "evil_mod.run in 4_Dense/config.json": True,
        "evil_mod.Route in 5_Router/router_config.json": True,
        "evil_mod.inner in 5_Router/a/config.json": True,
        "evil_mod.Tokenizer in 7_Words/config.json": True,
    }
    # transformers alone does not look at the modules of another library.
    assert not any(one.needed for one in find_own_code(library, "transformers"))

    pipeline = tmp_path / "pipeline"
    plant(pipeline / "unet" / "diffusers.py", pipeline / "vae" / "own_vae.py", pipeline / "None.py")
    edit(
        pipeline / "model_index.json",
        _class_name=["own_pipeline", "Pipeline"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["own_vae", "VAE"],
        text_encoder=["transformers", "CLIPTextModel"],
        scheduler=["evil_mod", "Scheduler"],
        tokenizer=["os", "system"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=[None, None],
    )
    assert {str(one) for one in find_own_code(pipeline)} == {
        "own_pipeline.Pipeline in model_index.json",
        "None in None.py",
        "diffusers.UNet2DConditionModel in unet/diffusers.py",
        "own_vae.VAE in vae/own_vae.py",
        "evil_mod.Scheduler in model_index.json",
        "os.system in model_index.json",
    }


@pytest.mark.parametrize(
    "name", ["bert", "sentence-transformers", "stable-diffusion", "custom-code"]
)
def test_models_of_the_zoo(name: str, model_directory: ModelDirectory) -> None:
    found = [str(one) for one in find_own_code(model_directory(name))]
    odd = "modeling_odd.OddForSequenceClassification in config.json"
    assert found == ([odd] if name == "custom-code" else [])


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc"])
def test_modules_outside_of_the_model(place: Path, sentences: Path, folder: str) -> None:
    modules = json.loads((sentences / "modules.json").read_text())
    modules[1]["path"] = folder
    (sentences / "modules.json").write_text(json.dumps(modules))
    result = run(sentences, "-o", "out")
    assert result.exit_code == 1
    assert "outside of the model's directory" in last_line(result)
    assert not (place / "out").exists()


# --- The guard ------------------------------------------------------------------------------------


def test_the_guard(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library tries: no file of the model or of the caches is executed."""
    cache = tmp_path / "modules"
    monkeypatch.setenv("HF_MODULES_CACHE", str(cache))
    plant(place / "evil_mod.py", cache / "evil_mod" / "cached.py", place / "evil_mod2.py")
    py_compile.compile(str(place / "evil_mod2.py"), cfile=str(place / "evil_mod3.pyc"))
    (place / "evil_mod4.so").write_bytes(b"")

    def executed(file: Path) -> None:
        spec = importlib.util.spec_from_file_location("evil_mod.dynamic", file)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    attempts: dict[str, Callable[[], Any]] = {
        "evil_mod.py": lambda: importlib.import_module("evil_mod"),
        "evil_mod3.pyc": lambda: importlib.import_module("evil_mod3"),
        "evil_mod4.so": lambda: importlib.import_module("evil_mod4"),
        "cached.py": lambda: executed(cache / "evil_mod" / "cached.py"),
    }
    with own_code_refused(place, trusted=False), own_code_refused(None, trusted=False):
        for file, attempt in attempts.items():
            with pytest.raises(ModelExportError, match=f"{file} came with a model and was not run"):
                attempt()
        importlib.reload(importlib.import_module("colorsys"))  # what is installed runs
    assert not ran(place)
    attempts["evil_mod.py"]()
    assert ran(place)
    with own_code_refused(place, trusted=True):
        attempts["cached.py"]()
    assert ran(place)


def test_packages_installed_within_the_directory(place: Path) -> None:
    """A project's own environment may lie where its model does."""
    packages = place / ".venv" / "site-packages"
    plant(packages / "evil_mod.py")
    with importable(packages), own_code_refused(place, trusted=False):
        importlib.import_module("evil_mod")
    assert ran(place)


class Pickled:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, (f"touch {MARK}",)


def test_checkpoints_are_weights_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a library that asks PyTorch for more, as timm does."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"weight": Pickled()}, "weights.bin")
    with (
        own_code_refused(None, trusted=False),
        pytest.raises(pickle.UnpicklingError, match="Weights only load failed"),
    ):
        torch.load("weights.bin", weights_only=False)
    assert not ran(place)
    torch.load("weights.bin", weights_only=False)
    assert ran(place)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# --- Each library ---------------------------------------------------------------------------------


def test_transformers(place: Path, bert: Path) -> None:
    """A class of its own where transformers has one, too: that is used, and the run says so."""
    plant(*(bert / f"{name}.py" for name in ("own_model", "own_tokenizer", "own_image")))
    plant(bert / "custom_generate" / "generate.py")
    edit(bert / "config.json", auto_map={"AutoModelForMaskedLM": "own_model.Evil"})
    edit(bert / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own_tokenizer.Evil", None]})
    edit(bert / "preprocessor_config.json", auto_map={"AutoImageProcessor": "own_image.Evil"})
    result = run(bert, "-o", "out", "--task", "fill-mask", "--provider", "cpu", "--json")
    # What could not be loaded is not in the export, and the check of files says so.
    assert result.exit_code == 3, result.stderr
    checks = json.loads(result.stdout)["verification"]["checks"]
    failed = [check for check in checks if check["status"] == "failed"]
    assert [check["name"] for check in failed] == ["files"]
    assert "preprocessor_config.json" in failed[0]["message"]
    assert not ran(place)
    (warning,) = json.loads(result.stdout)["warnings"]
    assert warning == (
        "the model has code of its own, which was not run (own_model.Evil in config.json, "
        "own_tokenizer.Evil in tokenizer_config.json, own_image.Evil in preprocessor_config.json "
        "and 1 more): read it, then add --trust-remote-code"
    )
    # The same on the export, for what loads it.
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        edit(place / "out" / name, auto_map=json.loads((bert / name).read_text())["auto_map"])
    plant(*(place / "out" / file.name for file in bert.glob("own_*.py")))
    assert run("strip", "out").exit_code == 0
    for command in ("tag", "verify", "inspect"):
        result = run(command, "out", *(["--provider", "cpu"] if command == "verify" else []))
        assert result.exit_code == 0, result.output
        if command == "tag":
            assert "which was not run (own_model.Evil" in " ".join(result.stdout.split())
    assert run("diff", "out", "out").exit_code == 0
    assert not ran(place)


def test_configuration_of_transformers(place: Path, bert: Path, exported: ModelDirectory) -> None:
    """Nothing of transformers' can stand for it: refused, in one line."""
    plant(bert / "own_config.py")
    edit(bert / "config.json", auto_map={"AutoConfig": "own_config.Evil"}, model_type="odd")
    export = shutil.copytree(exported("bert"), place / "export")
    for arguments in (
        (bert, "-o", "out", "--task", "fill-mask"),
        ("tag", export, "--model", bert),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert last_line(result).endswith(
            "bert has code of its own, which was not run (own_config.Evil in config.json): "
            "read it, then add --trust-remote-code"
        )
    assert not ran(place)
    assert not (place / "out").exists()
    run(bert, "-o", "out", "--task", "fill-mask", "--trust-remote-code")
    assert ran(place)


def test_sentence_transformers(place: Path, sentences: Path, exported: ModelDirectory) -> None:
    """The library imports any name, from the model's directory and from the current one."""
    export = shutil.copytree(exported("sentence-transformers"), place / "export")
    modules = json.loads((sentences / "modules.json").read_text())
    modules[-1]["type"] = "evil_mod.Evil"
    (sentences / "modules.json").write_text(json.dumps(modules))
    for file in (sentences / "evil_mod.py", place / "evil_mod.py"):
        plant(file)
        before = (export / "model.onnx").read_bytes()
        for arguments in ((sentences, "-o", "out"), ("tag", export, "--model", sentences)):
            result = run(*arguments)
            assert result.exit_code == 1, result.output
            assert last_line(result).endswith(
                "sentences has code of its own, which was not run "
                "(evil_mod.Evil in modules.json): read it, then add --trust-remote-code"
            )
        assert not ran(place)
        assert not (place / "out").exists()
        assert (export / "model.onnx").read_bytes() == before
        result = run("tag", export, "--model", sentences, "--trust-remote-code")
        assert result.exit_code == 0, result.output
        assert ran(place)
        file.unlink()


def test_sentence_transformers_as_another_library(place: Path, sentences: Path) -> None:
    """Nobody imports what modules.json names when transformers loads the model."""
    plant(sentences / "evil_mod.py")
    modules = json.loads((sentences / "modules.json").read_text())
    modules[-1]["type"] = "evil_mod.Evil"
    (sentences / "modules.json").write_text(json.dumps(modules))
    arguments = ("--library-name", "transformers", "--task", "feature-extraction")
    result = run(sentences, "-o", "out", *arguments, "--provider", "cpu")
    assert "which was not run" not in result.stderr
    assert not ran(place)
    assert (place / "out" / "model.onnx").exists(), result.output


@pytest.mark.parametrize("kind", ["component", "file", "shadow", "pipeline", "default"])
def test_diffusers(place: Path, model_directory: ModelDirectory, kind: str) -> None:
    """The library imports a component's file from a local directory without asking."""
    model = shutil.copytree(model_directory("stable-diffusion"), place / "model")
    file, entries = {
        "component": (place / "evil_mod.py", {"scheduler": ["evil_mod", "Evil"]}),
        "file": (model / "unet" / "evil_mod.py", {"unet": ["evil_mod", "Evil"]}),
        "shadow": (model / "unet" / "diffusers.py", {}),
        "pipeline": (model / "evil_mod.py", {"_class_name": ["evil_mod", "Evil"]}),
        "default": (model / "None.py", {}),
    }[kind]
    plant(file)
    edit(model / "model_index.json", **entries)
    result = run(model, "-o", "out", "--task", "text-to-image")
    assert result.exit_code == 1, result.output
    assert "has code of its own, which was not run" in last_line(result)
    result = run("tag", place / "model", "--model", model)
    assert result.exit_code != 0
    assert not ran(place)
    if kind in ("component", "file", "shadow"):  # Optimum knows no pipelines but diffusers'
        run(model, "-o", "out", "--task", "text-to-image", "--trust-remote-code")
        assert ran(place)


def test_verify_of_a_pipeline(place: Path, exported: ModelDirectory) -> None:
    """Optimum imports the library of each component that an export names."""
    export = shutil.copytree(exported("stable-diffusion"), place / "export")
    plant(place / "evil_mod.py")
    edit(export / "model_index.json", scheduler=["evil_mod", "Evil"])
    result = run("verify", export, "--provider", "cpu")
    assert result.exit_code == 3
    assert "evil_mod.Evil in model_index.json" in " ".join(result.stdout.split())
    assert not ran(place)
    run("verify", export, "--provider", "cpu", "--trust-remote-code")
    assert ran(place)


@pytest.mark.parametrize("library", ["transformers", "sentence_transformers"])
def test_pickled_weights(place: Path, bert: Path, sentences: Path, library: str) -> None:
    """Refused in one line, and whoever trusts a model's code still has only weights unpickled."""
    if library == "transformers":
        model, weights = bert, bert / "pytorch_model.bin"
    else:
        (model,) = {sentences}
        weights = next(sentences.glob("*_Dense")) / "pytorch_model.bin"
    weights.with_name("model.safetensors").unlink()
    torch.save({"linear.weight": Pickled(), "linear.bias": Pickled()}, weights)
    task = ("--task", "fill-mask") if library == "transformers" else ()
    for trust in ((), ("--trust-remote-code",)):
        result = run(model, "-o", "out", *task, *trust)
        assert result.exit_code == 1, result.output
        assert last_line(result).endswith(
            f"{model.name} has a checkpoint that is a pickle with more than weights "
            "(posix.system), which was not run: save it as safetensors where it is from"
        )
        assert not ran(place)


def test_names_of_axes(place: Path, exported: ModelDirectory) -> None:
    """Optimum evaluates them where it binds outputs to a device, as it does on CUDA."""
    from optimum.onnxruntime import ORTModelForMaskedLM

    from modelexport_optimum.verifying.axis_names import refuse_evaluated_axes

    export = shutil.copytree(exported("bert"), place / "export")
    model = onnx.load(export / "model.onnx")
    axis = model.graph.output[0].type.tensor_type.shape.dim[1]
    for name, harmless in (
        ("batch_size", True),
        ("past_sequence_length + sequence_length", True),
        ("height_latent // 8 - 2*(-width)", True),
        ("unk__0 of a graph", True),
        (f"__import__('os').system('touch {MARK}') or 4", False),
        ("exit()", False),
        ("9**9**9**9", False),
        ("[x for x in ()]", False),
        ("(lambda: 4)()", False),
    ):
        axis.dim_param = name
        onnx.save(model, export / "model.onnx")
        bound = ORTModelForMaskedLM.from_pretrained(export, use_io_binding=True)
        if harmless:
            refuse_evaluated_axes(bound.session)
            continue
        with pytest.raises(ModelExportError, match="would run the name of an axis"):
            refuse_evaluated_axes(bound.session)
        if MARK in name:  # that it is no invented danger
            ids = torch.ones(1, 4, dtype=torch.long)
            bound(input_ids=ids, attention_mask=ids, token_type_ids=ids)
            assert ran(place)


# --- Names of classes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pipeline", "logging", "AutoTokenizer", "BertConfig", "os", ["x"]]
)
def test_an_architecture_that_is_no_model(place: Path, exported: ModelDirectory, name: Any) -> None:
    """Of all that a package has, only models are meant."""
    from modelexport_optimum.module_trees.model_classes import candidates

    export = shutil.copytree(exported("bert"), place / "export")
    edit(export / "config.json", architectures=[name])
    assert all(issubclass(one.model_class, torch.nn.Module) for one in candidates(export))
    assert [one.model_class.__name__ for one in candidates(export)]
    edit(export / "config.json", _class_name=name)
    assert candidates(export) == []


# --- Workers, and the current directory -----------------------------------------------------------


def test_batch_beside_files_named_like_libraries(place: Path, sentences: Path, bert: Path) -> None:
    """A batch's workers keep the rule, and none of its processes takes a file for a library."""
    modules = json.loads((sentences / "modules.json").read_text())
    modules[-1]["type"] = "evil_mod.Evil"
    (sentences / "modules.json").write_text(json.dumps(modules))
    plant(sentences / "evil_mod.py", place / "evil_mod.py", bert / "own_model.py")
    edit(bert / "config.json", auto_map={"AutoModelForMaskedLM": "own_model.Evil"})
    libraries = ("torch", "onnx", "transformers", "typer", "rich", "huggingface_hub", "numpy")
    plant(*(place / f"{name}.py" for name in libraries))
    (place / "models.txt").write_text("sentences\nbert --task fill-mask --provider cpu\n")
    done = subprocess.run(
        [sys.executable, "-m", "modelexport_optimum", "batch", "models.txt", "-o", "exports"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    records = [json.loads(line) for line in (place / "exports" / "results.jsonl").open()]
    errors = {Path(record["model"]).name: record["error"] for record in records}
    assert errors["bert"] is None
    assert "bert: the model has code of its own, which was not run (own_model.Evil" in done.stderr
    assert errors["sentences"].endswith(
        "has code of its own, which was not run (evil_mod.Evil in modules.json): "
        "read it, then add --trust-remote-code"
    )
    assert not ran(place)


# --- Names on the Hub -----------------------------------------------------------------------------


def test_names_on_the_hub(place: Path, sentences: Path) -> None:
    """By name, and by name from the cache when nobody asks the Hub."""
    modules = json.loads((sentences / "modules.json").read_text())
    modules[-1]["type"] = "evil_mod.Evil"
    (sentences / "modules.json").write_text(json.dumps(modules))
    plant(sentences / "evil_mod.py", place / "evil_mod.py")
    command = ["team/sentences", "-o", "out"]
    commands = [command, [*command, "--local-files-only"]]
    with hub.serving({"team/sentences": sentences}) as endpoint:
        results = hub.run_commands(commands, place, endpoint)
    results += hub.run_commands([command], place, endpoint, HF_HUB_OFFLINE="1")
    for result in results:
        assert result["exit"] == 1, result
        line = result["stderr"].splitlines()[-1]
        assert "team/sentences has code of its own, which was not run (evil_mod.Evil in " in line
    assert len(results) == 3
    assert not ran(place)
