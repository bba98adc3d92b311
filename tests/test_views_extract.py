"""`extract`: the module alone computes what it computes inside the model, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from needs import POSIX
from onnx import helper
from typer.testing import CliRunner

from modelexport_optimum import ModelExportError, UsageError, read_hierarchy, strip
from modelexport_optimum.cli.main import app
from modelexport_optimum.hierarchy.extract import extract
from modelexport_optimum.onnx_file.wire import varint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Arrays = dict[str, np.ndarray]

MEGABYTE = 1024 * 1024
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
SIZES = {"batch_size": 2, "num_channels": 3, "height": 32, "width": 32}
OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@pytest.fixture(scope="session")
def electra(tagged: Callable[[str], Path]) -> Path:
    return tagged("electra") / "model.onnx"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def session(
    model: Path | bytes, level: onnxruntime.GraphOptimizationLevel = OFF
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def made_up(inputs: list[onnxruntime.NodeArg]) -> Arrays:
    random = np.random.default_rng(0)
    arrays = {}
    for value in inputs:
        shape = [dim if isinstance(dim, int) else SIZES.get(dim, 4) for dim in value.shape]
        dtype = TYPES[value.type]
        if dtype == np.float32:
            arrays[value.name] = random.standard_normal(shape, dtype)
        else:
            arrays[value.name] = random.integers(0, 2, shape).astype(dtype)
    return arrays


def flowing(path: Path, names: set[str], level: onnxruntime.GraphOptimizationLevel = OFF) -> Arrays:
    """The tensors of these names while the whole model runs."""
    model = onnx.load(path)
    there = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - there))
    whole = session(model.SerializeToString(), level)
    arrays = made_up(whole.get_inputs())
    outputs = [value.name for value in whole.get_outputs()]
    return arrays | dict(zip(outputs, whole.run(outputs, arrays), strict=True))


def check_same(
    path: Path, module: str, target: Path, level: onnxruntime.GraphOptimizationLevel = OFF
) -> None:
    """Cuts a module out, and feeds it with what enters it in the whole model."""
    found = extract(path, module, target)
    onnx.checker.check_model(target, full_check=True)
    inputs, outputs = ([tensor.name for tensor in side] for side in (found.inputs, found.outputs))
    expected = flowing(path, {*inputs, *outputs}, level)
    results = session(target, level).run(outputs, {name: expected[name] for name in inputs})
    assert outputs
    for name, result in zip(outputs, results, strict=True):
        assert result.shape == expected[name].shape
        assert result.dtype == expected[name].dtype
        assert result.tobytes() == expected[name].tobytes(), name


# --- What comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [OFF, ALL], ids=["plain", "optimized"])
@pytest.mark.parametrize(
    "module",
    [
        "electra.encoder.layer.0",
        "electra.encoder.layer.1.attention",
        "electra.embeddings.word_embeddings",
        "electra.embeddings",
        "classifier",
        "electra.encoder",
        "",
    ],
)
def test_the_same_tensors(
    electra: Path, tmp_path: Path, module: str, level: onnxruntime.GraphOptimizationLevel
) -> None:
    check_same(electra, module, tmp_path / "module.onnx", level)


@pytest.mark.parametrize(
    ("model", "module"),
    [
        ("vit", "vit.embeddings.patch_embeddings"),
        ("vit", "vit.encoder.layer.0.attention"),
        ("deberta", "deberta.encoder.layer.0.attention.self"),  # with nested graphs
        ("albert", "albert.encoder"),  # runs once, but each of its layers several times
    ],
)
def test_the_same_tensors_elsewhere(
    tagged: Callable[[str], Path], tmp_path: Path, model: str, module: str
) -> None:
    check_same(tagged(model) / "model.onnx", module, tmp_path / "module.onnx")


def test_what_is_in_it(electra: Path, tmp_path: Path) -> None:
    target = tmp_path / "layer.onnx"
    module = "electra.encoder.layer.1"
    found = extract(electra, module, target)
    assert [tensor.name for tensor in found.inputs] == [
        "/electra/encoder/layer.0/output/LayerNorm/LayerNormalization_output_0",
        found.inputs[1].name,  # the mask
    ]
    assert [tensor.type for tensor in found.outputs] == ["float[?, ?, 16]"]
    model, whole = onnx.load(target), onnx.load(electra)
    weights = {tensor.name: tensor for tensor in whole.graph.initializer}
    assert all(weights[tensor.name] == tensor for tensor in model.graph.initializer)
    names = {tensor.name for tensor in model.graph.initializer}
    assert f"{module}.attention.self.query.bias" in names
    assert not any("layer.0" in name or "embeddings" in name for name in names)
    assert found.bytes == sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    nodes = [node.SerializeToString() for node in whole.graph.node]
    assert all(node.SerializeToString() in nodes for node in model.graph.node)
    assert model.opset_import == whole.opset_import
    assert model.graph.name == module


def test_the_tags_are_kept_and_can_be_stripped(electra: Path, tmp_path: Path) -> None:
    target = tmp_path / "layer.onnx"
    module = "electra.encoder.layer.1"
    extract(electra, module, target)
    whole = {(node.name, node.op_type): node for node in read_hierarchy(electra)}
    nodes = list(read_hierarchy(target))
    assert all(whole[node.name, node.op_type] == node for node in nodes)
    own = {name for (name, _), node in whole.items() if node.module_path.startswith(module)}
    assert own <= {node.name for node in nodes}
    assert strip(target) == [target]
    assert not any(node.doc_string for node in onnx.load(target).graph.node)


def test_of_one_branch(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    """A merged decoder computes the keys of the encoder's output in one branch of its If."""
    directory = tagged("t5")
    module = "decoder.block.0.layer.1.EncDecAttention.k"
    merged, plain = tmp_path / "merged.onnx", tmp_path / "plain.onnx"
    found = extract(directory / "decoder_model_merged.onnx", module, merged)
    other = extract(directory / "decoder_model.onnx", module, plain)
    assert (found.inputs, found.outputs) == (other.inputs, other.outputs)
    assert found.bytes == other.bytes == 16 * 16 * 4
    arrays = made_up(session(plain).get_inputs())
    results = [session(path).run(None, arrays)[0] for path in (merged, plain)]
    assert results[0].tobytes() == results[1].tobytes()


def test_of_an_optimized_model(electra: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own operators, whose types onnx cannot infer."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(electra, options, providers=["CPUExecutionProvider"])
    optimized = tmp_path / "optimized.onnx"
    assert "com.microsoft" in {node.domain for node in onnx.load(optimized).graph.node}
    target = tmp_path / "module.onnx"
    found = extract(optimized, "electra.encoder.layer.1.output", target)
    inputs, outputs = ([tensor.name for tensor in side] for side in (found.inputs, found.outputs))
    expected = flowing(optimized, {*inputs, *outputs})
    results = session(target).run(outputs, {name: expected[name] for name in inputs})
    assert [result.tobytes() for result in results] == [
        expected[name].tobytes() for name in outputs
    ]


# --- Weights --------------------------------------------------------------------------------------


def test_mode_is_what_the_umask_gives(electra: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        extract(electra, "electra.encoder.layer.0", tmp_path / "cut.onnx")
    finally:
        os.umask(before)
    assert (tmp_path / "cut.onnx").stat().st_mode & 0o777 == 0o640


def test_external_data(electra: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    onnx.save(
        onnx.load(electra), whole / "model.onnx",
        save_as_external_data=True, location="weights.bin", size_threshold=0,
    )  # fmt: skip
    target = tmp_path / "layer.onnx"
    check_same(whole / "model.onnx", "electra.encoder.layer.0", target)
    data = tmp_path / "layer.onnx.data"
    inline = extract(electra, "electra.encoder.layer.0", tmp_path / "inline.onnx")
    pages = len(onnx.load(target, load_external_data=False).graph.initializer)
    assert inline.bytes <= data.stat().st_size <= inline.bytes + 4096 * pages
    (whole / "weights.bin").unlink()
    with pytest.raises(ModelExportError, match=r"weights\.bin is missing"):
        extract(whole / "model.onnx", "electra.encoder.layer.1", tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
    assert not (tmp_path / "other.onnx.data").exists()


@POSIX
def test_weights_of_others_are_not_read(tmp_path: Path) -> None:
    """A gigabyte of another module's weights, as a hole in the file."""
    size = 1024 * MEGABYTE
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["w"], ["a"], "/big/Relu", doc_string="/Model/Big.big"),
            helper.make_node(
                "Mul", ["x", "s"], ["y"], "/small/Mul", doc_string="/Model/Small.small"
            ),
        ],
        "large",
        [helper.make_tensor_value_info("x", 1, ["n"])],
        [
            helper.make_tensor_value_info("a", 1, [size // 4]),
            helper.make_tensor_value_info("y", 1, ["n"]),
        ],
        [helper.make_tensor("s", 1, [1], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"modelexport_optimum.version": "0"})
    tensor = onnx.TensorProto(name="w", dims=[size // 4], data_type=1).SerializeToString()
    tensor += varint(9 << 3 | 2) + varint(size)  # raw_data, of which the bytes follow
    head = graph.SerializeToString() + varint(5 << 3 | 2) + varint(len(tensor) + size) + tensor
    model.ClearField("graph")
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.write(varint(7 << 3 | 2) + varint(len(head) + size) + head)
        file.truncate(file.tell() + size)
    code = (
        "import resource, sys, onnx;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024;"
        "before = peak();"
        "from modelexport_optimum.hierarchy.extract import extract;"
        "extract(sys.argv[1], 'small', sys.argv[2]);"
        "print(peak() - before)"
    )
    target = tmp_path / "small.onnx"
    command = [sys.executable, "-c", code, path, target]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 64 * MEGABYTE
    assert target.stat().st_size < 1000
    [result] = session(target).run(None, {"x": np.ones(3, np.float32)})
    assert result.tolist() == [2, 2, 2]


# --- What cannot be cut out -----------------------------------------------------------------------


def test_a_module_that_runs_several_times(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    path = tagged("albert") / "model.onnx"
    scope = "/albert/encoder/albert_layer_groups.0/albert_layers.0"
    module = scope[1:].replace("/", ".")
    with pytest.raises(ModelExportError) as error:
        extract(path, module, tmp_path / "layer.onnx")
    message = str(error.value)
    assert "it runs 2 times" in message
    assert "/albert/encoder/embedding_hidden_mapping_in/Add_output_0" in message
    assert f"{scope}/full_layer_layer_norm_1/LayerNormalization_output_0" in message
    assert "give albert.encoder, which contains it and runs once" in message
    with pytest.raises(ModelExportError) as error:
        extract(path, f"{module}.ffn", tmp_path / "layer.onnx")
    assert f"it runs 2 times: {scope}/ffn/Add_output_0 leave it" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_module_in_both_branches(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    path = tagged("t5") / "decoder_model_merged.onnx"
    with pytest.raises(ModelExportError) as error:
        extract(path, "decoder.block.0", tmp_path / "block.onnx")
    assert "it is in 2 graphs, optimum::if.else_branch, optimum::if.then_branch" in str(error.value)
    assert "/decoder/block.0/layer.2/Add_output_0" in str(error.value)


def test_a_module_around_another_one(tmp_path: Path) -> None:
    """Two parts of a module, with another module between them that is not inside it."""
    parts = [("Relu", "x", "a", "A"), ("Exp", "a", "b", "B"), ("Neg", "b", "y", "A")]
    graph = helper.make_graph(
        [
            helper.make_node(op, [read], [made], f"/{name.lower()}/{op}",
                             doc_string=f"/Model/{name}.{name.lower()}")
            for op, read, made, name in parts
        ],
        "graph",
        [helper.make_tensor_value_info("x", 1, ["n"])],
        [helper.make_tensor_value_info("y", 1, ["n"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"modelexport_optimum.version": "0"})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelExportError) as error:
        extract(tmp_path / "model.onnx", "a", tmp_path / "a.onnx")
    assert "other modules run between parts of it: a leave it and come back as b" in str(
        error.value
    )
    check_same(tmp_path / "model.onnx", "b", tmp_path / "b.onnx")


def test_wrong_arguments(electra: Path, tagged: Callable[[str], Path], tmp_path: Path) -> None:
    target = tmp_path / "layer.onnx"
    with pytest.raises(UsageError, match=r"did you mean electra\.encoder\.layer\.0"):
        extract(electra, "electra.encoder.layers.0", target)
    with pytest.raises(UsageError, match="is in several files: give one of"):
        extract(tagged("t5"), "decoder.block.0", target)
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists: give another file to write, or --overwrite"):
        extract(electra, "classifier", target)
    assert target.read_bytes() == b"mine"
    extract(electra, "classifier", target, overwrite=True)
    copy = tmp_path / "model.onnx"
    copy.write_bytes(electra.read_bytes())
    with pytest.raises(UsageError, match="is the input file"):
        extract(copy, "classifier", copy, overwrite=True)
    assert copy.read_bytes() == electra.read_bytes()
    with pytest.raises(ModelExportError, match="cannot write in"):
        extract(electra, "classifier", tmp_path / "missing" / "layer.onnx")


def test_the_command(electra: Path, tmp_path: Path) -> None:
    target = tmp_path / "layer.onnx"
    arguments = ("extract", electra.parent, "--module", "electra.encoder.layer.0", "-o", target)
    printed = run(*arguments)
    assert printed.exit_code == 0
    assert "electra.encoder.layer.0 ElectraLayer: " in printed.stdout
    assert "/electra/encoder/layer.0/output/LayerNorm" in printed.stdout
    again = run(*arguments)
    assert (again.exit_code, len(again.stderr.splitlines())) == (2, 1)
    document = json.loads(run(*arguments, "--overwrite", "--json").stdout)
    assert document["ok"] is True
    assert document["class"] == "ElectraLayer"
    assert [value["name"] for value in document["inputs"]] == [
        value.name for value in session(target).get_inputs()
    ]
