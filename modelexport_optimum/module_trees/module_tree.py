"""The module tree as plain data: path, class, parameters' shapes.

It is made from a model in memory or, if the classes are not known, from the names in a graph.
`model_classes` builds models without weights for it. It keeps a weak reference to the model.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.tags.node_names import is_scoped, paths_of_scope
from modelexport_optimum.tags.tag_grammar import Segment, outer_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    import torch

UNKNOWN_CLASS = "torch.nn.Module"
"""The class of every module in a tree whose classes are not known."""


@dataclass(frozen=True, slots=True)
class Module(Segment):
    """One module under one of its paths, as `named_modules(remove_duplicate=False)` spells it.

    Attributes:
        primary: The first of its paths; equal for all paths of one module.
        has_forward: Whether it can be called. A ModuleList or ModuleDict cannot.
    """

    primary: str
    has_forward: bool = True


@dataclass(slots=True)
class ModuleTree:
    """The modules of one model.

    Attributes:
        modules: Path to module, in the order of `named_modules`.
        tensors: Shape of every parameter and buffer, under every name.
        tied: For each name of a parameter or buffer with several names, all its names.
        classes_known: False if the tree was made from names alone.
        whole: False if it may lack modules, because it was made from some of the nodes.
        build: Builds the model again, with or without its weights; None if that is not possible.
    """

    modules: dict[str, Module] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tied: dict[str, list[str]] = field(default_factory=dict)
    classes_known: bool = True
    whole: bool = True
    build: Callable[[], torch.nn.Module | None] = field(
        default=lambda: None, repr=False, compare=False
    )

    @property
    def root_class(self) -> str:
        """Class name of the root."""
        return self.modules[""].module_class

    @classmethod
    def from_module(cls, model: torch.nn.Module) -> ModuleTree:
        """Read the names, classes and shapes of a model in memory, on any device."""
        import torch

        tree = cls()
        primary: dict[int, str] = {}
        names: dict[int, list[str]] = {}
        unimplemented = torch.nn.Module.forward
        for path, module in model.named_modules(remove_duplicate=False):
            first = primary.setdefault(id(module), path)
            kind = type(module)
            name = f"{kind.__module__}.{kind.__name__}"
            has_forward = kind.forward is not unimplemented or "forward" in vars(module)
            tree.modules[path] = Module(path, name, first, has_forward)
            prefix = f"{path}." if path else ""
            for own in (module.named_parameters, module.named_buffers):
                for label, tensor in own(recurse=False, remove_duplicate=False):
                    tree.tensors[prefix + label] = tuple(tensor.shape)
                    names.setdefault(id(tensor), []).append(prefix + label)
        tree.tied = {name: same for same in names.values() if len(same) > 1 for name in same}
        tree.build = weakref.ref(model)  # the tree is not what keeps a model in memory
        return tree

    @classmethod
    def from_names(
        cls, scopes: Iterable[str], tensors: Mapping[str, tuple[int, ...]]
    ) -> ModuleTree:
        """Guess the paths, without classes, from the names in a graph."""
        paths: dict[str, None] = {"": None}
        for scope in scopes:
            paths.update(dict.fromkeys(paths_of_scope(scope)))
        # A name without a path is as likely one that the exporter made: `onnx::MatMul_12`. One with
        # a scope is that of a value, which an optimizer has computed: `/layers.0/Mul_output_0`.
        named = {n: shape for n, shape in tensors.items() if "." in n and not is_scoped(n)}
        for name in named:
            paths[name.rpartition(".")[0]] = None
        tree = cls(tensors=named, classes_known=False)
        for path in paths:
            parts = path.split(".")
            for end in range(len(parts) + 1):
                outer = ".".join(parts[:end])
                called = outer in paths
                tree.modules.setdefault(outer, Module(outer, UNKNOWN_CLASS, outer, called))
        return tree

    def silent(self, shown: Collection[str]) -> list[str]:
        """Return the outermost modules with parameters that neither are in a tag nor contain one.

        `shown` are the modules in tags.
        """
        modules = self.modules
        primary = {modules[path].primary for path in shown if path in modules}
        every = {*shown, *(path for path, module in modules.items() if module.primary in primary)}
        held = {outer for path in every for outer in (path, *outer_paths(path))}
        owning = {outer for name in self.tensors for outer in outer_paths(name)}
        found = owning - held
        return [path for path in modules if path in found and path.rpartition(".")[0] not in found]


def model_trees(model: object) -> list[ModuleTree]:
    """Return the trees of a model in memory: its own, or one for each component of a pipeline.

    Raises:
        ModelExportError: It is neither of these.
    """
    trees = [ModuleTree.from_module(module) for module in modules_of(model)]
    if not trees:
        raise ModelExportError(
            f"a {type(model).__name__} has no module tree: give a torch.nn.Module or a pipeline"
        )
    return trees


def modules_of(model: object) -> list[torch.nn.Module]:
    """Return a model in memory, or the components of a pipeline that are modules."""
    import torch

    if isinstance(model, torch.nn.Module):
        return [model]
    components = getattr(model, "components", None)
    parts = components.values() if isinstance(components, dict) else ()
    return [part for part in parts if isinstance(part, torch.nn.Module)]
