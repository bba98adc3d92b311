"""Which module each node came from, and by what evidence. Nodes and a tree in, tags out.

The names are those of PyTorch's TorchScript exporter. When a module is called, the tracer
pushes a scope labelled with the last part of the module's first name, from the last part
that is not a number on (`layer.0` for `bert.encoder.layer.0`: `_unqualified_variable_name`
in torch/onnx/_internal/torchscript_exporter/utils.py). A node is named by its scopes joined
with slashes, then its operator; scopes of equal names are numbered (`query`, `query_1`) in
the order of their calls, at their own end only, and nodes of equal names likewise
(torch/csrc/jit/passes/onnx/naming.cpp).

So a scope says which modules were called, but not always which of several of one label: a
parent that is never called leaves no scope, and `query_1` may be a module of that name or
the second call of `query`. What a name leaves open, the parameters that the scope's nodes
read and the scopes around it decide; what they leave open too goes to the nearest common
ancestor. Nodes without a scope are placed by the data that they pass on. Nothing here
knows an architecture or what an operator is for.
"""

from __future__ import annotations

import bisect
import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.onnx_file.skeleton import walk_graphs
from modelexport_optimum.tagging.carriers import (
    CLASS_HIERARCHY,
    MAX_MODULES,
    NAME_SCOPES,
    Segment,
    constant_value,
    own_metadata,
    parse_scopes,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node
    from modelexport_optimum.tagging.carriers import Chain
    from modelexport_optimum.tagging.module_tree import ModuleTree

TRACER, SCOPE, PARAMETER, DATA_FLOW, ROOT, CARRIER = (
    "tracer",
    "scope",
    "parameter",
    "data flow",
    "root",
    "carrier",
)
EVIDENCE_KINDS = (TRACER, SCOPE, PARAMETER, DATA_FLOW, ROOT, CARRIER)

_CALL_COUNT = re.compile(r"_(\d+)$")
_OUTPUT_NAME = re.compile(r"_output_\d+$")
# torch.export numbers the calls of a module in its path: `attention.query@1`.
_EXPORT_CALL_COUNT = re.compile(r"@\d+")

# A module rarely calls one that is not inside it: that is thought of last.
OUTSIDE = 1000

# Paths of modules from the root down: a chain before it is spelled.
Paths = tuple[str, ...]


@dataclass(slots=True)
class Placement:
    """Where a node was placed.

    Attributes:
        paths: Module paths from the root to the node's own, each inside the one before.
        evidence: One of `EVIDENCE_KINDS`.
        reason: The same in words.
    """

    paths: Paths
    evidence: str
    reason: str


@dataclass(slots=True)
class Attribution:
    """The placements of all nodes of a file, by the node's start."""

    placements: dict[int, Placement]
    tree: ModuleTree
    _chains: dict[Paths, Chain] = field(default_factory=dict)

    def chain(self, node: Node) -> Chain:
        """The modules from the root to the node's own."""
        paths = self.placements[node.start].paths
        chain = self._chains.get(paths)
        if chain is None:
            modules = self.tree.modules
            chain = tuple(
                Segment(path, modules[path].module_class, modules[path].qualified) for path in paths
            )
            self._chains[paths] = chain
        return chain


def node_scope(node: Node) -> str | None:
    """The scope in a node's name, "" for the root's, or None if the name has none."""
    name = node.name
    if not name.startswith("/") or name.count("/") > MAX_MODULES or "\n" in name:
        return None
    head, _, own = name.rpartition("/")
    if own == node.op_type or (
        own.startswith(f"{node.op_type}_") and own[len(node.op_type) + 1 :].isdigit()
    ):
        return head
    return None


def output_scope(node: Node) -> str | None:
    """The scope in the name of a value that the node makes, if the tracer gave that name.

    What fuses or replaces nodes keeps the names of the values that others read.
    """
    for name in node.outputs:
        if name.startswith("/") and name.count("/") <= MAX_MODULES and _OUTPUT_NAME.search(name):
            return name.rpartition("/")[0]
    return None


def tracer_modules(node: Node) -> list[tuple[str, str]]:
    """The modules that PyTorch's dynamo exporter recorded on a node.

    Returns:
        (module path, qualified class), root first; empty if there is no record.
    """
    metadata = dict(own_metadata(node.metadata))
    found = parse_scopes(metadata.get(NAME_SCOPES, ""), metadata.get(CLASS_HIERARCHY, ""))
    return [(_EXPORT_CALL_COUNT.sub("", path), name) for path, name in found or ()]


def scopes_of(model: Model) -> dict[str, None]:
    """All scopes in the names of a file's nodes, in file order."""
    scopes: dict[str, None] = {}
    for _, graph in walk_graphs(model.graph):
        for node in graph.nodes:
            scope = node_scope(node)
            if scope is None:
                scope = output_scope(node)
            if scope is not None:
                scopes[scope] = None
    return scopes


def called_scopes(model: Model) -> list[str]:
    """The scopes without the counts of calls, as far as the names themselves tell."""
    scopes = scopes_of(model)
    bare = []
    for scope in scopes:
        match = _CALL_COUNT.search(scope)
        counted = match is not None and scope[: match.start()] in scopes
        bare.append(scope[: match.start()] if match and counted else scope)
    return bare


def tensors_of(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's initializers, by name."""
    return {
        tensor.name: tensor.dims
        for _, graph in walk_graphs(model.graph)
        for tensor in graph.initializers
    }


def common(chains: Iterable[Paths]) -> Paths:
    """The nearest common ancestor of chains of modules."""
    shared: Paths | None = None
    for chain in chains:
        if shared is None or shared == chain:
            shared = chain
            continue
        length = 0
        for left, right in zip(shared, chain, strict=False):
            if left != right:
                break
            length += 1
        shared = shared[:length]
    return shared or ("",)


class Labels:
    """The tree as the tracer sees it from the module that it traced.

    Args:
        tree: The modules of the whole model.
        base: Path of the module that was traced.
        called: Paths of modules that leave scopes of their own in the file: a chain that
            passes over one of these is less likely than one that does not. By default all
            that can be called.
    """

    def __init__(self, tree: ModuleTree, base: str, called: Container[str] | None = None) -> None:
        self.tree = tree
        self.base = base
        self._called = called
        prefix = f"{base}." if base else ""
        self._first: dict[str, str] = {}
        by_label: dict[str, list[str]] = {}
        for path, module in tree.modules.items():
            if path == base or not path.startswith(prefix):
                continue
            first = self._first.setdefault(module.primary, path)
            if not module.has_forward:
                continue
            by_label.setdefault(_label(first[len(prefix) :]), []).append(path)
        self._by_label = {label: sorted(paths) for label, paths in by_label.items()}
        self._parts = sorted({label.count("/") + 1 for label in by_label})
        self._resolved: dict[str, list[tuple[int, Paths]]] = {
            "": [(0, ("",) if not base else ("", base))]
        }

    def first(self, path: str) -> str:
        """The one path that stands for a module under all its paths."""
        primary = self.tree.modules[path].primary
        return self._first.get(primary, primary)

    def resolve(self, scope: str) -> list[tuple[int, Paths]]:
        """Chains of modules that a scope without a call count may stand for.

        Args:
            scope: The labels, each after a slash.

        Returns:
            (modules that the chain passes over though they can be called, chain), the
            fewest passed over only; empty if there is none.
        """
        found = self._resolved.get(scope)
        if found is not None:
            return found
        best: dict[str, tuple[int, Paths]] = {}
        split = scope.split("/")
        for parts in self._parts:
            if parts >= len(split):
                break
            head, label = "/".join(split[:-parts]), "/".join(split[-parts:])
            for skipped, chain in self.resolve(head):
                for more, path in self._called_from(chain, label):
                    cost = skipped + more
                    kept = inside(chain, path)
                    if path not in best or cost < best[path][0]:
                        best[path] = (cost, kept)
                    elif cost == best[path][0] and best[path][1] != kept:
                        best[path] = (cost, (*common((best[path][1][:-1], kept[:-1])), path))
        least = min((cost for cost, _ in best.values()), default=0)
        result = [(cost, chain) for cost, chain in best.values() if cost == least]
        self._resolved[scope] = result
        return result

    def _called_from(self, chain: Paths, label: str) -> list[tuple[int, str]]:
        """Modules of a label that the chain's last module may call, nearest ones only."""
        paths = self._by_label.get(label, [])
        for outside, caller in enumerate(reversed(chain)):
            prefix = f"{caller}." if caller else ""
            low = bisect.bisect_left(paths, prefix)
            high = bisect.bisect_left(paths, prefix + chr(0x10FFFF)) if prefix else len(paths)
            found: dict[str, tuple[int, str]] = {}
            for path in paths[low:high]:
                passed = self._passed_over(path, len(prefix))
                first = self.first(path)
                if first not in found or (passed, path != first) < (
                    found[first][0],
                    found[first][1] != first,
                ):
                    found[first] = (passed, path)
            if found:
                least = min(passed for passed, _ in found.values())
                return [
                    (passed + outside * OUTSIDE, path)
                    for passed, path in found.values()
                    if passed == least
                ]
        return []

    def _passed_over(self, path: str, start: int) -> int:
        modules = self.tree.modules
        passed = 0
        dot = path.find(".", start)
        while dot != -1:
            if self._called is not None:
                passed += path[:dot] in self._called
            else:
                module = modules.get(path[:dot])
                passed += module is not None and module.has_forward
            dot = path.find(".", dot + 1)
        return passed

    def label(self, path: str) -> str:
        """The label that a call of the module pushes."""
        return _label(self.first(path)[len(self.base) + 1 if self.base else 0 :])

    def owner(self, tensor: str) -> str | None:
        """Path of the module that has a parameter or buffer of that name."""
        name = f"{self.base}.{tensor}" if self.base else tensor
        if name not in self.tree.tensors:
            return None
        return name.rpartition(".")[0]


def _label(name: str) -> str:
    parts = name.split(".")
    for index in range(len(parts) - 1, -1, -1):
        if not parts[index].isnumeric():
            return ".".join(parts[index:])
    return name


def inside(chain: Paths, path: str) -> Paths:
    """The chain with one more module, without those that it is not inside of."""
    return (*(outer for outer in chain if not outer or path.startswith(f"{outer}.")), path)


@dataclass(slots=True)
class _Call:
    """The nodes of one scope in one graph, and the chains that it may stand for."""

    scope: str
    bare: str  # without the count of calls
    nodes: list[int]
    chains: list[Paths]
    decided_by: str = SCOPE
    mixed: bool = False  # the nodes of two calls

    @property
    def chain(self) -> Paths | None:
        return self.chains[0] if len(self.chains) == 1 else None


class _Flow:
    """The file's nodes in order, with who reads whose values, across nested graphs."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.graph_of: list[int] = []
        self.producers: list[list[int]] = []
        self.consumers: list[list[int]] = []
        # The small constants that each node reads, by value, and its weights, by name.
        self.given: list[tuple[tuple[bytes, ...], tuple[str, ...]]] = []
        self._graphs = 0
        self._visit(graph, [], [])

    def _visit(
        self, graph: Graph, outer: list[dict[str, int]], around: list[dict[str, bytes | str]]
    ) -> list[int]:
        number = self._graphs
        self._graphs += 1
        values: dict[str, int] = {value.name: -1 for value in graph.inputs}
        values.update((tensor.name, -1) for tensor in graph.initializers)
        scopes = [*outer, values]
        fixed: dict[str, bytes | str] = {}
        for tensor in graph.initializers:
            fixed[tensor.name] = tensor.name if tensor.value is None else tensor.value
        constants = [*around, fixed]
        for node in graph.nodes:
            inner = [
                made
                for _, nested in node.subgraphs
                for made in self._visit(nested, scopes, constants)
            ]
            index = len(self.nodes)
            self.nodes.append(node)
            self.graph_of.append(number)
            self.consumers.append([])
            made_by = [self._find(name, scopes) for name in node.inputs if name]
            self.producers.append(list(dict.fromkeys(p for p in [*made_by, *inner] if p >= 0)))
            for producer in self.producers[index]:
                self.consumers[producer].append(index)
            reads = [fixed[n] if n in fixed else _outer(around, n) for n in node.inputs]
            self.given.append(
                (
                    tuple(value for value in reads if isinstance(value, bytes)),
                    tuple(value for value in reads if isinstance(value, str) and value),
                )
            )
            if node.op_type == "Constant":
                fixed.update((name, constant_value(node)) for name in node.outputs)
            elif node.op_type == "Identity" and reads and reads[0]:
                fixed.update((name, reads[0]) for name in node.outputs)
            for name in node.outputs:
                values[name] = index
        results = [values.get(value.name, -1) for value in graph.outputs]
        return [producer for producer in results if producer >= 0]

    @staticmethod
    def _find(name: str, scopes: list[dict[str, int]]) -> int:
        for values in reversed(scopes):
            if name in values:
                return values[name]
        return -1


def attribute(
    model: Model,
    tree: ModuleTree,
    base: str,
    *,
    prior: Mapping[int, tuple[Paths, str]] | None = None,
    recorded: Sequence[Mapping[str, Sequence[Paths]]] = (),
) -> Attribution:
    """Places every node of a file.

    Args:
        model: The file's skeleton.
        tree: The modules of the whole model.
        base: Path of the module that was traced into this file, "" for the root.
        prior: Placements that nodes carry already, with their evidence, by node start.
        recorded: For each traced graph the calls of each scope, where they are known.

    Returns:
        A placement for every node of every graph; each path is in the tree.
    """
    return _Attributor(model, tree, base, prior or {}, recorded).run()


class _Attributor:
    def __init__(
        self,
        model: Model,
        tree: ModuleTree,
        base: str,
        prior: Mapping[int, tuple[Paths, str]],
        recorded: Sequence[Mapping[str, Sequence[Paths]]],
    ) -> None:
        self.tree = tree
        self.flow = _Flow(model.graph)
        self.prior = prior
        self.scopes: list[str | None] = [node_scope(node) for node in self.flow.nodes]
        self.root: Paths = ("", base) if base else ("",)
        # Of a pipeline's or an encoder-decoder's graphs, those that may be this file's. The
        # one with the fewest calls that the file does not show says which module was traced.
        of_tree = [calls for calls in recorded if _is_of(tree, calls)]
        whole = _explaining(of_tree, {scope for scope in self.scopes if scope is not None})
        if whole:
            self.root = whole[0][""][0]
        self.recorded = [calls for calls in of_tree if calls[""][0] == self.root]
        self.labels = Labels(tree, self.root[-1])
        self.placed: list[Placement | None] = [None] * len(self.flow.nodes)

    def run(self) -> Attribution:
        nodes = self.flow.nodes
        for index, node in enumerate(nodes):
            carried = self.prior.get(node.start)
            if carried is not None:
                paths, evidence = carried
                self.placed[index] = Placement(paths, evidence, "a tag that it carried already")
            else:
                self.placed[index] = self._from_tracer(node)
        self._place_scopes()
        self._remember_chains()
        for index, node in enumerate(nodes):
            if self.placed[index] is None:
                self.placed[index] = self._from_names(node)
        self._place_by_flow()
        placements = {
            node.start: placement
            for node, placement in zip(nodes, self.placed, strict=True)
            if placement is not None
        }
        return Attribution(placements, self.tree)

    def _from_tracer(self, node: Node) -> Placement | None:
        recorded = tracer_modules(node)
        if not recorded:
            return None
        paths: Paths = self.root
        for path, _ in recorded:
            full = ".".join(part for part in (self.root[-1], path) if part)
            if full in self.tree.modules and full != paths[-1]:
                paths = inside(paths, full) if full else paths
        return Placement(paths, TRACER, "PyTorch's own record in its metadata")

    # Scopes

    def _place_scopes(self) -> None:
        scopes = {scope for scope in self.scopes if scope is not None}
        only = [options[0] for options in map(self._options, scopes) if len(options) == 1]
        self.labels = Labels(self.tree, self.labels.base, {path for c in only for path in c})
        calls = self._calls()
        for call in calls:
            self._decide_by_parameters(call)
        if any(len(call.chains) > 1 for call in calls):
            changed = True
            while changed:
                self._decide_by_nesting(calls)
                changed = self._decide_by_neighbours(calls)
        for call in calls:
            reason = f"the scope {call.scope or '/'} in its name"
            if call.decided_by == PARAMETER:
                reason += ", and the parameters read in it"
            elif call.decided_by == DATA_FLOW:
                reason += ", and the modules around it"
            if len(call.chains) > 1:
                reason += f", which may be any of {len(call.chains)} modules"
            placement = Placement(common(call.chains), SCOPE, reason)
            for index in call.nodes:
                self.placed[index] = self._own_reader(index, call) or placement

    def _own_reader(self, index: int, call: _Call) -> Placement | None:
        """A node of an open call that reads a parameter of one of its candidates."""
        if len(call.chains) < 2:
            return None
        owners = {self.labels.first(owner) for owner in self._owners(self.flow.nodes[index])}
        chains = [chain for chain in call.chains if self.labels.first(chain[-1]) in owners]
        if len(chains) != 1:
            return None
        return Placement(chains[0], PARAMETER, f"it reads a parameter of {chains[0][-1]}")

    def _calls(self) -> list[_Call]:
        """The calls that the names of nodes tell apart."""
        by_scope: dict[tuple[int, str], list[int]] = {}
        for index, scope in enumerate(self.scopes):
            if scope is not None and self.placed[index] is None:
                by_scope.setdefault((self.flow.graph_of[index], scope), []).append(index)
        known = self._recorded_calls(by_scope)
        calls = []
        firsts: dict[tuple[int, str], _Call] = {}
        for (graph, scope), nodes in sorted(by_scope.items(), key=lambda item: len(item[0][1])):
            match = _CALL_COUNT.search(scope)
            bare = scope[: match.start()] if match else scope
            first = firsts.get((graph, bare)) if match else None
            literal, later = self._options(scope), []
            if match and (first or not literal):
                later = self._options(bare)
                if self._cost(scope) // OUTSIDE > self._cost(bare) // OUTSIDE and later:
                    literal = []
                elif self._cost(scope) // OUTSIDE < self._cost(bare) // OUTSIDE and literal:
                    later = []
            if graph in known:
                literal = _kth(known[graph], by_scope, graph, scope, 0)
                later = _kth(known[graph], by_scope, graph, bare, int(match[1])) if match else []
            if not (literal or later):
                found = [_Call(scope, scope, nodes, [self._longest(scope)])]
            elif literal and later and first:
                found = self._told_apart(_Call(scope, scope, nodes, literal), bare, later, first)
            elif literal:
                found = [_Call(scope, scope, nodes, literal)]
            else:
                found = [_Call(scope, bare, nodes, later)]
            calls += found
            firsts[graph, scope] = found[0]
        return calls

    def _recorded_calls(
        self, by_scope: Iterable[tuple[int, str]]
    ) -> dict[int, Mapping[str, Sequence[Paths]]]:
        """For each graph the recorded one that explains all of its scopes."""
        scopes: dict[int, list[str]] = {}
        for graph, scope in by_scope:
            scopes.setdefault(graph, []).append(scope)
        fitting = {graph: _explaining(self.recorded, names) for graph, names in scopes.items()}
        return {graph: found[0] for graph, found in fitting.items() if found}

    def _cost(self, scope: str) -> int:
        return min((cost for cost, _ in self.labels.resolve(scope)), default=0)

    def _options(self, scope: str) -> list[Paths]:
        return list(dict.fromkeys(chain for _, chain in self.labels.resolve(scope)))

    def _told_apart(self, call: _Call, bare: str, later: list[Paths], first: _Call) -> list[_Call]:
        """Splits the nodes of a scope that two modules may have given the same name.

        `query_1` is a module of that name, the second call of `query`, or one after the
        other. A second call does what the first one did, with the same weights.
        """
        scope, nodes, literal = call.scope, call.nodes, call.chains
        if len(later) > 1 or first.chains != later:
            chains = list(dict.fromkeys([*literal, *later]))
            return [_Call(scope, scope, nodes, chains, mixed=True)]
        pattern = [self._signature(index) for index in first.nodes]
        did = [self._signature(index) for index in nodes]
        size = len(pattern)
        if len(did) > size:
            splits = []
            if did[:size] == pattern:
                splits.append((nodes[size:], nodes[:size]))
            if did[-size:] == pattern:
                splits.append((nodes[:-size], nodes[-size:]))
            splits = [split for split in splits if not self._reads_of(split[0], later)]
            if len(splits) == 1:
                own, again = splits[0]
                return [_Call(scope, scope, own, literal), _Call(scope, bare, again, later)]
            if splits:
                return [_Call(scope, scope, nodes, [*literal, *later], mixed=True)]
        elif did == pattern and not self._reads_of(nodes, literal):
            if any(given for *_, given in pattern):
                return [_Call(scope, bare, nodes, later)]
            return [_Call(scope, scope, nodes, [*literal, *later])]
        return [_Call(scope, scope, nodes, literal)]

    def _reads_of(self, nodes: list[int], chains: list[Paths]) -> bool:
        """Whether any of the nodes reads a parameter of the chains' last modules."""
        modules = {self.labels.first(chain[-1]) for chain in chains}
        return any(
            self.labels.first(owner) in modules
            for index in nodes
            for owner in self._owners(self.flow.nodes[index])
        )

    def _signature(self, index: int) -> tuple[object, ...]:
        """What a node does, apart from the values that it is given; its weights come last."""
        node = self.flow.nodes[index]
        attributes = tuple(sorted(node.attributes.items()))
        constants, weights = self.flow.given[index]
        return node.op_type, node.domain, attributes, constants, weights

    def _longest(self, scope: str) -> Paths:
        """The innermost module that is known of a scope that cannot be resolved whole."""
        while scope:
            scope = scope.rpartition("/")[0]
            found = self.labels.resolve(scope)
            if found:
                return common(chain for _, chain in found)
        return self.root

    def _decide_by_parameters(self, call: _Call) -> None:
        """A call is of the module, among those of its label, whose parameters its nodes read."""
        if call.mixed:
            return
        label = self.labels.label(call.chains[0][-1]) if call.bare else None
        owners = {
            self.labels.first(owner): owner
            for index in call.nodes
            for owner in self._owners(self.flow.nodes[index])
            if self.labels.label(owner) == label
        }
        if len(owners) != 1:
            return
        [(first, owner)] = owners.items()
        for chain in call.chains:
            if self.labels.first(chain[-1]) == first:
                if len(call.chains) > 1:
                    call.chains = [chain]
                    call.decided_by = PARAMETER
                return
        # A chain that was thought less likely, as it passes over a module that is called.
        call.chains = [inside(call.chains[0][:-1], owner)]
        call.decided_by = PARAMETER

    def _owners(self, node: Node) -> list[str]:
        found = (self.labels.owner(name) for name in node.inputs)
        return [owner for owner in found if owner is not None]

    def _decide_by_nesting(self, calls: list[_Call]) -> None:
        """What runs between two nodes of a call runs inside it: it shares the call's module.

        Calls of one scope follow one another, so between the first and the last node of one
        stands no other call of the same scope.
        """
        graph_of = self.flow.graph_of
        order = [(graph_of[c.nodes[0]], c.nodes[0], c) for c in calls if not c.mixed]
        spans: dict[tuple[int, str], list[tuple[int, int, _Call]]] = {}
        for call in calls:
            if len(call.chains) > 1 and not call.mixed:
                spans.setdefault((graph_of[call.nodes[0]], call.bare), []).append(
                    (call.nodes[0], call.nodes[-1], call)
                )
        for entries in spans.values():
            entries.sort(key=lambda entry: entry[:2])
        changed = True
        while changed:
            changed = False
            for graph, first, inner in order:
                for outer in _around(spans, graph, first, inner):
                    changed |= _agree(outer, inner)

    def _decide_by_neighbours(self, calls: list[_Call]) -> bool:
        """Decides calls by the modules around them, in order and in the flow of data.

        A call belongs to the one of its candidates whose nodes stand before and after it
        while no other's do, and to the one that alone feeds it and alone reads it. That
        says nothing of modules that are called again, or whose own call is another one.
        """
        call_of = {index: call for call in calls for index in call.nodes}
        spans, own, again = self._spans(calls)
        changed = False
        for call in calls:
            if len(call.chains) < 2 or call.mixed:
                continue
            graph = self.flow.graph_of[call.nodes[0]]
            around = {
                path: chain
                for path, chain in self._callable_around(call.chains).items()
                if (graph, path) not in again and (graph, chain[-1]) not in own
            }
            chosen = _enclosing(call, around, {p: spans.get((graph, p)) for p in around})
            if chosen is None:
                fed = self._votes(call.nodes, self.flow.producers, call_of, around)
                read = self._votes(call.nodes, self.flow.consumers, call_of, around)
                chosen = around[fed.pop()] if fed == read and len(fed) == 1 else None
            if chosen is not None:
                call.chains = [chosen]
                call.decided_by = DATA_FLOW
                changed = True
        return changed

    def _callable_around(self, chains: list[Paths]) -> dict[str, Paths]:
        """For each candidate the outermost callable module that holds no other candidate."""
        split = [chain[-1].split(".") for chain in chains]
        shared = 0
        while all(len(parts) > shared for parts in split) and (
            len({parts[shared] for parts in split}) == 1
        ):
            shared += 1
        around: dict[str, Paths] = {}
        for parts, chain in zip(split, chains, strict=True):
            others = [other for other in split if other is not parts]
            path = chain[-1]
            for end in range(shared + 1, len(parts)):
                module = self.tree.modules.get(".".join(parts[:end]))
                alone = all(other[:end] != parts[:end] for other in others)
                if alone and module is not None and module.has_forward:
                    path = module.path
                    break
            around[path] = chain
        return around

    def _spans(
        self, calls: list[_Call]
    ) -> tuple[dict[tuple[int, str], tuple[int, int]], set[tuple[int, str]], set[tuple[int, str]]]:
        """From where to where nodes of each module and its children stand, in each graph.

        Also the modules that have nodes of their own, and those in which some module is
        called more than once.
        """
        spans: dict[tuple[int, str], tuple[int, int]] = {}
        own: set[tuple[int, str]] = set()
        again: set[tuple[int, str]] = set()
        for call in calls:
            if call.chain is None:
                continue
            graph = self.flow.graph_of[call.nodes[0]]
            first, last = call.nodes[0], call.nodes[-1]
            path = call.chain[-1]
            repeated = (graph, path) in own
            own.add((graph, path))
            while path:
                low, high = spans.get((graph, path), (first, last))
                spans[graph, path] = (min(low, first), max(high, last))
                if repeated:
                    again.add((graph, path))
                path = path.rpartition(".")[0]
        return spans, own, again

    def _votes(
        self,
        nodes: list[int],
        edges: list[list[int]],
        call_of: dict[int, _Call],
        around: Mapping[str, Paths],
    ) -> set[str]:
        """The modules among some that hold the nodes to which the edges lead."""
        votes = set()
        for index in nodes:
            for other in edges[index]:
                call = call_of.get(other)
                if call is not None and call.chain is not None:
                    path = call.chain[-1]
                    while path and path not in around:
                        path = path.rpartition(".")[0]
                    votes |= {path} if path else set()
        return votes

    # Names of values

    def _remember_chains(self) -> None:
        self.chain_of: dict[str, Paths] = {}
        for placement in self.placed:
            if placement is not None:
                for end in range(1, len(placement.paths) + 1):
                    chain = placement.paths[:end]
                    self.chain_of.setdefault(chain[-1], chain)

    def _chain_to(self, path: str) -> Paths:
        """The chain to a module that was perhaps never called: through those that were."""
        known = self.chain_of.get(path)
        if known is not None:
            return known
        outer = path.rpartition(".")[0] if "." in path else ""
        while outer not in self.chain_of and outer:
            outer = outer.rpartition(".")[0]
        chain = self.chain_of.get(outer, self.root)
        return chain if path in chain else inside(chain, path)

    def _from_names(self, node: Node) -> Placement | None:
        for name in node.outputs:
            owner = self.labels.owner(name)
            if owner is not None:
                return Placement(self._chain_to(owner), PARAMETER, f"it carries {name}")
        owners = self._owners(node)
        scope = output_scope(node)
        if scope is None and node.name.startswith("/") and "_output_" not in node.name:
            scope = self._known_prefix(node.name)
        if scope is not None:
            chain = common(self._options_kept(scope))
            if any(owner not in chain for owner in owners):
                # It does the work of several modules at once.
                chain = common([chain, *(self._chain_to(owner) for owner in owners)])
            return Placement(chain, SCOPE, f"the scope {scope or '/'} in the names it has kept")
        if owners:
            chain = common(self._chain_to(owner) for owner in owners)
            return Placement(chain, PARAMETER, f"it reads parameters of {', '.join(owners)}")
        return None

    def _options_kept(self, scope: str) -> list[Paths]:
        options = self._options(scope)
        if _CALL_COUNT.search(scope):
            options += self._options(_CALL_COUNT.sub("", scope))
        return options or [self._longest(scope)]

    def _known_prefix(self, name: str) -> str | None:
        scope = name.rpartition("/")[0]
        while scope:
            if self.labels.resolve(scope) or self.labels.resolve(_CALL_COUNT.sub("", scope)):
                return scope
            scope = scope.rpartition("/")[0]
        return None

    # Data flow

    def _place_by_flow(self) -> None:
        flow, placed = self.flow, self.placed
        count = len(flow.nodes)
        above: list[Paths | None] = [None] * count
        below: list[Paths | None] = [None] * count
        prepares = [False] * count  # made of nothing but constants and inputs of the graph
        for index in range(count):
            placement = placed[index]
            if placement is not None:
                above[index] = placement.paths
                continue
            feeds = [above[p] for p in flow.producers[index]]
            known = [chain for chain in feeds if chain is not None]
            if known:
                above[index] = common(known)
            else:
                prepares[index] = True
        for index in range(count - 1, -1, -1):
            placement = placed[index]
            if placement is not None:
                below[index] = placement.paths
                continue
            known = [c for c in (below[r] for r in flow.consumers[index]) if c is not None]
            if known:
                below[index] = common(known)
        for index in range(count - 1, -1, -1):
            if placed[index] is not None:
                continue
            if prepares[index]:
                users = [placed[r] for r in flow.consumers[index]]
                chains = [user.paths for user in users if user is not None]
                reason = "what it prepares is for {1} alone"
            else:
                chains = [c for c in (above[index], below[index]) if c is not None]
                reason = "{0} feed it, {1} read it"
            if not chains:
                placed[index] = Placement(self.root, ROOT, "nothing says where it came from")
                continue
            names = [
                _listed(flow.nodes[other].name or flow.nodes[other].op_type for other in others)
                for others in (flow.producers[index], flow.consumers[index])
            ]
            placed[index] = Placement(common(chains), DATA_FLOW, reason.format(*names))


def _outer(around: Sequence[Mapping[str, bytes | str]], name: str) -> bytes | str:
    for fixed in reversed(around):
        if name in fixed:
            return fixed[name]
    return ""


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    if not all_names:
        return "none"
    return ", ".join(all_names[:3]) + (f" and {len(all_names) - 3} more" if all_names[3:] else "")


def _around(
    spans: Mapping[tuple[int, str], Sequence[tuple[int, int, _Call]]],
    graph: int,
    position: int,
    inner: _Call,
) -> list[_Call]:
    """The open calls that a node at that position, of the inner call, stands inside of."""
    found = []
    scope = inner.bare
    while scope:
        scope = scope.rpartition("/")[0]
        entries = spans.get((graph, scope), ())
        at = bisect.bisect_right(entries, position, key=lambda entry: entry[0]) - 1
        if at >= 0 and entries[at][1] > position:
            found.append(entries[at][2])
    return found


def _is_of(tree: ModuleTree, calls: Mapping[str, Sequence[Paths]]) -> bool:
    return all(path in tree.modules for chains in calls.values() for path in chains[0])


def _explaining(
    recorded: Iterable[Mapping[str, Sequence[Paths]]], scopes: Iterable[str]
) -> list[Mapping[str, Sequence[Paths]]]:
    """The recorded graphs that have all of some scopes, the smallest first."""
    names = list(scopes)
    found = [
        calls
        for calls in recorded
        if all(name in calls or _CALL_COUNT.sub("", name) in calls for name in names)
    ]
    return sorted(found, key=len)


def _kth(
    calls: Mapping[str, Sequence[Paths]],
    by_scope: Mapping[tuple[int, str], object],
    graph: int,
    scope: str,
    count: int,
) -> list[Paths]:
    """What the call of a scope may be that has left nodes after `count` others have."""
    recorded = calls.get(scope, ())
    left = 1
    while (graph, f"{scope}_{left}") in by_scope and f"{scope}_{left}" not in calls:
        left += 1
    # Each call that left no node lets the later ones move up by one.
    lost = max(len(recorded) - left, 0)
    return list(dict.fromkeys(recorded[count : count + lost + 1]))


def _enclosing(
    call: _Call, around: Mapping[str, Paths], spans: Mapping[str, tuple[int, int] | None]
) -> Paths | None:
    """The candidate between whose nodes the call stands, if those of all stand apart."""
    placed = sorted((span, path) for path, span in spans.items() if span is not None)
    if any(left[0][1] > right[0][0] for left, right in itertools.pairwise(placed)):
        return None
    inside = [path for (low, high), path in placed if low < call.nodes[0] and call.nodes[-1] < high]
    return around[inside[0]] if len(inside) == 1 else None


def _agree(outer: _Call, inner: _Call) -> bool:
    """Keeps the chains of each that some chain of the other allows; says if any fell."""
    inside = [c for c in inner.chains if any(set(o) <= set(c) for o in outer.chains)]
    around = [o for o in outer.chains if any(set(o) <= set(c) for c in inner.chains)]
    changed = False
    if inside and len(inside) < len(inner.chains):
        inner.chains = inside
        changed = True
    if around and len(around) < len(outer.chains):
        outer.chains = around
        changed = True
    return changed
