"""`compare` on real weights, with what is known of each way to change an export's numbers."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelexport_optimum import ModelExportError, compare, read_hierarchy, tag

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelexport_optimum.comparing.comparison import Comparison

LAYERS = [f"encoder.layer.{number}" for number in range(6)]
LINEARS = {
    f"{layer}.{name}"
    for layer in LAYERS
    for name in (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
}
NORMS = {f"{layer}.{name}.LayerNorm" for layer in LAYERS for name in ("attention.output", "output")}
ACTIVATIONS = {f"{layer}.intermediate.intermediate_act_fn" for layer in LAYERS}
EMBEDDINGS = {f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type")}

Written = "Callable[[Callable[[Path], Any]], Path]"


@pytest.fixture
def written(minilm: Path, tmp_path: Path) -> Written:
    """Makes a tagged export with another model, which a function writes."""

    def make(write: Callable[[Path], Any]) -> Path:
        output = tmp_path / "other"
        shutil.copytree(minilm, output)
        (output / "model.onnx").unlink()
        write(output / "model.onnx")
        tag(output)
        return output

    return make


def optimized(source: Path, level: str, file: Path) -> None:
    """What `export --optimize` does."""
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    optimizer = ORTOptimizer.from_pretrained(source, file_names=["model.onnx"])
    config = AutoOptimizationConfig.with_optimization_level(level)
    optimizer.optimize(config, save_dir=file.parent, file_suffix="")


def own_errors(found: Comparison) -> dict[str, float]:
    return {row.path: row.own_relative for row in found.modules if row.own_relative is not None}


def unmatched(found: Comparison) -> dict[str, str]:
    return {row.path: row.reason for row in found.modules if not row.matched}


def test_float16(minilm: Path, written: Written) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(minilm / "model.onnx"), keep_io_types=True)
    found = compare(minilm, written(lambda file: onnx.save(model, file)))
    assert (found.ok, found.tolerance, found.culprits) == (True, 1e-2, ())
    assert not unmatched(found)
    # Rounding, and not nothing: what is compared is the converted model.
    assert all(2**-14 < own_errors(found)[path] < 1e-2 for path in LINEARS)
    assert 1e-4 < found.outputs[0].relative < 1e-2


def test_bfloat16(minilm: Path, written: Written) -> None:
    model = onnx.load(minilm / "model.onnx")
    for tensor in [t for t in model.graph.initializer if len(t.dims) == 2]:
        name = tensor.name
        value = numpy_helper.to_array(tensor)
        narrow = numpy_helper.from_array(
            value.astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)), f"{name}_bfloat16"
        )
        tensor.CopyFrom(narrow)
        cast = helper.make_node("Cast", [narrow.name], [name], to=TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    found = compare(minilm, written(lambda file: onnx.save(model, file)))
    assert (found.ok, found.tolerance, found.culprits) == (True, 5e-2, ())
    assert not unmatched(found)
    assert all(2**-12 < own_errors(found)[path] < 2**-8 for path in LINEARS | EMBEDDINGS)
    assert max(own_errors(found)[path] for path in NORMS | ACTIVATIONS) == 0


def test_what_the_cpu_does_not_compute_in_bfloat16_is_said(minilm: Path, written: Written) -> None:
    def write(file: Path) -> None:
        nodes = [
            helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
            helper.make_node("Add", ["narrow", "narrow"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
        ]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
        graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
        opset = helper.make_opsetid("", 18)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), file)

    directory = written(write)
    with pytest.raises(ModelExportError, match=r"cannot run .*model.onnx: .* Add\(") as raised:
        compare(directory, directory)
    assert "\n" not in str(raised.value)


def test_optimized_without_fusions(minilm: Path, written: Written) -> None:
    found = compare(minilm, written(lambda file: optimized(minilm, "O1", file)))
    assert found.ok
    assert not unmatched(found)
    assert set(own_errors(found).values()) == {0.0}  # it computes the same, in fewer nodes


def test_optimized_with_fusions(minilm: Path, written: Written) -> None:
    other = written(lambda file: optimized(minilm, "O2", file))
    found = compare(minilm, other)
    assert (found.ok, found.culprits) == (True, ())
    fused = unmatched(found)
    assert fused.keys() >= LINEARS | NORMS | ACTIVATIONS
    inside = "encoder.layer.0.attention.output"
    assert fused[f"{inside}.LayerNorm"] == (
        f"a node of {inside} applies its weight: the two modules were fused, or their tags do not "
        "distinguish them"
    )
    assert all(fused.values())
    # What is around them is compared.
    matched = own_errors(found)
    assert {"", "embeddings", "embeddings.LayerNorm", "encoder", *LAYERS} <= matched.keys()
    assert {f"{layer}.intermediate" for layer in LAYERS} <= matched.keys()


def test_a_fused_node_has_a_module_around_all_whose_weights_it_reads(
    minilm: Path, written: Written
) -> None:
    # The optimizer takes the tags of what it fuses, and leaves those of one LayerNorm alone.
    file = written(lambda file: optimized(minilm, "O2", file)) / "model.onnx"
    modules = {node.name: node.module for node in read_hierarchy(file)}
    norms = [n for n in onnx.load(file).graph.node if n.op_type == "SkipLayerNormalization"]
    assert len(norms) == 12
    for node in norms:
        owners = [name.rpartition(".")[0] for name in node.input if name.startswith("encoder")]
        assert owners
        assert all(f"{owner}.".startswith(f"{modules[node.name]}.") for owner in owners), node.name


def test_approximated(minilm: Path, written: Written) -> None:
    found = compare(minilm, written(lambda file: optimized(minilm, "O3", file)))
    # GELU by its approximation is what O3 adds to O2.
    assert set(found.culprits) == {f"{layer}.intermediate" for layer in LAYERS}
    assert all(1e-4 < own_errors(found)[path] < 1e-3 for path in found.culprits)


@pytest.mark.parametrize(
    ("options", "quantized"),
    [({}, LINEARS | EMBEDDINGS), ({"op_types_to_quantize": ["MatMul"]}, LINEARS)],
    ids=["all", "MatMul"],
)
def test_quantized(
    minilm: Path, written: Written, tmp_path: Path, options: dict[str, Any], quantized: set[str]
) -> None:
    from onnxruntime.quantization import quantize_dynamic

    model = shutil.copy(minilm / "model.onnx", tmp_path)  # it is written beside
    found = compare(minilm, written(lambda file: quantize_dynamic(model, file, **options)))
    assert set(found.culprits) == quantized
    assert not unmatched(found)
    own = own_errors(found)
    assert list(found.culprits) == sorted(quantized, key=own.__getitem__, reverse=True)
    assert all(1e-3 < own[path] < 0.2 for path in quantized)
    # What has no weight to quantize is as it was.
    assert max(own[path] for path in NORMS | ACTIVATIONS) == 0


def test_another_opset(minilm: Path, sample: Path, tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export

    options = {"task": "feature-extraction", "library_name": "transformers"}
    main_export(str(sample), tmp_path, opset=14, do_validation=False, **options)
    tag(tmp_path)
    operators = [
        {node.op_type for node in read_hierarchy(directory)} for directory in (minilm, tmp_path)
    ]
    assert ["LayerNormalization" in found for found in operators] == [True, False]
    found = compare(minilm, tmp_path)
    assert found.ok
    assert not unmatched(found)
    # The norm of 17 is nine operators in 14, which round otherwise.
    assert 0 < max(own_errors(found)[path] for path in NORMS) < 1e-6


def test_pytorch(minilm: Path) -> None:
    found = compare(minilm)  # the source that it records
    assert (found.ok, found.culprits) == (True, ())
    # The pooler runs in PyTorch alone: nobody asks for what it gives.
    assert {path for path in unmatched(found) if not path.startswith("pooler")} == set()
    assert found.tolerance == 1e-4
