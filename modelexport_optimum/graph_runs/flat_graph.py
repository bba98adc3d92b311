"""A tagged file as one flat list of nodes, each in one call of its module.

`compare` works on this list. If an input of the graph chooses a branch (`use_cache_branch` of a
merged decoder), the list has the nodes of that branch and leaves out the other branch. Other nested
graphs (the body of a Loop) stay inside their node. Nothing is run, and no weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.hierarchy.weights import Weights
from modelexport_optimum.onnx_file.skeleton import RANDOM_OPERATORS, wanted_inputs
from modelexport_optimum.tags.node_names import spellings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule, TaggedNode
    from modelexport_optimum.onnx_file.skeleton import Graph, Tensor, Value

_NO_COMPUTATION = {"Constant", "Identity"}
"""Operators whose output is a weight, or the same weight under another name."""


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of one module.

    Attributes:
        module: The module.
        number: Index of this call among its calls, from 0, in the order in which they ran.
        parent: The call in which it was made; None for the root's.
        depth: Number of calls that contain it.
        outputs: Values that it computes and that other calls read or the graph returns, in
            file order; without those that depend only on weights and constants, unless all do.
        inputs: Values that it reads and that a call around it computes, outside other calls, in
            file order.
        choices: Indices from a TopK in it, outside calls in it, in file order.
        draws: Values that it draws at random, outside calls in it, in file order.
        has_weights: A node in it reads an initializer.
        varies: The result of a node in it depends on an input of the graph.
    """

    module: TaggedModule
    number: int
    parent: ModuleCall | None
    depth: int
    outputs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    has_weights: bool = False
    varies: bool = False

    def outwards(self) -> Iterator[ModuleCall]:
        """Yield the call itself and those around it, inner before outer."""
        call: ModuleCall | None = self
        while call is not None:
            yield call
            call = call.parent

    def around(self, depth: int) -> ModuleCall:
        """Return the call around it at a depth; itself if it is not deeper than that."""
        call = self
        while call.depth > depth and call.parent is not None:
            call = call.parent
        return call


@dataclass(slots=True, eq=False)
class FlatNode:
    """One node of the list.

    Attributes:
        proto: The node.
        makes: Names of its outputs.
        reads: Names of the values that it reads, including those of its nested graphs.
        call: The call that it belongs to; that of the root if it has no tag.
        constant: It depends only on initializers and Constants.
    """

    proto: onnx.NodeProto
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    call: ModuleCall
    constant: bool


@dataclass(slots=True)
class FlatGraph:
    """The list.

    Attributes:
        file: The tagged file.
        branch: Values of the inputs that choose a branch, by name.
        nodes: The nodes, each after the nodes whose outputs it reads.
        calls: The calls of modules, outer before inner, in the order in which they ran.
        makers: The node that computes a value, by the value's name.
        inputs: Inputs of the graph that are not initializers and choose no branch.
        outputs: Names of the outputs of the graph.
        initializers: Headers of the initializers by name.
        weights: Their data, mapped into memory.
        nested: Modules whose nodes are in graphs that stay nested, by path.
    """

    file: TaggedFile
    branch: dict[str, bool]
    nodes: list[FlatNode]
    calls: list[ModuleCall]
    makers: dict[str, FlatNode]
    inputs: list[Value]
    outputs: list[str]
    initializers: dict[str, Tensor]
    weights: Weights
    nested: set[str]


def branches(file: TaggedFile) -> list[dict[str, bool]]:
    """Return the possible values of the inputs that choose a branch; else one empty choice."""
    inputs = {value.name for value in file.model.graph.inputs}
    choosing = dict.fromkeys(
        node.inputs[0]
        for node in file.model.graph.nodes
        if node.op_type == "If" and node.inputs[0] in inputs
    )
    choices: list[dict[str, bool]] = [{}]
    for name in choosing:
        choices = [{**choice, name: value} for choice in choices for value in (False, True)]
    return choices


def branch_in_words(branch: Mapping[str, bool]) -> str:
    """Return a choice of a branch, such as `use_cache_branch=true`."""
    return ", ".join(f"{name}={value}".lower() for name, value in branch.items())


def flatten(file: TaggedFile, branch: dict[str, bool]) -> FlatGraph:
    """Return a tagged file as one list of nodes, with one of the choices from `branches`."""
    weights = Weights(file.model)
    tagged = {id(node.node): node for node in file.nodes}
    initializers: dict[str, Tensor] = {}
    found = _sorted(list(_opened(file.model.graph, branch, weights, tagged, initializers)))
    makers: dict[str, FlatNode] = {}
    known = set(initializers)
    calls = _Calls(file.root, [node for _, node in found])
    nodes = []
    for proto, node in found:
        reads = tuple(_read_by(proto))
        computed = proto.op_type not in RANDOM_OPERATORS and all(name in known for name in reads)
        constant = computed and (bool(reads) or proto.op_type == "Constant")
        if constant:
            known.update(name for name in proto.output if name)
        makes = tuple(name for name in proto.output if name)
        flat = FlatNode(proto, makes, reads, calls.call_of(node, reads, makers), constant)
        nodes.append(flat)
        makers.update((name, flat) for name in makes)
    opened = {id(node) for _, node in found}
    graph = FlatGraph(
        file=file,
        branch=branch,
        nodes=nodes,
        calls=calls.in_order(nodes),
        makers=makers,
        inputs=[value for value in wanted_inputs(file.model.graph) if value.name not in branch],
        outputs=[value.name for value in file.model.graph.outputs],
        initializers=initializers,
        weights=weights,
        nested={
            node.module.path
            for node in file.nodes
            if node.module and not node.in_function and id(node) not in opened
        },
    )
    _find_outputs(graph)
    return graph


def _opened(
    graph: Graph,
    branch: dict[str, bool],
    weights: Weights,
    tagged: dict[int, TaggedNode],
    initializers: dict[str, Tensor],
) -> Iterator[tuple[onnx.NodeProto, TaggedNode]]:
    """Yield the nodes of a graph, with the chosen branch in place of each opened If."""
    initializers.update((tensor.name, tensor) for tensor in graph.initializers)
    for node in graph.nodes:
        if node.op_type == "If" and node.inputs[0] in branch:
            wanted = "then_branch" if branch[node.inputs[0]] else "else_branch"
            (chosen,) = (nested for name, nested in node.subgraphs if name == wanted)
            yield from _opened(chosen, branch, weights, tagged, initializers)
            for inner, outer in zip(chosen.outputs, node.outputs, strict=True):
                if outer and outer != inner.name:
                    yield onnx.helper.make_node("Identity", [inner.name], [outer]), tagged[id(node)]
        else:
            message = bytes(weights.file[node.start : node.end])
            yield onnx.NodeProto.FromString(message), tagged[id(node)]


def _read_by(node: onnx.NodeProto) -> Iterable[str]:
    """Return the values that a node reads from its own graph or from outer graphs."""
    read = dict.fromkeys(name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in graph.input}
            own |= {tensor.name for tensor in graph.initializer}
            for nested in graph.node:
                read.update(dict.fromkeys(name for name in _read_by(nested) if name not in own))
                own.update(nested.output)
            read.update(dict.fromkeys(v.name for v in graph.output if v.name not in own))
    return read


def _sorted(
    nodes: Sequence[tuple[onnx.NodeProto, TaggedNode]],
) -> list[tuple[onnx.NodeProto, TaggedNode]]:
    """Put each node after the nodes whose outputs it reads; else keep the order.

    ONNX Runtime's float16 converter adds its Casts at the end, and ONNX Runtime sorts them.
    """
    makers = {name: node for node in nodes for name in node[0].output if name}
    done: set[int] = set()
    ordered = []
    for node in nodes:
        waiting = [node]
        while waiting:
            first = [
                makers[name]
                for name in _read_by(waiting[-1][0])
                if name in makers and id(makers[name]) not in done
            ]
            # A circle is left as it is: ONNX Runtime says so.
            if first and len(waiting) <= len(nodes):
                waiting.append(first[0])
                continue
            node_done = waiting.pop()
            if id(node_done) not in done:
                done.add(id(node_done))
                ordered.append(node_done)
    return ordered


class _Calls:
    """Finds the call of its module that each node belongs to.

    The tracer numbers the calls of a module at the end of the scope of the module's own nodes:
    `attention/Softmax`, `attention_1/Softmax`. The scope of an inner module is numbered separately,
    below the scope without a number: `attention/query_1` (torch/csrc/jit/passes/onnx/naming.cpp).
    So the scope shows the call of the node's own module. The calls of the outer modules follow from
    how often each ran.
    """

    def __init__(self, root: TaggedModule, nodes: Iterable[TaggedNode]) -> None:
        self._scopes: dict[str, dict[str, int]] = {}
        for node in nodes:
            scope = _own_scope(node)
            if scope and node.module is not None:
                known = self._scopes.setdefault(node.module.path, {})
                known.setdefault(scope, len(known))
        self._calls: dict[str, list[ModuleCall]] = {root.path: [ModuleCall(root, 0, None, 0)]}
        for module in root.walk():
            if module.parent is not None:
                around = self._calls[module.parent.path]
                times = max(self._times(module), 1)
                self._calls[module.path] = [
                    ModuleCall(module, i, outer, outer.depth + 1)
                    for i in range(times)
                    for outer in (around[i * len(around) // times],)
                ]

    def _times(self, module: TaggedModule) -> int:
        """Return how often a module ran: as often as its least called inner module, if unnamed."""
        scopes = self._scopes.get(module.path)
        if scopes:
            return len(scopes)
        return min(map(self._times, module.children), default=1)

    def call_of(
        self, node: TaggedNode, reads: Iterable[str], makers: dict[str, FlatNode]
    ) -> ModuleCall:
        """Return the call of a node, given the calls of the nodes before it."""
        if node.module is None:
            return self._calls[""][0]
        calls = self._calls[node.module.path]
        number = self._scopes.get(node.module.path, {}).get(_own_scope(node))
        if number is not None:
            return calls[number]
        # A node without a scope goes on with what a node of the same module has begun.
        for name in reads:
            if name in makers and makers[name].call in calls:
                return makers[name].call
        return calls[0]

    def in_order(self, nodes: Iterable[FlatNode]) -> list[ModuleCall]:
        """Return the calls that compute something, in the order in which they began, outer first.

        A call that computes only from weights (a weight's norm, a table of relative positions)
        counts, but a Constant or another name of a weight is not a computation.
        """
        first: dict[int, int] = {}
        for index, node in enumerate(nodes):
            if node.proto.op_type not in _NO_COMPUTATION:
                for call in node.call.outwards():
                    first.setdefault(id(call), index)
        made = [call for calls in self._calls.values() for call in calls if id(call) in first]
        return sorted(made, key=lambda call: (first[id(call)], call.depth))


def _own_scope(node: TaggedNode) -> str:
    """Return the scope in a node's name, if it is a scope of the node's own module."""
    names = [name for name in (node.name, *node.node.outputs) if name.startswith("/")]
    if not names or node.module is None:
        return ""
    scope = names[0].rpartition("/")[0]
    label = scope.rpartition("/")[2]
    path = node.module.path
    is_own = any(own and f".{path}".endswith(f".{own}") for own in spellings(label))
    return scope if is_own else ""


def _find_outputs(graph: FlatGraph) -> None:
    """Record the outputs of each call, and its inputs from the call around it."""
    readers: dict[str, list[ModuleCall | None]] = {name: [None] for name in graph.outputs}
    for node in graph.nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node.call)
        has_weights = any(name in graph.initializers for name in node.reads)
        for call in node.call.outwards():
            call.varies |= not node.constant
            call.has_weights |= has_weights
    for node in graph.nodes:
        if node.proto.op_type == "TopK":
            node.call.choices += node.proto.output[1:]
        if node.proto.op_type in RANDOM_OPERATORS:
            node.call.draws += node.makes
        for name in node.makes:
            _find_readers(node, name, readers.get(name, ()))


def _find_readers(node: FlatNode, name: str, readers: Collection[ModuleCall | None]) -> None:
    for call in node.call.outwards():
        leaves = any(reader is None or reader.around(call.depth) is not call for reader in readers)
        if leaves and not (node.constant and call.varies):
            call.outputs.append(name)
    for reader in readers:
        # Of the calls in which it is read, those inside the call that makes it.
        if reader is None or node.constant or reader.around(node.call.depth) is not node.call:
            continue
        for call in reader.outwards():
            if call is node.call:
                break
            if name not in call.inputs:
                call.inputs.append(name)


def values_after(graph: FlatGraph, names: Collection[str]) -> set[str]:
    """Return the given values of a graph, and all values that depend on them."""
    after = set(names)
    for node in graph.nodes:
        if not after.isdisjoint(node.reads):
            after.update(node.makes)
    return after
