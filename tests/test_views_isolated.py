"""`profile --isolated`: each module computes alone what it computes in the whole graph."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from schemas import valid
from typer.testing import CliRunner

from modelexport_optimum import profile
from modelexport_optimum.cli.main import app
from modelexport_optimum.example_inputs.dimensions import InputOptions
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.graph_runs.flat_graph import branches, flatten
from modelexport_optimum.graph_runs.tapped_run import TappedRun
from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.profiling import isolated
from modelexport_optimum.providers.choice import CPU, Provider

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Exported = Callable[[str], Path]

CASES = [
    ("bert", "model.onnx", 2),
    ("albert", "model.onnx", 4),  # its layer is called twice
    ("gpt2", "model.onnx", 2),
    ("resnet", "model.onnx", 3),
    ("t5", "decoder_model_merged.onnx", 2),
]


@pytest.mark.parametrize(("name", "file", "depth"), CASES)
def test_a_module_alone_gives_what_it_gives_in_the_whole_graph(
    name: str, file: str, depth: int, tagged: Exported
) -> None:
    found = read_tagged(tagged(name) / file)
    for branch in branches(found):
        feeds = generate(found.path, found.model.graph, InputOptions(2, 8), branch=branch).arrays
        graph = flatten(found, branch)
        given = {value.name: feeds[value.name] for value in graph.inputs}
        run = TappedRun(graph)
        calls = isolated._calls_at(graph, depth)
        assert len(calls) > 1
        nodes = [isolated._nodes_of(graph, call) for call in calls]
        entering = {name for own in nodes for name in isolated._entering(graph, own)}
        leaving = {name for call in calls for name in call.outputs}
        values = {**given, **dict(run.values((entering | leaving) & graph.makers.keys(), given))}
        for call, own in zip(calls, nodes, strict=True):
            part = run.part(own, call.outputs, values)
            session = part.open(Provider(CPU), onnxruntime.SessionOptions())
            answers = session.run(list(call.outputs), part.feeds)
            for output, answer in zip(call.outputs, answers, strict=True):
                np.testing.assert_allclose(answer, values[output], rtol=1e-3, atol=1e-4)


def test_no_node_is_in_two_modules_or_lost(tagged: Exported) -> None:
    graph = flatten(read_tagged(tagged("bert") / "model.onnx"), {})
    for depth in range(6):
        own = [
            [id(node) for node in isolated._nodes_of(graph, call) if not node.constant]
            for call in isolated._calls_at(graph, depth)
        ]
        flat = [node for nodes in own for node in nodes]
        assert len(flat) == len(set(flat))
        if depth == 0:
            assert len(flat) == sum(not node.constant for node in graph.nodes)


def test_weights_are_handed_over_as_they_lie_in_the_file(tagged: Exported) -> None:
    graph = flatten(read_tagged(tagged("bert") / "model.onnx"), {})
    (call,) = [c for c in graph.calls if c.module.path == "bert.encoder.layer.0.output.dense"]
    nodes = isolated._nodes_of(graph, call)
    hidden = {name: np.zeros((1, 4, 37), np.float32) for name in isolated._entering(graph, nodes)}
    part = TappedRun(graph).part(nodes, call.outputs, hidden)
    assert part.weights
    assert all(not array.flags.owndata for array in part.weights.values())


def test_the_times_and_their_sum(tagged: Exported) -> None:
    (file,) = profile(tagged("bert"), iterations=3, sequence_length=8, isolated=True, depth=3).files
    run = file.isolated
    assert run is not None
    assert run.depth == 3
    assert run.provider == CPU
    assert run.whole_ms > 0
    assert run.sum_ms == pytest.approx(sum(one.ms or 0 for one in run.modules))
    layers = [one for one in run.modules if one.module_class == "BertLayer"]
    assert len(layers) == 2
    for one in layers:
        assert one.ms is not None
        assert one.ms > 0
        assert any(kind.startswith("float32[1, 8, ") for kind in one.inputs.values())
        if one.taken is not None:
            assert one.taken[0] == one.taken[1] > 0
    assert run.outside > 0


def test_both_branches_of_a_merged_decoder(tagged: Exported) -> None:
    directory = tagged("t5")
    arguments = ["profile", str(directory / "decoder_model_merged.onnx"), "--isolated"]
    given = [*arguments, "--sequence-length", "8", "--iterations", "1"]
    document = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    valid(document, "profile")
    runs = [file["isolated"] for file in document["files"]]
    assert [run["branch"] for run in runs] == ["use_cache_branch=false", "use_cache_branch=true"]
    assert all(not one["error"] for run in runs for one in run["modules"])
    assert {one["module"] for one in runs[1]["modules"]} >= {"decoder.block.0", "lm_head"}
    text = CliRunner().invoke(app, given).stdout
    assert "each module alone on CPUExecutionProvider (use_cache_branch=true): " in text


def test_a_module_that_cannot_run_alone_is_told(
    tagged: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(isolated.TappedRun, "part", fail)
    monkeypatch.setattr(isolated.TappedRun, "values", lambda *_: iter(()))
    monkeypatch.setattr(isolated.ValueStore, "get", lambda *_: np.zeros(1))
    monkeypatch.setattr(isolated.ValueStore, "__contains__", lambda *_: True)
    (file,) = profile(tagged("bert"), iterations=1, sequence_length=8, isolated=True).files
    run = file.isolated
    assert run is not None
    assert {one.error for one in run.modules} == {"no such kernel"}
    assert run.sum_ms == 0
