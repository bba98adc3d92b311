"""`diff`: it finds what was changed, where it was changed, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from modelexport_optimum import strip, tag
from modelexport_optimum.cli.main import app
from modelexport_optimum.hierarchy.diff import diff
from modelexport_optimum.hierarchy.difference import Change, NodeChange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from modelexport_optimum.hierarchy.difference import FileDiff, ModuleChange

LAYER = "bert.encoder.layer.0"


@pytest.fixture(scope="session")
def bert(tagged: Callable[[str], Path]) -> Path:
    return tagged("bert") / "model.onnx"


@pytest.fixture
def model(bert: Path) -> onnx.ModelProto:
    return onnx.load(bert)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def changed(bert: Path, model: onnx.ModelProto, directory: Path) -> FileDiff:
    """What differs between the export and a changed model."""
    path = directory / "changed.onnx"
    onnx.save(model, path)
    [found] = diff(bert, path).files
    assert run("diff", bert, path).exit_code == (0 if found.same else 1)
    return found


def by_path(found: FileDiff) -> dict[str, ModuleChange]:
    return {module.module: module for module in found.modules}


# --- The same -------------------------------------------------------------------------------------


def test_an_export_is_the_same_as_itself(bert: Path) -> None:
    result = run("diff", bert.parent, bert.parent)
    assert result.exit_code == 0
    assert result.stdout == f"{bert.parent} and {bert.parent} are the same\n"


def test_names_and_storage_do_not_count(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    for tensor in model.graph.initializer:
        for other in model.graph.node:
            for index, name in enumerate(other.input):
                if name == tensor.name:
                    other.input[index] = f"renamed.{name}"
        tensor.name = f"renamed.{tensor.name}"
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    assert diff(bert, path).same


def test_an_attribute_that_is_left_out_is_its_default(
    bert: Path, model: onnx.ModelProto, tmp_path: Path
) -> None:
    normalization = node(
        model, f"/{LAYER.replace('.', '/', 2)}/output/LayerNorm/LayerNormalization"
    )
    assert "stash_type" not in {attribute.name for attribute in normalization.attribute}
    normalization.attribute.append(onnx.helper.make_attribute("stash_type", 1))
    assert changed(bert, model, tmp_path).same


# --- One change -----------------------------------------------------------------------------------


def test_other_values_of_a_parameter(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    bias = weight(model, f"{LAYER}.attention.self.query.bias")
    array = numpy_helper.to_array(bias).copy()
    array[3] = np.nextafter(array[3], 2)  # the last bit
    bias.raw_data = array.tobytes()
    [module] = changed(bert, model, tmp_path).modules
    assert module.module == f"{LAYER}.attention.self.query"
    assert module.parameter_changes == (Change("bias", "float[16]", "float[16] with other values"),)


def test_another_shape_and_a_numbered_weight(
    bert: Path, model: onnx.ModelProto, tmp_path: Path
) -> None:
    dense = node(model, f"/{LAYER.replace('.', '/', 2)}/output/dense/MatMul")
    tensor = weight(model, dense.input[1])
    array = np.zeros((40, 16), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    [module] = changed(bert, model, tmp_path).modules
    assert module.module == f"{LAYER}.output.dense"
    assert module.parameter_changes == (Change(tensor.name, "float[32, 16]", "float[40, 16]"),)


def test_another_attribute(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    normalization = node(model, "/bert/embeddings/LayerNorm/LayerNormalization")
    [epsilon] = [a for a in normalization.attribute if a.name == "epsilon"]
    epsilon.f = 1e-3
    [module] = changed(bert, model, tmp_path).modules
    assert module.module == "bert.embeddings.LayerNorm"
    [change] = module.operator_changes
    assert change == Change("LayerNormalization", "1", "1 with other attributes")


def test_large_constants_are_compared_by_their_bytes(tmp_path: Path) -> None:
    def tagged_model(name: str, last: int, stored: str, length: int, *, before: str = "") -> Path:
        array = np.arange(length, dtype=np.float32)
        array[-1] = last
        tensor = numpy_helper.from_array(array, stored)
        if stored == "floats":
            tensor = onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [length], array)
        nodes = [onnx.helper.make_node("Constant", [], ["c"], name="/a/Constant", value=tensor)]
        x, y = (onnx.helper.make_tensor_value_info(v, 1, None) for v in "xy")
        nodes.append(onnx.helper.make_node("Mul", ["x", "c"], ["y"], name="/a/Mul"))
        made = onnx.helper.make_model(
            onnx.helper.make_graph(nodes, "g", [x], [y], doc_string=before),
            opset_imports=[onnx.helper.make_opsetid("", 18)],
        )
        onnx.save(made, tmp_path / name)
        tag(tmp_path / name)
        return tmp_path / name

    for length in (
        100,
        1_000,
        100_000,
    ):  # in the node, left in the file, in a node too long to parse
        one = tagged_model("one.onnx", 1, "raw", length)
        for stored in ("other name", "floats"):
            assert diff(one, tagged_model("same.onnx", 1, stored, length, before="longer")).same
        [found] = diff(one, tagged_model("other.onnx", 2, "raw", length)).files
        [module] = found.modules
        assert (module.module, [change.name for change in module.operator_changes]) == (
            "a",
            ["Constant"],
        )


def test_another_operator(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    node(model, f"/{LAYER.replace('.', '/', 2)}/attention/self/Softmax").op_type = "LogSoftmax"
    [module] = changed(bert, model, tmp_path).modules
    assert module.module == f"{LAYER}.attention.self"
    assert module.operator_changes == (Change("LogSoftmax", "0", "1"), Change("Softmax", "1", "0"))


def retag(proto: onnx.NodeProto, tag_text: str) -> None:
    """Gives a node another tag, in the one carrier that is left."""
    kept = [attribute for attribute in proto.attribute if attribute.name != "__hierarchy_tag"]
    del proto.attribute[:], proto.metadata_props[:]
    proto.attribute.extend(kept)
    proto.doc_string = tag_text


@pytest.mark.parametrize("name", ["/bert/encoder/layer.0/output/Add", "Constant_41"])
def test_a_node_in_another_module(
    bert: Path, model: onnx.ModelProto, tmp_path: Path, name: str
) -> None:
    if name == "Constant_41":  # the exporter's count of nodes is not the same everywhere
        name = next(n.name for n in model.graph.node if n.name.startswith("Constant_"))
    moved = node(model, name)
    before = moved.doc_string
    retag(moved, "/BertForMaskedLM/BertModel.bert")
    found = changed(bert, model, tmp_path)
    [change] = found.moved
    assert (change.name, change.op_type, change.b) == (name, moved.op_type, "bert")
    assert before.endswith(change.a.rpartition(".")[2])
    assert {"bert", change.a} == by_path(found).keys()


def test_another_class(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    for proto in model.graph.node:
        if "BertPooler" in proto.doc_string or "BertEmbeddings" in proto.doc_string:
            retag(proto, proto.doc_string.replace("BertEmbeddings", "OtherEmbeddings"))
    [module] = changed(bert, model, tmp_path).modules
    assert module.module == "bert.embeddings"
    assert module.class_changes == (Change("class", "BertEmbeddings", "OtherEmbeddings"),)


def test_a_node_that_reads_another_module(
    bert: Path, model: onnx.ModelProto, tmp_path: Path
) -> None:
    add = node(model, "/bert/encoder/layer.1/attention/output/Add")
    residual = [i for i, name in enumerate(add.input) if "layer.0/output/LayerNorm" in name]
    add.input[residual[0]] = "/bert/embeddings/LayerNorm/LayerNormalization_output_0"
    found = changed(bert, model, tmp_path)
    assert not found.modules
    [change] = found.rewired
    assert change.name == add.name
    assert "layer.0.output.LayerNorm" in change.a
    assert "bert.embeddings.LayerNorm" in change.b


def test_another_output(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    found = changed(bert, model, tmp_path)
    assert found.interface == (
        Change(
            "output logits",
            "float[batch_size, sequence_length, 320]",
            "float[n, sequence_length, 320]",
        ),
    )
    assert not found.modules


# --- Two exports ----------------------------------------------------------------------------------


def test_two_precisions(tagged: Callable[[str], Path]) -> None:
    [found] = diff(tagged("bert"), tagged("bert-fp16")).files
    modules = by_path(found)
    query = modules[f"{LAYER}.attention.self.query"]
    assert {(change.a, change.b) for change in query.parameter_changes} == {
        ("float[16]", "float16[16]"),
        ("float[16, 16]", "float16[16, 16]"),
    }
    assert not query.operator_changes
    assert not any(module.only_in for module in found.modules)
    assert not found.moved
    printed = run("diff", tagged("bert"), tagged("bert-fp16")).stdout
    assert "bert.encoder.layer.*.attention.self.query" in printed
    assert printed.count("attention.self.query ") == 1  # both layers in one row


def test_two_opsets(bert: Path, model_directory: Callable[[str], Path], tmp_path: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(model_directory("bert")), tmp_path, task="fill-mask", opset=14, do_validation=False
    )
    tag(tmp_path)
    [found] = diff(tmp_path, bert.parent).files
    assert [change.name for change in found.interface] == ["opset ai.onnx"]
    modules = by_path(found)
    assert {path for path in modules if not path.endswith("LayerNorm")} <= {"bert"}
    normalization = modules["bert.embeddings.LayerNorm"]
    assert Change("LayerNormalization", "0", "1") in normalization.operator_changes
    assert Change("ReduceMean", "2", "0") in normalization.operator_changes
    assert {change.name for change in normalization.parameter_changes} <= {"weight", "bias"}
    assert not found.moved


def test_before_and_after_optimizing(bert: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(bert, options, providers=["CPUExecutionProvider"])
    [found] = diff(bert, tmp_path / "optimized.onnx").files
    only = {module.module: module.only_in for module in found.modules if module.only_in}
    assert only[f"{LAYER}.intermediate.intermediate_act_fn"] == "a"  # it is fused
    assert f"{LAYER}.attention.self.query" not in by_path(found)


# --- Directories and errors -----------------------------------------------------------------------


def test_a_file_that_only_one_has(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    for file in tagged("t5").glob("*.onnx"):
        if "merged" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    found = diff(tagged("t5"), tmp_path)
    different = [file for file in found.files if not file.same]
    assert [(file.file, file.only_in) for file in different] == [("decoder_model_merged.onnx", "a")]
    result = run("diff", tagged("t5"), tmp_path, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["same"] is False
    assert [file["only_in"] for file in document["files"]] == ["", "a", "", ""]


def test_trouble(bert: Path, tmp_path: Path) -> None:
    untagged = tmp_path / "model.onnx"
    untagged.write_bytes(bert.read_bytes())
    strip(untagged)
    for other, said in (
        (untagged, "is not tagged"),
        (tmp_path / "missing.onnx", "does not exist"),
        (bert.parent, "give two of them, or two files"),
    ):
        result = run("diff", bert, other)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert said in result.stderr
        assert json.loads(run("diff", bert, other, "--json").stdout)["exit_status"] == 2


def test_json_has_all_that_is_printed(bert: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    name = "/bert/encoder/layer.0/output/Add"
    retag(node(model, name), "/BertForMaskedLM/BertModel.bert")
    onnx.save(model, tmp_path / "changed.onnx")
    document = json.loads(run("diff", bert, tmp_path / "changed.onnx", "--json").stdout)
    [file] = document["files"]
    assert file["moved"] == [{"name": name, "op_type": "Add", "a": f"{LAYER}.output", "b": "bert"}]
    assert {module["module"] for module in file["modules"]} == {"bert", f"{LAYER}.output"}
    assert NodeChange(**file["moved"][0])
