"""A tagged `.onnx` file as a tree of modules with their nodes and weights' headers.

All views start with it. It reads tags, does not check or repair them, and never reads a weight.
"""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx

from modelexport_optimum.errors import ModelExportError, UsageError, did_you_mean
from modelexport_optimum.onnx_file.find import onnx_files
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import Tensor, Value, nested_path, walk_all_graphs
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.tags import carriers
from modelexport_optimum.tags.model_record import is_marked
from modelexport_optimum.tags.tag_grammar import outer_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node

_NARROW_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(onnx.TensorProto, name)  # the newer ones came with onnx 1.18 and 1.20
}
"""Bits of an element, for types with several elements in a byte."""


@dataclass(slots=True, eq=False, repr=False)
class TaggedNode(Displayed):
    """One node, in its module.

    Attributes:
        node: The node in the file.
        graph: Path of the nested graph or the function that contains it, "" for the main graph.
        holder: The node that holds that graph, or None for the main graph or a function.
        tag: Its tag, or "" if it has none.
        module: The module that the tag names, or None if it has no tag.
        evidence: The evidence for the module; "carrier" if it is no longer recorded.
        reads: The origin of each of its inputs: an initializer, another node, or an input of a
            graph; None if an optional input is left out.
    """

    node: Node
    graph: str
    holder: TaggedNode | None
    tag: str
    module: TaggedModule | None
    evidence: str
    reads: tuple[Read | None, ...]
    in_function: bool = False
    """Whether it is in the body of a function, and runs where that function is called."""

    @property
    def name(self) -> str:
        """The node's name; may be ""."""
        return self.node.name

    @property
    def op_type(self) -> str:
        """The node's operator."""
        return self.node.op_type

    def to_dict(self) -> dict[str, str]:
        """Return the node as data for JSON; without a tag its module and class are ""."""
        return {
            "name": self.name,
            "op_type": self.op_type,
            "module": "" if self.module is None else self.module.path,
            "class": "" if self.module is None else self.module.module_class,
            "evidence": self.evidence,
            "graph": self.graph,
        }

    @property
    def weights(self) -> list[Tensor]:
        """The initializers that it reads, of its own graph or of those around it."""
        return list({id(read): read for read in self.reads if isinstance(read, Tensor)}.values())


Read: TypeAlias = Tensor | TaggedNode | Value
"""The origin of a value: an initializer, a node, or an input of the graph."""


@dataclass(slots=True, eq=False, repr=False)
class TaggedModule(Displayed):
    """One called module, known from the tags.

    Attributes:
        path: Module path, as `named_modules()` spells it; "" for the root.
        module_class: Class name.
        parent: The module that called it, None for the root.
        children: The modules that it called, in the order in which they first ran.
        nodes: The nodes that are its own, in file order, nested graphs included.
    """

    path: str
    module_class: str
    parent: TaggedModule | None
    children: list[TaggedModule] = field(default_factory=list)
    nodes: list[TaggedNode] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its path from its parent on, or its class if it is the root."""
        if self.parent is None:
            return self.module_class
        return self.path[len(self.parent.path) + 1 :] if self.parent.path else self.path

    @property
    def depth(self) -> int:
        """Number of modules that contain it."""
        return sum(1 for _ in self.around())

    def around(self) -> Iterator[TaggedModule]:
        """Yield the modules that contain it, inner before outer."""
        if self.parent is not None:
            yield self.parent
            yield from self.parent.around()

    def walk(self) -> Iterator[TaggedModule]:
        """Yield the module and all modules inside it, outer before inner."""
        stack = [self]
        while stack:
            module = stack.pop()
            yield module
            stack.extend(reversed(module.children))

    def walk_nodes(self) -> Iterator[TaggedNode]:
        """Yield its nodes and those of all modules inside it, module by module."""
        for module in self.walk():
            yield from module.nodes


@dataclass(slots=True, eq=False, repr=False)
class TaggedFile(Displayed):
    """A tagged file.

    Attributes:
        path: The file.
        model: Its skeleton.
        root: The module that was exported.
        modules: Every module of the tree by its path, outer before inner.
        nodes: Every node of every graph, in file order.
        untagged: The nodes without a tag, which a tool added to a tagged file.
        initializers: The headers of the initializers of every graph.
    """

    path: Path
    model: Model
    root: TaggedModule
    modules: dict[str, TaggedModule]
    nodes: list[TaggedNode]
    untagged: list[TaggedNode]
    initializers: list[Tensor]


def read_tagged_files(path: str | os.PathLike[str]) -> list[TaggedFile]:
    """Read a tagged `.onnx` file, or all of a directory.

    Raises:
        UsageError: There is no such file, or none in the directory.
        ModelExportError: As for `read_tagged`.
    """
    return [read_tagged(file, given=path) for file in onnx_files(Path(path))]


def read_tagged(path: Path, *, given: str | os.PathLike[str] | None = None) -> TaggedFile:
    """Read the modules, the nodes and the headers of the weights of a tagged file; no weight.

    Args:
        path: The `.onnx` file.
        given: The path from the user, for the message about missing tags: a file, or a directory in
            which other files may lack tags, too.

    Raises:
        InvalidModelError: It is not a whole ONNX model.
        ModelExportError: It cannot be read, or no node of it has a tag.
    """
    model = read_model(path)
    reader = _Reader(marked=is_marked(model))
    reader.read(model.graph, "", None, {})
    for function in model.functions:
        reader.read(function.body, function.path, None, {}, in_function=True)
    nodes = reader.nodes
    untagged = [node for node in nodes if node.module is None]
    if len(untagged) == len(nodes):
        tagged_as = shlex.quote(os.fspath(given or path))
        raise ModelExportError(f"{path} is not tagged: run `modelexport-optimum tag {tagged_as}`")
    modules = reader.linked_modules()
    initializers = [tensor for _, graph in walk_all_graphs(model) for tensor in graph.initializers]
    return TaggedFile(path, model, modules[""], modules, nodes, untagged, initializers)


def graph_of(file: TaggedFile, node: TaggedNode) -> Graph:
    """Return the graph that contains a node."""
    if node.holder is None:
        return file.model.graph
    held = (graph for _, graph in node.holder.node.subgraphs)
    return next(g for g in held if any(other is node.node for other in g.nodes))


def weights_of(nodes: Iterable[TaggedNode]) -> dict[int, Tensor]:
    """Return the initializers that nodes read, each once, by its identity."""
    return {id(tensor): tensor for node in nodes for tensor in node.weights}


def elements(tensor: Tensor) -> int:
    """Return the number of elements of an initializer."""
    return math.prod(tensor.dims)


def nbytes(tensor: Tensor) -> int:
    """Return the size of an initializer's data, however it is stored."""
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return tensor.nbytes
    bits = _NARROW_BITS.get(tensor.data_type)
    if bits is None:
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            return tensor.nbytes  # a type that came after this onnx
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-elements(tensor) * bits // 8)


def type_text(elem_type: int, shape: Iterable[int | str | None] | None) -> str:
    """Return a tensor's type and shape, such as `float[batch_size, 16]`; `?` is unknown."""
    known = onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(elem_type) if elem_type in known else f"type{elem_type}"
    dims = "?" if shape is None else ", ".join("?" if d is None else str(d) for d in shape)
    return f"{name.lower()}[{dims}]"


def unknown(kind: str, name: str, path: object, known: Iterable[str]) -> UsageError:
    """Return the error for a name or pattern that nothing in a file matches."""
    command = f"modelexport-optimum inspect {shlex.quote(str(path))}"
    hint = did_you_mean(name, known) or f": `{command}` shows what there is"
    return UsageError(f"{path} has no {kind} {name!r}{hint}")


class _Reader:
    """The nodes of a file, and the modules that their tags name, while it is read."""

    def __init__(self, *, marked: bool) -> None:
        self.nodes: list[TaggedNode] = []
        self._marked = marked
        self._modules: dict[str, TaggedModule] = {}
        # Of the many nodes of a module each spells the whole chain anew.
        self._chains: dict[tuple[str, str], TaggedModule] = {}

    def read(
        self,
        graph: Graph,
        path: str,
        holder: TaggedNode | None,
        around: Mapping[str, Read],
        *,
        in_function: bool = False,
    ) -> None:
        """Read the nodes of a graph that sees the names around it, then those of nested graphs."""
        names = dict(around)
        names.update((value.name, value) for value in graph.inputs)
        names.update((tensor.name, tensor) for tensor in graph.initializers)
        holders = []
        for node in graph.nodes:
            carried = carriers.read(node, marked=self._marked)
            module = self._module_of(node, carried)
            reads = tuple(names.get(name) if name else None for name in node.inputs)
            evidence = carried.placed_by
            tagged = TaggedNode(
                node, path, holder, carried.tag, module, evidence, reads, in_function
            )
            self.nodes.append(tagged)
            names.update((name, tagged) for name in node.outputs)
            if node.subgraphs:
                holders.append(tagged)
        for tagged in holders:
            for attribute, nested in tagged.node.subgraphs:
                inner = nested_path(path, tagged.node, attribute)
                self.read(nested, inner, tagged, names, in_function=in_function)

    def _module_of(self, node: Node, carried: carriers.Carried) -> TaggedModule | None:
        metadata = dict(node.metadata) if carried.complete else {}
        key = (carried.tag, metadata.get(carriers.NAMESPACE, ""))
        module = self._chains.get(key)
        if module is None:
            chain = carried.modules
            if chain is None:
                return None
            for path, name in chain:
                module = self._modules.setdefault(path, TaggedModule(path, name, None))
            assert module is not None  # a tag names the root at least
            self._chains[key] = module
        return module

    def linked_modules(self) -> dict[str, TaggedModule]:
        """Put nodes into their modules and these into their parents; return them as they ran."""
        for path, module in self._modules.items():
            outer = (each for each in (*outer_paths(path), "") if each in self._modules)
            module.parent = self._modules[next(outer)] if path else None
        # Constants, and Identities that name weights, are at the beginning of the file.
        ran: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            if node.module is not None:
                node.module.nodes.append(node)
                prepares = node.op_type in ("Constant", "Identity")
                order = index + prepares * len(self.nodes)
                around: TaggedModule | None = node.module
                while around is not None and order < ran.get(around.path, order + 1):
                    ran[around.path] = order
                    around = around.parent
        for module in sorted(self._modules.values(), key=lambda module: ran[module.path]):
            if module.parent is not None:
                module.parent.children.append(module)
        return {module.path: module for module in self._modules[""].walk()}
