"""An independent witness of an export: PyTorch's forward hooks, watching while Optimum traces.

It imports nothing of ``modelexport_optimum`` and reads no node's name. It records which modules
ran, in which order, inside which, and what each of them asked the tracer for. It judges nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np  # noqa: TC002
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten, tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OPERATIONS = ("aten::", "prim::CallFunction")
"""What the tracer calls an operator or a scripted function; the rest is its own bookkeeping."""


@dataclass(frozen=True)
class Call:
    """One call of one module while a graph was traced.

    Attributes:
        paths: every path by which the root reaches the module. Empty if it is no part of the
            model: made inside a ``forward``, or added by the exporter like SpeechT5's vocoder.
        class_name: the module's class.
        parent: index of the call in which it was made, None for the module that was traced.
        depth: 0 for the module that was traced.
        operations: the TorchScript operators (``aten::linear``) that this call itself asked for
            and that an output of the graph depends on. Operators of the calls in it are theirs;
            those of a module made inside a ``forward`` count with the call around it. Not all
            become nodes (``aten::dropout`` does not), and a constant may be folded.
        varying: the operators among them that depend on an input of the graph.
    """

    paths: frozenset[str]
    class_name: str
    parent: int | None
    depth: int
    operations: tuple[str, ...]
    varying: tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """The module tree of the model that was exported, as ``named_modules`` spells it.

    Attributes:
        root_class: the class of the model.
        modules: the class at every path, aliases included; the root's path is empty.
        aliases: for each module that several paths reach, these paths.
        tensors: the shape of every parameter and buffer, aliases included.
        tied: for each parameter or buffer that has several names, these names.
    """

    root_class: str
    modules: dict[str, str]
    aliases: tuple[frozenset[str], ...]
    tensors: dict[str, tuple[int, ...]]
    tied: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Graph:
    """One graph that was traced.

    Attributes:
        file: where it was written, relative to the output directory.
        tree: of the whole model, or of the component of a diffusion pipeline.
        traced: the paths of the module that was traced; the empty path if it was the whole.
        calls: in the order in which they began.
        inputs: the arrays that it was traced with, by the name of the graph's input.
    """

    file: str
    tree: Tree
    traced: frozenset[str]
    calls: tuple[Call, ...]
    inputs: dict[str, np.ndarray]

    @property
    def times(self) -> dict[frozenset[str], int]:
        """How many times each module of the tree was called."""
        times: dict[frozenset[str], int] = {}
        for call in self.calls:
            if call.paths:
                times[call.paths] = times.get(call.paths, 0) + 1
        return times

    @property
    def ran(self) -> dict[frozenset[str], tuple[str, ...]]:
        """Which modules of the tree ran operations themselves, and which, over all their calls.

        What a module outside the tree ran counts for the nearest one around it that is inside.
        """
        ran: dict[frozenset[str], tuple[str, ...]] = {}
        for call in self.calls:
            owner = call
            while not owner.paths and owner.parent is not None:
                owner = self.calls[owner.parent]
            if call.operations:
                ran[owner.paths] = ran.get(owner.paths, ()) + call.operations
        return ran


@dataclass(frozen=True)
class Witness:
    """What was seen during one export: the graphs, by the file to which each was written."""

    output: Path
    graphs: dict[str, Graph]

    def branches(self, file: str) -> dict[str, Graph]:
        """Return the traced graphs that a file of the export holds, by the branch each is in.

        The key is empty for a file that is the graph. Optimum merges two decoders into one file
        of one node, an If: its ``then_branch`` has the decoder with past, its ``else_branch``
        the one without.
        """
        if file in self.graphs:
            return {"": self.graphs[file]}
        return {
            "then_branch": self.graphs["decoder_with_past_model.onnx"],
            "else_branch": self.graphs["decoder_model.onnx"],
        }


def _names(named: Iterable[tuple[str, object]]) -> dict[int, frozenset[str]]:
    """Map the id of each object to all of its names."""
    names: dict[int, frozenset[str]] = {}
    for name, thing in named:
        names[id(thing)] = names.get(id(thing), frozenset()) | {name}
    return names


def module_paths(root: nn.Module) -> dict[int, frozenset[str]]:
    """Map the id of each module to all the paths by which the root reaches it."""
    return _names(root.named_modules(remove_duplicate=False))


def read_tree(root: nn.Module) -> Tree:
    """Write down a module tree as plain data."""
    tensors = [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]
    modules = root.named_modules(remove_duplicate=False)
    return Tree(
        root_class=type(root).__name__,
        modules={path: type(module).__name__ for path, module in modules},
        aliases=tuple(paths for paths in module_paths(root).values() if len(paths) > 1),
        tensors={name: tuple(tensor.shape) for name, tensor in tensors},
        tied=tuple(names for names in _names(tensors).values() if len(names) > 1),
    )


@dataclass
class _Seen:
    """A call as the hooks see it; its nodes are those of the tracer's graph."""

    module: nn.Module
    parent: int | None
    depth: int
    nodes: list[torch.Node] = field(default_factory=list)
    operations: tuple[str, ...] = ()
    varying: tuple[str, ...] = ()


class _Recorder:
    """The two hooks, and the calls they saw."""

    def __init__(self) -> None:
        self.calls: list[_Seen] = []
        self.open: list[int] = []

    def enter(self, module: nn.Module, *_: object) -> None:
        if torch.jit.is_tracing():
            self.calls.append(_Seen(module, self.open[-1] if self.open else None, len(self.open)))
            self.open.append(len(self.calls) - 1)

    def leave(self, module: nn.Module, _inputs: object, outputs: object) -> None:
        if not torch.jit.is_tracing():
            return
        call = self.calls[self.open.pop()]
        if call.module is not module:
            raise RuntimeError("modules returned in another order than they were called")
        graph = torch._C._get_tracing_state().graph()
        if module in torch.jit._trace._trace_module_map:
            # The tracer has just closed the block into which it wrote what this call asked for.
            [block] = graph.insertPoint().prev().blocks()
            call.nodes = list(block.nodes())
        if not self.open:
            self._sum_up(graph, module, outputs)

    def _sum_up(self, graph: torch.Graph, root: nn.Module, outputs: object) -> None:
        """Replace every call's nodes, which die with the trace, by what they amounted to."""
        used, varying = _used(self.calls, outputs), _varying(graph, root)
        for call in self.calls:
            nodes = [n for n in call.nodes if n in used and n.kind().startswith(OPERATIONS)]
            call.operations = tuple(node.kind() for node in nodes)
            call.varying = tuple(node.kind() for node in nodes if node in varying)
            call.nodes = []


def _used(calls: list[_Seen], outputs: object) -> set[torch.Node]:
    """Return the nodes on which the outputs depend; writing in place counts as used."""
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    todo = [torch._C._get_value_trace(tensor).node() for tensor in tensors]
    todo += [node for call in calls for node in call.nodes if node.kind().endswith("_")]
    used: set[torch.Node] = set()
    while todo:
        node = todo.pop()
        if node not in used:
            used.add(node)
            todo += [value.node() for value in node.inputs()]
    return used


def _varying(graph: torch.Graph, root: nn.Module) -> set[torch.Node]:
    """Return the nodes that depend on an input of the graph; parameters come after the inputs."""
    inputs = list(graph.inputs())
    inputs = inputs[: len(inputs) - len(torch.jit._trace._unique_state_dict(root))]
    todo = [use.user for value in inputs for use in value.uses()]
    varying: set[torch.Node] = set()
    while todo:
        node = todo.pop()
        if node not in varying:
            varying.add(node)
            todo += [use.user for value in node.outputs() for use in value.uses()]
    return varying


@contextmanager
def record_calls(paths: Mapping[int, frozenset[str]]) -> Iterator[list[Call]]:
    """Record the calls of all modules that happen while the block lets ``torch.jit`` trace.

    Args:
        paths: what :func:`module_paths` says of the model.

    Yields:
        A list that is filled when the block ends.
    """
    recorder, calls = _Recorder(), list[Call]()
    entered = register_module_forward_pre_hook(recorder.enter)
    left = register_module_forward_hook(recorder.leave)
    try:
        yield calls
    finally:
        entered.remove()
        left.remove()
    calls += [
        Call(
            paths.get(id(call.module), frozenset()),
            type(call.module).__name__,
            call.parent,
            call.depth,
            call.operations,
            call.varying,
        )
        for call in recorder.calls
    ]


def _named(model: nn.Module, args: object, names: object) -> dict[str, np.ndarray]:
    """The arrays that a model was traced with, by the names of the graph's inputs.

    The tracer flattens the arguments in the order of the signature.
    """
    [given] = args
    order = [name for name in signature(model.forward).parameters if name in given]
    values = [given[name] for name in [*order, *(name for name in given if name not in order)]]
    tensors = [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]
    return {name: value.numpy() for name, value in zip(names, tensors, strict=False)}


def record_export(model_dir: Path, output: Path, task: str, **export_kwargs: object) -> Witness:
    """Run Optimum's real ``main_export`` and write down what the modules did.

    Args:
        model_dir: a model directory.
        output: where the export goes.
        task: as ``main_export`` takes it.
        export_kwargs: further arguments of ``main_export``.
    """
    from optimum.exporters.onnx import __main__ as exporter

    torch_export = torch.onnx.export
    export_from_model = exporter.onnx_export_from_model
    roots: list[tuple[Tree, dict[int, frozenset[str]]]] = []
    graphs: dict[str, Graph] = {}

    def keep_tree(model: object, *args: object, **kwargs: object) -> None:
        # Now: later the exporter replaces modules, and adds some.
        if isinstance(model, nn.Module):
            roots.append((read_tree(model), module_paths(model)))
        export_from_model(model, *args, **kwargs)

    def keep_graph(model: nn.Module, args: object, f: str, **kwargs: object) -> None:
        # A diffusion pipeline is no module: each of its components is a root of its own.
        tree, paths = roots[0] if roots else (read_tree(model), module_paths(model))
        with record_calls(paths) as calls:
            torch_export(model, args, f, **kwargs)
        file = Path(f).relative_to(output).as_posix()
        inputs = _named(model, args, kwargs["input_names"])
        graphs[file] = Graph(file, tree, paths[id(model)], tuple(calls), inputs)

    with (
        mock.patch.object(exporter, "onnx_export_from_model", keep_tree),
        mock.patch.object(torch.onnx, "export", keep_graph),
    ):
        exporter.main_export(str(model_dir), output, task=task, **export_kwargs)
    return Witness(output, graphs)
