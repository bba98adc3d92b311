"""Bodies of local functions (FunctionProto), as PyTorch's exporter has them before it inlines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import modelexport_optimum as package
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.hierarchy.inspect import inspect
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from pathlib import Path


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(x * self.weight)


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(Scaled(), torch.nn.Tanh())
        self.second = torch.nn.Sequential(Scaled(), torch.nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).amax(1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of PyTorch's exporter whose Relu nodes call a function. Not to be written to.

    The exporter itself has inlined all functions since PyTorch 2.9, as it converts the opset.
    """
    path = tmp_path_factory.mktemp("functions") / "model.onnx"
    torch.onnx.export(
        Stack().eval(), (torch.rand(2, 4),), path, dynamo=True, verbose=False, external_data=False,
    )  # fmt: skip
    model = onnx.load(path)
    opset = model.opset_import[0].version
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Softened", "own"
    sigmoid = helper.make_node("Sigmoid", ["a"], ["s"], name="sigmoid")
    product = helper.make_node("Mul", ["a", "s"], ["b"], name="product", doc_string="its own")
    model.functions.append(
        helper.make_function(
            "own", "Softened", ["a"], ["b"], [sigmoid, product], [helper.make_opsetid("", opset)]
        )
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    return path


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(written.read_bytes())
    return path


def test_nodes_of_bodies_are_tagged_counted_and_shown(file: Path) -> None:
    before = file.read_bytes()
    model = onnx.load(file)
    bodies = {function.name: len(function.node) for function in model.functions}
    assert bodies
    report = htp.tag(file)
    assert report.node_count == len(model.graph.node) + sum(bodies.values())
    nodes = list(htp.read_hierarchy(file))
    assert len(nodes) == report.node_count
    calls = {node.op_type: node.module for node in nodes if node.op_type in bodies}
    called = [node for node in nodes if node.op_type in bodies]
    assert {node.module for node in called} == {"first.0", "second.0"}
    for name in calls:
        inner = {node.tag for node in nodes if node.graph.endswith(f".{name}")}
        around = {node.tag for node in called if node.op_type == name}
        assert inner
        # A body's module and that of each call stand inside one another.
        assert all(call.startswith(body) for body in inner for call in around)
    shown = inspect(file)
    assert [view.whole.node_count for view in shown] == [report.node_count]
    assert not htp.tag(file).files[0].changed
    onnx.checker.check_model(str(file))
    htp.strip(file)
    assert file.read_bytes() == before


def test_tagged_bodies_compute_the_same(file: Path, written: Path) -> None:
    htp.tag(file)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    counts = []
    for path in (written, file):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(file.with_name(f"{len(counts)}-optimized.onnx"))
        session = onnxruntime.InferenceSession(path, options)
        counts.append([session.run(None, feed)[0].tolist()])
        optimized = onnx.load(options.optimized_model_filepath).graph.node
        counts[-1].append(sorted(node.op_type for node in optimized))
    assert counts[0] == counts[1]


def test_profile_and_compare_see_the_module_of_each_call(file: Path, tmp_path: Path) -> None:
    htp.tag(file)
    [run] = package.profile(file, iterations=2).to_dict()["files"]
    own = {module["module"]: module["own_ms"] for module in run["modules"]}
    assert own["first.0"] > 0
    assert own["second.0"] > 0
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name == "first.0.weight":
            changed = onnx.numpy_helper.to_array(tensor) + 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    compared = package.compare(file, tmp_path / "changed.onnx").to_dict()
    assert compared["culprits"] == ["first.0"]
    assert {module["path"] for module in compared["modules"] if module["relative"]} >= {
        "first.0", "first.1", "second.0",
    }  # fmt: skip


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], list(nodes), opsets)


def saved(path: Path, functions: list[onnx.FunctionProto], calls: list[str]) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    names = ["x", *(f"v{i}" for i in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node(call, [names[i]], [names[i + 1]], name=f"/{scope}/{call}", domain="own")
        for i, (scope, call) in enumerate(one.split("/") for one in calls)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]),
        functions=functions,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


def test_body_that_calls_another_stands_in_the_modules_of_the_outer_calls(tmp_path: Path) -> None:
    inner = function("Inner", helper.make_node("Relu", ["a"], ["b"], name="relu"))
    outer = function("Outer", helper.make_node("Inner", ["a"], ["b"], domain="own", name="inner"))
    path = saved(tmp_path / "model.onnx", [inner, outer], ["left/Outer", "right/Inner"])
    before = path.read_bytes()
    htp.tag(path)
    places = {(node.graph, node.name): node.module for node in htp.read_hierarchy(path)}
    assert places == {
        ("", "/left/Outer"): "left",
        ("", "/right/Inner"): "right",
        ("own.Outer", "inner"): "left",
        ("own.Inner", "relu"): "",
    }
    htp.strip(path)
    assert path.read_bytes() == before


def test_functions_in_a_circle_or_never_called_are_tagged_too(tmp_path: Path) -> None:
    circle = [
        function("A", helper.make_node("B", ["a"], ["b"], domain="own", name="b")),
        function("B", helper.make_node("A", ["a"], ["b"], domain="own", name="a")),
        function("Never", helper.make_node("Relu", ["a"], ["b"], name="never")),
    ]
    path = saved(tmp_path / "model.onnx", circle, ["left/A"])
    report = htp.tag(path)
    assert report.node_count == 4
    assert {n.name: n.module for n in htp.read_hierarchy(path)}["never"] == ""


def test_two_functions_of_one_name_are_tagged_both(tmp_path: Path) -> None:
    twice = [
        function("A", helper.make_node("Relu", ["a"], ["b"], name="first")),
        function("A", helper.make_node("Sigmoid", ["a"], ["b"], name="second")),
    ]
    path = saved(tmp_path / "model.onnx", twice, ["left/A"])
    htp.tag(path)
    modules = {node.name: node.module for node in htp.read_hierarchy(path)}
    assert modules["first"] == modules["second"] == "left"


def test_damaged_function_is_told_in_one_line(file: Path) -> None:
    data = bytearray(file.read_bytes())
    at = data.rindex(b"Sigmoid")
    data[at - 1] = 0xFF
    file.write_bytes(data)
    with pytest.raises(ModelExportError, match=r"^\S+ (is not a whole ONNX file|.*UTF-8)"):
        htp.tag(file)
