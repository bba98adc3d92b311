"""`compare` finds the module that is at fault, and accuses none that is not."""

from __future__ import annotations

import json
import random
import re
import shutil
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import onnx
import pytest
import zoo
from onnx import TensorProto, helper
from planted_faults import plant, weights_by_module
from test_json import SCHEMAS
from typer.testing import CliRunner

from modelexport_optimum import ModelExportError, UsageError, compare, read_hierarchy, strip, tag
from modelexport_optimum.cli.main import app
from modelexport_optimum.graph_runs.recorded_run import ValueStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARGUMENTS = {row.name: row.export for row in zoo.ARCHITECTURES}

FAMILIES = (
    *("bert", "albert", "deberta", "t5", "gpt2", "llama", "bart"),
    *("vit", "resnet", "mobilenet-v2", "swin", "convnext", "wav2vec2", "clip"),
    *(
        "bert-fresh",
        "squeezebert",
        "deepseek-v3",
        "whisper",
        "rt-detr",
        "swinv2",
        "metaclip2-split",
    ),
)
"""Text, vision, speech; shared layers, decoders with past, merged ones, folded normalizations;
a pooler that no output needs, an order of axes that the exporter changes, choices that rounding
decides, sizes that the graph fixes, modules that depend on no input, files of another variant."""


def against_pytorch(
    name: str, tagged: Callable[[str], Path], model_directory: Callable[[str], Path]
) -> Any:
    return compare(tagged(name), model=str(model_directory(name)))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_module_of_a_right_export_is_accused(
    name: str, tagged: Callable[[str], Path], model_directory: Callable[[str], Path]
) -> None:
    found = against_pytorch(name, tagged, model_directory)
    assert found.ok
    assert not found.culprits
    returning = [row for row in found.modules if "no output tensor in the" not in row.reason]
    matched = [row for row in returning if row.matched]
    needed = [row for row in returning if "no output of the model needs" not in row.reason]
    assert len(matched) >= 0.97 * len(needed)
    assert all(row.reason for row in found.modules if not row.matched)
    assert max(row.own_relative for row in matched) < found.tolerance
    # It is all of the modules that own nodes, and not a part of them.
    files = {row.file.partition(" ")[0] for row in found.modules}
    owning = {node.module_path for file in files for node in read_hierarchy(tagged(name) / file)}
    seen = {row.path for row in found.modules}
    assert len(owning & seen) >= 0.9 * len(owning)


def planted(source: Path, target: Path, file: str, initializer: str) -> str:
    """An export with one weight changed, and the module that reads it."""
    plant(source, target, file, initializer)
    found = weights_by_module(source / file)
    return next(path for path, names in found.items() if initializer in names)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bert", "model.onnx"),
        ("t5", "decoder_model_merged.onnx"),
        ("llama", "model.onnx"),
        ("vit-gpt2", "decoder_model.onnx"),
        ("resnet", "model.onnx"),
        ("convnext", "model.onnx"),
        ("wav2vec2", "model.onnx"),
        ("stable-diffusion", "unet/model.onnx"),
    ],
)
def test_a_planted_fault_is_found(
    name: str,
    file: str,
    tagged: Callable[[str], Path],
    model_directory: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    # `make compare-faults` draws 40 more.
    draw = random.Random(name)
    weights = weights_by_module(tagged(name) / file)
    path = draw.choice(sorted(weights))
    initializer = draw.choice(weights[path])
    plant(tagged(name), tmp_path / "broken", file, initializer)
    found = compare(tmp_path / "broken", model=str(model_directory(name)))
    assert not found.ok
    assert found.culprits[:1] == (path,), initializer


def test_two_faults_are_found(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    source = tagged("bert")
    names = (
        "bert.encoder.layer.0.attention.self.key.bias",
        "bert.encoder.layer.1.output.dense.bias",
    )
    first = planted(source, tmp_path / "a", "model.onnx", names[0])
    second = planted(tmp_path / "a", tmp_path / "b", "model.onnx", names[1])
    found = compare(source, tmp_path / "b")
    assert set(found.culprits) == {first, second}
    last = next(row for row in found.modules if row.path == "cls")
    assert last.relative > found.tolerance > last.own_relative  # it hands on what it got


def test_only_quantized_modules_are_accused(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source = tagged("bert")
    shutil.copytree(source, tmp_path / "int8")
    quantized = tmp_path / "int8" / "model.onnx"
    quantize_dynamic(source / "model.onnx", quantized, op_types_to_quantize=["MatMul"])
    tag(tmp_path / "int8")
    found = compare(source, tmp_path / "int8")
    names = [node.name for node in read_hierarchy(quantized) if node.op_type == "MatMulInteger"]
    integer = {".".join(name.split("/")[1:-1]) for name in names}
    assert found.culprits
    assert set(found.culprits) <= integer
    large = {row.path for row in found.modules if (row.own_relative or 0) > found.tolerance}
    deepest = {p for p in integer if not any(q.startswith(f"{p}.") for q in integer)}
    assert deepest & large == set(found.culprits)


def test_half_precision_is_judged_by_its_own_tolerance(
    tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = tagged("bert")
    shutil.copytree(source, tmp_path / "half")
    model = convert_float_to_float16(onnx.load(source / "model.onnx"), keep_io_types=True)
    onnx.save(model, tmp_path / "half" / "model.onnx")
    tag(tmp_path / "half")
    found = compare(source, tmp_path / "half")
    assert found.tolerance == 1e-2
    assert found.ok
    assert 1e-5 < max(row.relative for row in found.modules if row.relative is not None) < 1e-2


def test_inputs_and_samples(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    bert = tagged("bert")
    arrays = {
        name: np.ones((1, 5), np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    np.savez(tmp_path / "inputs.npz", **arrays)
    assert compare(bert, bert, inputs=tmp_path / "inputs.npz").ok
    assert compare(bert, bert, text="the quick brown fox").ok
    planted(bert, tmp_path / "broken", "model.onnx", "bert.embeddings.LayerNorm.bias")
    found = compare(bert, tmp_path / "broken", samples=3)
    row = next(row for row in found.modules if row.path == "bert.embeddings.LayerNorm")
    assert 0 < row.relative_mean < row.relative


def test_values_are_kept_as_they_are() -> None:
    values = {
        "scalar": np.array(2.5),
        "empty": np.empty((0, 3), np.int64),
        "transposed": np.arange(6, dtype=np.float16).reshape(2, 3).T,
        "truth": np.array([True, False]),
    }
    with ValueStore() as store:
        for name, value in values.items():
            store.add(name, value)
        store.add("scalar", np.array(0))  # the first stays
        for name, value in reversed(values.items()):
            found = store.get(name)
            assert (found.shape, found.dtype) == (store.shape(name), store.dtype(name))
            assert np.array_equal(found, value)
            assert found.dtype == value.dtype


def test_text_in_a_graph_is_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "LabelEncoder", ["x"], ["text"], domain="ai.onnx.ml", name="read",
            keys_int64s=[0, 1], values_strings=["a", "b"],
        ),
        helper.make_node(
            "LabelEncoder", ["text"], ["y"], domain="ai.onnx.ml", name="write",
            keys_strings=["a", "b"], values_int64s=[5, 6],
        ),
    ]  # fmt: skip
    for node in nodes:
        record = {
            "namespace": f": Coder/{node.name}: Part/{node.name}",
            "pkg.torch.onnx.name_scopes": str(["", node.name, node.name]),
            "pkg.torch.onnx.class_hierarchy": str(["Coder", "Part", "node"]),
        }
        for key, value in record.items():
            node.metadata_props.add(key=key, value=value)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "text.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    tag(path)
    found = compare(path, path)
    assert {row.path: row.relative for row in found.modules} == {"": 0, "read": None, "write": 0}


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_command(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    bert = tagged("bert")
    path = planted(bert, tmp_path / "broken", "model.onnx", "bert.embeddings.LayerNorm.bias")
    assert run(bert, bert).exit_code == 0
    done = run(bert, tmp_path / "broken", "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "compare.json").read_text()))
    assert document["culprits"] == [path]
    assert document["ok"] is False
    shown = run(bert, tmp_path / "broken", "--module", "layer.0", "--depth", "2").stdout
    assert re.search(rf"^ *{re.escape(path)} ", shown, re.MULTILINE)
    assert "layer.1" not in shown
    rows = run(bert, tmp_path / "broken", "--csv").stdout.splitlines()
    assert len(rows) == 1 + len(document["modules"])
    # The deployed graph is fused, and so not equal to the bit.
    assert run(bert, bert, "--tolerance", "0").exit_code == 1


def test_errors(
    tagged: Callable[[str], Path], model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    bert = tagged("bert")
    with pytest.raises(UsageError, match="have no file of the same name"):
        compare(bert, tagged("t5"))
    with pytest.raises(UsageError, match="does not exist"):
        compare(bert, tmp_path / "nothing")
    with pytest.raises(UsageError, match="does not say which model"):
        compare(bert)
    with pytest.raises(ModelExportError, match=r"reads token_type_ids, but .* give the --model"):
        compare(bert, model=str(model_directory("distilbert")))
    with pytest.raises(UsageError, match="is not known to ONNX Runtime"):
        compare(bert, provider="nothing")
    shutil.copytree(bert, tmp_path / "bare")
    strip(tmp_path / "bare")
    with pytest.raises(ModelExportError, match="is not tagged"):
        compare(bert, tmp_path / "bare")
    assert run(bert, tmp_path / "nothing").exit_code == 2
    shutil.copytree(bert, tmp_path / "damaged")
    model = onnx.load(tmp_path / "damaged" / "model.onnx")
    model.graph.node[-1].input[0] = "nothing"
    onnx.save(model, tmp_path / "damaged" / "model.onnx")
    with pytest.raises(ModelExportError, match="reads 'nothing' before any node computes it"):
        compare(bert, tmp_path / "damaged")


def test_node_data_for_model_explorer(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    # tests/test_views_view.py sees that it shows them.
    bert = tagged("bert")
    planted(bert, tmp_path / "broken", "model.onnx", "bert.embeddings.LayerNorm.bias")
    data = tmp_path / "data.json"
    done = run(bert, tmp_path / "broken", "--node-data", data)
    assert done.exit_code == 1, done.output
    (graph,) = json.loads(data.read_text()).values()
    worst = max(result["value"] for result in graph["results"].values())
    modules = {node.name: node.module_path for node in read_hierarchy(bert / "model.onnx")}
    named = {modules[name] for name, r in graph["results"].items() if r["value"] == worst}
    # What leaves the normalization is what leaves the module around it.
    assert named == {"bert.embeddings.LayerNorm", "bert.embeddings"}
