"""`compare` finds the module that is at fault, and accuses none that is not."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import browser
import jsonschema
import numpy as np
import onnx
import pytest
import zoo
from test_json import SCHEMAS
from test_views_view import Served
from typer.testing import CliRunner

from modelexport_optimum import ModelExportError, UsageError, compare, read_hierarchy, strip, tag
from modelexport_optimum.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARGUMENTS = {row.name: row.export for row in zoo.ARCHITECTURES}

FAMILIES = (
    *("bert", "albert", "deberta", "t5", "gpt2", "llama", "bart"),
    *("vit", "resnet", "mobilenet-v2", "swin", "convnext", "wav2vec2", "clip"),
)
"""Text, vision, speech; shared layers, decoders with past, merged ones, folded normalizations."""


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
    returning = [row for row in found.modules if "no tensor leaves it" not in row.reason]
    matched = [row for row in returning if row.matched]
    assert len(matched) >= 0.95 * len(returning)
    assert all(row.reason for row in found.modules if not row.matched)
    assert max(row.own_relative for row in matched) < found.tolerance
    # It is all of the modules that own nodes, and not a part of them.
    files = {row.file.partition(" ")[0] for row in found.modules}
    owning = {node.module_path for file in files for node in read_hierarchy(tagged(name) / file)}
    seen = {row.path for row in found.modules}
    assert len(owning & seen) >= 0.9 * len(owning)


def planted(source: Path, target: Path, file: str, initializer: str) -> str:
    """A copy of an export with one weight changed, and the module that reads it."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    model = onnx.load(target / file)
    tensor = next(t for t in model.graph.initializer if t.name == initializer)
    array = onnx.numpy_helper.to_array(tensor).copy()
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        array = array.T.copy()
    elif array.ndim == 1:
        array[::2] += 0.1  # a normalization takes out what is added to all
    else:
        array[0] = 3 * array[0] + 0.3  # a weight norm takes out a factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, initializer))
    onnx.save(model, target / file)
    (path,) = readers(target / file)[initializer]
    return path


def readers(file: Path) -> dict[str, set[str]]:
    """The modules that read each initializer, by the tags of the nodes."""
    found: dict[str, set[str]] = {}
    for node in onnx.load(file, load_external_data=False).graph.node:
        chain = node.doc_string.partition("\n")[0].split("/")[2:]
        path = ".".join(segment.partition(".")[2] for segment in chain)
        for name in node.input:
            found.setdefault(name, set()).add(path)
    return found


def faulty_weights(file: Path) -> list[str]:
    """Weights that one module reads, of every kind of module, and all of which a run reads."""
    owners = readers(file)
    model = onnx.load(file, load_external_data=False)
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    first: dict[tuple[str, int], str] = {}
    for tensor in model.graph.initializer:
        paths = owners.get(tensor.name, set())
        is_weight = tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1
        if is_weight and len(paths) == 1 and paths != {""} and tensor.name not in tables:
            (path,) = paths
            first[path.rpartition(".")[2], len(tensor.dims)] = tensor.name
    return list(first.values())


@pytest.mark.parametrize(
    "name", ["bert", "t5", "llama", "albert", "resnet", "convnext", "wav2vec2"]
)
def test_a_planted_fault_is_found(
    name: str,
    tagged: Callable[[str], Path],
    model_directory: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    whole = tagged(name)
    file = "decoder_model.onnx" if name == "t5" else "model.onnx"
    source = tmp_path / "one"
    shutil.copytree(whole, source, ignore=lambda _, names: {
        n for n in names if n.endswith(".onnx") and n != file
    })  # fmt: skip
    weights = faulty_weights(source / file)
    for number, initializer in enumerate(weights[:: max(len(weights) // 3, 1)][:3]):
        broken = tmp_path / str(number)
        path = planted(source, broken, file, initializer)
        found = compare(broken, model=str(model_directory(name)))
        assert not found.ok
        assert found.culprits[0] == path, initializer


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
    with pytest.raises(ModelExportError, match=r"reads token_type_ids, which .* another one"):
        compare(bert, model=str(model_directory("distilbert")))
    with pytest.raises(UsageError, match="is not known to ONNX Runtime"):
        compare(bert, provider="nothing")
    shutil.copytree(bert, tmp_path / "bare")
    strip(tmp_path / "bare")
    with pytest.raises(ModelExportError, match="is not tagged"):
        compare(bert, tmp_path / "bare")
    assert run(bert, tmp_path / "nothing").exit_code == 2


@pytest.mark.slow
def test_model_explorer_shows_the_node_data(tagged: Callable[[str], Path], tmp_path: Path) -> None:
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
    with (
        browser.chromium() as driver,
        Served(tmp_path / "broken", "model-explorer", "--node-data", str(data)) as url,
    ):
        driver.get(url)
        body = driver.find_element("tag name", "body")
        browser.waited(driver, lambda: "own error" in body.text)
