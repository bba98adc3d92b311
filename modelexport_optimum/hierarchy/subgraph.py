"""The part of a graph that is one module: its nodes, its inputs and its outputs.

It takes a tagged file and returns the part, or the reason why the module cannot be extracted.
`extract` writes the part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.hierarchy.tagged_model import TaggedNode, graph_of
from modelexport_optimum.onnx_file.skeleton import RANDOM_OPERATORS, Tensor, Value, walk_graphs
from modelexport_optimum.system.text import listed
from modelexport_optimum.tags.node_names import spellings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from modelexport_optimum.hierarchy.tagged_model import Read, TaggedFile, TaggedModule


@dataclass(frozen=True, slots=True)
class ModuleSubgraph:
    """The part of a file that is a module.

    Attributes:
        nodes: Its nodes in file order, without those in graphs that they hold: the module's own,
            those of the modules inside it, and the constants that they read.
        weights: The initializers that they read.
        inputs: The values that they read and do not compute.
        outputs: The values that they compute and other nodes read.
    """

    nodes: tuple[TaggedNode, ...]
    weights: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(slots=True)
class _Peer:
    """A node of the graph, with all values that it and its nested graphs read."""

    node: TaggedNode
    reads: dict[str, Read | None] = field(default_factory=dict)


def module_subgraph(file: TaggedFile, module: TaggedModule) -> ModuleSubgraph:
    """Find the part of a file that is a module.

    Raises:
        ModelExportError: The module runs several times, or other modules run between parts
            of it. The message names the tensors.
    """
    own = _own_nodes(file, module)
    peers = _peers(file, own[0])
    constant = _constants(file)
    taken = {id(node) for node in own}
    runs = _runs(module) or 1
    between = _between(peers, taken, constant)
    # A tag may be less precise than it could be: what runs between nodes of a module that
    # runs once, tagged as what is around it, is the module's.
    around = {id(outer) for outer in module.around()}
    strangers = [n for n in between if n.module is not None and id(n.module) not in around]
    if strangers or (between and runs > 1):
        raise _runs_around(file, module, runs, peers, taken, between)
    taken |= {id(node) for node in between}
    part = _bounded(file, peers, taken, constant, own[0])
    if runs > 1:
        boundary = f"with the inputs {_listed(part.inputs)} and the outputs {_listed(part.outputs)}"
        raise _refusal(file, module, f"it runs {runs} times, {boundary}; {_advice(module)}")
    return part


def _own_nodes(file: TaggedFile, module: TaggedModule) -> list[TaggedNode]:
    """Return the nodes of a module and its submodules, without those in the graphs of others."""
    # What is in a function's body runs where that is called.
    ids = {id(node) for node in module.walk_nodes() if not node.in_function}
    # A node that holds nodes of the module and of no other one is the module's, although its
    # tag may be less precise.
    known = {id(other) for other in (*module.walk(), *module.around())}
    foreign = {id(node) for node in file.nodes if node.module and id(node.module) not in known}
    foreign |= {id(h) for node in file.nodes if id(node) in foreign for h in _holders(node)}
    ids |= {id(h) for n in file.nodes if id(n) in ids for h in _holders(n)} - foreign
    own = [n for n in file.nodes if id(n) in ids and not any(id(h) in ids for h in _holders(n))]
    if not own:
        why = "all of it is in the bodies of local functions"
        raise _refusal(file, module, f"{why}; inline them (onnx.inliner.inline_local_functions)")
    graphs = {(id(node.holder), node.graph): node for node in own}
    if len(graphs) > 1:
        places = _listed(graph or "the top one" for _, graph in graphs)
        given = _listed(name for node in graphs.values() for name in node.node.outputs)
        why = f"it is in {len(graphs)} graphs, {places}, with the outputs {given}"
        raise _refusal(file, module, f"{why}; give a file where it is in one graph")
    return own


def _holders(node: TaggedNode) -> Iterator[TaggedNode]:
    while node.holder is not None:
        node = node.holder
        yield node


def _peers(file: TaggedFile, one: TaggedNode) -> dict[int, _Peer]:
    """Return the nodes of the graph that contains a node, in file order, by identity."""
    place = (id(one.holder), one.graph)
    peers: dict[int, _Peer] = {}
    held: dict[int, set[int]] = {}  # by peer, what is inside the graphs that it holds
    for node in file.nodes:
        if (id(node.holder), node.graph) == place:
            peers[id(node)] = _Peer(node, dict(zip(node.node.inputs, node.reads, strict=True)))
            held[id(node)] = {
                id(value)
                for _, graph in node.node.subgraphs
                for _, nested in walk_graphs(graph)
                for value in (*nested.inputs, *nested.initializers)
            }
            continue
        holder = next((h for h in _holders(node) if id(h) in peers), None)
        if holder is not None:
            held[id(holder)].add(id(node))
            peers[id(holder)].reads.update(
                (name, read)
                for name, read in zip(node.node.inputs, node.reads, strict=True)
                if id(read) not in held[id(holder)]
            )
    for peer in peers.values():
        peer.reads.pop("", None)
    return peers


def _constants(file: TaggedFile) -> set[int]:
    """Return the nodes whose values depend only on initializers and Constants."""
    constant: set[int] = set()
    for node in file.nodes:
        known = all(
            read is None or isinstance(read, Tensor) or id(read) in constant for read in node.reads
        )
        # A copy of an operator that draws makes another tensor.
        computed = (
            bool(node.reads) and node.op_type not in RANDOM_OPERATORS and not node.node.subgraphs
        )
        if known and (computed or node.op_type == "Constant"):
            constant.add(id(node))
    return constant


def _between(
    peers: Mapping[int, _Peer], taken: Collection[int], constant: Collection[int]
) -> list[TaggedNode]:
    """Return the nodes outside that are between an output of the part and an input of it."""
    after: set[int] = set()
    for key, peer in peers.items():
        if key not in taken and any(
            id(read) in after or (id(read) in taken and id(read) not in constant)
            for read in peer.reads.values()
        ):
            after.add(key)
    before: set[int] = set()
    for key, peer in reversed(list(peers.items())):
        if key in taken or key in before:
            before |= {id(r) for r in peer.reads.values() if id(r) in peers and id(r) not in taken}
    return [peers[key].node for key in peers if key in after and key in before]


def _bounded(
    file: TaggedFile,
    peers: Mapping[int, _Peer],
    taken: Collection[int],
    constant: Collection[int],
    one: TaggedNode,
) -> ModuleSubgraph:
    """Add the constants that the nodes read, and find the inputs and outputs."""
    copied: dict[int, TaggedNode] = {}
    weights: set[int] = set()
    inputs: dict[str, None] = {}
    todo = [(peers[key].node, peers[key].reads) for key in peers if key in taken]
    for node, reads in todo:  # it grows
        copied[id(node)] = node
        for name, read in reads.items():
            if read is None:
                raise ModelExportError(
                    f"{file.path}: {node.name or node.op_type} reads {name}, which is neither the "
                    "output of a node nor an initializer: check the file with onnx.checker"
                )
            if isinstance(read, Tensor):
                weights.add(id(read))
            elif isinstance(read, Value) or (id(read) not in taken and id(read) not in constant):
                inputs[name] = None
            elif id(read) not in taken and id(read) not in copied:
                named = zip(read.node.inputs, read.reads, strict=True)
                todo.append((read, {name: fed for name, fed in named if name}))
    read_outside = {name for key, peer in peers.items() if key not in taken for name in peer.reads}
    read_outside |= {value.name for value in graph_of(file, one).outputs}
    left = [
        (name, key in constant)
        for key in peers
        if key in taken
        for name in peers[key].node.node.outputs
        if name in read_outside
    ]
    computed = [name for name, is_constant in left if not is_constant]
    return ModuleSubgraph(
        tuple(node for node in file.nodes if id(node) in copied),
        tuple(tensor for tensor in file.initializers if id(tensor) in weights),
        tuple(inputs),
        tuple(computed or (name for name, _ in left)),
    )


# --- How often a module ran -----------------------------------------------------------------------


def _runs(module: TaggedModule) -> int | None:
    """Return how often a module ran, None if neither names nor weights show it.

    The tracer counts the calls of a scope at its end: `attention`, `attention_1`. A module without
    such a node of its own ran no more often than any module inside it, and one that has lost its
    names no more often than a weight of its own was read.
    """
    if module.parent is None:
        return 1
    parts = module.path.split(".")
    first = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    label = ".".join(parts[first:])
    scopes = {node.name.rpartition("/")[0] for node in module.nodes}
    last = {scope: scope.rpartition("/")[2] for scope in scopes}
    runs = sum(label in spellings(own) for own in last.values())
    if runs:
        return runs
    bounds = [_runs(child) for child in module.children]
    readers: dict[int, int] = {}
    for node in module.nodes:
        for tensor in node.weights:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    return min((n for n in (*bounds, *readers.values()) if n is not None), default=None)


# --- What an error says ---------------------------------------------------------------------------


def _runs_around(
    file: TaggedFile,
    module: TaggedModule,
    runs: int,
    peers: Mapping[int, _Peer],
    taken: Collection[int],
    between: Iterable[TaggedNode],
) -> ModelExportError:
    outside = {id(node) for node in between}
    leaving = [
        name
        for key in outside
        for name, read in peers[key].reads.items()
        if isinstance(read, TaggedNode) and id(read) in taken
    ]
    coming = [
        name
        for key in peers
        if key in taken
        for name, read in peers[key].reads.items()
        if id(read) in outside
    ]
    why = f"it runs {runs} times" if runs > 1 else "other modules run between parts of it"
    returning = f"{_listed(leaving)} leave it and come back as {_listed(coming)}"
    return _refusal(file, module, f"{why}: {returning}; {_advice(module)}")


def _refusal(file: TaggedFile, module: TaggedModule, why: str) -> ModelExportError:
    return ModelExportError(f"{module.path} cannot be cut out of {file.path}: {why}")


def _advice(module: TaggedModule) -> str:
    for outer in module.around():
        if (_runs(outer) or 1) == 1 and outer.parent is not None:
            return f"give {outer.path}, which contains it and runs once"
    return "of the modules that contain it, only the whole model runs once"


def _listed(names: Iterable[str]) -> str:
    return listed(list(dict.fromkeys(names)), 4, none="nothing")
