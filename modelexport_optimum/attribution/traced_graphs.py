"""The module call that made each node, recorded while PyTorch exports.

The tracer keeps the scope of every node, and the name of each scope is `Class::label`
(`_setup_trace_module_map` in torch/onnx's `utils.py`). The exporter makes the name of a node in the
file only from the labels (`ONNXScopeName` in torch/csrc/jit/passes/onnx/helper.cpp). So during an
export the class in each scope name is replaced by the number of the module. When the exporter has
named the nodes, the scope of each node is read. Nothing is inferred or counted, and the file is the
same, byte for byte.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.attribution.scopes import Paths, inside
from modelexport_optimum.system.private_names import (
    NAMES_OF_MODULES,
    NAMES_OF_SCOPES,
    NAMING_OF_NODES,
)
from modelexport_optimum.tags.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch


@dataclass(slots=True)
class TracedGraph:
    """One graph that was traced.

    Attributes:
        root: The chain of the module that was traced.
        chains: Name of each node that has a scope to its chain of modules.
    """

    root: Paths
    chains: dict[str, Paths] = field(default_factory=dict)


@contextlib.contextmanager
def traced_graphs(
    model: object, named: Callable[[], None] | None = None
) -> Iterator[list[TracedGraph]]:
    """Record the modules of all nodes of each graph that is exported inside the block.

    Args:
        model: The whole model. A graph may be traced from a part of it, or from a copy.
        named: Called when the nodes of a graph have their names and are recorded.
    """
    import torch

    whole = model if isinstance(model, torch.nn.Module) else None
    graphs: list[TracedGraph] = []
    numbered: list[_Numbered] = []
    label_modules, name_nodes = NAMES_OF_SCOPES.get(), NAMING_OF_NODES.get()

    def number_modules(traced: torch.nn.Module, *arguments: Any) -> Any:  # noqa: ANN401
        result = label_modules(traced, *arguments)
        numbered[:] = [_Numbered(whole, traced)]
        NAMES_OF_MODULES.put(numbered[0].renamed(NAMES_OF_MODULES.get() or {}))
        return result

    def note_nodes(graph: torch.Graph) -> None:
        name_nodes(graph)
        if numbered:  # a scripted function has no modules
            graphs.append(numbered.pop().graph(graph))
        if named is not None:
            named()

    with NAMES_OF_SCOPES.replaced(number_modules), NAMING_OF_NODES.replaced(note_nodes):
        yield graphs


class _Numbered:
    """The modules of a traced module, each with the number in the names of its scopes."""

    def __init__(self, whole: torch.nn.Module | None, traced: torch.nn.Module) -> None:
        part = whole is not None and any(module is traced for module in whole.modules())
        root = whole if whole is not None and part else traced
        paths: dict[int, list[str]] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        base = paths[id(traced)][0]
        self._root: Paths = ("", base) if base else ("",)
        modules = list(traced.modules())
        self._number = {module: number for number, module in enumerate(modules)}
        self._paths = [
            [path for path in paths[id(module)] if is_inside(path, base)] for module in modules
        ]
        self._chains: dict[str, Paths] = {}

    def renamed(self, names: dict[torch.nn.Module, str]) -> dict[torch.nn.Module, str]:
        """Return the scope names of the modules, with a number instead of the class."""
        return {
            module: f"\n{self._number[module]}::{name.partition('::')[2]}"
            for module, name in names.items()
        }

    def graph(self, graph: torch.Graph) -> TracedGraph:
        """Return the modules of a graph's named nodes."""
        traced = TracedGraph(self._root)
        blocks: list[Any] = [graph]
        # Operators of which a node had no blocks, as none of that operator has. To ask costs 15
        # microseconds: the end of PyTorch's iterators is an exception in C++.
        plain: set[str] = set()
        while blocks:
            for node in blocks.pop().nodes():
                if (operator := node.kind()) not in plain:
                    inner = list(node.blocks())
                    blocks += inner
                    if not inner:
                        plain.add(operator)
                if node.hasAttribute("onnx_name"):
                    traced.chains[node.s("onnx_name")] = self._chain(node.scopeName())
        return traced

    def _chain(self, scope: str) -> Paths:
        chain = self._chains.get(scope)
        if chain is None:
            chain = self._root
            # The first is the traced module itself. No module's name has a line break.
            for number in re.findall(r"(?:^|/)\n(\d+)::", scope)[1:]:
                chain = inside(chain, nearest(chain, self._paths[int(number)]))
            self._chains[scope] = chain
        return chain


def nearest(chain: Paths, paths: list[str]) -> str:
    """Return the first of a module's paths that is inside the innermost module of a chain."""
    held = (path for outer in reversed(chain) for path in paths if is_inside(path, outer))
    return next(held, paths[0])
