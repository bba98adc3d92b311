"""`verify` with other ONNX Runtimes than the one of `make test`.

`make test-providers` runs this three times: with OpenVINO's ONNX Runtime, with the lowest that
pyproject.toml allows, and with the installed one, for CUDA and TensorRT where there are any.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import zoo
from test_verify import RUNS

from modelexport_optimum import compare, profile, verify
from modelexport_optimum.verifying import providers
from modelexport_optimum.verifying.provider_process import run_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelexport_optimum.providers.choice import Provider
    from modelexport_optimum.verifying.providers import ProviderResult
    from modelexport_optimum.verifying.run_plan import Run, RunPlan

    Exported = Callable[[str], Path]

CPU, AZURE, OPENVINO, CUDA, TENSORRT = (
    f"{name}ExecutionProvider" for name in ("CPU", "Azure", "OpenVINO", "CUDA", "Tensorrt")
)

RUNTIME = os.environ.get("TEST_RUNTIME", "")
"""Which of the three this is: "openvino", "lowest" or "installed"."""

if RUNTIME not in ("openvino", "lowest", "installed"):
    pytest.skip("run by `make test-providers`", allow_module_level=True)
OTHERS = [
    name for name in (OPENVINO, CUDA, TENSORRT) if name in onnxruntime.get_available_providers()
]
if RUNTIME == "installed" and not OTHERS:
    pytest.skip(
        f"onnxruntime {onnxruntime.__version__} has neither CUDA nor TensorRT here: on a machine "
        "with a GPU, install onnxruntime-gpu in its place",
        allow_module_level=True,
    )

NAMES = [name for name, *_ in RUNS]
MERGED = ("comparing", "decoder_model_merged.onnx failed: logits.1 differs")
NO_SUBGRAPH = ("loading", "decoder_model_merged.onnx failed: ")

FAILING = {
    # Its If takes in every run the branch that it took in the first one: the decoder of the
    # first token, which has no past. The two branches in files of their own are right.
    (OPENVINO, "t5"): MERGED,
    (OPENVINO, "mbart"): MERGED,
    # What it cannot take of a nested graph it leaves to others, and then cannot read itself.
    (OPENVINO, "whisper"): NO_SUBGRAPH,
    (OPENVINO, "vit-gpt2"): NO_SUBGRAPH,
    (OPENVINO, "deberta-v2"): ("loading", "support If operation with dynamic rank"),
}
"""What a provider is known to do wrong, with the stage and the words of its failure."""


@pytest.fixture(scope="session")
def exported(model_directory: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tagged export by its name; `make test-providers` keeps them from one run to the next."""
    kept = os.environ.get("TEST_EXPORTS")
    root = Path(kept) if kept else tmp_path_factory.mktemp("exports")
    rows = {row.name: row for row in zoo.ARCHITECTURES}

    def export(name: str) -> Path:
        output = root / name
        if not output.exists():
            from optimum.exporters.onnx import main_export

            from modelexport_optimum import tag

            source, part = model_directory(name), root / f"{name}.part"
            arguments = rows[name].arguments(source)
            main_export(str(source), part, task=rows[name].task, do_validation=False, **arguments)
            tag(part)
            part.rename(output)
        return output

    return export


def test_it_is_the_runtime_that_is_meant() -> None:
    if RUNTIME == "lowest":
        assert onnxruntime.__version__ == os.environ["LOWEST_ONNXRUNTIME"]
    if RUNTIME == "openvino":
        assert OTHERS == [OPENVINO]


@pytest.mark.parametrize("name", [*NAMES, "mbart", "t5-no-post-process"])
def test_every_class_is_checked(exported: Exported, name: str) -> None:
    report = verify(exported(name), providers=[CPU, *OTHERS])
    cpu, *others = report.providers
    assert cpu.status == "ok", cpu.message
    assert [result.provider for result in others] == OTHERS
    for result in _present(others):
        _expect(result, name)


def _present(results: Sequence[ProviderResult]) -> list[ProviderResult]:
    """Those that this machine has what they need for; skips the test if it is none of several."""
    present = [result for result in results if result.status != "unavailable"]
    if results and not present:
        pytest.skip(results[0].message)
    return present


def _expect(result: ProviderResult, name: str) -> None:
    assert "\n" not in result.message
    assert ".cc:" not in result.message
    assert ".cpp:" not in result.message
    failing = FAILING.get((result.provider, name))
    if failing is None:
        assert result.status == "ok", result.message
        assert result.node_count > 0
        assert result.max_difference is not None
        return
    stage, words = failing
    assert (result.status, result.stage) == ("failed", stage), result.message
    assert words in result.message
    assert result.file is not None


def test_a_quantized_model(exported: Exported, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    directory = shutil.copytree(exported("bert"), tmp_path / "bert")
    quantize_dynamic(directory / "model.onnx", directory / "quantized.onnx")
    (directory / "quantized.onnx").replace(directory / "model.onnx")
    for result in _present(verify(directory, providers=[CPU, *OTHERS]).providers):
        assert result.status == "ok", result.message
        assert result.precision == (None if result.provider == CPU else "int8")


@pytest.mark.skipif(not OTHERS, reason="there is no provider to compare with the CPU")
@pytest.mark.parametrize("name", ["bert", "gpt2", "sentence-transformers", "sam"])
def test_two_checks_find_the_same_differences(exported: Exported, name: str) -> None:
    first, second = (verify(exported(name), providers=[CPU, *OTHERS]) for _ in range(2))
    _present(first.providers[1:])
    found = [result.max_difference for result in first.providers]
    assert found == [result.max_difference for result in second.providers]
    assert found[-1] is not None


def _change_a_weight(file: Path) -> None:
    """Change one number of the last matrix that something is multiplied with.

    Those before it matter little in tiny random models: what attention adds is below rounding.
    """
    model = onnx.load(file)
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) in (2, 4)]
    used = {name for node in model.graph.node for name in node.input[1:2]}
    chosen = [tensor for tensor in matrices if tensor.name in used]
    tensor = chosen[-1]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 10 * np.abs(values).max()
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, file)


@pytest.mark.skipif(not OTHERS, reason="there is no provider to compare with the CPU")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bert", "model.onnx"),
        ("vit", "model.onnx"),
        ("gpt2", "model.onnx"),
        ("t5-no-post-process", "decoder_with_past_model.onnx"),
        ("stable-diffusion", "unet/model.onnx"),
        ("yolos", "model.onnx"),
    ],
)
def test_a_weight_that_one_provider_has_otherwise_is_found(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    changed = shutil.copytree(exported(name), tmp_path / name)
    _change_a_weight(changed / file)

    def run_on_the_copy(plan: RunPlan, provider: Provider, seconds: float) -> Run:
        return run_in_child(replace(plan, directory=changed), provider, seconds)

    monkeypatch.setattr(providers, "run_in_child", run_on_the_copy)
    cpu, *others = verify(exported(name), providers=[CPU, *OTHERS]).providers
    assert cpu.status == "ok"
    for result in _present(others):
        assert (result.status, result.stage) == ("failed", "comparing"), result.message
        assert "differs from the CPU's by" in result.message
        if name == "bert":
            assert (result.file, result.node) == ("model.onnx", "/cls/predictions/decoder/Add")
            assert result.tag is not None
            assert result.tag.endswith("/Linear.decoder")
            assert result.message.endswith(f" [node {result.node} of {result.tag}]")


@pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="there is no Azure provider"
)
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_process_of_its_own(exported: Exported, name: str) -> None:
    (result,) = verify(exported(name), providers=[AZURE]).providers
    assert (result.status, result.node_count) == ("failed", 0)
    assert result.message.startswith("no node ran on it (")


def test_a_node_that_it_cannot_load_is_named(exported: Exported, tmp_path: Path) -> None:
    directory = shutil.copytree(exported("bert"), tmp_path / "bert")
    model = onnx.load(directory / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = "NoSuchOperator"
    onnx.save(model, directory / "model.onnx")
    for result in _present(verify(directory, providers=[CPU, *OTHERS]).providers):
        assert (result.status, result.stage, result.file) == ("failed", "loading", "model.onnx")
        assert (result.node, result.tag) == (node.name, node.doc_string.split("\n")[0])
        assert result.message.endswith(f" [node {node.name} of {result.tag}]")


@pytest.mark.skipif(RUNTIME != "openvino", reason="it is of OpenVINO")
def test_the_modules_of_a_right_provider_agree(minilm: Path) -> None:
    found = compare(minilm, provider="openvino")
    assert (found.ok, found.culprits) == (True, ())
    assert all(row.matched for row in found.modules)
    # It is OpenVINO that ran them: it rounds otherwise.
    assert max(row.relative or 0 for row in found.modules if row.path == "encoder.layer.0") > 0
    assert 0 < max(row.own_relative or 0 for row in found.modules) < 1e-5


@pytest.mark.skipif(RUNTIME != "openvino", reason="it is of OpenVINO")
def test_two_providers_share_a_model(exported: Exported) -> None:
    """The CPU has what OpenVINO does not take of the attention, and tensors cross there."""
    (file,) = profile(exported("gpt2"), provider="openvino", iterations=1, isolated=True).files
    placement = file.placement
    assert placement is not None
    assert (placement.provider, placement.recorded) == (OPENVINO, True)
    assert placement.providers.keys() == {OPENVINO, CPU}
    left = {one.module: dict(one.ops) for one in placement.fallen_back}
    assert left == {f"transformer.h.{layer}.attn": {"IsNaN": 1} for layer in range(len(left))}
    answer = placement.answer()
    assert answer.startswith(f"{OPENVINO} runs {placement.providers[OPENVINO]} of ")
    assert f"; on {CPU}: transformer.h.*.attn ({len(left)} IsNaN), which keep" in answer
    assert {(one.source, one.target) for one in placement.crossings} == {
        (OPENVINO, CPU),
        (CPU, OPENVINO),
    }
    assert placement.crossing_bytes is not None
    assert placement.crossing_bytes > 0
    # What it compiled is of no module; each is measured alone.
    assert file.unplaced
    assert file.isolated is not None
    assert all(one.ms is not None and one.taken is not None for one in file.isolated.modules)


@pytest.mark.skipif(RUNTIME != "openvino", reason="it is of OpenVINO")
def test_where_a_wrong_branch_begins(exported: Exported) -> None:
    found = compare(exported("mbart"), provider="openvino")
    assert not found.ok
    # Every module is right, those of the merged decoder's two branches, too ...
    assert found.culprits == ()
    assert max(row.relative or 0 for row in found.modules) < 1e-5
    # ... and in one session the If takes the branch of the first run.
    wrong = {row.file: row for row in found.only_deployed}
    assert list(wrong) == ["decoder_model_merged.onnx (use_cache_branch=true)"]
    assert wrong.popitem()[1].name == "logits"
