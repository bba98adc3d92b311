"""The files that the fuzzers damage: small models with all that a `.onnx` file may hold.

Each stands in a directory of its own, with what belongs beside it. None needs PyTorch; real
exports come from the zoo, and are given by the caller.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from pathlib import Path

FLOAT = TensorProto.FLOAT


def build(directory: Path) -> list[Path]:
    """Write the corpus: each model untagged, and tagged in a directory of `-tagged`."""
    made = []
    for name, writer in WRITERS.items():
        plain = directory / name
        plain.mkdir(parents=True)
        writer(plain)
        made += with_tags(plain)
    return made


def with_tags(plain: Path) -> list[Path]:
    """The directory of an untagged export, and a tagged copy beside it."""
    tagged = shutil.copytree(plain, plain.with_name(f"{plain.name}-tagged"))
    htp.tag(tagged)
    return [plain, tagged]


def _save(graph: onnx.GraphProto, path: Path, **fields: object) -> None:
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **fields)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def _layers(directory: Path) -> None:
    """Two modules with weights, a constant, texts that were there before, and a config.json."""
    weight = helper.make_tensor("layers.0.weight", FLOAT, [3], [1.0, 2.0, 3.0])
    half = helper.make_tensor("half", TensorProto.FLOAT16, [2], np.ones(2, np.float16))
    names = helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"\xff"])
    one = helper.make_tensor("one", FLOAT, [], [1.0])
    nodes = [
        helper.make_node("Mul", ["x", "layers.0.weight"], ["a"], name="/layers.0/Mul"),
        helper.make_node("Constant", [], ["c"], name="Constant_1", value=one),
        helper.make_node("Add", ["a", "c"], ["b"], name="/layers.0/Add", doc_string="/Text/A.b"),
        helper.make_node("Relu", ["b"], ["r"], name="/layers.1/act/Relu", doc_string="one\ntwo"),
        helper.make_node("Softmax", ["r"], ["y"], name="/layers.1/Softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes, "main", [_value("x", "batch", 3)], [_value("y", "batch", 3)],
        initializer=[weight, half, names],
    )  # fmt: skip
    _save(graph, directory / "model.onnx", producer_name="somebody", doc_string="of the model")
    config = {"model_type": "nothing-known", "architectures": ["None"], "hidden_size": 3}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _branches(directory: Path) -> None:
    """Graphs in graphs, with a constant so large that its node is not read whole."""
    big = helper.make_tensor("big", FLOAT, [17_000], np.zeros(17_000, np.float32))
    inner = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], name="/a/b/Constant", value=big),
            helper.make_node("ReduceSum", ["k"], ["s"], name="/a/b/ReduceSum", keepdims=0),
        ],
        "inner", [], [_value("s")],
    )  # fmt: skip
    flat = helper.make_graph(
        [helper.make_node("Identity", ["bias"], ["s"], name="/a/Identity")], "flat", [],
        [_value("s")], initializer=[helper.make_tensor("bias", FLOAT, [], [1.0])],
    )  # fmt: skip
    outer = helper.make_graph(
        [
            helper.make_node(
                "If", ["condition"], ["t"], name="/a/If", then_branch=inner, else_branch=flat
            )
        ],
        "outer", [], [_value("t")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["t"], name="/b/Neg")], "other", [], [_value("t")]
    )
    node = helper.make_node(
        "If", ["condition"], ["y"], name="/If", then_branch=outer, else_branch=other
    )
    graph = helper.make_graph(
        [node], "main", [_value("x"), helper.make_tensor_value_info("condition", 9, [])],
        [_value("y")],
    )  # fmt: skip
    _save(graph, directory / "model.onnx")


def _traced(directory: Path) -> None:
    """With the scopes that PyTorch's dynamo exporter writes."""
    nodes = []
    for index, (path, name) in enumerate([("a", "Neg"), ("a.b", "Abs"), ("", "Relu")]):
        chain = [""] + [path[:end] for end in (1, 3) if len(path) >= end]
        node = helper.make_node(name, [f"v{index}"], [f"v{index + 1}"], name=f"node_{name}")
        for key, value in (
            ("pkg.torch.onnx.name_scopes", [*chain, name.lower()]),
            ("pkg.torch.onnx.class_hierarchy", [*(f"m.C{len(p)}" for p in chain), "aten.x"]),
            ("namespace", "somebody's"),
        ):
            node.metadata_props.add(key=key, value=str(value))
        nodes.append(node)
    _save(helper.make_graph(nodes, "g", [_value("v0", 2)], [_value("v3", 2)]),
          directory / "model.onnx")  # fmt: skip


def _two_files(directory: Path) -> None:
    """Two graphs with external data, one with a function of its own, and a config.json."""
    function = helper.make_function(
        "own", "Twice", ["v"], ["w"], [helper.make_node("Add", ["v", "v"], ["w"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    for name in ("encoder", "decoder"):
        weight = helper.make_tensor("w", FLOAT, [512], np.arange(512, dtype=np.float32))
        nodes = [
            helper.make_node("Twice", ["x"], ["d"], name=f"/{name}/Twice", domain="own"),
            helper.make_node("Mul", ["d", "w"], ["y"], name=f"/{name}/Mul"),
        ]
        graph = helper.make_graph(
            nodes, name, [_value("x", 512)], [_value("y", 512)], initializer=[weight]
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
        onnx.save(
            model, directory / f"{name}.onnx", save_as_external_data=True,
            location=f"{name}.onnx_data", size_threshold=0,
        )  # fmt: skip
    (directory / "config.json").write_text('{"model_type": "nothing-known"}')


WRITERS = {"layers": _layers, "branches": _branches, "traced": _traced, "two-files": _two_files}
