"""Generated modules, whose tags are right by construction.

Every module of a generated tree multiplies by a number of its own, so that the number says in the
exported graph whose operation a Mul is, whatever its name. Trees mix Sequential, ModuleList and
ModuleDict, modules that are shared, called several times, or skipped over by their parents'
parents, odd names, and operations between the calls.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from modelexport_optimum.tagging import htp
from modelexport_optimum.tagging.recorded_calls import recorded_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

GENERATED = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # A failing model is small enough to read, and each smaller one costs an export.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)

NAMES = [
    "a", "b", "a_1", "a_2", "a_1_1", "b_0", "query", "query_1", "layer", "layer1", "Mul", "Mul_1",
    "_x", "x_", "é", "long_name_12", "a-b", "a/b", "0", "1",
]  # fmt: skip


class Leaf(nn.Module):
    """Multiplies by its own number; with weights, it also has an addition that names it."""

    def __init__(self, number: float, weighted: bool) -> None:
        super().__init__()
        self.number = number
        self.bias = nn.Parameter(torch.full((3,), number)) if weighted else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.number
        return x if self.bias is None else x + self.bias


class Inner(nn.Module):
    """Calls modules below it, and multiplies between the calls.

    It calls its own children and those of its containers; a wild one calls modules at any
    depth, so that the same module is called here and passed over there.
    """

    def __init__(
        self, number: float, children: dict[str, nn.Module], steps: list[int], wild: bool
    ) -> None:
        super().__init__()
        self.number = number
        self.wild = wild
        for name, child in children.items():
            self.add_module(name, child)
        self.steps = steps

    def extra_repr(self) -> str:
        return f"steps={self.steps}"

    def callable_below(self) -> list[nn.Module]:
        found: list[nn.Module] = []

        def visit(module: nn.Module) -> None:
            for child in module.children():
                container = isinstance(child, nn.ModuleList | nn.ModuleDict)
                if not container:
                    found.append(child)
                if container or self.wild:
                    visit(child)

        visit(self)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        below = self.callable_below()
        for step in self.steps:
            x = x * self.number if step < 0 or not below else below[step % len(below)](x)
        return x


@st.composite
def models(draw: st.DrawFn, wild: bool) -> nn.Module:
    numbers = (1 + n / 128 for n in itertools.count(1))
    shared: list[nn.Module] = []

    def module(depth: int) -> nn.Module:
        if shared and draw(st.integers(0, 9)) == 0:
            return draw(st.sampled_from(shared))
        kinds = ["leaf", "weighted"]
        if depth > 0:
            # A call that leaves no node of its own, as a Sequential's, leaves no scope either.
            kinds += ["inner", "inner"] if wild else ["inner", "inner", "sequential"]
        kind = draw(st.sampled_from(kinds))
        if kind in ("leaf", "weighted"):
            made: nn.Module = Leaf(next(numbers), kind == "weighted")
        elif kind == "sequential":
            made = nn.Sequential(*(module(depth - 1) for _ in range(draw(st.integers(1, 3)))))
        else:
            made = inner(depth)
        shared.append(made)
        return made

    def held(depth: int) -> nn.Module:
        kind = draw(st.sampled_from(["plain", "plain", "list", "dict", "list of dict"]))
        if kind == "plain" or depth == 0:
            return module(depth)
        if kind == "list":
            return nn.ModuleList(held(depth - 1) for _ in range(draw(st.integers(1, 3))))
        if kind == "dict":
            return nn.ModuleDict({name: held(depth - 1) for name in names()})
        keys = names()
        return nn.ModuleList(
            nn.ModuleDict({name: module(depth - 1) for name in keys})
            for _ in range(draw(st.integers(1, 3)))
        )

    def names() -> list[str]:
        return draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))

    def inner(depth: int) -> nn.Module:
        number = next(numbers)
        children = {name: held(depth - 1) for name in names()}
        steps = draw(st.lists(st.integers(-1, 8), min_size=1, max_size=6))
        steps = [*steps, -1] if wild else steps
        return Inner(number, children, steps, wild)

    return inner(3)


def exported(model: nn.Module, directory: str) -> Path:
    path = Path(directory) / "model.onnx"
    torch.onnx.export(model.eval(), (torch.ones(2, 3),), path, dynamo=False, input_names=["x"])
    return path


def owners(model: nn.Module) -> dict[float, set[str]]:
    """Paths of the module of each number."""
    found: dict[float, set[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Leaf | Inner):
            found.setdefault(module.number, set()).add(path)
    return found


def multiplications(path: Path) -> Iterator[tuple[onnx.NodeProto, float]]:
    """The Mul nodes of a graph, with the number by which each multiplies."""
    graph = onnx.load(path).graph
    values = {t.name: t for t in graph.initializer}
    values.update((n.output[0], n.attribute[0].t) for n in graph.node if n.op_type == "Constant")
    for node in graph.node:
        if node.op_type == "Mul":
            for name in node.input:
                if name in values:
                    yield node, float(numpy_helper.to_array(values[name]).flat[0])


def ancestors(paths: set[str]) -> set[str]:
    return {
        ".".join(path.split(".")[:end]) for path in paths for end in range(len(path.split(".")) + 1)
    }


@GENERATED
@given(models(wild=False))
def test_no_node_is_ever_on_a_wrong_module(model: nn.Module) -> None:
    with TemporaryDirectory() as directory:
        path = exported(model, directory)
        before = path.read_bytes()
        htp.tag(path, model=model)
        tags = {node.name: node for node in htp.read_hierarchy(path)}
        of_number = owners(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        biases: dict[str, set[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            same = {n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter}
            biases[name] = {n.rpartition(".")[0] for n in same}
        checked = 0
        for node, number in multiplications(path):
            placed = tags[node.name]
            assert type(modules[placed.module_path]).__name__ == placed.module_class
            assert placed.module_path in ancestors(of_number[number]), (placed, of_number[number])
            checked += 1
        assert checked
        for node in onnx.load(path).graph.node:
            for name in node.input:
                if name in biases and node.op_type == "Add":
                    assert tags[node.name].module_path in biases[name], (tags[node.name], name)
        htp.strip(path)
        assert path.read_bytes() == before


@GENERATED
@given(models(wild=True))
def test_every_node_is_on_its_module_when_the_calls_were_recorded(model: nn.Module) -> None:
    with TemporaryDirectory() as directory, recorded_calls(model) as recorded:
        path = exported(model, directory)
        htp.tag(path, model=model, recorded=recorded)
        tags = {node.name: node for node in htp.read_hierarchy(path)}
        of_number = owners(model)
        for node, number in multiplications(path):
            placed = tags[node.name].module_path
            if placed not in of_number[number]:
                # `a_1` may hold the second call of `a` as well, and nothing tell them apart.
                assert node.name.rpartition("/")[0].rpartition("_")[2].isdigit(), tags[node.name]
                assert placed in ancestors(of_number[number])


def test_a_second_call_and_a_module_of_its_name_are_told_apart_by_their_weights() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(3, 3)
            self.query_1 = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.query_1(self.query(self.query(x)))

    model = Model()
    with TemporaryDirectory() as directory:
        path = exported(model, directory)
        htp.tag(path, model=model)
        on = {}
        for node in htp.read_hierarchy(path):
            on.setdefault(node.module_path, []).append(node.op_type)
    assert on["query"].count("Gemm") == 2
    assert on["query_1"].count("Gemm") == 1


if __name__ == "__main__":
    pytest.main([__file__])
