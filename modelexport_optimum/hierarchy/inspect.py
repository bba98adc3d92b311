"""The module tree with its operators and parameters, and the nodes of chosen modules.

It reads only the headers of the weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from modelexport_optimum.errors import UsageError
from modelexport_optimum.hierarchy.tagged_model import (
    elements,
    nbytes,
    read_tagged_files,
    unknown,
    weights_of,
)
from modelexport_optimum.system.display import Displayed, several
from modelexport_optimum.system.notebook import Part, line, shown, tree, treemap

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Sequence

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule, TaggedNode
    from modelexport_optimum.onnx_file.skeleton import Tensor


@dataclass(frozen=True, slots=True, repr=False)
class Amount(Displayed):
    """Operators and parameters.

    Attributes:
        op_type_counts: Number of nodes of each operator.
        parameters: Number of elements of the initializers that the nodes read, each
            initializer counted once.
        bytes: Size of these initializers.
    """

    op_type_counts: dict[str, int]
    parameters: int
    bytes: int

    @property
    def node_count(self) -> int:
        """Number of nodes."""
        return sum(self.op_type_counts.values())


@dataclass(frozen=True, slots=True, repr=False)
class ModuleView(Displayed):
    """One module in the view.

    Attributes:
        module: The module, in the whole tree.
        name: Its path relative to the shown module that contains it, or its whole path.
        level: Number of shown modules that contain it.
        own: The counts of its own nodes and their weights.
        total: The counts of the nodes of the module and its submodules.
        share: Its total bytes as a fraction of the file's.
    """

    module: TaggedModule
    name: str
    level: int
    own: Amount
    total: Amount
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Return the module as data for JSON."""
        return {
            "module": self.module.path,
            "class": self.module.module_class,
            "depth": self.module.depth,
            "node_count": self.total.node_count,
            "own_node_count": self.own.node_count,
            "parameters": self.total.parameters,
            "own_parameters": self.own.parameters,
            "bytes": self.total.bytes,
            "own_bytes": self.own.bytes,
            "share": round(self.share, 6),
        }


@dataclass(frozen=True, slots=True, repr=False)
class FileView(Displayed):
    """The view of one file.

    Attributes:
        file: The file.
        whole: All its operators and parameters, including those without a module.
        modules: The modules that match and those inside them, outer before inner.
        nodes: Their nodes, in file order.
    """

    file: TaggedFile
    whole: Amount
    modules: tuple[ModuleView, ...]
    nodes: tuple[TaggedNode, ...]

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        parts = [
            Part(
                level=module.level,
                name=module.name,
                path=module.module.path,
                kind=module.module.module_class,
                size=module.total.bytes,
                own=module.own.bytes,
                cells=(
                    f"{module.total.node_count:,}",
                    f"{module.total.parameters:,}",
                    decimal(module.total.bytes),
                    f"{module.share:.1%}",
                ),
            )
            for module in self.modules
        ]
        return shown(
            self.file.path.name,
            line(
                f"{self.file.root.module_class}: {self.whole.node_count:,} operators, "
                f"{self.whole.parameters:,} parameters, {decimal(self.whole.bytes)}"
            ),
            treemap(parts, lambda size: decimal(int(size))),
            tree(("operators", "parameters", "bytes", "share"), parts),
        )

    @property
    def selected(self) -> Amount:
        """The counts of the nodes and their weights."""
        return _amount(_op_types(self.nodes), weights_of(self.nodes).values())

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes that have one, each once."""
        return list(dict.fromkeys(node.name for node in self.nodes if node.name))

    def nodes_to_dict(self) -> dict[str, Any]:
        """Return the nodes as data for JSON."""
        return {
            "file": str(self.file.path),
            "class": self.file.root.module_class,
            "nodes": [node.to_dict() for node in self.nodes],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the modules as data for JSON."""
        return {
            "file": str(self.file.path),
            "class": self.file.root.module_class,
            "node_count": self.whole.node_count,
            "untagged_count": len(self.file.untagged),
            "parameters": self.whole.parameters,
            "bytes": self.whole.bytes,
            "modules": [
                {**module.to_dict(), "op_type_counts": module.total.op_type_counts}
                for module in self.modules
            ],
        }


class Inspection(tuple[FileView, ...]):
    """The views of all files, as a tuple."""

    __slots__ = ()

    @property
    def files(self) -> tuple[FileView, ...]:
        """The views, under the name that they have in JSON."""
        return tuple(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the modules as data for JSON."""
        return {"files": [view.to_dict() for view in self]}

    def nodes_to_dict(self) -> dict[str, Any]:
        """Return the nodes as data for JSON."""
        return {"files": [view.nodes_to_dict() for view in self]}

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        return several(self)


def inspect(
    path: str | os.PathLike[str],
    *,
    modules: Sequence[str] = (),
    classes: Sequence[str] = (),
    ops: Sequence[str] = (),
    depth: int | None = None,
) -> Inspection:
    """Return the modules of a tagged export. A module must match all filters.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.
        modules: Patterns of module paths. `*` matches any text within one part of the path, `**`
            any number of parts. If no path matches a pattern from its beginning, the pattern may
            begin at any part: `encoder.layer.0` finds `bert.encoder.layer.0`.
        classes: Patterns of class names.
        ops: Patterns of operators: only their nodes, and the weights that these read, are counted.
        depth: Levels of modules to show inside those that match; by default all.

    Returns:
        For each file the modules that match, their submodules, and their nodes. Without filters by
        module or class, the root matches.

    Raises:
        UsageError: There is no such file, or nothing matches a pattern.
        ModelExportError: A file is not tagged, or cannot be read.
    """
    files = read_tagged_files(path)
    every = [module for file in files for module in file.modules]
    paths = matching_paths(every, modules, path) if modules else {""}
    names = {module.module_class for file in files for module in file.modules.values()}
    op_types = {node.op_type for file in files for node in file.nodes}
    for kind, patterns, known in (("class", classes, names), ("operator", ops, op_types)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise unknown(kind, pattern, path, known)
    views = Inspection(_view(file, paths, classes, ops, depth) for file in files)
    if not any(view.nodes for view in views):
        asked = ", ".join((*modules, *classes, *ops))
        raise UsageError(f"{path} has no node that matches all of {asked}: give fewer filters")
    return views


def amounts(file: TaggedFile, ops: Sequence[str] = ()) -> dict[str, tuple[Amount, Amount]]:
    """Count the operators and parameters of every module of a file.

    Returns:
        By module path: the module's own counts, and the counts with all its submodules. An
        initializer that several modules read counts as each module's own, and once in the total of
        a module that contains them.
    """
    own = {
        path: [n for n in m.nodes if _is_any(n.op_type, ops)] for path, m in file.modules.items()
    }
    op_types = {path: _op_types(nodes) for path, nodes in own.items()}
    tensors = {path: weights_of(nodes) for path, nodes in own.items()}
    counted = {path: _amount(op_types[path], tensors[path].values()) for path in own}
    for module in reversed(file.modules.values()):
        if module.parent is not None:
            op_types[module.parent.path].update(op_types[module.path])
            tensors[module.parent.path].update(tensors[module.path])
    return {path: (counted[path], _amount(op_types[path], tensors[path].values())) for path in own}


def _op_types(nodes: Iterable[TaggedNode]) -> Counter[str]:
    return Counter(node.op_type for node in nodes)


def _amount(op_types: Counter[str], tensors: Collection[Tensor]) -> Amount:
    parameters, size = sum(map(elements, tensors)), sum(map(nbytes, tensors))
    return Amount(dict(op_types.most_common()), parameters, size)


def _view(
    file: TaggedFile,
    paths: set[str],
    classes: Sequence[str],
    ops: Sequence[str],
    depth: int | None,
) -> FileView:
    counted = amounts(file, ops)
    whole = _amount(_op_types(file.nodes), file.initializers)
    inside = _inside(file, paths, classes)
    shown: dict[str, ModuleView] = {}
    for module in file.modules.values():
        own, total = counted[module.path]
        distance = inside.get(module.path)
        if distance is None or (depth is not None and distance > depth) or not total.node_count:
            continue
        above = next((shown[m.path] for m in module.around() if m.path in shown), None)
        name, level = module.path or module.module_class, 0
        if above is not None:
            level = above.level + 1
            name = name[len(above.module.path) + 1 :] if above.module.path else name
        share = total.bytes / whole.bytes if whole.bytes else 0.0
        shown[module.path] = ModuleView(module, name, level, own, total, share)
    nodes = (n for n in file.nodes if n.module is not None and n.module.path in inside)
    matching = tuple(node for node in nodes if _is_any(node.op_type, ops))
    return FileView(file, whole, tuple(shown.values()), matching)


def _inside(file: TaggedFile, paths: set[str], classes: Sequence[str]) -> dict[str, int]:
    """Return how many levels each module is below a matching one."""
    of_class = {
        path
        for path, module in file.modules.items()
        if (_is_any(module.module_class, classes) if classes else module.parent is None)
    }
    matching = paths | of_class
    inside: dict[str, int] = {}
    for module in file.modules.values():
        chain = [module.path, *(outer.path for outer in module.around())]
        if not (paths.isdisjoint(chain) or of_class.isdisjoint(chain)):
            inside[module.path] = next(i for i, path in enumerate(chain) if path in matching)
    return inside


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def matching_paths(paths: Iterable[str], patterns: Iterable[str], where: object) -> set[str]:
    """Return the module paths that match any of the patterns.

    `*` is anything within one part, `**` any number of parts; the first parts may be left out.

    Raises:
        UsageError: A pattern matches nothing.
    """
    known = {path: path.split(".") if path else [] for path in paths}
    matching: set[str] = set()
    for pattern in patterns:
        parts = pattern.split(".")
        found = {path for path, own in known.items() if _matches(own, parts)}
        found = found or {path for path, own in known.items() if _matches(own, ["**", *parts])}
        if not found:
            raise unknown("module", pattern, where, known)
        matching |= found
    return matching


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
