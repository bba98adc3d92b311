"""`inspect`: its numbers are those of the model, and its output pipes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import onnx
import pytest
from needs import POSIX
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from modelexport_optimum import read_hierarchy, strip
from modelexport_optimum.cli.main import app
from modelexport_optimum.hierarchy.inspect import inspect
from modelexport_optimum.onnx_file.wire import varint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from modelexport_optimum.hierarchy.inspect import FileView, ModuleView

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="session")
def electra(tagged: Callable[[str], Path]) -> Path:
    return tagged("electra") / "model.onnx"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def by_path(view: FileView) -> dict[str, ModuleView]:
    return {module.module.path: module for module in view.modules}


# --- What it counts -------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_file(electra: Path) -> None:
    [view] = inspect(electra)
    model = onnx.load(electra)
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    root = view.modules[0]
    assert root.total.node_count == view.whole.node_count == len(model.graph.node)
    assert root.total.parameters == sum(array.size for array in arrays)
    assert root.total.bytes == view.whole.bytes == sum(array.nbytes for array in arrays)
    assert root.share == 1
    own = [module.own for module in view.modules]
    assert sum(amount.node_count for amount in own) == len(model.graph.node)
    nodes = list(read_hierarchy(electra))
    assert {node.module_path for node in nodes} <= by_path(view).keys()
    for module in view.modules:
        there = [node for node in nodes if node.module_path == module.module.path]
        assert module.own.node_count == len(there)
        assert {node.module_class for node in there} <= {module.module.module_class}


def test_every_module_has_the_parameters_that_it_has_in_pytorch(
    electra: Path, model_directory: Callable[[str], Path]
) -> None:
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_directory("electra")
    )
    [view] = inspect(electra)
    for path, module in by_path(view).items():
        found = model.get_submodule(path)
        assert module.module.module_class == type(found).__name__
        parameters = list(found.parameters(recurse=False))
        # Among the initializers are constants that were computed at export.
        weights = sum(parameter.numel() for parameter in parameters)
        assert module.own.parameters >= weights
        if weights:
            assert module.own.parameters == weights, path


def test_an_initializer_of_several_modules_is_each_ones_own_and_counted_once(
    tagged: Callable[[str], Path],
) -> None:
    [view] = inspect(tagged("bert-fresh"))  # fresh weights are full of equal tensors
    modules = by_path(view)
    layer = modules["encoder.layer.0"]
    inside = [m for path, m in modules.items() if path.startswith("encoder.layer.0.")]
    assert layer.total.bytes < sum(module.own.bytes for module in inside)
    query = modules["encoder.layer.0.attention.self.query"]
    assert query.own.parameters == 16 * 16 + 16


def test_nested_graphs_read_the_initializers_of_those_around_them(
    tagged: Callable[[str], Path],
) -> None:
    views = {view.file.path.name: by_path(view) for view in inspect(tagged("t5"))}
    merged, plain = views["decoder_model_merged.onnx"], views["decoder_model.onnx"]
    for path in ("decoder.block.0", "decoder.block.1.layer.2.DenseReluDense.wi", "lm_head"):
        assert merged[path].total.bytes == plain[path].total.bytes
        assert merged[path].total.node_count > plain[path].total.node_count


def test_external_data_counts_the_same(electra: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    onnx.save(onnx.load(electra), copy, save_as_external_data=True, size_threshold=0)
    [data] = set(tmp_path.iterdir()) - {copy}
    data.unlink()
    [before], [after] = inspect(electra), inspect(copy)  # not even the data file is needed
    assert [m.to_dict() for m in before.modules] == [m.to_dict() for m in after.modules]


def test_modules_come_in_the_order_in_which_they_run(tagged: Callable[[str], Path]) -> None:
    [view] = inspect(tagged("bert-fresh"), depth=1)
    assert [module.name for module in view.modules] == ["BertModel", "embeddings", "encoder"]


# --- What one asks for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"modules": ["electra.encoder.layer.*.attention"]}, ["attention", "attention"]),
        ({"modules": ["encoder.layer.1"]}, ["layer.1"]),
        ({"modules": ["encoder.layer.1.*"]}, ["attention", "intermediate", "output"]),
        ({"modules": ["electra.**.self"]}, ["self", "self"]),
        ({"modules": ["**.layer.[1-9].attention.self.qu?ry"]}, ["query"]),
        ({"modules": ["electra.embeddings", "classifier"]}, ["embeddings", "classifier"]),
        ({"classes": ["Electra*Layer"]}, ["layer.0", "layer.1"]),
        ({"modules": ["encoder.layer.1.attention"], "classes": ["LayerNorm"]}, ["LayerNorm"]),
        ({"classes": ["ElectraLayer"], "ops": ["Softmax"]}, ["layer.0", "layer.1"]),
    ],
)
def test_patterns(electra: Path, asked: dict[str, list[str]], found: list[str]) -> None:
    [view] = inspect(electra, **asked, depth=0)
    paths = [module.module.path for module in view.modules]
    assert len(paths) == len(found)
    assert all(path.endswith(end) for path, end in zip(paths, found, strict=True))
    assert all(module.level == 0 for module in view.modules)


def test_a_pattern_that_matches_from_the_beginning_is_not_matched_further_inside(
    electra: Path,
) -> None:
    [view] = inspect(electra, modules=["electra.encoder.layer.0.*"], depth=0)
    assert [module.name.rpartition(".")[2] for module in view.modules] == [
        "attention",
        "intermediate",
        "output",
    ]


def test_operators_narrow_the_counts(electra: Path) -> None:
    [view] = inspect(electra, ops=["MatMul", "Gemm"])
    [everything] = inspect(electra)
    counted = {op for module in view.modules for op in module.total.op_type_counts}
    assert counted == {"MatMul", "Gemm"}
    query = "electra.encoder.layer.0.attention.self.query"
    assert by_path(view)[query].own.parameters == 16 * 16  # the bias is read by an Add
    assert by_path(everything)[query].own.parameters == 16 * 16 + 16
    assert "electra.embeddings.LayerNorm" not in by_path(view)


def test_nodes_are_those_inside_what_matched(electra: Path) -> None:
    [view] = inspect(electra, modules=["encoder.layer.1.*"], ops=["MatMul"])
    expected = [
        node.name
        for node in read_hierarchy(electra)
        if node.module_path.startswith("electra.encoder.layer.1.") and node.op_type == "MatMul"
    ]
    assert view.node_names == expected
    assert len(expected) == 8


# --- What it prints -------------------------------------------------------------------------------


def test_quantizing_all_but_one_layer(electra: Path, tmp_path: Path) -> None:
    """As in the README: the names go into ONNX Runtime's quantizer as they are."""
    from onnxruntime.quantization import quantize_dynamic

    printed = run("inspect", electra, "--module", "encoder.layer.1.*", "--nodes", "--json")
    [file] = json.loads(printed.stdout)["files"]
    excluded = [node["name"] for node in file["nodes"]]
    quantized = tmp_path / "quantized.onnx"
    quantize_dynamic(electra, quantized, nodes_to_exclude=excluded)
    left = {node.name for node in onnx.load(quantized).graph.node if node.op_type == "MatMul"}
    scope = "/electra/encoder/layer."
    dense = "intermediate/dense/MatMul"
    assert f"{scope}1/{dense}" in left
    assert f"{scope}0/{dense}" not in left
    assert left >= {name for name in excluded if name.endswith("/MatMul")}


def test_nodes_of_a_directory_come_by_file(tagged: Callable[[str], Path]) -> None:
    directory = tagged("t5")
    files = json.loads(run("inspect", directory, "--nodes", "--json").stdout)["files"]
    assert [file["file"] for file in files] == [
        str(path) for path in sorted(directory.glob("*.onnx"))
    ]
    for file in files:
        assert {node["name"] for node in file["nodes"]} == {
            node.name for node in read_hierarchy(file["file"])
        }


def test_formats_agree(electra: Path) -> None:
    document = json.loads(run("inspect", electra, "--depth", 2, "--json").stdout)
    [file] = document["files"]
    assert document["ok"] is True
    rows = list(csv.DictReader(io.StringIO(run("inspect", electra, "--depth", 2, "--csv").stdout)))
    lines = run("inspect", electra, "--depth", 2, "--markdown").stdout.splitlines()
    tree = run("inspect", electra, "--depth", 2).stdout
    assert len(rows) == len(file["modules"]) == len(lines) - 2
    for module, row, line in zip(file["modules"], rows, lines[2:], strict=True):
        expected = {"file": str(electra), **module}
        del expected["op_type_counts"]
        assert row == {key: str(value) for key, value in expected.items()}
        assert line == f"| {' | '.join(row.values())} |"
        assert sum(module["op_type_counts"].values()) == module["node_count"]
        assert module["module"].rpartition(".")[2] in tree
    assert "\x1b" not in tree


@POSIX
def test_colours_on_a_terminal(electra: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "modelexport_optimum", "inspect", electra, "--depth", "1"]
    environment = {"TERM": "xterm-256color", "COLUMNS": "120"}
    subprocess.run(command, stdout=terminal, env={**os.environ, **environment}, check=True)
    os.close(terminal)
    assert b"\x1b[36m" in os.read(controller, 10_000)
    os.close(controller)


def test_rows_of_nodes(electra: Path) -> None:
    printed = run("inspect", electra, "--class", "LayerNorm", "--nodes", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert {row["class"] for row in rows} == {"LayerNorm"}
    assert {row["evidence"] for row in rows} <= {"tracer", "scope", "parameter", "data flow"}
    table = run("inspect", electra, "--class", "LayerNorm", "--nodes").stdout
    assert len(table.splitlines()) == len(rows) + 1


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--module", "encoder.layers.1"], 2, "did you mean electra.encoder.layer.1"),
        (["--class", "ElectraLayers"], 2, "did you mean ElectraLayer"),
        (["--op", "Matmul"], 2, "did you mean MatMul"),
        (
            ["--module", "classifier", "--op", "Softmax"],
            2,
            "no node that matches all of classifier, Softmax",
        ),
        (["--json", "--csv"], 2, "--json and --csv"),
        (["--depth", "-1"], 2, "--depth"),
    ],
)
def test_wrong_arguments(electra: Path, arguments: list[str], status: int, said: str) -> None:
    result = run("inspect", electra, *arguments)
    assert result.exit_code == status
    assert said in result.stderr
    if "--depth" not in arguments:  # typer tells that one
        assert len(result.stderr.splitlines()) == 1


def test_an_error_is_json_too(electra: Path) -> None:
    result = run("inspect", electra, "--module", "nothing", "--json")
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["exit_status"] == result.exit_code == 2
    assert document["error"] in result.stderr


def test_wrong_files(electra: Path, tmp_path: Path) -> None:
    untagged = tmp_path / "model.onnx"
    untagged.write_bytes(electra.read_bytes())
    strip(untagged)
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(electra.read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    for path, status, said in (
        (untagged, 1, f"is not tagged: run `modelexport-optimum tag {untagged}`"),
        (truncated, 1, "is not a whole ONNX file"),
        (tmp_path / "missing.onnx", 2, "does not exist"),
        (tmp_path / "empty", 2, "has no .onnx file"),
    ):
        result = run("inspect", path)
        assert (result.exit_code, len(result.stderr.splitlines())) == (status, 1)
        assert said in result.stderr


def test_what_another_tool_added_is_said(electra: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(electra, options, providers=["CPUExecutionProvider"])
    [view] = inspect(tmp_path / "optimized.onnx")
    assert view.file.untagged  # ONNX Runtime gives a fused Gelu a doc_string of its own
    assert len(view.nodes) == view.whole.node_count - len(view.file.untagged)
    assert {node.evidence for node in view.nodes} == {"carrier"}
    tree = run("inspect", tmp_path / "optimized.onnx").stdout
    assert f"without a tag: {len(view.file.untagged)} operators" in tree


# --- What it costs --------------------------------------------------------------------------------


def test_it_needs_onnx_alone(electra: Path) -> None:
    code = (
        "import sys; from modelexport_optimum.cli import view_commands;"
        "print('onnx' in sys.modules);"
        "from modelexport_optimum.hierarchy.inspect import inspect; inspect(sys.argv[1]);"
        "from modelexport_optimum.hierarchy.diff import diff; diff(sys.argv[1], sys.argv[1]);"
        "print({'torch', 'transformers', 'onnxruntime', 'optimum'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, electra]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.split("\n") == ["False", "set()", ""]


def test_five_thousand_modules(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    nodes = []
    value = "x"
    for layer in range(250):
        for block in range(20):
            tag = f"/Model/Layer.layers.{layer}" + (f"/Block.block{block}" if block else "")
            for index in range(5):
                name = f"/layers.{layer}/block{block}/Add_{index}"
                node = helper.make_node("Add", [value, f"w{layer}"], [name], name, doc_string=tag)
                nodes.append(node)
                value = name
    weights = [helper.make_tensor(f"w{layer}", 1, [1], [layer]) for layer in range(250)]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info(value, 1, [1])],
        weights,
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, {"modelexport_optimum.version": "0"})
    path.write_bytes(model.SerializeToString())
    started = time.process_time()
    result = run("inspect", path)
    seconds = time.process_time() - started
    assert len(result.stdout.splitlines()) == 5001 + 4
    assert seconds < 30


@POSIX
def test_weights_are_not_read(tmp_path: Path) -> None:
    """A gigabyte of weights, as a hole in the file: memory stays where it was."""
    size = 1024 * MEGABYTE
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"], "/Identity", doc_string="/Model")],
        "large",
        [],
        [helper.make_tensor_value_info("y", 1, [size // 4])],
    )
    model = helper.make_model(graph)
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
        "from modelexport_optimum.hierarchy.inspect import inspect;"
        "[view] = inspect(sys.argv[1]);"
        "print(view.whole.bytes, peak() - before)"
    )
    command = [sys.executable, "-c", code, path]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counted, grown = map(int, printed.split())
    assert counted == size
    assert grown < 64 * MEGABYTE
