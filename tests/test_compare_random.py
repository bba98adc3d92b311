"""`compare` where a model draws random numbers: no module is accused for what is drawn."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import zoo
from onnx import helper, numpy_helper
from planted_faults import plant
from typer.testing import CliRunner

from modelexport_optimum import compare, export
from modelexport_optimum.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelexport_optimum.comparing.comparison import Comparison

RANDOM = "outputs depend on random numbers"
SCALED = "Scaled by what is drawn"


def drawing(source: Path, target: Path, operator: str, *, training: bool = True) -> Path:
    """An export of a BERT whose embeddings are scaled by random numbers."""
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx")
    graph = model.graph
    norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
    (made,) = norm.output
    for node in graph.node:
        node.input[:] = [SCALED if name == made else name for name in node.input]
    if operator == "Dropout":
        for name, value in {"ratio": np.float32(0.5), "training": np.bool_(training)}.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        added = [helper.make_node("Dropout", [made, "ratio", "training"], [SCALED])]
    else:
        added = [
            helper.make_node(operator, [made], ["drawn"]),
            helper.make_node("Mul", [made, "drawn"], [SCALED]),
        ]
    place = list(graph.node).index(norm) + 1
    tag = norm.doc_string.partition("\n")[0].rpartition("/")[0]
    for node in reversed(added):
        node.doc_string = tag
        graph.node.insert(place, node)
    onnx.save(model, target / "model.onnx")
    return target


def reasons(found: Comparison) -> dict[str, str]:
    return {row.path: row.reason for row in found.modules if not row.matched}


@pytest.mark.parametrize("operator", ["RandomUniformLike", "RandomNormalLike"])
def test_what_the_reference_drew_is_taken(
    operator: str, tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    one = drawing(tagged("bert"), tmp_path / "one", operator)
    found = compare(one, one)
    assert (found.ok, found.culprits) == (True, ())
    assert not reasons(found)
    # A fault behind what is drawn is found, and one before it.
    for name in (
        "bert.encoder.layer.1.output.dense.bias",
        "bert.embeddings.LayerNorm.bias",
    ):
        target = tmp_path / name
        plant(one, target, "model.onnx", name)
        found = compare(one, target)
        assert found.culprits == (name.removesuffix(".bias"),)


def test_what_each_side_draws_alone_is_not_compared(
    tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    one = drawing(tagged("bert"), tmp_path / "one", "Dropout")
    found = compare(one, one)
    assert (found.ok, found.culprits, found.outputs) == (True, (), ())
    rows = {row.path: row for row in found.modules}
    assert RANDOM in rows["bert.embeddings"].reason
    assert RANDOM in rows["bert.encoder.layer.0.attention.self.query"].reason
    assert RANDOM in rows[""].reason
    assert rows["bert.embeddings.LayerNorm"].matched  # it is before what is drawn
    plant(one, tmp_path / "broken", "model.onnx", "bert.embeddings.LayerNorm.bias")
    assert compare(one, tmp_path / "broken").culprits == ("bert.embeddings.LayerNorm",)
    # One that does not train draws nothing.
    idle = drawing(tagged("bert"), tmp_path / "idle", "Dropout", training=False)
    found = compare(idle, idle)
    assert found.ok
    assert len(found.outputs) == 1
    assert not reasons(found)


def test_pytorch_tells_what_it_drew() -> None:
    import torch
    from torch import nn

    from modelexport_optimum.exporting.torch_calls import TorchCalls

    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.randn(3)  # which no output needs
            return x + torch.rand(x.shape)

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.noise, self.linear = Attention(), Noise(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.noise(self.attention(x)))

    model = Root().eval()
    values: dict[str, Any] = {}
    record = TorchCalls(model, model, values.__setitem__)
    x = torch.ones(1, 2, 4)
    with torch.no_grad(), record.recorded([x]):
        output = model(x)
    record.end([output])
    calls = {call.path: call for call in record.calls}
    # An attention could draw, for a dropout that this one has not.
    assert {path for path, call in calls.items() if call.drawn} == {"", "noise", "linear"}
    assert {path for path, call in calls.items() if call.draws} == {"noise"}
    (name,) = calls["noise"].draws
    assert values[name].shape == x.shape
    assert 0 <= values[name].min() < values[name].max() < 1


def test_a_prenet_that_draws(model_directory: Callable[[str], Path], tmp_path: Path) -> None:
    # Its patched forward draws with `torch.rand`, and has another signature than its class.
    source = model_directory("speecht5")
    row = next(row for row in zoo.ARCHITECTURES if row.name == "speecht5")
    vocoder = json.dumps(row.arguments(source)["model_kwargs"])
    output = tmp_path / "export"
    export(source, output, task=row.task, do_validation=False, **row.arguments(source))
    done = CliRunner().invoke(app, ["compare", str(output), "--json", "--model-kwargs", vocoder])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["ok"], found["culprits"]) == (0, True, [])
    assert not [row for row in found["modules"] if RANDOM in row["reason"]]
    inside = "speecht5.decoder.wrapped"
    decoder = [row for row in found["modules"] if row["path"].startswith(inside)]
    assert len([row for row in decoder if row["matched"]]) > 0.9 * len(decoder) > 30
