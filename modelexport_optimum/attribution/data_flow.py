"""The edges between the nodes of a graph, and the nodes that are placed by their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.attribution.scopes import common
from modelexport_optimum.system.text import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelexport_optimum.attribution.scopes import Paths
    from modelexport_optimum.onnx_file.skeleton import Graph, Node


class DataFlow:
    """The file's nodes and their edges; a nested graph comes before the node that holds it.

    Attributes:
        nodes: The nodes, in file order.
        graph_of: For each node the number of the graph that contains it.
        producers: For each node the nodes whose values it reads, including results of nested
            graphs.
        consumers: For each node the nodes that read its values.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.graph_of: list[int] = []
        self.producers: list[list[int]] = []
        self.consumers: list[list[int]] = []
        self._graphs = 0
        self._visit(graph, [])

    def _visit(self, graph: Graph, outer: list[dict[str, int]]) -> list[int]:
        """Add a graph's nodes, and return those that compute its outputs."""
        number = self._graphs
        self._graphs += 1
        values: dict[str, int] = {value.name: -1 for value in graph.inputs}
        values.update((tensor.name, -1) for tensor in graph.initializers)
        visible = [*outer, values]
        for node in graph.nodes:
            inner = [made for _, nested in node.subgraphs for made in self._visit(nested, visible)]
            index = len(self.nodes)
            self.nodes.append(node)
            self.graph_of.append(number)
            self.consumers.append([])
            made_by = [_maker(name, visible) for name in node.inputs if name]
            self.producers.append(list(dict.fromkeys(p for p in [*made_by, *inner] if p >= 0)))
            for producer in self.producers[index]:
                self.consumers[producer].append(index)
            values.update(dict.fromkeys(node.outputs, index))
        results = [values.get(value.name, -1) for value in graph.outputs]
        return [producer for producer in results if producer >= 0]


def _maker(name: str, visible: Sequence[Mapping[str, int]]) -> int:
    return next((values[name] for values in reversed(visible) if name in values), -1)


def place_by_flow(
    flow: DataFlow, known: Sequence[Paths | None]
) -> Iterator[tuple[int, Paths | None, str]]:
    """Place the remaining nodes between their placed neighbours.

    Yields:
        For each node without a place its number, its chain or None, and the reason.
    """
    count = len(flow.nodes)
    above: list[Paths | None] = list(known)
    below: list[Paths | None] = list(known)
    placed: list[Paths | None] = list(known)
    prepares = [False] * count  # made of nothing but constants and inputs of the graph
    for index in range(count):
        if known[index] is None:
            above[index] = _common_of(above[producer] for producer in flow.producers[index])
            prepares[index] = above[index] is None
    for index in reversed(range(count)):
        if known[index] is None:
            below[index] = _common_of(below[consumer] for consumer in flow.consumers[index])
    for index in reversed(range(count)):
        if known[index] is not None:
            continue
        read_by = _named(flow, flow.consumers[index])
        if prepares[index]:
            placed[index] = _common_of(placed[reader] for reader in flow.consumers[index])
            reason = f"what it prepares is for {read_by} alone"
        else:
            placed[index] = _common_of((above[index], below[index]))
            reason = f"{_named(flow, flow.producers[index])} feed it, {read_by} read it"
        yield index, placed[index], reason


def _common_of(chains: Iterable[Paths | None]) -> Paths | None:
    known = [chain for chain in chains if chain is not None]
    return common(known) if known else None


def _named(flow: DataFlow, indices: Sequence[int]) -> str:
    names = [flow.nodes[index].name or flow.nodes[index].op_type for index in indices]
    return listed(names, 3)
