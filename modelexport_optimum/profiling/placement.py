"""The provider of each module's nodes, and the tensors that cross between providers.

ONNX Runtime assigns the nodes to providers after its first optimizations, which are the same for
all providers, and before the other optimizations. So its record names the nodes of the graph that a
session on the CPU has at that point. That graph is made here, to look up the modules and values of
its nodes.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict, deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx

from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.profiling.node_placement import Places
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.providers.placement import Crossing, PlacedModule, Placement
from modelexport_optimum.providers.session import (
    open_session,
    quiet_options,
    save_built,
    unfused_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule
    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node
    from modelexport_optimum.providers.session import AssignedNode, Assignment

    _Made: TypeAlias = tuple[Node, str]
    """The node that makes a value, and the provider that took it."""

_BUILT, _SEEN = "built.onnx", "seen.onnx"
"""Files that ONNX Runtime writes into the scratch directory."""


def place_nodes(
    file: TaggedFile, assignment: Assignment, feeds: Mapping[str, np.ndarray]
) -> Placement:
    """Find the provider of each module's nodes and, with inputs, the size of crossing tensors."""
    provider = assignment.provider
    with tempfile.TemporaryDirectory(prefix="modelexport-optimum-") as scratch:
        built = _built(file.path, Path(scratch))
        found = _Found(file, built, assignment.nodes)
        seen = {one.tensor for one in found.crossings.values()} & found.visible
        sizes = _sizes(Path(scratch), seen, feeds) if built is not None and seen else {}
    counted = found.counted
    order = sorted(counted, key=lambda name: (name != provider, -counted[name]))
    return Placement(
        file=file.path,
        provider=provider,
        recorded=assignment.recorded,
        providers={name: counted[name] for name in order},
        modules=tuple(found.rows(file.modules, provider)),
        unplaced=tuple((*key, count) for key, count in found.unplaced.most_common()),
        crossings=tuple(
            replace(one, target_modules=tuple(found.readers[key]), type=kind, bytes=size)
            for key, one in found.crossings.items()
            for kind, size in (sizes.get(one.tensor, (None, None)),)
        ),
        reason=assignment.reason,
    )


class _Found:
    """The nodes of the built graph, each with its module and its provider.

    Attributes:
        counted: Number of nodes by provider.
        own: The same by module path and provider.
        total: The same, including the modules inside.
        ops: Operators by module path and provider.
        unplaced: Number of nodes that have no module, by provider and operator.
        crossings: The crossing tensors, by producing node, tensor and target.
        readers: The modules that read it there, by the same key.
        visible: Names of the values of the top graph.
    """

    def __init__(
        self, file: TaggedFile, built: Model | None, assigned: Sequence[AssignedNode]
    ) -> None:
        self.counted = Counter[str]()
        self.own: dict[str, Counter[str]] = defaultdict(Counter)
        self.total: dict[str, Counter[str]] = defaultdict(Counter)
        self.ops: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.unplaced: Counter[tuple[str, str]] = Counter()
        self.crossings: dict[tuple[int, str, str], Crossing] = {}
        self.readers: dict[tuple[int, str, str], dict[str, None]] = defaultdict(dict)
        graph = file.model.graph if built is None else built.graph
        self.visible = {name for node in graph.nodes for name in node.outputs if name}
        self._places = Places(file, built)
        self._assigned: dict[tuple[str, str], deque[str]] = defaultdict(deque)
        for node in assigned:
            self._assigned[node.name, node.op_type].append(node.provider)
        self._walk(graph, {}, None)
        for (_, op_type), providers in self._assigned.items():
            for provider in providers:
                self.counted[provider] += 1
                self.unplaced[provider, op_type] += 1

    def _walk(
        self, graph: Graph, outer: Mapping[str, _Made], holder: str | None
    ) -> dict[str, _Made]:
        """Place the nodes of a graph; return the producer and the provider of each value.

        A provider that is not the CPU's takes a node with the graphs that it holds, whose nodes are
        not recorded.
        """
        makers = dict(outer)
        for node in graph.nodes:
            waiting = self._assigned.get((node.name, node.op_type))
            provider = waiting.popleft() if waiting else holder
            read = [name for name in node.inputs if name]
            for _, nested in node.subgraphs:
                inner = self._walk(nested, makers, None if provider == CPU else provider)
                if provider is not None:
                    for value in nested.outputs:
                        self._cross(inner.get(value.name), value.name, node, provider)
            if provider is None:  # ONNX Runtime computed it when it built the session
                continue
            self._count(node, provider)
            for name in dict.fromkeys(read):
                self._cross(makers.get(name), name, node, provider)
            makers.update((name, (node, provider)) for name in node.outputs if name)
        return makers

    def _count(self, node: Node, provider: str) -> None:
        self.counted[provider] += 1
        module = self._places.module(node.name, node.op_type)
        if module is None:
            self.unplaced[provider, node.op_type] += 1
            return
        self.own[module.path][provider] += 1
        self.ops[module.path, provider][node.op_type] += 1
        for one in (module, *module.around()):
            self.total[one.path][provider] += 1

    def _cross(self, made: _Made | None, tensor: str, reader: Node, provider: str) -> None:
        if made is None or made[1] == provider:
            return
        maker, source = made
        key = id(maker), tensor, provider
        self.crossings.setdefault(
            key, Crossing(tensor, source, provider, self._path(maker), target_modules=())
        )
        path = self._path(reader)
        if path is not None:
            self.readers[key][path] = None

    def _path(self, node: Node) -> str | None:
        module = self._places.module(node.name, node.op_type)
        return None if module is None else module.path

    def rows(self, modules: Mapping[str, TaggedModule], provider: str) -> Iterator[PlacedModule]:
        """Yield the modules that have nodes, each after the module that contains it."""
        for path, module in modules.items():
            if path not in self.total:
                continue
            left = Counter[str]()
            for other in self.own[path].keys() - {provider}:
                left += self.ops[path, other]
            yield PlacedModule(
                module=path,
                name=module.name,
                module_class=module.module_class,
                depth=module.depth,
                own=dict(self.own[path]),
                total=dict(self.total[path]),
                ops=dict(left),
            )


def _built(path: Path, scratch: Path) -> Model | None:
    """Return the graph whose nodes ONNX Runtime assigns to providers; None if not available."""
    import onnxruntime as ort

    options = quiet_options()  # what is wrong is said by the session that is measured
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    save_built(options, scratch / _BUILT)
    try:
        open_session(str(path), Provider(CPU), options)
        return read_model(scratch / _BUILT)
    except Exception:  # ONNX Runtime raises anything
        return None


def _sizes(
    scratch: Path, names: set[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, int]]:
    """Return type and size of values of the built graph, in a run on the CPU."""
    import numpy as np

    ordered = sorted(names)
    model = onnx.load(scratch / _BUILT, load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ordered)
    onnx.save(model, scratch / _SEEN)
    try:
        session = open_session(str(scratch / _SEEN), Provider(CPU), unfused_options())
        asked = {value.name for value in session.get_inputs()}
        values = session.run(ordered, {name: feeds[name] for name in asked if name in feeds})
    except Exception:  # the sizes are then not known, and said so
        return {}
    return {
        name: (f"{value.dtype}{list(value.shape)}", value.nbytes)
        for name, value in zip(ordered, values, strict=True)
        if isinstance(value, np.ndarray)
    }
