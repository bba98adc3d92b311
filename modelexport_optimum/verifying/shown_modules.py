"""The modules that the graphs show, compared with the model that config.json describes.

A graph shows a module by the tags of its nodes. Without tags it shows a module by the scopes in the
nodes' names, and by parameters that kept their names. Some modules of the described model may have
no node: a pooler whose output is not used, a BatchNorm that was folded into its convolution, an
embedding table that was folded into a constant. A file that was tagged during its export records
these modules (`model_record.SILENT`), and the comparison is exact. In any other file a missing
module proves nothing, unless it is the last of equal modules in a list: an exporter never leaves
out such a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.module_trees.name_prefixes import pairs_by_prefixes
from modelexport_optimum.onnx_file.skeleton import walk_all_nodes, walk_nodes
from modelexport_optimum.tags import carriers
from modelexport_optimum.tags.model_record import is_marked, read_silent
from modelexport_optimum.tags.node_names import paths_of_scope
from modelexport_optimum.tags.tag_grammar import outer_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.verifying.described_model import Described
    from modelexport_optimum.verifying.exported_files import Exported


@dataclass(frozen=True)
class FileTags:
    """The content of a file's tags.

    Attributes:
        root_class: The class of the exported model.
        paths: The modules in the tags.
        silent: The exported model's modules without nodes, None if not recorded.
        on_all: Whether every node has a tag: a quantizer's nodes have none.
    """

    root_class: str
    paths: list[str]
    silent: list[str] | None
    on_all: bool


def read_tags(model: Model) -> FileTags | None:
    """Return the content of a file's tags, None if it has none."""
    marked = is_marked(model)
    carried = [carriers.read(node, marked=marked) for node in walk_all_nodes(model)]
    modules = carriers.modules_in_tags(carried)
    root_class = modules.pop("", "")
    if not root_class:
        return None
    on_all = all(each.modules for each in carried)
    return FileTags(root_class, list(modules), read_silent(model), on_all)


def missing_modules(
    exported: Exported,
    described: Mapping[str, Described],
    tags_of: Mapping[str, FileTags | None],
) -> list[str]:
    """Return the described modules that the exported model certainly did not have."""
    found = []
    for folder, model in described.items():
        shown: set[str] = set()
        recorded: set[str] | None = set()
        for file in _files(exported, folder):
            tags = tags_of[file]
            same = tags is not None and tags.root_class == model.tree.root_class
            if tags is None or tags.silent is None or not same:
                recorded = None
            elif recorded is not None:
                recorded.update(tags.silent)
            if tags is None or not tags.on_all:
                shown.update(_aligned(_scopes(exported, file), model, _base(file, model)))
            if tags is not None:
                shown.update(_aligned(tags.paths, model))
            parameters = _parameter_modules(exported, file)
            shown.update(_aligned(parameters, model, _base(file, model)))
        missing = _left_out(model, shown) if recorded is None else _absent(model, shown, recorded)
        found += [_placed(folder, path) for path in missing]
    return found


def unknown_modules(
    exported: Exported,
    described: Mapping[str, Described],
    tags_of: Mapping[str, FileTags | None],
) -> list[str]:
    """Return the modules that a graph shows and the described model does not have.

    A tag names a module of the exported model for certain. A parameter's name may come from a
    wrapper of Optimum, so only an additional module of a described list counts.
    """
    found: dict[str, None] = {}
    for folder, model in described.items():
        modules = model.tree.modules
        for file in _files(exported, folder):
            tags = tags_of[file]
            paths = _aligned(() if tags is None else tags.paths, model)
            named = _parameter_modules(exported, file)
            for path in _aligned(named, model, _base(file, model)):
                chain = [path, *outer_paths(path)]
                first = next((one for one in reversed(chain) if one not in modules), "")
                above, _, label = first.rpartition(".")
                if label.isdecimal() and f"{above}.0" in modules:
                    paths.append(first)
            found.update((_placed(folder, path), None) for path in paths if path not in modules)
    # Of what is inside another one, the outer one says enough.
    return [path for path in found if not any(outer in found for outer in outer_paths(path))]


def _files(exported: Exported, folder: str) -> list[str]:
    if not folder:
        return list(exported.graphs)
    return [file for file in exported.graphs if Path(file).parent.as_posix() == folder]


def _placed(folder: str, path: str) -> str:
    return f"{folder}: {path}" if folder else path


def _scopes(exported: Exported, file: str) -> Iterator[str]:
    """Yield the scopes in the names of the nodes, `/bert/encoder/layer.0/MatMul`, as paths."""
    scopes = {node.name.rpartition("/")[0] for node in walk_nodes(exported.graphs[file])}
    for scope in sorted(scopes):
        yield from list(paths_of_scope(scope))[-1:]


def _parameter_modules(exported: Exported, file: str) -> list[str]:
    """Return the modules whose parameters a file carries under their own names."""
    names = (tensor.name for tensor in exported.initializers[file])
    paths = (name.rpartition(".")[0] for name in names if not {"/", ":"} & set(name))
    return [path for path in dict.fromkeys(paths) if path]


def _base(file: str, model: Described) -> str:
    """Return the prefix of the names of a file that was traced from only the encoder."""
    alone = Path(file).name.startswith("encoder_model") and model.encoder
    return f"{model.encoder}." if alone else ""


def _aligned(paths: Iterable[str], model: Described, base: str = "") -> list[str]:
    """Return paths in a graph as paths in the tree, for any traced module.

    Most names have the same prefix, in the tree or in the graph. Other names are left out. `base`
    is the prefix, if it is known and fits any name.
    """
    given = list(dict.fromkeys(paths))
    pairs = pairs_by_prefixes(given, model.tree.modules)
    if not pairs:
        return []
    known = (base, "")
    if base and known in pairs:
        ours, theirs = known
    else:
        ours, theirs = max(pairs, key=lambda both: (len(pairs[both]), both == ("", "")))
    return [ours + path.removeprefix(theirs) for path in given if path.startswith(theirs)]


def _absent(model: Described, shown: set[str], silent: set[str]) -> list[str]:
    """Return the outermost modules with parameters, neither shown nor recorded as silent."""
    inside_silent = {
        path
        for path in model.tree.modules
        if path in silent or any(outer in silent for outer in outer_paths(path))
    }
    candidates = model.tree.silent(shown | inside_silent)
    owning = {outer for name in model.parameters for outer in outer_paths(name)}
    return [path for path in candidates if path in owning]


def _left_out(model: Described, shown: set[str]) -> list[str]:
    """Return the last of equal modules in a list, if only the first ones are shown.

    A module without parameters may be a table of constants, of which a graph keeps only the used
    part.
    """
    tree = model.tree
    held = {outer for path in shown for outer in (path, *outer_paths(path))}
    held |= {path for path, module in tree.modules.items() if module.primary in held}
    owning = {outer for name in model.parameters for outer in outer_paths(name)}
    lists: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for path, module in tree.modules.items():
        outer, _, label = path.rpartition(".")
        if label.isdecimal() and path in owning:
            lists.setdefault((outer, module.qualified), []).append((int(label), path))
    found: list[str] = []
    for equal in lists.values():
        last = max((index for index, path in equal if path in held), default=None)
        if last is not None:
            found += [path for index, path in sorted(equal) if index > last]
    return found
