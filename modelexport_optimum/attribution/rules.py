"""Which module each node came from, and by what evidence. Nodes and a tree in, chains out.

A node is placed by the first of these rules that applies. No rule knows an architecture or the
purpose of an operator. A tag may be less precise than it could be, never wrong: if several modules
remain, the tag is their nearest common ancestor.

 1. A node that has a tag keeps it: these rules chose the tag earlier, with the same or better
    evidence.
 2. A node with PyTorch's own record of its modules belongs to the module of that record:
    torch.export writes the record while it calls the modules (`export_record`).
 3. A node that a rewrite put in the place of such nodes belongs to the innermost call that contains
    all of them, because calls nest (`call_nesting`). The call is found from the nodes that feed it
    and the nodes that read it, from the replaced node whose record it has and the parameters that
    it reads, and from the module whose parameters were packed into its inputs
    (`packed_parameters`).
 4. A node that was recorded when the exporter named it belongs to the module that the tracer saw
    (`traced_graphs`). If a fusion replaced the node, the new node has the same output name.
 5. A node with a scope in its name belongs to one of the modules with these labels (`scopes`),
    because a module calls only modules that it holds or that it was given.
 6. `query_1` is the module of that name or the second call of `query`, because the exporter
    numbers equal scopes: the modules of both are candidates.
 7. A module reads only the parameters that it or a module inside it holds. So a candidate that
    does not hold all parameters that the call's nodes read is excluded. If one name may stand for
    two calls, each node is checked alone. A parameter whose name is not in the graph may have been
    merged with an equal one; it counts as read wherever a parameter of its shape is read.
 8. All calls of a module run the same code. So a call is not a call of a module if the certain
    calls of that module read only other parameters, or left only other operators, in the scopes
    below them.
 9. An Identity whose output has the name of a parameter is that parameter, which the exporter
    merged with an equal one. It belongs to the module that owns the parameter.
10. A node that replaced others and kept the name of an output belongs to the scope in that name,
    or to the nearest common ancestor of that module and the modules whose parameters it reads.
11. A node without a scope that reads one parameter prepares it, and belongs to the module that owns
    the parameter, unless that is tied to another module's or may have been merged with one.
12. Any other node without a scope is not an operation of a module itself: it serves its neighbours
    (`data_flow`). It belongs to the nearest common ancestor of the nodes that feed it and the nodes
    that read it; if it is made only of constants and inputs, of the nodes that read it.
13. A node in the body of a local function that no rule above places, or whose place contradicts a
    call, belongs to the nearest common ancestor of all calls of the function (`function_bodies`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.attribution import export_record
from modelexport_optimum.attribution.call_nesting import CallNesting
from modelexport_optimum.attribution.data_flow import DataFlow, place_by_flow
from modelexport_optimum.attribution.function_bodies import place_bodies
from modelexport_optimum.attribution.parameters import Parameters
from modelexport_optimum.attribution.placements import (
    DATA_FLOW,
    PARAMETER,
    ROOT,
    SCOPE,
    TRACER,
    Attribution,
    NodePlacement,
)
from modelexport_optimum.attribution.scopes import Scopes, common, inside
from modelexport_optimum.tags.node_names import is_scoped, name_from_output, node_scope
from modelexport_optimum.tags.tag_grammar import outer_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from modelexport_optimum.attribution.scopes import Paths
    from modelexport_optimum.attribution.traced_graphs import TracedGraph
    from modelexport_optimum.module_trees.module_tree import ModuleTree
    from modelexport_optimum.onnx_file.skeleton import Model, Node


def attribute(
    model: Model,
    tree: ModuleTree,
    base: str,
    *,
    prior: Mapping[int, tuple[Paths, str]] | None = None,
    traced: Sequence[TracedGraph] = (),
) -> Attribution:
    """Place every node of a file.

    Args:
        model: The file's skeleton.
        tree: The modules of the whole model.
        base: Path of the module that was traced into this file, "" for the root.
        prior: Placements that nodes carry already, with their evidence, by node start.
        traced: The graphs that were traced when the file was made, if they are known.

    Returns:
        A placement for every node of every graph; each path is in the tree.
    """
    return _Attributor(model, tree, base, prior or {}, traced).run()


class _Attributor:
    """The rules, each a method with its number."""

    def __init__(
        self,
        model: Model,
        tree: ModuleTree,
        base: str,
        prior: Mapping[int, tuple[Paths, str]],
        traced: Sequence[TracedGraph],
    ) -> None:
        self.model = model
        self.tree = tree
        self.prior = prior
        self.flow = DataFlow(model.graph)
        self.scope_of = [node_scope(node) for node in self.flow.nodes]
        self.traced = self._traced_here(traced)
        roots = [graph.root for graphs in self.traced.values() for graph in graphs]
        self.scopes = Scopes(tree, roots[0][-1] if roots else base)
        self.parameters = Parameters(tree, self.scopes.base, self.flow.nodes)
        self.calls_nest = CallNesting(model, self.flow)
        self.placed: list[NodePlacement | None] = [None] * len(self.flow.nodes)
        self.undecided = 0
        # All nodes of each call, by the graph and the scope in their names.
        self.calls: dict[tuple[int, str], list[int]] = {}

    def run(self) -> Attribution:
        nodes = self.flow.nodes
        for index, node in enumerate(nodes):
            self.placed[index] = self._known(node)
            if self.placed[index] is None and self.scope_of[index] is not None:
                self.placed[index] = self._traced_call(index, node.name)
        self._place_by_calls()
        self._place_scopes()
        known = self._known_chains()
        for index, node in enumerate(nodes):
            if self.placed[index] is None:
                named = self._named_parameter(node, known)
                self.placed[index] = named or self._by_kept_name(index, known)
        chains = [None if p is None else p.paths for p in self.placed]
        for index, chain, reason in place_by_flow(self.flow, chains):
            if chain is None:
                root = self.scopes.root
                self.placed[index] = NodePlacement(
                    root, ROOT, "nothing shows which module it came from"
                )
            else:
                self.placed[index] = NodePlacement(chain, DATA_FLOW, reason)
        placements = {
            node.start: placement
            for node, placement in zip(nodes, self.placed, strict=True)
            if placement is not None
        }
        place_bodies(self.model, self.scopes.root, placements, self._known)
        return Attribution(placements, self.tree, self.undecided)

    # Rules 1 to 4: what is known

    def _known(self, node: Node) -> NodePlacement | None:
        """Rules 1 and 2."""
        carried = self.prior.get(node.start)
        if carried is not None:
            return NodePlacement(*carried, "the tag that it already had")
        frames = export_record.recorded_frames(node)
        if not frames or export_record.is_rewritten(node):
            return None
        return NodePlacement(self._chain(frames), TRACER, "PyTorch's own record in its metadata")

    def _chain(self, frames: export_record.Frames) -> Paths:
        """Return the modules of some open calls, as far as the tree has them."""
        paths = root = self.scopes.root
        for frame in frames:
            path = export_record.module_path(frame)
            full = ".".join(part for part in (root[-1], path) if part)
            if full in self.tree.modules and full != paths[-1]:
                paths = inside(paths, full)
        return paths

    def _place_by_calls(self) -> None:
        """Rule 3."""
        for index, (frames, reason) in self.calls_nest.place().items():
            if self.placed[index] is None:
                self.placed[index] = NodePlacement(self._chain(frames), TRACER, reason)

    def _traced_call(self, index: int, name: str) -> NodePlacement | None:
        """Rule 4."""
        graphs = self.traced.get(self.flow.graph_of[index], ())
        chains = [graph.chains[name] for graph in graphs if name in graph.chains]
        if not chains:
            return None
        # The exporter may have added modules of its own, which the tree has not.
        paths = tuple(path for path in common(chains) if path in self.tree.modules)
        return NodePlacement(paths, SCOPE, f"the call that the tracer recorded for {name}")

    def _traced_here(self, traced: Sequence[TracedGraph]) -> dict[int, list[TracedGraph]]:
        """Return for each graph of the file the traced ones with most of its nodes' names."""
        names: dict[int, list[str]] = {}
        for node, graph, scope in zip(
            self.flow.nodes, self.flow.graph_of, self.scope_of, strict=True
        ):
            if scope is not None:
                names.setdefault(graph, []).append(node.name)
        found = {}
        for graph, of_graph in names.items():
            counts = [sum(name in other.chains for name in of_graph) for other in traced]
            most = max(counts, default=0)
            if most:
                found[graph] = [t for t, count in zip(traced, counts, strict=True) if count == most]
        return found

    # Rules 5 to 8: scopes in the names of nodes

    def _place_scopes(self) -> None:
        for index, scope in enumerate(self.scope_of):
            if scope is not None:
                self.calls.setdefault((self.flow.graph_of[index], scope), []).append(index)
        left = {
            call: unplaced
            for call, indices in self.calls.items()
            if (unplaced := [index for index in indices if self.placed[index] is None])
        }
        if any(len(self.scopes.candidates(scope)) > 1 for _, scope in left):
            ruled_out = self._unlike_other_calls()
            self.scopes = Scopes(self.tree, self.scopes.base, ruled_out)
        for (graph, scope), indices in left.items():
            self._place_scope(graph, scope, indices)

    def _place_scope(self, graph: int, scope: str, indices: Sequence[int]) -> None:
        """Rules 5 to 7."""
        nodes = self.flow.nodes
        chains = self._callers(graph, scope)
        for index in indices:
            left = chains
            if len(left) > 1:
                left = self.parameters.holding(left, self.parameters.read_by([nodes[index]]))
            reason = f"the scope {scope or '/'} in its name"
            if len(left) != 1:
                self.undecided += 1
            if len(left) > 1:
                reason += f", which may mean any of {len(left)} modules"
            paths = common(left) if left else self.scopes.longest(scope)
            self.placed[index] = NodePlacement(paths, SCOPE, reason)

    def _callers(self, graph: int, scope: str) -> list[Paths]:
        """Rules 5 to 7 for a whole call: the chains of modules that may have made it."""
        chains = self.scopes.candidates(scope)
        if len(chains) > 1 and len(self.scopes.spellings(scope)) == 1:
            indices = self.calls.get((graph, scope), ())
            # A tag on one node of the call also holds for the others.
            known = {placed.paths for index in indices if (placed := self.placed[index])}
            if len(known.intersection(chains)) == 1:
                return list(known.intersection(chains))
            nodes = (self.flow.nodes[index] for index in indices)
            chains = self.parameters.holding(chains, self.parameters.read_by(nodes))
        return chains

    def _unlike_other_calls(self) -> Callable[[str, str], bool]:
        """Rule 8."""
        # For labels: the parameters read, and the operators, by scope below the labels.
        traces: dict[str, tuple[set[tuple[str, str]], set[tuple[str, str]]]] = {}
        certain: dict[str, set[str]] = {}  # for each module the labels that are its alone
        for node, scope in zip(self.flow.nodes, self.scope_of, strict=True):
            if scope is None:
                continue
            read = self.parameters.read_by([node])
            for spelling in self.scopes.spellings(scope):
                for labels, below in _around(spelling):
                    reads, operators = traces.setdefault(labels, (set(), set()))
                    reads.update((below, name) for name in read)
                    if node.op_type != "Constant":
                        operators.add((below, node.op_type))
                    chains = self.scopes.chains(labels)
                    if len(chains) == 1 and (below or self.scopes.spellings(scope) == [labels]):
                        certain.setdefault(self.scopes.first(chains[0][-1]), set()).add(labels)

        def ruled_out(labels: str, path: str) -> bool:
            here = traces.get(labels)
            return here is not None and any(
                known and known.isdisjoint(seen)
                for other in certain.get(self.scopes.first(path), ())
                if other != labels
                for known, seen in zip(traces[other], here, strict=True)
            )

        return ruled_out

    # Rules 9 to 11: names of values

    def _known_chains(self) -> dict[str, Paths]:
        """Return the chain to each module that has a node, and to the modules that contain it."""
        known: dict[str, Paths] = {}
        for placement in self.placed:
            if placement is not None:
                for end in range(1, len(placement.paths) + 1):
                    chain = placement.paths[:end]
                    known.setdefault(chain[-1], chain)
        return known

    def _chain_to(self, path: str, known: Mapping[str, Paths]) -> Paths:
        """Return the chain through called modules to one that may never have been called."""
        called = (outer for outer in (path, *outer_paths(path)) if outer in known)
        chain = known.get(next(called, ""), self.scopes.root)
        return chain if path in chain else inside(chain, path)

    def _named_parameter(self, node: Node, known: Mapping[str, Paths]) -> NodePlacement | None:
        """Rule 9."""
        for name in node.outputs:
            owner = self.parameters.owner(name)
            if owner is not None:
                return NodePlacement(self._chain_to(owner, known), PARAMETER, f"it carries {name}")
        return None

    def _by_kept_name(self, index: int, known: Mapping[str, Paths]) -> NodePlacement | None:
        """Rule 10."""
        node = self.flow.nodes[index]
        read = self.parameters.read_by([node])
        name = name_from_output(node)
        noted = None if name is None else self._traced_call(index, name)
        if name is None and is_scoped(node.name) and "_output_" not in node.name:
            name = node.name
        if name is None:
            return self._reads_one_parameter(read, known)
        scope = name.rpartition("/")[0]
        callers = self._callers(self.flow.graph_of[index], scope)
        chain = noted.paths if noted else common(callers or [self.scopes.longest(scope)])
        for parameter in read:
            if not self.parameters.may_hold(chain[-1], parameter):
                # It does the work of several modules at once.
                holders = self.parameters.holders(parameter)
                chain = common([chain, *(self._chain_to(holder, known) for holder in holders)])
        return NodePlacement(chain, SCOPE, f"the scope {scope or '/'} in the names that it kept")

    def _reads_one_parameter(
        self, read: Collection[str], known: Mapping[str, Paths]
    ) -> NodePlacement | None:
        """Rule 11."""
        owners = {
            owner
            for name in read
            if not self.parameters.may_be_merged(name, known)
            for owner in self.parameters.holders(name)
        }
        if len(owners) != 1 or len(read) != 1:
            return None
        [owner] = owners
        reason = f"it reads a parameter of {owner}"
        return NodePlacement(self._chain_to(owner, known), PARAMETER, reason)


def _around(scope: str) -> Iterator[tuple[str, str]]:
    """Yield the labels of a scope and of each scope around it, with the labels below it."""
    end = len(scope)
    while end >= 0:
        yield scope[:end], scope[end:]
        end = scope.rfind("/", 0, end)
