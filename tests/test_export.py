"""`export()`: one run, from a model to a published directory."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from forked_python import ForkedPython
from needs import POSIX
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForSequenceClassification

from modelexport_optimum import ModelExportError, UsageError, export, read_hierarchy
from modelexport_optimum.exporting import staging
from modelexport_optimum.system import locks, signals
from modelexport_optimum.tags.tag_grammar import parse_tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelexport_optimum import ExportResult

    ModelDirectory = Callable[[str], Path]

CPU = ["cpu"]
ENDS = {signal.SIGTERM: SystemExit(128 + signal.SIGTERM), signal.SIGINT: KeyboardInterrupt()}
"""What is raised in a run that gets the signal."""


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def tiny_bert(**config: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 320,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        **config,
    }
    return BertForSequenceClassification(BertConfig(**settings))


# --- The run --------------------------------------------------------------------------------------


SESSIONS: list[object] = []
"""What `run` opened sessions of ONNX Runtime for."""

FLUSHED: list[int] = []
"""The inodes that `run` flushed to the disk."""


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, model_directory: ModelDirectory
) -> tuple[ExportResult, list[tuple[str, float | None]]]:
    """A checkpoint of BertForMaskedLM exported for another task, and the progress told."""
    told: list[tuple[str, float | None]] = []
    create = onnxruntime.InferenceSession.__init__

    def counted(*args: Any, **kwargs: Any) -> None:
        SESSIONS.append(args[1])
        create(*args, **kwargs)

    flush = os.fsync

    def noted(descriptor: int) -> None:
        FLUSHED.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    gc.unfreeze()  # as in a process of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", noted)
        patch.setattr(onnxruntime.InferenceSession, "__init__", counted)
        result = export(
            model_directory("bert"),
            tmp_path_factory.mktemp("run") / "out",
            task="text-classification",
            providers=CPU,
            progress=lambda stage, seconds: told.append((stage, seconds)),
        )
    return result, told


def test_output_is_whole(run: tuple[ExportResult, Any]) -> None:
    result, _ = run
    assert result.ok
    assert names(result.output.parent) == {"out"}
    assert {"model.onnx", "config.json", "tokenizer.json"} <= names(result.output)
    sizes = {path.name: path.stat().st_size for path in result.output.iterdir()}
    assert result.files == sizes
    assert result.output.stat().st_mode & 0o777 == 0o777 & ~current_umask()
    onnx.checker.check_model(result.output / "model.onnx", full_check=True)


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_garbage_collector_is_left_as_it_was(run: tuple[ExportResult, Any]) -> None:
    assert run[0].ok
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@POSIX
def test_what_is_published_is_flushed_and_nothing_else(run: tuple[ExportResult, Any]) -> None:
    output = run[0].output
    assert set(FLUSHED) == {path.stat().st_ino for path in (output, *output.rglob("*"))}


@POSIX
def test_disk_that_fails_before_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    output = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(ModelExportError, match=r"cannot write .* to the disk: Input/output error"),
        staging.staging_directory(output) as directory,
        staging.flushed_meanwhile(directory),
    ):
        (directory / "config.json").write_text("{}")
    assert names(tmp_path) == set()


def test_one_session_serves_the_comparison_and_the_check(run: tuple[ExportResult, Any]) -> None:
    assert run[0].comparison.status == "ok"
    assert len(SESSIONS) == 1


def test_result_tells_what_was_done(run: tuple[ExportResult, Any]) -> None:
    result, _ = run
    assert result.task == "text-classification"
    assert result.comparison.status == "ok"
    assert result.tags.node_count == sum(result.tags.evidence_counts.values()) > 100
    assert [file.file for file in result.tags.files] == [result.output / "model.onnx"]
    assert result.verification.directory == result.output
    assert [each.status for each in result.verification.providers] == ["ok"]
    document = json.dumps(result.to_dict())
    assert "staging" not in document
    assert json.loads(document)["output"] == str(result.output)


def test_stages_are_told_in_order(run: tuple[ExportResult, list[tuple[str, float | None]]]) -> None:
    result, told = run
    stages = ["import", "load", "export", "tag", "compare", "check"]
    assert [stage for stage, seconds in told if seconds is None] == stages
    assert [stage for stage, seconds in told if seconds is not None] == stages
    assert list(result.stages) == stages
    assert all(seconds >= 0 for seconds in result.stages.values())


def test_random_weights_are_told(run: tuple[ExportResult, Any]) -> None:
    (warning,) = run[0].warnings
    assert "BertForSequenceClassification" in warning
    assert "classifier.weight" in warning


def test_config_names_the_exported_class(run: tuple[ExportResult, Any]) -> None:
    config = json.loads((run[0].output / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    metadata = config["htp_metadata"]
    tags = {node.tag for node in read_hierarchy(run[0].output)}
    named = {module for tag in tags for module in parse_tag(tag) or ()}
    assert metadata["hierarchy_modules"] == len(named)
    assert metadata["module_types"] == sorted({name for _, name in named})
    assert metadata["export_strategy"] == "htp"


def test_transformers_loads_the_config(run: tuple[ExportResult, Any]) -> None:
    config = AutoConfig.from_pretrained(run[0].output)
    assert config.model_type == "bert"
    assert config.num_labels == 2
    assert AutoTokenizer.from_pretrained(run[0].output)("hello").input_ids


def test_tags_begin_with_the_exported_class(run: tuple[ExportResult, Any]) -> None:
    assert {node.tag.split("/")[1] for node in read_hierarchy(run[0].output)} == {
        "BertForSequenceClassification"
    }


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "fill-mask"),
        ("gpt2", "text-generation-with-past"),
        ("vit", "image-classification"),
        ("distilbert", "question-answering"),
        ("bart", "text2text-generation-with-past"),
        ("clip", "zero-shot-image-classification"),
        ("sentence-transformers", "feature-extraction"),
        ("stable-diffusion", "text-to-image"),
    ],
)
def test_task_of_a_directory_is_found(
    tmp_path: Path, model_directory: ModelDirectory, name: str, task: str
) -> None:
    result = export(model_directory(name), tmp_path / "out", providers=CPU)
    assert result.task == task
    assert result.ok


# --- Options that reach Optimum -------------------------------------------------------------------


def exported_with(source: Path, output: Path, **options: Any) -> onnx.ModelProto:
    export(source, output, providers=CPU, **options)
    return onnx.load(output / "model.onnx", load_external_data=False)


def test_opset(tmp_path: Path, model_directory: ModelDirectory) -> None:
    model = exported_with(model_directory("bert"), tmp_path / "out", opset=17)
    assert model.opset_import[0].version == 17


def test_fixed_shapes(tmp_path: Path, model_directory: ModelDirectory) -> None:
    model = exported_with(
        model_directory("bert"),
        tmp_path / "out",
        no_dynamic_axes=True,
        batch_size=3,
        sequence_length=7,
    )
    shape = model.graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [3, 7]


def test_optimize(tmp_path: Path, model_directory: ModelDirectory) -> None:
    model = exported_with(
        model_directory("bert"), tmp_path / "out", task="feature-extraction", optimize="O2"
    )
    assert any(node.domain == "com.microsoft" for node in model.graph.node)


def test_subfolder(tmp_path: Path, model_directory: ModelDirectory) -> None:
    shutil.copytree(model_directory("bert"), tmp_path / "repository" / "small")
    export(tmp_path / "repository", tmp_path / "out", subfolder="small", providers=CPU)
    assert {"model.onnx", "tokenizer.json"} <= names(tmp_path / "out")


def test_files_of_an_encoder_decoder(tmp_path: Path, model_directory: ModelDirectory) -> None:
    merged = export(model_directory("t5"), tmp_path / "merged", providers=CPU)
    assert merged.ok
    assert merged.task == "text2text-generation-with-past"
    assert {file.file.name for file in merged.tags.files} >= {
        "decoder_model_merged.onnx",
        "encoder_model.onnx",
    }
    apart = export(
        model_directory("t5"),
        tmp_path / "apart",
        no_post_process=True,
        providers=CPU,
        task="text2text-generation-with-past",
    )
    assert "decoder_model_merged.onnx" not in apart.files
    whole = export(
        model_directory("t5"),
        tmp_path / "whole",
        monolith=True,
        providers=CPU,
        task="text2text-generation",
    )
    assert [file.file.name for file in whole.tags.files] == ["model.onnx"]


def test_external_data(
    tmp_path: Path, model_directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    result = export(model_directory("bert"), tmp_path / "out", providers=CPU)
    assert result.ok
    assert result.files["model.onnx_data"] > 10_000


def test_custom_code(tmp_path: Path, model_directory: ModelDirectory) -> None:
    result = export(
        model_directory("custom-code"),
        tmp_path / "out",
        task="text-classification",
        trust_remote_code=True,
        providers=CPU,
    )
    assert result.tags.files[0].module_class == "OddForSequenceClassification"
    assert result.tags.files[0].classes_known
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["OddForSequenceClassification"]


@pytest.mark.parametrize("name", ["dtyp", "batchsize", "overwrit"])
def test_option_that_optimum_has_not(
    tmp_path: Path, model_directory: ModelDirectory, name: str
) -> None:
    for model in (model_directory("bert"), tiny_bert()):
        with pytest.raises(UsageError, match=f"option {name} is unknown to Optimum's"):
            export(model, tmp_path / "out", **{name: 1})
    assert names(tmp_path) == set()


def test_tolerance_that_is_asked_for(tmp_path: Path, model_directory: ModelDirectory) -> None:
    result = export(model_directory("bert"), tmp_path / "out", atol=1e-12, providers=CPU)
    assert not result.ok
    assert result.comparison.status == "failed"
    assert "max diff" in result.comparison.message
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_optimums_own_tolerance_is_a_warning(
    tmp_path: Path, model_directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.exporters.onnx.model_configs import BertOnnxConfig

    monkeypatch.setattr(BertOnnxConfig, "ATOL_FOR_VALIDATION", 1e-12)
    result = export(model_directory("bert"), tmp_path / "out", providers=CPU)
    assert result.ok
    assert result.comparison.status == "differs"


# --- A model in memory ----------------------------------------------------------------------------


def test_model_changed_in_python(tmp_path: Path, model_directory: ModelDirectory) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(model_directory("bert"))
    with torch.no_grad():
        model.cls.predictions.bias += 100
    tokenizer = AutoTokenizer.from_pretrained(model_directory("bert"))
    result = export(model, tmp_path / "out", preprocessors=tokenizer, providers=CPU)
    assert result.ok
    assert (result.model, result.task) == ("BertForMaskedLM", "fill-mask")
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(
        "a small test", return_tensors="pt", return_token_type_ids=True
    )
    with torch.no_grad():
        expected = model.eval()(**batch).logits.numpy()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
    assert found.min() > 90
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_model_never_saved(tmp_path: Path) -> None:
    result = export(
        tiny_bert(num_labels=5), tmp_path / "out", task="text-classification", providers=CPU
    )
    assert result.ok
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"].keys() == set(
        "01234"
    )


def test_class_of_ones_own(tmp_path: Path) -> None:
    class Mine(BertForSequenceClassification):
        """Derived in a script, as transformers cannot know."""

    result = export(Mine(tiny_bert().config), tmp_path / "out", providers=CPU)
    assert result.ok
    assert result.task == "text-classification"
    assert result.tags.files[0].module_class == "Mine"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_model_in_memory_stays_as_it_was(tmp_path: Path, model_directory: ModelDirectory) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_directory("gpt2")).train()
    model.transformer.h[0].eval()
    config = model.config.to_dict()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tmp_path / "out", providers=CPU)
    assert model.config.to_dict() == config
    assert model.training
    assert not model.transformer.h[0].mlp.training
    assert model.transformer.h[1].mlp.training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_sentence_transformer_in_memory(tmp_path: Path, model_directory: ModelDirectory) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_directory("sentence-transformers")), device="cpu")
    result = export(model, tmp_path / "out", preprocessors=model.tokenizer, providers=CPU)
    assert result.ok
    assert (result.model, result.task) == ("SentenceTransformer", "feature-extraction")
    assert result.tags.files[0].module_class == "SentenceTransformer"


def test_pipeline_in_memory(tmp_path: Path, model_directory: ModelDirectory) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model_directory("stable-diffusion"))
    result = export(pipeline, tmp_path / "out", providers=CPU)
    assert result.ok
    assert (result.model, result.task) == ("StableDiffusionPipeline", "text-to-image")
    assert {file.module_class for file in result.tags.files} == {
        "AutoencoderKL",
        "CLIPTextModel",
        "UNet2DConditionModel",
    }


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a Linear cannot be exported: give a name"):
        export(torch.nn.Linear(2, 2), tmp_path / "out", task="feature-extraction")
    assert names(tmp_path) == set()


# --- The output -----------------------------------------------------------------------------------


def test_overwrite_replaces_everything(tmp_path: Path, model_directory: ModelDirectory) -> None:
    output = tmp_path / "out"
    export(model_directory("bert"), output, providers=CPU)
    (output / "left over").write_text("from before")
    with pytest.raises(UsageError, match="exists and is not empty"):
        export(model_directory("vit"), output, providers=CPU)
    assert "left over" in names(output)
    export(model_directory("vit"), output, overwrite=True, providers=CPU)
    assert "left over" not in names(output)
    assert json.loads((output / "config.json").read_text())["model_type"] == "vit"
    assert names(tmp_path) == {"out"}


def test_failure_keeps_the_old_output(tmp_path: Path, model_directory: ModelDirectory) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text("{}")
    with pytest.raises(ModelExportError):
        export(model_directory("bert"), output, task="image-classification", overwrite=True)
    assert names(output) == {"config.json"}
    assert names(tmp_path) == {"out"}


def test_empty_directory_is_taken(tmp_path: Path, model_directory: ModelDirectory) -> None:
    (tmp_path / "out").mkdir()
    assert export(model_directory("bert"), tmp_path / "out", providers=CPU).ok


def test_output_below_the_model(tmp_path: Path, model_directory: ModelDirectory) -> None:
    shutil.copytree(model_directory("bert"), tmp_path / "bert")
    assert export(tmp_path / "bert", tmp_path / "bert" / "onnx", providers=CPU).ok


def test_output_that_appears_meanwhile(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with (
        pytest.raises(ModelExportError, match="was written by another program"),
        staging.staging_directory(output) as directory,
    ):
        output.mkdir()
        (output / "theirs").touch()
        staging.publish(directory, output, overwrite=False)
    assert names(tmp_path) == {"out"}
    assert names(output) == {"theirs"}


@pytest.mark.parametrize("swaps", [True, False])
def test_publishing_over_an_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:  # a file system that cannot exchange two names, as NFS
        monkeypatch.setattr(staging, "exchange", lambda *_: False)
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").touch()
    with staging.staging_directory(output) as directory:
        (directory / "new").touch()
        staging.publish(directory, output, overwrite=True)
    assert names(output) == {"new"}
    assert names(tmp_path) == {"out"}


def test_abandoned_staging_is_removed_and_a_live_one_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".out.staging-dead"
    left.mkdir()
    (left / "model.onnx").touch()
    (tmp_path / ".out.staging.lock").touch()
    with staging.staging_directory(tmp_path / "out") as alive:
        assert not left.exists()
        staging.remove_abandoned(tmp_path / "out")
        assert alive.exists()
    assert names(tmp_path) == set()
    left.mkdir()
    (tmp_path / ".out.staging.lock").touch()
    staging.remove_abandoned(tmp_path / "out")
    assert names(tmp_path) == set()


def test_second_run_to_an_output_is_refused_before_it_does_anything(
    tmp_path: Path, model_directory: ModelDirectory
) -> None:
    output = tmp_path / "out"
    stages: list[str] = []
    with staging.staging_directory(output) as first:
        with pytest.raises(ModelExportError, match="is being written by another run"):
            export(model_directory("bert"), output, progress=lambda name, _: stages.append(name))
        (first / "config.json").touch()
        staging.publish(first, output, overwrite=False)
    assert stages == []
    assert names(tmp_path) == {"out"}
    assert names(output) == {"config.json"}


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("fate", ["swallowed", "replaced"])
def test_signal_that_is_lost_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(signals, "_AGAIN_SECONDS", 0.05)

    def run() -> None:
        with staging.staging_directory(tmp_path / "out"):
            try:
                os.kill(os.getpid(), number)
                time.sleep(120)
            except BaseException as error:
                if fate == "replaced":
                    raise ImportError("a library's") from error
            time.sleep(120)

    started = time.monotonic()
    with pytest.raises(type(ENDS[number])) as raised:
        run()
    assert raised.value.args == ENDS[number].args
    assert time.monotonic() - started < 100
    assert names(tmp_path) == set()
    assert signal.getsignal(number) == before


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object, **__: object) -> None:  # as Lustre mounted without `flock`
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("filelock.lock_descriptor", no_locks)
    with staging.staging_directory(tmp_path / "out") as one:
        (one / "model.onnx").touch()
        with staging.staging_directory(tmp_path / "out"):
            assert one.exists()
        staging.publish(one, tmp_path / "out", overwrite=False)
    assert names(tmp_path) == {"out"}


@POSIX
def test_lock_that_its_owner_removes(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = locks.lock(path)
    assert first is not None
    assert locks.lock(path) is None
    path.unlink()
    second = locks.lock(path)
    assert second is not None
    os.close(first)
    os.close(second)
    assert locks.lock(path) is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", ENDS)
def test_signal_that_was_lost_publishes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    class Lost:
        def __del__(self) -> None:  # Python prints what is raised in a destructor, and goes on
            signal.raise_signal(number)

    with (
        pytest.raises(type(ENDS[number])) as left,
        staging.staging_directory(tmp_path / "out") as directory,
    ):
        (directory / "model.onnx").touch()
        Lost()
        staging.publish(directory, tmp_path / "out", overwrite=False)
    assert left.value.args == ENDS[number].args
    assert names(tmp_path) == set()

    with staging.staging_directory(tmp_path / "out") as directory:
        staging.publish(directory, tmp_path / "out", overwrite=False)
    assert names(tmp_path) == {"out"}


def test_killed_run_leaves_nothing_that_looks_finished(
    tmp_path: Path, model_directory: ModelDirectory, python_server: Path
) -> None:
    command = ["-m", "modelexport_optimum", model_directory("bert"), "-o", "out"]
    terminated, killed = tmp_path / "terminated", tmp_path / "killed"
    processes = {}
    try:
        for place in (terminated, killed):
            place.mkdir()
            with Path(os.devnull).open("w") as nothing:
                processes[place] = ForkedPython(
                    python_server, command, cwd=place, stdout=nothing, stderr=nothing
                )
        signals = {terminated: signal.SIGTERM, killed: signal.SIGKILL}
        deadline = time.monotonic() + 240
        while signals:
            for place in list(signals):
                if list(place.glob(".out.staging-*/config.json")):
                    processes[place].send_signal(signals.pop(place))
                else:
                    assert processes[place].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        statuses = {place: process.wait(240) for place, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert statuses == {terminated: 128 + signal.SIGTERM, killed: -signal.SIGKILL}
    assert names(terminated) == set()
    lock, directory = sorted(names(killed), key=len)
    assert directory.startswith(".out.staging-")
    assert lock == ".out.staging.lock"
    assert export(model_directory("bert"), killed / "out", providers=CPU).ok
    assert names(killed) == {"out"}
