"""The module tree that a graph was traced from, and the module of it where the trace began.

An encoder that is exported alone names everything relative to itself, and config.json may name
another class than the exported one. The names and shapes in the graph decide: the tree that
explains all names is chosen, and of several such trees the one with the fewest unused names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelexport_optimum.attribution.scopes import Scopes
from modelexport_optimum.module_trees.name_prefixes import pairs_by_prefixes
from modelexport_optimum.onnx_file.skeleton import shapes_of, walk_nodes
from modelexport_optimum.tags.node_names import scopes_of
from modelexport_optimum.tags.tag_grammar import outer_paths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelexport_optimum.module_trees.module_tree import ModuleTree
    from modelexport_optimum.onnx_file.skeleton import Model


@dataclass(frozen=True, slots=True, order=True)
class Fit:
    """How well a tree explains a file; the greater the better.

    Attributes:
        shapes: Minus the number of named tensors that have another shape in the tree.
        tensors: Number of named tensors that the tree has.
        scopes: Minus the number of scopes that no chain of modules explains.
        depth: Minus the depth of the traced module: inside the outermost that fits are all modules
            that may have been called.
        passed_over: Minus the number of callable modules that these chains pass over.
        left: Minus the number of the module's tensors that the graph does not name.
        base: Path of the traced module.
        named_scopes: Number of scopes that the graph's names have.
    """

    shapes: int
    tensors: int
    scopes: int
    depth: int
    passed_over: int
    left: int
    base: str
    named_scopes: int

    @property
    def plausible(self) -> bool:
        """The tree explains most of what the graph names."""
        return self.shapes == 0 and 2 * -self.scopes <= self.named_scopes

    @property
    def whole(self) -> bool:
        """Nothing in the graph contradicts the tree."""
        return self.shapes == 0 and self.scopes == 0


def fit(model: Model, tree: ModuleTree) -> Fit:
    """Find the module of a tree that explains a file best."""
    named = _named_tensors(model)
    scopes = list(scopes_of(model))
    below = Counter(base for name in tree.tensors for base in ("", *outer_paths(name)))
    fits = {"": (0, 0)}  # tensors that the graph names, and those whose shape is another there
    for (ours, theirs), pairs in pairs_by_prefixes(named, tree.tensors).items():
        if not theirs:
            shapes = [(named[name], tree.tensors[full]) for name, full in pairs]
            differing = sum(known is not None and known != shape for known, shape in shapes)
            fits[ours.removesuffix(".")] = len(pairs), differing
    most = max(matched for matched, _ in fits.values())
    return max(
        _score(tree, base, scopes, -differing, matched, matched - below[base])
        for base, (matched, differing) in fits.items()
        if matched == most and base in tree.modules and (tree.modules[base].has_forward or not base)
    )


def total(fits: Sequence[Fit], agreeing: int = 0) -> tuple[int, ...]:
    """Sum the fits of one tree to several files, as a key to compare trees by.

    `agreeing` is the number of files whose outputs are those of the tree's class.
    """
    return (
        sum(fit.shapes for fit in fits),
        sum(fit.tensors for fit in fits),
        sum(fit.scopes for fit in fits),
        sum(fit.passed_over for fit in fits),
        agreeing,
        sum(fit.depth for fit in fits),
        sum(fit.left for fit in fits),
    )


def place_of(part: ModuleTree, whole: ModuleTree, model: Model, name: str) -> str | None:
    """Find the module of a model that a file with only its own names was traced from.

    Args:
        part: The modules that the file's nodes name.
        whole: The modules of the model.
        model: The file's skeleton.
        name: Name of the file without its suffix. An exporter that takes a model apart names a file
            for the attribute (transformers/exporters/utils.py, `_find_multimodal_submodules`).

    Returns:
        The module's path, None if none has the same modules in it, or several.
    """
    shapes = shapes_of(model)

    def fits(base: str) -> bool:
        prefix = f"{base}." if base else ""
        for path, module in part.modules.items():
            there = whole.modules.get(f"{prefix}{path}".rstrip("."))
            if there is None or (module.has_forward and there.module_class != module.module_class):
                return False
        return all(whole.tensors.get(prefix + one, shape) == shape for one, shape in shapes.items())

    found = [
        path for path, module in whole.modules.items() if module.primary == path and fits(path)
    ]
    named = [path for path in found if path.rpartition(".")[2] == name]
    chosen = found if len(found) == 1 else named
    return chosen[0] if len(chosen) == 1 else None


def _score(
    tree: ModuleTree, base: str, scopes: Sequence[str], shapes: int, tensors: int, left: int
) -> Fit:
    resolved = Scopes(tree, base)
    unexplained = passed_over = 0
    for scope in scopes:
        found = resolved.candidates(scope)
        if found:
            passed_over += min(map(resolved.passed_over, found))
        else:
            unexplained += 1
    depth = base.count(".") + 1 if base else 0
    return Fit(shapes, tensors, -unexplained, -depth, -passed_over, left, base, len(scopes))


def _named_tensors(model: Model) -> Mapping[str, tuple[int, ...] | None]:
    """Return initializers with their shapes, and values that an Identity gives a name."""
    named: dict[str, tuple[int, ...] | None] = dict(shapes_of(model))
    for node in walk_nodes(model.graph):
        if node.op_type == "Identity":
            for name in node.outputs:
                named.setdefault(name, None)
    return named
