"""`verify()`: what passes, what fails with which words, and what a machine lacks.

The exports are real, made by Optimum from the models of the zoo; faults are made in copies.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import pytest

from modelexport_optimum import tag, verify
from modelexport_optimum.errors import UsageError
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import Tensor
from modelexport_optimum.providers.choice import Provider
from modelexport_optimum.providers.messages import log_reason
from modelexport_optimum.verifying import described_model
from modelexport_optimum.verifying.export_reader import read_exported
from modelexport_optimum.verifying.ort_classes import find_loader
from modelexport_optimum.verifying.provider_run import run
from modelexport_optimum.verifying.providers import _LACKING, make_plan
from modelexport_optimum.verifying.verify import Check, VerifyReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Exported = Callable[[str], Path]

CPU, CUDA, TENSORRT, AZURE = (
    f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt", "Azure")
)

# fmt: off
# A model of the zoo, its task, the class that Optimum's users load it with, what that class runs.
RUNS = [
    ("bert", "fill-mask", "ORTModelForMaskedLM", "forward"),
    ("bert-fp16", "fill-mask", "ORTModelForMaskedLM", "forward"),
    ("bert-fresh", "feature-extraction", "ORTModelForFeatureExtraction", "forward"),
    ("clip-vision", "feature-extraction", "ORTModelForFeatureExtraction", "forward"),
    ("distilbert", "question-answering", "ORTModelForQuestionAnswering", "forward"),
    ("albert", "text-classification", "ORTModelForSequenceClassification", "forward"),
    ("deberta-v2", "token-classification", "ORTModelForTokenClassification", "forward"),
    ("roberta", "multiple-choice", "ORTModelForMultipleChoice", "forward"),
    ("gpt2", "text-generation-with-past", "ORTModelForCausalLM", "generate"),
    ("gpt2-no-past", "text-generation", "ORTModelForCausalLM", "generate"),
    ("t5", "text2text-generation-with-past", "ORTModelForSeq2SeqLM", "generate"),
    ("mt5", "text2text-generation", "ORTModelForSeq2SeqLM", "generate"),
    ("whisper", "automatic-speech-recognition-with-past", "ORTModelForSpeechSeq2Seq", "generate"),
    ("vit-gpt2", "image-to-text-with-past", "ORTModelForVision2Seq", "generate"),
    ("wav2vec2", "automatic-speech-recognition", "ORTModelForCTC", "forward"),
    ("hubert", "audio-classification", "ORTModelForAudioClassification", "forward"),
    ("unispeech-sat", "audio-frame-classification", "ORTModelForAudioFrameClassification",
     "forward"),
    ("wavlm", "audio-xvector", "ORTModelForAudioXVector", "forward"),
    ("vit", "image-classification", "ORTModelForImageClassification", "forward"),
    ("segformer", "semantic-segmentation", "ORTModelForSemanticSegmentation", "forward"),
    ("mobilevit", "image-segmentation", "ORTModelForSemanticSegmentation", "forward"),
    ("swin2sr", "image-to-image", "ORTModelForImageToImage", "forward"),
    ("clip", "zero-shot-image-classification", "ORTModelForZeroShotImageClassification",
     "forward"),
    ("stable-diffusion", "text-to-image", "ORTDiffusionPipeline", "pipeline"),
    # The task's class cannot run these graphs: other inputs, other outputs, another split.
    ("layoutlm", "token-classification", "ORTModelForCustomTasks", "forward"),
    ("sentence-transformers", "feature-extraction", "ORTModelForCustomTasks", "forward"),
    ("bart-monolith", "text2text-generation", "ORTModelForCustomTasks", "forward"),
    # No class of Optimum's does these.
    ("yolos", "object-detection", None, "session"),
    ("sam", "feature-extraction", None, "session"),
]
# fmt: on


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export, to damage."""

    def make(name: str) -> Path:
        return shutil.copytree(exported(name), tmp_path / name)

    return make


def edit(directory: Path, name: str = "config.json", **changes: Any) -> None:
    """Change keys of a JSON file; None takes a key out."""
    path = directory / name
    settings = json.loads(path.read_text())
    settings |= {key: value for key, value in changes.items() if value is not None}
    for key in changes:
        if changes[key] is None:
            settings.pop(key, None)
    path.write_text(json.dumps(settings))


def check(report: VerifyReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def failed(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.message for check in report.checks if check.status == "failed"}


# --- What passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task", "ort_class", "ran"), RUNS)
def test_the_class_that_users_load_it_with_runs_it(
    exported: Exported, name: str, task: str, ort_class: str | None, ran: str
) -> None:
    report = verify(exported(name), providers=["cpu"])

    assert (report.task, report.ort_class) == (task, ort_class)
    assert {check.name: check.status for check in report.checks} == {
        check.name: "ok" for check in report.checks
    }
    (cpu,) = report.providers
    assert (cpu.provider, cpu.status, cpu.ran, cpu.ort_class) == (CPU, "ok", ran, ort_class)
    assert cpu.node_count > 0
    assert cpu.max_difference is None
    assert report.ok
    if ort_class is None:
        assert "plain sessions" in cpu.message


def test_what_is_checked(exported: Exported) -> None:
    names = [check.name for check in verify(exported("albert"), providers=["cpu"]).checks]
    assert names == ["graphs", "config", "architectures", "labels", "dimensions", "tokenizer"]
    names = [check.name for check in verify(exported("vit"), providers=["cpu"]).checks]
    assert names == ["graphs", "config", "architectures", "labels", "dimensions"]
    names = [check.name for check in verify(exported("stable-diffusion"), providers=["cpu"]).checks]
    assert names == ["graphs", "config", "components", "dimensions", "tokenizer"]


def test_parameters_are_compared_in_every_file_and_under_every_root(exported: Exported) -> None:
    """An encoder alone, a wrapped model, the components of a pipeline."""
    from modelexport_optimum.verifying.described_model import compared_shapes, described_models
    from modelexport_optimum.verifying.export_reader import read_exported

    for name in ("t5", "vit-gpt2", "sentence-transformers", "stable-diffusion"):
        read = read_exported(exported(name), task=None, library=None, trust_remote_code=False)
        pairs = compared_shapes(read, described_models(read))
        assert pairs.keys() == read.graphs.keys()
        assert all(pairs.values()), name


def test_files_that_the_class_does_not_load_are_named(exported: Exported) -> None:
    (cpu,) = verify(exported("t5"), providers=["cpu"]).providers
    assert cpu.message.endswith("not loaded: decoder_model.onnx, decoder_with_past_model.onnx")


def test_the_real_sample_model(sample: Path, minilm_untagged: Path, tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(sample), tmp_path, task="feature-extraction", library_name="sentence_transformers",
        do_validation=False,
    )  # fmt: skip
    for directory, library, ort_class in (
        (minilm_untagged, "transformers", "ORTModelForFeatureExtraction"),
        (tmp_path, "sentence_transformers", "ORTModelForCustomTasks"),
    ):
        report = verify(directory, providers=["cpu"])
        assert report.ok, report
        assert (report.library, report.ort_class) == (library, ort_class)
        assert check(report, "dimensions").message == "65 parameters"
        assert check(report, "tokenizer").message == "30,522 tokens for 30,522 embeddings"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert", {"optimize": "O2"}),
        ("bert", {"no_dynamic_axes": True}),
        ("t5", {"optimize": "O1"}),
        ("vit", {"no_dynamic_axes": True}),
    ],
)
def test_other_ways_to_export(
    model_directory: Callable[[str], Path], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    import zoo
    from optimum.exporters.onnx import main_export

    task = next(row.task for row in zoo.ARCHITECTURES if row.name == name)
    main_export(str(model_directory(name)), tmp_path, task=task, do_validation=False, **options)
    report = verify(tmp_path, providers=["cpu"])
    assert report.ok, report
    assert report.task == task


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_quantized_model(copy: Callable[[str], Path], name: str) -> None:
    """Quantizing replaces the one node of a Linear without bias, as Llama's, and so its tag."""
    from onnxruntime.quantization import quantize_dynamic

    directory = copy(name)
    before = tag(directory).files[0].modules
    quantize_dynamic(directory / "model.onnx", directory / "quantized.onnx")
    (directory / "quantized.onnx").replace(directory / "model.onnx")
    assert verify(directory, providers=["cpu"]).ok
    assert tag(directory).files[0].modules == before
    assert verify(directory, providers=["cpu"]).ok


def test_a_task_that_is_given_is_not_looked_for(exported: Exported) -> None:
    report = verify(exported("clip"), providers=["cpu"], task="default")
    assert report.ok
    assert (report.task, report.ort_class) == ("feature-extraction", "ORTModelForCustomTasks")


def test_the_report_is_json(exported: Exported) -> None:
    report = verify(exported("bert"), providers=["cpu"])
    read = json.loads(json.dumps(report.to_dict()))
    assert read["ok"] is True
    assert read["directory"] == str(exported("bert"))
    assert read["providers"][0]["node_count"] == report.providers[0].node_count
    assert read["checks"][0] == {"name": "graphs", "status": "ok", "message": "222 nodes in 1 file"}


def test_a_relative_path(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported("t5").parent)
    report = verify("./t5/../t5", providers=["cpu"])
    assert report.ok
    assert report.providers[0].message == (
        verify(exported("t5"), providers=["cpu"]).providers[0].message
    )


def test_the_directory_is_left_as_it_was(exported: Exported) -> None:
    directory = exported("gpt2")
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    verify(directory)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


# --- Custom code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [False, True])
def test_custom_code_is_run_as_far_as_it_can_be_known(exported: Exported, trust: bool) -> None:
    """Optimum does not copy the code into the export."""
    report = verify(exported("custom-code"), providers=["cpu"], trust_remote_code=trust)
    assert report.ok, report
    assert report.ort_class == "ORTModelForSequenceClassification"
    assert check(report, "dimensions").status == "unavailable"


def test_custom_code_that_is_there_is_built_only_if_trusted(
    copy: Callable[[str], Path], model_directory: Callable[[str], Path]
) -> None:
    directory = copy("custom-code")
    shutil.copy(model_directory("custom-code") / "modeling_odd.py", directory)
    allowed = verify(directory, providers=["cpu"], trust_remote_code=True)
    assert allowed.ok, allowed
    assert check(allowed, "dimensions").status == "ok"
    assert check(verify(directory, providers=["cpu"]), "dimensions").status == "unavailable"


def test_a_configuration_of_its_own_is_not_run_unless_allowed(copy: Callable[[str], Path]) -> None:
    directory = copy("bert")
    (directory / "odd.py").write_text("raise SystemExit('this must not run')")
    edit(directory, auto_map={"AutoConfig": "odd.OddConfig"}, model_type="odd")
    report = verify(directory, providers=["cpu"])
    assert failed(report) == {
        "config": "config.json has code of its own, which was not run (odd.OddConfig in "
        "config.json): read it, then add --trust-remote-code"
    }


def test_an_architecture_that_optimum_does_not_know(tmp_path: Path) -> None:
    """Exported with a configuration of the user's own: the class tells the task."""
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.onnx.model_configs import BertOnnxConfig
    from transformers import ErnieConfig, ErnieForSequenceClassification

    config = ErnieConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    config.architectures = ["ErnieForSequenceClassification"]
    onnx_config = BertOnnxConfig(config, task="text-classification")
    onnx_export_from_model(
        ErnieForSequenceClassification(config), tmp_path, task="text-classification",
        custom_onnx_configs={"model": onnx_config}, do_validation=False,
    )  # fmt: skip
    report = verify(tmp_path, providers=["cpu"])
    assert report.ok, report
    assert (report.task, report.ort_class) == (
        "text-classification",
        "ORTModelForSequenceClassification",
    )
    statuses = {check.name: check.status for check in report.checks}
    assert statuses.pop("tokenizer") == "unavailable"
    assert set(statuses.values()) == {"ok"}


# --- The configuration against the graphs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "failing", "words"),
    [
        ("bert", {"model_type": None}, "config", "has no model_type"),
        ("bert", {"architectures": [["A"]]}, "config", "is not a list of class names"),
        ("bert", {"auto_map": 5, "model_type": "bertt"}, "config", "knows no model_type 'bertt'"),
        ("bert", {"model_type": "bertt"}, "config", "knows no model_type 'bertt'"),
        ("bert", {"hidden_size": "wide"}, "dimensions", "cannot be built: "),
        ("bert", {"architectures": None}, "architectures", "has no architectures"),
        (
            "bert",
            {"architectures": ["BertForQuestionAnswering"]},
            "architectures",
            "says BertForQuestionAnswering (question-answering), "
            "the graphs' outputs show fill-mask or token-classification",
        ),
        (
            "albert",
            {"architectures": ["AlbertForMaskedLM"]},
            "architectures",
            "says AlbertForMaskedLM (fill-mask), the graphs' outputs show text-classification",
        ),
        ("albert", {"architectures": ["Albert"]}, "architectures", "says Albert (no task"),
        (
            "vit",
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
            "labels",
            "has 3 labels, the logits are 2 wide",
        ),
        (
            "segformer",
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
            "labels",
            "has 3 labels, the logits are 2 wide",
        ),
        (
            "deberta-v2",
            {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
            "labels",
            "label2id has 'a' for 1, id2label 'b'",
        ),
        (
            "hubert",
            {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0}},
            "labels",
            "label2id lacks 'b'",
        ),
        (
            "albert",
            {"num_labels": 4, "id2label": {"0": "a", "1": "b"}},
            "labels",
            "num_labels is 4, id2label has 2",
        ),
        ("albert", {"id2label": {"1": "a", "2": "b"}}, "labels", "must number its labels 0 to 1"),
        ("albert", {"id2label": {"a": 0, "b": 1}}, "config", "cannot read config.json: invalid"),
        ("albert", {"label2id": {"a": "b"}}, "labels", "id2label must be numbers to labels"),
        (
            "bert",
            {"hidden_size": 32},
            "dimensions",
            "bert.embeddings.word_embeddings.weight is [320, 32] by config.json, [320, 16] in "
            "model.onnx (and ",
        ),
        ("bert", {"hidden_size": 15}, "dimensions", "cannot be built: The hidden size (15)"),
        ("t5", {"d_ff": 64, "vocab_size": 321}, "dimensions", "[321, 16] by config.json"),
        (
            "bert",
            {"vocab_size": 299},
            "tokenizer",
            "300 tokens, but the model has embeddings for 299",
        ),
    ],
)
def test_a_wrong_configuration(
    copy: Callable[[str], Path], name: str, changes: dict[str, Any], failing: str, words: str
) -> None:
    directory = copy(name)
    edit(directory, **changes)
    report = verify(directory, providers=["cpu"])
    assert words in failed(report)[failing]
    assert "\n" not in failed(report)[failing]
    assert not report.ok


# Modules that config.json has and no graph, and the other way round: of tagged files, and of those
# that Optimum wrote, where names alone tell.
OTHER_MODULES = [
    (
        "bert",
        {"num_hidden_layers": 4},
        "no graph shows: bert.encoder.layer.2, bert.encoder.layer.3",
    ),
    ("bert", {"num_hidden_layers": 1}, "config.json does not describe: bert.encoder.layer.1"),
    ("t5", {"num_decoder_layers": 3}, "no graph shows: decoder.block.2"),
    ("t5", {"num_layers": 1}, "config.json does not describe: encoder.block.1"),
    ("whisper", {"encoder_layers": 5}, "model.encoder.layers.2, model.encoder.layers.3, model.enc"),
    ("resnet", {"depths": [2, 3]}, "no graph shows: resnet.encoder.stages.1.layers.2"),
    ("gpt2", {"n_layer": 3}, "no graph shows: transformer.h.2"),
]


@pytest.mark.parametrize(("name", "changes", "words"), OTHER_MODULES)
def test_modules_are_those_of_config_json(
    exported: Exported, tagged: Exported, tmp_path: Path, name: str, changes: Any, words: str
) -> None:
    for number, source in enumerate((exported(name), tagged(name))):
        directory = shutil.copytree(source, tmp_path / str(number))
        assert check(verify(directory, providers=["coreml"]), "dimensions").status == "ok"
        edit(directory, **changes)
        assert words in failed(verify(directory, providers=["coreml"]))["dimensions"]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "t5",
            {"is_gated_act": True},
            "encoder.block.0.layer.1.DenseReluDense.wi",
        ),
        ("wav2vec2", {"add_adapter": True}, "no graph shows: wav2vec2.adapter"),
    ],
)
def test_a_module_of_another_kind_is_seen_where_the_model_s_own_are_recorded(
    exported: Exported, model_directory: Exported, tmp_path: Path,
    name: str, changes: Any, words: str,
) -> None:  # fmt: skip
    from modelexport_optimum.tagging import htp

    directory = shutil.copytree(exported(name), tmp_path / name)
    htp.tag(directory, model=model_directory(name))
    assert check(verify(directory, providers=["coreml"]), "dimensions").status == "ok"
    edit(directory, **changes)
    assert words in failed(verify(directory, providers=["coreml"]))["dimensions"]


@pytest.mark.parametrize(
    "name", ["bert-fresh", "deberta", "esm", "resnet", "whisper-audio", "vits"]
)
def test_modules_that_no_export_of_the_task_shows_are_no_fault(
    exported: Exported, model_directory: Exported, tmp_path: Path, name: str
) -> None:
    """A pooler, a folded table, a head of another task, BatchNorm, sines, a flow left out."""
    from modelexport_optimum.tagging import htp
    from modelexport_optimum.tags.model_record import read_silent

    directory = shutil.copytree(exported(name), tmp_path / name)
    assert check(verify(directory, providers=["coreml"]), "dimensions").status == "ok"
    before = (directory / "model.onnx").read_bytes()
    htp.tag(directory, model=model_directory(name))
    assert read_silent(read_model(directory / "model.onnx"))
    assert check(verify(directory, providers=["coreml"]), "dimensions").status == "ok"
    htp.strip(directory)
    assert (directory / "model.onnx").read_bytes() == before


def test_a_base_model_of_any_architecture_may_be_exported(copy: Callable[[str], Path]) -> None:
    """As `optimum-cli` does with a checkpoint that has a head."""
    directory = copy("bert-fresh")
    edit(directory, architectures=["BertForMaskedLM"])
    report = verify(directory, providers=["cpu"])
    assert report.ok
    assert check(report, "architectures").message == (
        "BertForMaskedLM without its head, feature-extraction"
    )


def test_labels_may_have_the_same_name_twice(copy: Callable[[str], Path]) -> None:
    """ImageNet has two cranes and two maillots."""
    directory = copy("vit")
    edit(directory, id2label={"0": "crane", "1": "crane"}, label2id={"crane": 1})
    assert verify(directory, providers=["cpu"]).ok


def test_a_tokenizer_with_too_many_tokens(copy: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    directory = copy("bert")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"new{number}" for number in range(30)])
    tokenizer.save_pretrained(directory)
    message = failed(verify(directory, providers=["cpu"]))["tokenizer"]
    assert message.startswith("the tokenizer has 330 tokens, but the model has embeddings for 320")


def test_a_pipeline_s_tokenizer_with_too_many_tokens(copy: Callable[[str], Path]) -> None:
    directory = copy("stable-diffusion")
    edit(directory / "text_encoder", vocab_size=200)
    report = failed(verify(directory, providers=["cpu"]))
    assert report["tokenizer"].startswith(
        "tokenizer has 300 tokens, but the model has embeddings for 200"
    )
    assert (
        "is [200, 16] by config.json, [320, 16] in text_encoder/model.onnx" in report["dimensions"]
    )


def test_a_text_model_without_a_tokenizer_is_legal(copy: Callable[[str], Path]) -> None:
    directory = copy("bert")
    for path in directory.glob("*token*"):
        path.unlink()
    report = verify(directory, providers=["cpu"])
    assert check(report, "tokenizer") == Check(
        "tokenizer",
        "unavailable",
        "the tokenizer is missing: save the one of the model next to the graphs",
    )
    assert report.ok


def test_a_broken_tokenizer(copy: Callable[[str], Path]) -> None:
    directory = copy("bert")
    (directory / "tokenizer.json").write_text("{}")
    assert "cannot be loaded" in failed(verify(directory, providers=["cpu"]))["tokenizer"]


def test_a_pipeline_s_configuration(copy: Callable[[str], Path]) -> None:
    directory = copy("stable-diffusion")
    shutil.rmtree(directory / "vae_decoder")
    report = verify(directory, providers=["cpu"])
    assert "vae_decoder/model.onnx, which is missing" in failed(report)["components"]
    assert report.providers[0].status == "failed"
    edit(directory, "model_index.json", _class_name="NoSuchPipeline")
    assert "has no class NoSuchPipeline" in failed(verify(directory, providers=["cpu"]))["config"]
    edit(directory, "model_index.json", _class_name=None)
    assert "has no _class_name" in failed(verify(directory, providers=["cpu"]))["config"]


def test_a_pipeline_without_its_library(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = exported("stable-diffusion")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    report = verify(directory, providers=["cpu"])
    assert failed(report)["config"].endswith("pip install diffusers")


# --- Wrong input ----------------------------------------------------------------------------------


def test_nothing_to_check(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        verify(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has no \.onnx file"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="is a file: give an exported directory"):
        verify(exported("bert") / "model.onnx")
    with pytest.raises(UsageError, match="task 'nothing' is not one of audio-classification, "):
        verify(exported("bert"), task="nothing")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no config.json"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not JSON: it is nested too deep"),
    ],
)
def test_no_configuration(copy: Callable[[str], Path], content: str | None, words: str) -> None:
    """The graph is run all the same, and the report says that it was no ORTModel."""
    directory = copy("bert")
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_text(content)
    report = verify(directory, providers=["cpu"])
    assert words in failed(report)["config"]
    assert not report.ok
    assert (report.task, report.ort_class) == (None, None)
    assert (report.providers[0].status, report.providers[0].ran) == ("ok", "session")


@pytest.mark.parametrize("content", [b"not a model", b"", None])
def test_a_file_that_is_no_model(copy: Callable[[str], Path], content: bytes | None) -> None:
    directory = copy("bert")
    path = directory / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    report = verify(directory)
    assert failed(report)["graphs"].startswith("model.onnx is not ")
    assert check(report, "config").status == "ok"
    assert report.providers[0].status == "failed"
    assert not report.ok


def test_external_data(copy: Callable[[str], Path]) -> None:
    directory = copy("bert")
    path = directory / "model.onnx"
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="model.onnx_data",
        size_threshold=100,
    )  # fmt: skip
    assert verify(directory, providers=["cpu"]).ok

    data = directory / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-100])
    report = verify(directory, providers=["cpu"])
    assert "model.onnx_data is shorter than the weights" in failed(report)["graphs"]
    data.unlink()
    report = verify(directory, providers=["cpu"])
    assert "has its weights in model.onnx_data, which is missing" in failed(report)["graphs"]
    assert report.providers[0].status == "failed"


def test_a_graph_that_onnx_runtime_refuses(copy: Callable[[str], Path]) -> None:
    directory = copy("bert")
    model = onnx.load(directory / "model.onnx")
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, directory / "model.onnx")
    report = verify(directory, providers=["cpu"])
    assert failed(report) == {}
    (cpu,) = report.providers
    assert (cpu.status, cpu.node_count) == ("failed", 0)
    assert "NoSuchOperator" in cpu.message
    assert "\n" not in cpu.message
    assert not report.ok


def test_only_the_run_shows_some_faults(copy: Callable[[str], Path]) -> None:
    """The number of heads shapes no parameter, only the cache that generate() hands in."""
    directory = copy("gpt2")
    edit(directory, n_head=4)
    report = verify(directory, providers=["cpu"])
    assert failed(report) == {}
    (cpu,) = report.providers
    assert (cpu.status, cpu.ort_class) == ("failed", "ORTModelForCausalLM")
    assert "Got invalid dimensions for input: past_key_values" in cpu.message
    assert not report.ok


# --- Providers ------------------------------------------------------------------------------------

here = onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(CUDA in here, reason="this build of ONNX Runtime has CUDA")


@without_cuda
def test_a_provider_that_the_build_lacks(exported: Exported) -> None:
    report = verify(exported("bert"))
    found = [(result.provider, result.status) for result in report.providers]
    assert found == [(CPU, "ok"), (CUDA, "unavailable"), (TENSORRT, "unavailable")]
    assert "does not have it: it needs an NVIDIA GPU" in report.providers[1].message
    assert (report.providers[1].install or "").endswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    assert "pip install tensorrt" in (report.providers[2].install or "")
    assert report.ok

    asked = verify(exported("bert"), providers=["CPU", "cuda", "CUDAExecutionProvider"])
    found = [(result.provider, result.status) for result in asked.providers]
    assert found == [(CPU, "ok"), (CUDA, "unavailable")]
    assert not asked.ok


@pytest.mark.parametrize("name", ["coreml", "CoreML", "CoreMLExecutionProvider", " OPENVINO"])
def test_any_provider_that_onnx_runtime_knows(exported: Exported, name: str) -> None:
    (result,) = verify(exported("bert"), providers=[name]).providers
    assert result.status == "unavailable"
    assert result.provider in ("CoreMLExecutionProvider", "OpenVINOExecutionProvider")
    assert "https://onnxruntime.ai/docs/execution-providers" in result.message


def test_a_provider_that_onnx_runtime_does_not_know(exported: Exported) -> None:
    with pytest.raises(
        UsageError, match=r"'gpu' is not known .* choose from .*cpu, cuda, .*tensorrt"
    ):
        verify(exported("bert"), providers=["cpu", "gpu"])


@pytest.mark.skipif(AZURE not in here, reason="this build of ONNX Runtime has no Azure provider")
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_provider_that_comes_up_and_runs_nothing(exported: Exported, name: str) -> None:
    report = verify(exported(name), providers=["azure"])
    (result,) = report.providers
    assert (result.provider, result.status, result.node_count) == (AZURE, "failed", 0)
    assert result.message.startswith("no node ran on it (")
    assert result.message.endswith(" on CPUExecutionProvider)")
    assert not report.ok


@without_cuda
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_silent_fallback(exported: Exported, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the list is false: the sessions really fall back, with nothing but a warning."""
    read = read_exported(exported(name), task=None, library=None, trust_remote_code=False)
    plan = make_plan(read, find_loader(read))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, *here])
    with pytest.warns(UserWarning, match="not in available provider names"):
        found = run(plan, Provider(CUDA))
    assert found.fell_back == {CPU}
    assert not found.complete
    assert not found.outputs


@without_cuda
def test_a_fallback_is_a_failure(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process in which it runs has the true list, and plain sessions do not ask for it."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, *here])
    report = verify(exported("yolos"), providers=["cuda"])
    (result,) = report.providers
    assert (result.status, result.node_count) == ("failed", 0)
    assert result.message.startswith("ONNX Runtime fell back to CPUExecutionProvider: ")
    assert not report.ok


# What onnxruntime-gpu 1.31.1 wrote on machines without CUDA and without an NVIDIA driver.
NO_CUDA = """\
\x1b[1;31m2026-11-22 16:39:41.835302051 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 \
operator()] /onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 \
onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : \
Failed to load library /site/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: \
cannot open shared object file: No such file or directory
\x1b[m
\x1b[0;93m2026-11-22 16:39:41.835340225 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295 \
CreateExecutionProviderFactoryInstance] Failed to create CUDAExecutionProvider. Require cuDNN \
9.* and CUDA 13.*.\x1b[m
"""
NO_TENSORRT = """\
*************** EP Error ***************
EP Error /onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void \
onnxruntime::python::RegisterTensorRTPluginsAsCustomOps(PySessionOptions&, const \
onnxruntime::ProviderOptions&) Please install TensorRT libraries as mentioned in the GPU \
requirements page, make sure they're in the PATH or LD_LIBRARY_PATH.
 when using ['TensorrtExecutionProvider']
Falling back to ['CPUExecutionProvider'] and retrying.
"""


@pytest.mark.parametrize(
    ("log", "reason", "lacking"),
    [
        (
            NO_CUDA,
            "Failed to load library /site/libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
            True,
        ),
        (NO_CUDA.replace("libcublasLt.so.13", "libcuda.so.1"), None, True),
        (NO_TENSORRT, None, True),
        ("some other program's output\n", "", False),
    ],
)
def test_the_reason_is_onnx_runtime_s_own(log: str, reason: str | None, lacking: bool) -> None:
    found = log_reason(log)
    assert reason is None or found == reason
    assert "\n" not in found
    assert bool(_LACKING.search(found)) == lacking


def test_of_equal_prefixes_the_first_of_the_model_counts() -> None:
    # Bart's encoder and decoder have the same names and shapes, of which one file has one.
    sides = [f"side_{number}" for number in range(8)]
    tensors = {f"model.{side}.layers.0.fc1.weight": (4, 4) for side in sides}
    carried = Tensor("layers.0.fc1.weight", (4, 4), 1, 64, "", None)
    pairs = described_model._pair([carried], tensors)
    assert [pair.name for pair in pairs] == ["model.side_0.layers.0.fc1.weight"]
