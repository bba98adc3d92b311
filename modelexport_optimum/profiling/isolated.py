"""Each module of a file extracted and measured alone on a provider, with its real inputs.

A provider that compiles a graph runs it as one kernel, in which the modules cannot be
distinguished. Each extracted module can be measured, but loses the optimizations across its
boundary. So the sum is shown together with the time of the whole graph.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.errors import onnxruntime_errors, onnxruntime_line
from modelexport_optimum.graph_runs.flat_graph import branch_in_words, branches, flatten
from modelexport_optimum.graph_runs.recorded_run import ValueStore
from modelexport_optimum.graph_runs.tapped_run import TappedRun, whole_feeds
from modelexport_optimum.profiling.profile_log import WARM_UP
from modelexport_optimum.providers.session import assigned_nodes, open_session, quiet_options
from modelexport_optimum.system.display import Displayed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnxruntime

    from modelexport_optimum.graph_runs.flat_graph import FlatGraph, FlatNode, ModuleCall
    from modelexport_optimum.graph_runs.tapped_run import Arrays
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.providers.choice import Provider


_FEWEST = 4
"""The default depth is the first level with at least this many modules."""


@dataclass(frozen=True, slots=True, repr=False)
class IsolatedModule(Displayed):
    """One call of a module, measured alone.

    Attributes:
        module: Module path; "" for the root.
        module_class: Class name.
        call: Which of the module's calls this is, from 0.
        node_count: Number of its nodes in the file, without constants.
        inputs: Type and shape of its inputs, by name.
        ms: Milliseconds of one run; None if it could not run.
        taken: Number of nodes that the provider took, and number of its nodes after ONNX Runtime's
            first optimizations; None if not known.
        error: Why it could not run, "" if it ran.
    """

    module: str
    module_class: str
    call: int
    node_count: int
    inputs: Mapping[str, str]
    ms: float | None = None
    taken: tuple[int, int] | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as data for JSON."""
        taken, of = self.taken or (None, None)
        return {
            "module": self.module,
            "class": self.module_class,
            "call": self.call,
            "node_count": self.node_count,
            "inputs": [{"name": name, "type": kind} for name, kind in self.inputs.items()],
            "ms": self.ms,
            "provider_node_count": taken,
            "built_node_count": of,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, repr=False)
class IsolatedRun(Displayed):
    """The modules of one file at one depth, each measured alone, and the whole graph.

    Attributes:
        branch: The branch of a merged decoder that ran; "" if there is only one.
        provider: The requested provider.
        depth: Depth in the module tree to which the file was divided.
        whole_ms: Milliseconds of one run of the whole graph.
        modules: The modules, in the order in which they ran.
        outside: Number of nodes in none of them, which belong to their parents.
    """

    branch: str
    provider: str
    depth: int
    whole_ms: float
    modules: tuple[IsolatedModule, ...]
    outside: int

    @property
    def sum_ms(self) -> float:
        """The sum of the modules' times."""
        return sum(module.ms or 0.0 for module in self.modules)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as data for JSON."""
        return {
            "branch": self.branch,
            "provider": self.provider,
            "depth": self.depth,
            "whole_ms": self.whole_ms,
            "sum_ms": self.sum_ms,
            "outside_node_count": self.outside,
            "modules": [module.to_dict() for module in self.modules],
        }


def isolate(
    file: TaggedFile, provider: Provider, feeds: Arrays, *, iterations: int, depth: int | None
) -> IsolatedRun:
    """Measure each module of a file alone, in the branch that the inputs choose."""
    branch = {name: bool(feeds[name].any()) for name in branches(file)[0]}
    graph = flatten(file, branch)
    asked = {value.name for value in graph.inputs}
    given = {name: array for name, array in feeds.items() if name in asked}
    chosen = depth if depth is not None else _default_depth(graph)
    calls = _calls_at(graph, chosen)
    nodes = {id(call): _nodes_of(graph, call) for call in calls}
    whole_ms = _measure_whole(file, provider, given, branch, iterations)
    tapped = TappedRun(graph)
    with ValueStore() as values:
        entering = {name for own in nodes.values() for name in _entering(graph, own)}
        for name, value in tapped.values(entering & graph.makers.keys(), given):
            if isinstance(value, np.ndarray):
                values.add(name, value)
        modules = [
            _measure_alone(tapped, call, nodes[id(call)], provider, given, values, iterations)
            for call in calls
        ]
    inside = {id(node) for own in nodes.values() for node in own}
    outside = [node for node in graph.nodes if not node.constant and id(node) not in inside]
    return IsolatedRun(
        branch_in_words(branch), provider.name, chosen, whole_ms, tuple(modules), len(outside)
    )


def _default_depth(graph: FlatGraph) -> int:
    deepest = max(call.depth for call in graph.calls)
    found = (depth for depth in range(deepest) if len(_calls_at(graph, depth)) >= _FEWEST)
    return next(found, deepest)


def _calls_at(graph: FlatGraph, depth: int) -> list[ModuleCall]:
    """Return the calls at a depth, and calls above it that call no other module."""
    outer = {id(call.parent) for call in graph.calls}
    return [
        call
        for call in graph.calls
        if call.outputs and (call.depth == depth or (call.depth < depth and id(call) not in outer))
    ]


def _nodes_of(graph: FlatGraph, call: ModuleCall) -> list[FlatNode]:
    """Return the nodes of a call and the calls inside it, with the constants that they read."""
    todo: set[str] = set()
    found = []
    for node in reversed(graph.nodes):
        is_own = not node.constant and node.call.around(call.depth) is call
        if is_own or (node.constant and not todo.isdisjoint(node.makes)):
            found.append(node)
            todo.update(node.reads)
    return found[::-1]


def _entering(graph: FlatGraph, nodes: Sequence[FlatNode]) -> dict[str, None]:
    """Return the inputs of a group of nodes: results of other nodes, or inputs of the graph."""
    made = {name for node in nodes for name in node.makes}
    known = made | graph.initializers.keys() | graph.branch.keys()
    return {name: None for node in nodes for name in node.reads if name not in known}


def _measure_alone(
    tapped: TappedRun,
    call: ModuleCall,
    nodes: Sequence[FlatNode],
    provider: Provider,
    feeds: Arrays,
    values: ValueStore,
    iterations: int,
) -> IsolatedModule:
    names = _entering(tapped.graph, nodes)
    live = {name: values.get(name) if name in values else feeds.get(name) for name in names}
    blank = IsolatedModule(
        module=call.module.path,
        module_class=call.module.module_class,
        call=call.number,
        node_count=sum(not node.constant for node in nodes),
        inputs={n: f"{v.dtype}{list(v.shape)}" for n, v in live.items() if v is not None},
    )
    missing = [name for name, value in live.items() if value is None]
    if missing:
        return replace(blank, error=f"its input {missing[0]} is not a tensor")
    try:
        part = tapped.part(nodes, call.outputs, live)
        session = part.open(provider, quiet_options(recorded=True))
        ms = _milliseconds(session, call.outputs, part.feeds, iterations)
    except Exception as error:  # ONNX Runtime raises anything
        return replace(blank, error=onnxruntime_line(error))
    assigned = assigned_nodes(session)
    taken = sum(node.provider == provider.name for node in assigned)
    return replace(blank, ms=ms, taken=(taken, len(assigned)) if assigned else None)


def _measure_whole(
    file: TaggedFile,
    provider: Provider,
    feeds: Arrays,
    branch: Mapping[str, bool],
    iterations: int,
) -> float:
    with onnxruntime_errors(f"run {file.path}"):
        session = open_session(str(file.path), provider, quiet_options(recorded=True))
        names = [value.name for value in session.get_outputs()]
        return _milliseconds(session, names, whole_feeds(session, feeds, branch), iterations)


def _milliseconds(
    session: onnxruntime.InferenceSession,
    outputs: Collection[str],
    feeds: Mapping[str, Any],
    iterations: int,
) -> float:
    """Return the mean time of a run, after warm-up runs."""
    names = list(outputs)
    for _ in range(WARM_UP):
        session.run(names, feeds)
    started = time.perf_counter()
    for _ in range(iterations):
        session.run(names, feeds)
    return (time.perf_counter() - started) * 1000 / iterations
