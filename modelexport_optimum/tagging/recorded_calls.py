"""The calls of modules while PyTorch traces them, as a model in memory makes them.

With the model at hand there is no need to infer from a scope which modules were called:
PyTorch's global forward hooks say it. It is written down what the tracer labels each call
with, so that `attribution` can look its scopes up; nothing about the trace is changed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from modelexport_optimum.system.private_names import IS_TRACING
from modelexport_optimum.tagging.attribution import Labels, inside
from modelexport_optimum.tagging.module_tree import ModuleTree

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from modelexport_optimum.tagging.attribution import Paths

# Scope, without the count of calls, to the chain of modules of each of its calls in order.
Calls = dict[str, list["Paths"]]


@contextlib.contextmanager
def recorded_calls(model: object) -> Iterator[list[Calls]]:
    """Records the calls of a model's modules in each graph that is traced inside the block.

    Args:
        model: The whole model. A graph may be traced from a part of it, or from a copy.

    Yields:
        A list that gains one entry for each traced graph.
    """
    import torch
    from torch.nn.modules.module import (
        register_module_forward_hook,
        register_module_forward_pre_hook,
    )

    is_tracing = IS_TRACING.get()
    whole = model if isinstance(model, torch.nn.Module) else None
    recorder = _Recorder(whole)

    def enter(module: torch.nn.Module, _inputs: object) -> None:
        if is_tracing():
            recorder.enter(module)

    def leave(_module: torch.nn.Module, _inputs: object, _output: object) -> None:
        if is_tracing():
            recorder.leave()

    hooks = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave),
    ]
    try:
        yield recorder.graphs
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder:
    def __init__(self, whole: torch.nn.Module | None) -> None:
        self.graphs: list[Calls] = []
        self._whole = whole
        self._stack: list[tuple[str, Paths]] = []
        self._paths: dict[int, list[str]] = {}
        self._labels = Labels(ModuleTree(), "")

    def enter(self, module: torch.nn.Module) -> None:
        if not self._stack:
            self._begin(module)
            return
        scope, chain = self._stack[-1]
        paths = self._paths.get(id(module))
        if paths is not None:
            nearest = next(
                (path for outer in reversed(chain) for path in paths if _is_inside(path, outer)),
                paths[0],
            )
            scope, chain = f"{scope}/{self._labels.label(nearest)}", inside(chain, nearest)
            self.graphs[-1].setdefault(scope, []).append(chain)
        # A module that the tracer does not know pushes no scope: its caller's goes on.
        self._stack.append((scope, chain))

    def leave(self) -> None:
        self._stack.pop()

    def _begin(self, traced: torch.nn.Module) -> None:
        root = traced
        if self._whole is not None and any(part is traced for part in self._whole.modules()):
            root = self._whole
        self._paths = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        base = self._paths[id(traced)][0]
        prefix = f"{base}." if base else ""
        below = {id(module) for module in traced.modules()}
        self._paths = {
            key: [path for path in paths if path.startswith(prefix) or not base]
            for key, paths in self._paths.items()
            if key in below
        }
        self._labels = Labels(ModuleTree.without_tensors(root), base)
        chain: Paths = ("", base) if base else ("",)
        self.graphs.append({"": [chain]})
        self._stack.append(("", chain))


def _is_inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")
