"""Random modules that are hard to attribute, with a witness of who computed what.

Every module of a tree multiplies by a number of its own, so that the number says in the exported
graph whose operation a Mul is, whatever its name. Names are few and collide with counts of calls;
containers are called or not; modules are shared, called again, passed over by their parents'
parents, and twins of one another; parameters are tied, equal, or none.
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from modelexport_optimum.attribution.traced_graphs import traced_graphs
from modelexport_optimum.module_trees.module_tree import ModuleTree
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = [
    *("a", "a", "b", "left", "right", "act", "x", "x_1", "x_2", "x_1_1", "Mul", "Mul_1"),
    *("_x", "x_", "é", "long_name_12", "a-b", "a/b", "0", "1", "layer", "layer1"),
]  # fmt: skip

# The modules that are being called, and for each number the calls that multiplied by it.
_open: list[nn.Module] = []
_seen: dict[float, set[tuple[nn.Module, ...]]] = {}


def multiply(x: torch.Tensor, number: float) -> torch.Tensor:
    """Multiplies by a module's number, which is noted with the modules being called."""
    _seen.setdefault(number, set()).add(tuple(_open))
    return x * number


class Leaf(nn.Module):
    """Multiplies by its own number; with a bias, it also has an addition that names it."""

    def __init__(self, number: float, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.number = number
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _open.append(self)
        x = multiply(x, self.number)
        if self.bias is not None:
            x = x + self.bias
        _open.pop()
        return x


class Chain(nn.Sequential):
    """Computes nothing itself: its call leaves no node of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _open.append(self)
        x = super().forward(x)
        _open.pop()
        return x


class Calls(nn.Module):
    """Calls the modules at some paths, in order."""

    def __init__(self, order: list[str], **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _open.append(self)
        for path in self.order:
            x = self.get_submodule(path)(x)
        _open.pop()
        return x


class Inner(nn.Module):
    """Calls modules below it, and multiplies between the calls.

    It calls its own children and those of its containers; a wild one calls modules at any
    depth, so that the same module is called here and passed over there. A step is the number
    of a module, less than 0 for a multiplication; a pair of steps is two branches.
    """

    def __init__(
        self,
        number: float,
        children: dict[str, nn.Module],
        steps: list[tuple[int, ...]],
        wild: bool,
    ) -> None:
        super().__init__()
        self.number = number
        self.wild = wild
        for name, child in children.items():
            self.add_module(name, child)
        self.steps = steps

    def extra_repr(self) -> str:
        return f"number={self.number}, steps={self.steps}, wild={self.wild}"

    def callable_below(self) -> list[nn.Module]:
        found: list[nn.Module] = []

        def visit(module: nn.Module) -> None:
            for child in module.children():
                container = not isinstance(child, Leaf | Inner | Chain)
                if not container:
                    found.append(child)
                if container or self.wild:
                    visit(child)

        visit(self)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _open.append(self)
        below = self.callable_below()

        def step(number: int, x: torch.Tensor) -> torch.Tensor:
            if number < 0 or not below:
                return multiply(x, self.number)
            return below[number % len(below)](x)

        for branches in self.steps:
            x = sum((step(number, x) for number in branches[1:]), step(branches[0], x))
        _open.pop()
        return x


def random_module(seed: int) -> nn.Module:
    """The module of a seed, the same every time."""
    draw = random.Random(seed)
    wild = seed % 2 == 1
    numbers = iter(1 + n / 1024 for n in range(1, 1000))
    names = draw.sample(NAMES, draw.choice([3, 5, len(NAMES)]))
    shared: list[nn.Module] = []
    biases: list[nn.Parameter] = []

    def bias() -> nn.Parameter | None:
        kind = draw.choice(["none", "none", "own", "equal", "tied"])
        if kind == "none":
            return None
        if kind == "tied" and biases:
            return draw.choice(biases)
        biases.append(nn.Parameter(torch.full((3,), 0.0 if kind == "equal" else draw.random())))
        return biases[-1]

    def module(depth: int) -> nn.Module:
        if shared and draw.random() < 0.1:
            return draw.choice(shared)
        kind = draw.choice(["leaf", "inner", "inner", "sequential"] if depth else ["leaf"])
        if kind == "leaf":
            made: nn.Module = Leaf(next(numbers), bias())
        elif kind == "sequential":
            made = Chain(*(module(depth - 1) for _ in range(draw.randint(1, 3))))
        else:
            made = inner(depth)
        shared.append(made)
        return made

    def held(depth: int) -> nn.Module:
        kind = draw.choice(["plain", "plain", "list", "dict", "namespace"] if depth else ["plain"])
        if kind == "plain":
            return module(depth)
        if kind == "list":
            return nn.ModuleList(held(depth - 1) for _ in range(draw.randint(1, 3)))
        children = {name: held(depth - 1) for name in some_names()}
        if kind == "dict":
            return nn.ModuleDict(children)
        namespace = nn.Module()
        for name, child in children.items():
            namespace.add_module(name, child)
        return namespace

    def some_names() -> list[str]:
        return draw.sample(names, draw.randint(1, min(3, len(names))))

    def inner(depth: int) -> nn.Module:
        children = {name: held(depth - 1) for name in some_names()}
        steps = [
            tuple(draw.randint(-2, 8) for _ in range(draw.choice([1, 1, 1, 2])))
            for _ in range(draw.randint(1, 6))
        ]
        return Inner(next(numbers), children, steps, wild)

    return inner(3)


@dataclass
class Outcome:
    """How the multiplications of one tagged graph, and their numbers, were placed.

    Attributes:
        nodes: Their number.
        coarser: The number of those on a module around the one that computed them.
        wrong: What is said of each that is neither there nor around it.
    """

    nodes: int = 0
    coarser: int = 0
    wrong: list[str] = field(default_factory=list)


WAYS = ("recorded", "classes", "names")
"""Calls recorded as `export()` does; the module given to `tag`; nothing but its names given."""


def tagged_in_every_way(model: nn.Module, path: Path) -> dict[str, Outcome]:
    """Exports a module, tags the file in each of the `WAYS`, and looks at every tag.

    Raises:
        AssertionError: A strip did not give back the bytes that were there before.
    """
    _seen.clear()
    with traced_graphs(model) as traced:
        export(model, path)
    before = path.read_bytes()
    seen = {number: set(calls) for number, calls in _seen.items()}
    alone = ModuleTree.from_module(model)
    alone.build = lambda: None
    outcomes = {}
    for way, given, noted in zip(WAYS, (model, model, alone), (traced, (), ()), strict=True):
        htp.tag(path, model=given, traced=noted)
        outcomes[way] = outcome(model, path, seen)
        htp.strip(path)
        assert path.read_bytes() == before
    return outcomes


def export(model: nn.Module, path: Path) -> None:
    """Exports a module of this file's."""
    torch.onnx.export(model.eval(), (torch.ones(2, 3),), path, dynamo=False, input_names=["x"])


def outcome(model: nn.Module, path: Path, seen: dict[float, set[tuple[nn.Module, ...]]]) -> Outcome:
    """Compares the tags of a file with the calls that were seen."""
    paths: dict[nn.Module, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, set()).add(name)
    found = Outcome()
    graph = onnx.load(path).graph
    chains = {
        node.name: ast.literal_eval(entry.value)[:-1]
        for node in graph.node
        for entry in node.metadata_props
        if entry.key == carriers.NAME_SCOPES
    }
    for name, number in _numbered(graph):
        found.nodes += 1
        calls = [[paths[module] for module in call] for call in seen[number]]
        if not any(_is_part(chains[name], call) for call in calls):
            owners = sorted(set().union(*(call[-1] for call in calls)))
            found.wrong.append(f"{name} on {chains[name]}, but it is of {owners}")
        elif not any(chains[name][-1] in call[-1] for call in calls):
            found.coarser += 1
    return found


def _is_part(chain: list[str], call: list[set[str]]) -> bool:
    """Whether each module of a chain is the call's or around it, in the call's order."""
    at = 0
    for path in chain:
        while at < len(call) and path not in call[at]:
            at += 1
    return at < len(call) or all(any(_around(path, p) for p in call[-1]) for path in chain)


def _around(path: str, other: str) -> bool:
    return not path or other.startswith(f"{path}.")


def _numbered(graph: onnx.GraphProto) -> Iterator[tuple[str, float]]:
    """The names of the graph's multiplications and of their constants, with their numbers."""
    constants = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    named: set[str] = set()
    for node in graph.node:
        if node.op_type != "Mul":
            continue
        for name in node.input:
            if name in constants:
                number = float(numpy_helper.to_array(constants[name].attribute[0].t).flat[0])
                if constants[name].name not in named:
                    named.add(constants[name].name)
                    yield constants[name].name, number
                yield node.name, number
            elif name in initializers and initializers[name].dims == []:
                yield node.name, float(numpy_helper.to_array(initializers[name]).flat[0])


def add_up(outcomes: list[dict[str, Outcome]]) -> dict[str, Counter[str]]:
    """The sums of many modules, for each of the `WAYS`."""
    sums = {way: Counter[str]() for way in WAYS}
    for each in outcomes:
        for way, found in each.items():
            sums[way].update(nodes=found.nodes, coarser=found.coarser, wrong=len(found.wrong))
    return sums
