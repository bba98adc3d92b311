"""The check of execution providers: the same inputs for all, nothing raises, fair judgements.

What needs another provider that computes is in `test_other_providers.py`.
"""

from __future__ import annotations

import random
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import broken_models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from needs import POSIX

from modelexport_optimum import verify
from modelexport_optimum.errors import onnxruntime_line
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.verifying import provider_process, providers
from modelexport_optimum.verifying import verify as checks
from modelexport_optimum.verifying.export_reader import read_exported
from modelexport_optimum.verifying.ort_classes import Loader, find_loader
from modelexport_optimum.verifying.ort_messages import named_node, tag_of
from modelexport_optimum.verifying.provider_run import run, run_reference
from modelexport_optimum.verifying.providers import make_plan
from modelexport_optimum.verifying.tolerances import compare_outputs, computed_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelexport_optimum.verifying.providers import ProviderResult
    from modelexport_optimum.verifying.run_plan import RunPlan

    Exported = Callable[[str], Path]

AZURE = "AzureExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

needs_another = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(),
    reason="this build of ONNX Runtime has no provider that does nothing",
)


def plan_of(directory: Path) -> RunPlan:
    read = read_exported(directory, task=None, library=None, trust_remote_code=False)
    return make_plan(read, find_loader(read))


# --- The inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "t5", "vit", "layoutlm", "whisper", "wav2vec2", "clip", "sam"]
)
def test_the_inputs_are_the_same_every_time(exported: Exported, name: str) -> None:
    random.seed(1)
    torch.manual_seed(1)
    first = plan_of(exported(name)).inputs
    random.seed(2)
    torch.manual_seed(2)
    np.random.seed(2)
    second = plan_of(exported(name)).inputs
    assert first.keys() == second.keys()
    assert any(first.values())
    for file, inputs in first.items():
        assert inputs.keys() == second[file].keys()
        for key, value in inputs.items():
            assert value.dtype == second[file][key].dtype
            assert value.tobytes() == second[file][key].tobytes(), (file, key)


def test_the_generators_of_others_are_left_as_they_were(exported: Exported) -> None:
    directory = exported("bert")
    random.seed(3)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = random.random(), torch.rand(1).item(), np.random.rand()
    random.seed(3)
    torch.manual_seed(3)
    np.random.seed(3)
    plan_of(directory)
    assert (random.random(), torch.rand(1).item(), np.random.rand()) == expected


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "bart-monolith", "clip", "markuplm"])
def test_no_position_is_masked_or_padding(exported: Exported, name: str) -> None:
    inputs = plan_of(exported(name)).inputs
    masks = [value for made in inputs.values() for key, value in made.items() if "mask" in key]
    tokens = [v for made in inputs.values() for key, v in made.items() if key.endswith("input_ids")]
    assert masks
    assert all(mask.all() for mask in masks)
    assert tokens
    assert all((ids != 0).all() for ids in tokens)  # the zoo's padding token
    assert any(len(np.unique(ids)) > 1 for ids in tokens)


def test_two_runs_give_the_same_bits(exported: Exported) -> None:
    plan = plan_of(exported("t5"))
    first, second = run(plan, Provider(CPU)), run(plan, Provider(CPU))
    assert first.complete
    assert first.outputs.keys() == second.outputs.keys()
    for name, value in first.outputs.items():
        assert value.tobytes() == second.outputs[name].tobytes()


def test_inputs_that_cannot_be_made_are_a_failure(tmp_path: Path) -> None:
    """As those of a type that NumPy lacks."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)],
        "graph",
        [value("x", onnx.TensorProto.BFLOAT16, ["batch_size", 2])],
        [value("y", onnx.TensorProto.FLOAT, ["batch_size", 2])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "model.onnx"
    )
    (tmp_path / "config.json").write_text("{}")
    (cpu,) = verify(tmp_path, providers=["cpu"]).providers
    assert cpu.status == "failed"
    assert cpu.message.startswith("not run: no inputs can be generated: the input x of ")
    assert "is bfloat16, which NumPy does not have" in cpu.message


def test_generation_stays_within_the_positions_of_a_model(tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=1, vocab_size=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    output = tmp_path / "export"
    main_export(
        str(tmp_path / "model"),
        output,
        task="text-generation",
        library_name="transformers",
        do_validation=False,
    )
    plan = plan_of(output)
    (inputs,) = plan.inputs.values()
    assert inputs["input_ids"].shape == (1, 16)
    assert run(plan, Provider(CPU)).outputs["tokens"].shape == (1, 3)


def test_outputs_that_are_random_are_not_compared(tmp_path: Path) -> None:
    """As those of a text-to-speech model, which draws noise."""
    value = onnx.helper.make_tensor_value_info
    number = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("RandomNormalLike", ["x"], ["noise"]),
            onnx.helper.make_node("Add", ["x", "noise"], ["noisy"]),
            onnx.helper.make_node("Neg", ["x"], ["clear"]),
        ],
        "random",
        [value("x", number, ["batch_size", 4])],
        [value("noisy", number, ["batch_size", 4]), value("clear", number, ["batch_size", 4])],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx"
    )
    plan = plan_of(tmp_path)
    assert plan.draws
    cpu = run_reference(plan)
    assert cpu.drawn == {"noisy"}
    other = {**cpu.outputs, "noisy": cpu.outputs["noisy"] + 1}
    assert not compare_outputs(other, cpu.outputs, "float32", cpu.drawn).problem
    other["clear"] = cpu.outputs["clear"] + 1
    assert compare_outputs(other, cpu.outputs, "float32", cpu.drawn).output == "clear"


# --- Whatever a provider does ---------------------------------------------------------------------


@pytest.fixture
def on_azure(
    exported: Exported, tagged: Exported, monkeypatch: pytest.MonkeyPatch
) -> Callable[[type], ProviderResult]:
    """What `verify` says of a provider on which a model of this class is run."""

    def check(ort_class: type) -> ProviderResult:
        monkeypatch.setattr(checks, "find_loader", lambda _: Loader(ort_class))
        report = verify(tagged("bert"), providers=["cpu", "azure"])
        cpu, azure = report.providers
        assert cpu.status == "ok"
        assert not report.ok
        assert "\n" not in azure.message
        return azure

    return check


@needs_another
@pytest.mark.parametrize(
    ("ort_class", "words"),
    [
        (broken_models.Crashing, "its process was ended by SIGSEGV"),
        (broken_models.Throwing, "its process was ended by SIGABRT: the device is gone"),
        (broken_models.Leaving, "its process ended with exit status 3"),
        (broken_models.Exiting, "its process ended with exit status 1"),
    ],
)
def test_the_end_of_its_process_is_survived(
    on_azure: Callable[[type], ProviderResult], ort_class: type, words: str
) -> None:
    result = on_azure(ort_class)
    assert (result.status, result.stage, result.file) == ("failed", "running", "model.onnx")
    assert result.message == f"running model.onnx failed: {words}"


@needs_another
def test_a_run_that_does_not_end_is_ended(
    on_azure: Callable[[type], ProviderResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "LEAST_SECONDS", 10)
    monkeypatch.setattr(providers, "TIMES_THE_CPU", 0)
    result = on_azure(broken_models.Hanging)
    assert (result.status, result.stage) == ("failed", "running")
    assert result.message == (
        "running model.onnx failed: it was ended, after 10 s without a result"
    )


@needs_another
def test_an_error_names_the_node_and_its_module(on_azure: Callable[[type], ProviderResult]) -> None:
    result = on_azure(broken_models.Raising)
    assert (result.status, result.stage) == ("failed", "running")
    assert "out of range" in result.message
    assert "onnxruntime_src" not in result.message
    assert "x.cc" not in result.message


@needs_another
@pytest.mark.parametrize("ort_class", [broken_models.Wrong, broken_models.NotANumber])
def test_a_provider_that_runs_nothing_is_not_compared(
    on_azure: Callable[[type], ProviderResult], ort_class: type
) -> None:
    result = on_azure(ort_class)
    assert result.message.startswith("no node ran on it (")


@needs_another
def test_what_a_run_prints_goes_to_stderr(
    on_azure: Callable[[type], ProviderResult], capfd: pytest.CaptureFixture[str]
) -> None:
    on_azure(broken_models.Printing)
    printed = capfd.readouterr()
    assert "something of its own" in printed.err
    assert printed.out == ""


@needs_another
def test_without_forks_a_server_does_one_run(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    monkeypatch.setattr(provider_process, "_waiting", [])
    monkeypatch.setattr(provider_process, "FORKS", False)
    plan = plan_of(exported("bert"))
    assert provider_process.run_in_child(plan, Provider(AZURE), 60).complete
    assert provider_process._waiting == []


def test_a_server_that_cannot_start_says_why(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_process, "_waiting", [])
    monkeypatch.setattr(provider_process, "_program", lambda _: "raise OSError('no more memory')")
    found = provider_process.run_in_child(plan_of(exported("bert")), Provider(AZURE), 60)
    assert found.error == "its process did not start: OSError: no more memory"


@POSIX
@needs_another
def test_a_server_that_is_gone_is_replaced_and_ends_with_who_started_it(exported: Exported) -> None:
    plan = plan_of(exported("bert"))
    provider_process.run_in_child(plan, Provider(AZURE), 60)
    (gone,) = provider_process._waiting
    gone._process.send_signal(signal.SIGKILL)
    gone._process.wait()
    assert provider_process.run_in_child(plan, Provider(AZURE), 60).complete
    server = provider_process._waiting.pop()
    assert server is not gone
    server._pipe.close()
    try:
        assert server._process.wait(120) == 0
    except subprocess.TimeoutExpired:
        server.kill()
        raise


# --- The words ------------------------------------------------------------------------------------

# As onnxruntime-openvino 1.24.1 said it of DeBERTa, with one layer of its code less.
DEEP = """\
[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: \
/onnxruntime/onnxruntime/core/providers/openvino/backends/basic_backend.cc:136 \
onnxruntime::openvino_ep::BasicBackend::BasicBackend(std::unique_ptr<onnx::ModelProto>&, \
onnxruntime::openvino_ep::SessionContext&, onnxruntime::openvino_ep::ptr_stream_t&) \
/onnxruntime/onnxruntime/core/providers/openvino/ov_interface.cc:28 auto \
onnxruntime::openvino_ep::OvExceptionBoundary(Func&&, std::format_string<Args ...>&&, Args&& ...) \
[with bool typed = false; Func = OVCore::CompileModel(std::string&)::<lambda()>; Args = \
{const std::__cxx11::basic_string<char, std::allocator<char> >&}] [OpenVINO-EP] Exception while \
Loading Network for graph subgraph_4_2: Exception from src/inference/src/cpp/core.cpp:114:
Exception from src/inference/src/dev/plugin.cpp:53:
Check '!shape.rank().is_dynamic()' failed at src/plugins/intel_cpu/src/node.cpp:106:
Unexpected: CPU plug-in doesn't support If operation with dynamic rank. Operation name: If_496


"""


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            DEEP,
            "Exception during initialization: [OpenVINO-EP] Exception while Loading Network for "
            "graph subgraph_4_2: Check '!shape.rank().is_dynamic()' failed: Unexpected: CPU "
            "plug-in doesn't support If operation with dynamic rank. Operation name: If_496",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
            "running Gather node. Name:'/a/Gather' Status Message: indices element out of data "
            "bounds, idx=320 must be within the inclusive range [-320,319]",
            "Non-zero status code returned while running Gather node. Name:'/a/Gather' Status "
            "Message: indices element out of data bounds, idx=320 must be within the inclusive "
            "range [-320,319]",
        ),
        (
            "/src/core/framework/op_kernel.cc:83 virtual OrtValue* "
            "onnxruntime::OpKernelContext::OutputMLValue(int, const onnxruntime::TensorShape&) "
            "status.IsOK() was false. Shape mismatch (4)",
            "status.IsOK() was false. Shape mismatch (4)",
        ),
        (
            "x.cc:7 auto std::function<void (int)>::operator()(Args ...) const it failed",
            "it failed",
        ),
        ("Protobuf parsing failed.", "Protobuf parsing failed."),
        ("x.cc:12 Invalid rank (3) for input", "Invalid rank (3) for input"),
    ],
)
def test_the_places_in_its_sources_are_left_out(said: str, shown: str) -> None:
    assert onnxruntime_line(said) == shown


def test_of_a_long_message_the_end_is_kept() -> None:
    shown = onnxruntime_line("it begins " + "word " * 1000 + "the reason")
    assert len(shown) <= 405
    assert shown.startswith("it begins")
    assert shown.endswith("the reason")


def test_the_node_that_a_message_names(tagged: Exported) -> None:
    graph = read_model(tagged("bert") / "model.onnx").graph
    gather = "/bert/embeddings/word_embeddings/Gather"
    for message in (
        f"while running Gather node. Name:'{gather}' Status",
        f"Node ({gather}) Op (Gather) [ShapeInferenceError]",
        f"the input {gather}_output_0 is not used",
    ):
        node = named_node(message, graph)
        assert node is not None
        assert node.name == gather
        tag = tag_of(node)
        assert tag is not None
        assert tag.endswith("/Embedding.word_embeddings")
    assert named_node(f"while running {gather}_other", graph) is None
    assert named_node("no name", graph) is None


def test_a_node_that_cannot_be_loaded_is_named_with_its_module(
    tagged: Exported, tmp_path: Path
) -> None:
    import shutil

    directory = shutil.copytree(tagged("bert"), tmp_path / "bert")
    model = onnx.load(directory / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    node.op_type = "NoSuchOperator"
    onnx.save(model, directory / "model.onnx")
    (cpu,) = verify(directory, providers=["cpu"]).providers
    assert (cpu.status, cpu.stage, cpu.file, cpu.node) == (
        "failed", "loading", "model.onnx", node.name,
    )  # fmt: skip
    assert cpu.tag == node.doc_string.split("\n")[0]
    assert cpu.message.startswith("loading model.onnx failed: ")
    assert cpu.message.endswith(f" [node {node.name} of {cpu.tag}]")


# --- What a provider computes in ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "options", "stored", "expected"),
    [
        (CPU, {}, "float32", "float32"),
        (CPU, {}, "float16", "float16"),
        ("CUDAExecutionProvider", {"use_tf32": "1"}, "float32", "tf32"),
        ("CUDAExecutionProvider", {"use_tf32": "0"}, "float32", "float32"),
        ("CUDAExecutionProvider", {"use_tf32": "1"}, "float16", "float16"),
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "0"}, "float32", "tf32"),
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "1"}, "float32", "float16"),
        ("TensorrtExecutionProvider", {"trt_int8_enable": "1"}, "float32", "int8"),
        (OPENVINO, {}, "int8", "int8"),
        (
            "TensorrtExecutionProvider",
            {"trt_fp16_enable": "1", "trt_bf16_enable": "1"},
            "float32",
            "bfloat16",
        ),
        (OPENVINO, {}, "float32", "float32"),
        (OPENVINO, {"device_type": "GPU"}, "float32", "float16"),
        ("SomeNewExecutionProvider", {}, "float32", "float16"),
    ],
)
def test_what_a_provider_computes_in(
    provider: str, options: dict[str, str], stored: str, expected: str
) -> None:
    assert computed_in(provider, options, stored) == expected


def logits(*values: float) -> dict[str, Any]:
    return {"logits": np.array([values], dtype=np.float32)}


NAN = "logits has NaN or infinity where"


@pytest.mark.parametrize(
    ("outputs", "reference", "precision", "difference", "words"),
    [
        (logits(1, 2), logits(1, 2), "float32", 0.0, ""),
        (logits(1, 2.001), logits(1, 2), "float32", 0.001, ""),
        (logits(1, 2.02), logits(1, 2), "float32", 0.02, "from the CPU's by 0.02 > 0.004"),
        (logits(1, 2.02), logits(1, 2), "tf32", 0.02, ""),
        (logits(1, 2.08), logits(1, 2), "tf32", 0.08, "> 0.06"),
        (logits(1, 2.08), logits(1, 2), "float16", 0.08, ""),
        (logits(1, 2.4), logits(1, 2), "bfloat16", 0.4, ""),
        (logits(1, 3), logits(1, 2), "bfloat16", 1.0, "> 0.6"),
        # The scale is that of the output.
        (logits(1e3, 2.001e3), logits(1e3, 2e3), "float32", 1.0, ""),
        (logits(0.01, 0.0205), logits(0.01, 0.02), "float32", 0.0005, "> 4e-05"),
        # A value near zero among others may be off by what these may be off.
        (logits(1, 2, 0.0009), logits(1, 2, 0), "float32", 0.0009, ""),
        (logits(1, 2, 0.01), logits(1, 2, 0), "float32", 0.01, "> 0.003"),
        # What stands for infinity hides nothing.
        (logits(1, 2.1, -3.4e38), logits(1, 2, -3.4e38), "float32", 0.1, "by 0.1 > 0.004"),
        (logits(1, np.nan), logits(1, 2), "float32", None, NAN),
        (logits(1, 2), logits(1, np.nan), "float32", None, NAN),
        (logits(1, np.nan), logits(1, np.nan), "float32", 0.0, ""),
        (logits(1, -np.inf), logits(1, -np.inf), "float32", 0.0, ""),
        (logits(1, np.inf), logits(1, -np.inf), "float32", None, NAN),
        (logits(1, 2, 3), logits(1, 2), "float32", None, "has the shape (1, 3), the CPU's (1, 2)"),
        ({}, logits(1, 2), "float32", None, "there is no logits, which the CPU gives"),
    ],
)  # fmt: skip
def test_outputs_are_compared_with_the_cpu_s(
    outputs: dict[str, Any],
    reference: dict[str, Any],
    precision: str,
    difference: float | None,
    words: str,
) -> None:
    found = compare_outputs(outputs, reference, precision)
    if difference is None:
        assert found.difference is None
    else:
        assert found.difference == pytest.approx(difference, rel=1e-2, abs=1e-6)
    assert (words in found.problem) if words else not found.problem


def test_what_is_generated_is_compared_up_to_the_first_other_token() -> None:
    step = np.ones((1, 4), np.float32)
    cpu = {"tokens": np.array([[1, 2, 3]]), "logits.0": step, "logits.1": step, "logits.2": step}
    other = {**cpu, "tokens": np.array([[1, 0, 3]]), "logits.2": step + 9}
    found = compare_outputs(other, cpu, "float32")
    assert (found.difference, found.problem) == (0.0, "")
    found = compare_outputs({**other, "logits.1": step + 9}, cpu, "float32")
    assert (found.difference, found.output) == (9.0, "logits.1")
