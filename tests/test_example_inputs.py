"""The sizes of made-up inputs: what the user says, the export's JSON, the graph, in this order."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelexport_optimum import profile, tag
from modelexport_optimum.errors import UsageError
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.onnx_file.input_use import InputUse
from modelexport_optimum.onnx_file.reader import read_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Exported = Callable[[str], Path]

ROWS = 20
"""Positions of the tables in the small graphs here."""


def read_positions(path: Path, nodes: list[onnx.NodeProto], positions: str) -> int | None:
    """The longest sequence of a graph that takes its positions from a table by a value."""
    constants = {
        "two": np.array(2),
        "one": np.array(1),
        "axis": np.array(1),
        "zero": np.array(0),
        "table": np.zeros((ROWS, 4), np.float32),
    }
    graph = helper.make_graph(
        [*nodes, helper.make_node("Gather", ["table", positions], ["y"])],
        "positions",
        [helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch_size", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph), path)
    return InputUse(read_model(path).graph).longest()


LENGTH = [
    helper.make_node("Shape", ["mask"], ["shape"]),
    helper.make_node("Gather", ["shape", "one"], ["length"]),
    helper.make_node("Range", ["zero", "length", "one"], ["range"]),
]
COUNTED = [
    helper.make_node("CumSum", ["mask", "axis"], ["counted"]),
    helper.make_node("Mul", ["counted", "mask"], ["masked"]),
]


@pytest.mark.parametrize(
    ("nodes", "positions", "longest"),
    [
        (LENGTH, "range", ROWS),  # BERT
        (
            [*LENGTH, helper.make_node("Add", ["range", "two"], ["moved"])],
            "moved",
            ROWS - 2,
        ),  # BART
        # RoBERTa counts from 1, above the padding token's number.
        ([*COUNTED, helper.make_node("Add", ["masked", "one"], ["moved"])], "moved", ROWS - 2),
        # OPT counts from 1, takes that off again, and then leaves two rows.
        (
            [
                *COUNTED,
                helper.make_node("Sub", ["masked", "one"], ["from_zero"]),
                helper.make_node("Add", ["from_zero", "two"], ["moved"]),
            ],
            "moved",
            ROWS - 2,
        ),
        ([helper.make_node("Cast", ["mask"], ["ids"], to=TensorProto.INT64)], "ids", None),
    ],
)
def test_positions_that_begin_above_the_first_row(
    nodes: list[onnx.NodeProto], positions: str, longest: int | None, tmp_path: Path
) -> None:
    assert read_positions(tmp_path / "positions.onnx", nodes, positions) == longest


@pytest.mark.parametrize("name", ["vit", "clip-vision", "deit"])
def test_the_graph_tells_the_side_of_a_picture(name: str, tagged: Exported, tmp_path: Path) -> None:
    file = tagged(name) / "model.onnx"
    config = json.loads((tagged(name) / "config.json").read_text())
    alone = shutil.copy(file, tmp_path / "model.onnx")

    found = generate(alone, read_model(alone).graph)

    (pixels,) = (array for array in found.arrays.values() if array.ndim == 4)
    assert pixels.shape[2:] == (config["image_size"], config["image_size"])
    assert {size.source for name, size in found.sizes.items() if "height" in name} == {
        "the graph's positions"
    }


def test_json_above_the_file_is_read_inside_the_export_alone(
    tagged: Exported, tmp_path: Path
) -> None:
    inner = tmp_path / "export" / "onnx"
    inner.mkdir(parents=True)
    file = shutil.copy(tagged("resnet") / "model.onnx", inner / "model.onnx")
    (tmp_path / "export" / "config.json").write_text('{"image_size": 40}')
    graph = read_model(file).graph

    found = generate(file, graph, export=tmp_path / "export")
    assert found.sizes["height"].size == 40
    assert generate(file, graph, export=inner).sizes["height"].source == "default"
    assert generate(file, graph).sizes["height"].source == "default"
    assert profile(tmp_path / "export", iterations=1).files[0].sizes["height"].size == 40


def test_sizes_that_change_nothing_are_an_error(tagged: Exported) -> None:
    with pytest.raises(UsageError, match="--sequence-length change no input of "):
        profile(tagged("vit"), iterations=1, sequence_length=[8, 16])


def test_a_size_of_nothing_is_an_error_before_anything_runs(
    tagged: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelexport_optimum.profiling.profile.profile_file", None)
    dimensions = "batch_size, num_channels, height, width"
    with pytest.raises(UsageError, match=f"--size hight=40 changes no input of .*{dimensions}"):
        profile(tagged("vit"), iterations=1, sizes={"hight": 40})


def test_what_was_not_given_is_not_said_to_be(tagged: Exported) -> None:
    (file,) = profile(tagged("vit"), iterations=1).files
    assert (file.sizes["batch_size"].size, file.sizes["batch_size"].source) == (1, "default")
    (file,) = profile(tagged("vit"), iterations=1, batch_size=2).files
    assert (file.sizes["batch_size"].size, file.sizes["batch_size"].source) == (2, "--batch-size")


def test_a_dimension_without_a_name_is_named_as_an_option_takes_it(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")], "", [x], [y])
    path = tmp_path / "model.onnx"
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    tag(path)
    with pytest.raises(
        UsageError, match=r"the size of dimension 1 of its input x: give --size x\.1="
    ):
        profile(path, iterations=1)
    (file,) = profile(path, iterations=1, sizes={"x.1": 3}).files
    assert file.sizes["x.1"].size == 3
