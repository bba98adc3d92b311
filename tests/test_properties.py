"""Random modules, and the hard cases that they are made of: no tag is wrong, few are coarser."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from random_modules import Calls, Leaf, add_up, random_module, tagged_in_every_way
from torch import nn

from modelexport_optimum.attribution.traced_graphs import traced_graphs
from modelexport_optimum.module_trees.module_tree import ModuleTree
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEEDS = range(150)
"""The first of those that `make properties` tries."""


def test_no_tag_of_a_random_module_is_wrong(tmp_path: Path) -> None:
    outcomes = []
    for seed in SEEDS:
        found = tagged_in_every_way(random_module(seed), tmp_path / "model.onnx")
        assert not [each.wrong for each in found.values() if each.wrong], seed
        outcomes.append(found)
    sums = add_up(outcomes)
    assert sums["recorded"]["nodes"] > 1000
    assert sums["recorded"]["coarser"] == 0
    assert sums["classes"]["coarser"] <= 0.02 * sums["classes"]["nodes"]
    assert sums["names"]["coarser"] <= 0.25 * sums["names"]["nodes"]


def leaves(count: int) -> list[Leaf]:
    return [Leaf(1 + n / 16, None) for n in range(1, count + 1)]


def linear(weight: nn.Parameter | None = None) -> nn.Linear:
    made = nn.Linear(3, 3)
    if weight is not None:
        made.weight = weight
    return made


def interleaved() -> nn.Module:
    one, two, three, left, right = leaves(5)
    return Calls(
        ["left.l1", "right.r1", "left.act", "right.r2", "right.act"],
        left=nn.ModuleDict({"l1": one, "act": left}),
        right=nn.ModuleDict({"r1": two, "r2": three, "act": right}),
    )


def colliding() -> nn.Module:
    x, x_1 = leaves(2)
    return Calls(["x", "x", "x_1", "x"], x=x, x_1=x_1)


def colliding_and_tied() -> nn.Module:
    first = linear()
    return Calls(["x_1", "x", "x"], x=first, x_1=linear(first.weight))


def call_that_leaves_no_node() -> nn.Module:
    [one] = leaves(1)
    return Calls(
        ["left.act", "right.act", "left.act"],
        left=nn.ModuleDict({"act": nn.Identity()}),
        right=nn.ModuleDict({"act": one}),
    )


def passed_over() -> nn.Module:
    inside, outside = leaves(2)
    return Calls(["b.a", "b", "a"], a=outside, b=Calls(["a"], a=inside))


@pytest.mark.parametrize(
    "make", [interleaved, colliding, colliding_and_tied, call_that_leaves_no_node, passed_over]
)
def test_hard_case_is_decided_by_the_tracer(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """During an export, and when the module is given to `tag`; by names alone nothing is wrong."""
    model = make()
    found = tagged_in_every_way(model, tmp_path / "model.onnx")
    for way in ("recorded", "classes"):
        assert not found[way].wrong
        assert not found[way].coarser
    assert not found["names"].wrong


def test_a_second_call_and_a_module_of_its_name_are_told_apart(tmp_path: Path) -> None:
    model = Calls(["query", "query", "query_1"], query=linear(), query_1=linear())
    path = tmp_path / "model.onnx"
    torch.onnx.export(model.eval(), (torch.ones(2, 3),), path, dynamo=False)
    htp.tag(path, model=model)
    assert on(path, "query").count("Gemm") == 2
    assert on(path, "query_1").count("Gemm") == 1
    htp.strip(path)
    htp.tag(path, model=without_retracing(model))  # each Gemm reads its weights under their name
    assert on(path, "query").count("Gemm") == 2
    assert on(path, "query_1").count("Gemm") == 1


def on(path: Path, module: str) -> list[str]:
    return [node.op_type for node in htp.read_hierarchy(path) if node.module == module]


def without_retracing(model: nn.Module) -> ModuleTree:
    tree = ModuleTree.from_module(model)
    tree.build = lambda: None
    return tree


def test_noting_changes_nothing_in_the_file(tmp_path: Path) -> None:
    model = random_module(1)
    plain, noted = tmp_path / "plain.onnx", tmp_path / "noted.onnx"
    torch.onnx.export(model.eval(), (torch.ones(2, 3),), plain, dynamo=False)
    with traced_graphs(model) as graphs:
        torch.onnx.export(model.eval(), (torch.ones(2, 3),), noted, dynamo=False)
    assert len(graphs) == 1
    assert noted.read_bytes() == plain.read_bytes()


def test_a_model_is_traced_again_only_where_its_names_leave_a_choice(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    retrace = htp.retrace
    monkeypatch.setattr(
        htp, "retrace", lambda model, files: traced.append(type(model)) or retrace(model, files)
    )
    for name in ("bert", "gpt2", "vit"):
        shutil.copytree(exported(name), tmp_path / name)
        htp.tag(tmp_path / name)
    assert not traced
    # Its two layers are called by none that is called itself: `/encoder/attention_1`.
    shutil.copytree(exported("squeezebert"), tmp_path / "squeezebert")
    htp.tag(tmp_path / "squeezebert")
    assert [each.__name__ for each in traced] == ["SqueezeBertForSequenceClassification"]
    placed = {node.name: node.module for node in htp.read_hierarchy(tmp_path / "squeezebert")}
    assert placed["/transformer/encoder/attention_1/Shape"].endswith("layers.1.attention")


@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("name", ["bert", "bert-fresh"])
def test_a_parameter_that_modules_share_after_optimization_decides_nothing(
    name: str, level: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """ONNX Runtime merges equal weights: the zeros and ones of layers that are not trained."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer

    plain, optimized = tmp_path / "plain", tmp_path / level
    shutil.copytree(exported(name), plain)
    config = AutoOptimizationConfig.with_optimization_level(level)
    config.disable_shape_inference = True
    ORTOptimizer.from_pretrained(plain).optimize(config, optimized, file_suffix="")
    htp.tag(plain)
    htp.tag(optimized)
    tags = {node.name: node.tag for node in htp.read_hierarchy(plain)}
    kept = [node for node in htp.read_hierarchy(optimized) if node.name.startswith("/")]
    compared = [(tags[node.name], node) for node in kept if node.name in tags]
    assert len(compared) > 5
    assert all(tag == node.tag for tag, node in compared)
