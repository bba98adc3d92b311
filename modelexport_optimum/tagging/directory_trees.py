"""The module tree that each file of a directory was traced from.

The tree is given by the caller, or read from the nodes' own tags or PyTorch's record on them, or
built from the classes that config.json names. Without any of these it is made from the names in the
graph.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import TYPE_CHECKING

from modelexport_optimum.attribution import tree_choice
from modelexport_optimum.attribution.export_record import recorded_modules
from modelexport_optimum.errors import ModelExportError, first_line
from modelexport_optimum.module_trees.config_bounds import bounded_modules, check_counts
from modelexport_optimum.module_trees.export_json import exported_architectures
from modelexport_optimum.module_trees.model_classes import candidates, source_trees
from modelexport_optimum.module_trees.module_tree import (
    UNKNOWN_CLASS,
    Module,
    ModuleTree,
    model_trees,
)
from modelexport_optimum.onnx_file.skeleton import shapes_of, walk_all_nodes
from modelexport_optimum.own_code.guard import own_code_refused
from modelexport_optimum.tags.model_record import read_classes
from modelexport_optimum.tags.node_names import called_scopes
from modelexport_optimum.tags.tag_grammar import outer_paths, parse_tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from modelexport_optimum.module_trees.model_classes import Candidate
    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.tagging.open_files import OpenFile


def given_trees(model: object, trust_remote_code: bool) -> list[ModuleTree] | None:
    """Return the trees of the argument `model` of `tag`, None if it is None."""
    if model is None:
        return None
    if isinstance(model, ModuleTree):
        return [model]
    if isinstance(model, list | tuple):
        return list(model)
    if isinstance(model, str | os.PathLike):
        return source_trees(os.fspath(model), trust_remote_code=trust_remote_code)
    return model_trees(model)


def trees_of_files(
    directory: Path,
    group: Sequence[OpenFile],
    given: list[ModuleTree] | None,
    trust_remote_code: bool,
    *,
    afresh: bool = False,
) -> dict[Path, tuple[ModuleTree, str]]:
    """Find the tree, and the module of it, that each file of a directory was traced from.

    The nodes' own records come before the config, except if the nodes are placed again.
    """
    if given is not None:
        return _best(group, given)
    known = None if afresh else _known_trees(directory, group, trust_remote_code)
    if known is not None:
        return known
    with own_code_refused(directory, trusted=trust_remote_code):
        return _described_trees(directory, group, trust_remote_code)


def _known_trees(
    directory: Path, group: Sequence[OpenFile], trust_remote_code: bool
) -> dict[Path, tuple[ModuleTree, str]] | None:
    """Return the trees in the nodes' own records, None if there are none.

    transformers' exporter may write the modules of one model to separate files for generation. Each
    file names only itself, and is found by its classes in the model that config.json describes. A
    file that is not found is a root of its own.
    """
    carried = _carried_tree(group)
    own = {file.path: _carried_tree([file]) or _tracer_tree([file]) for file in group}
    roots = {tree.root_class for tree in own.values() if tree is not None}
    if carried is None:
        roots.update(exported_architectures(directory) if roots else ())
    if len(roots) < 2:
        known = carried or _tracer_tree(group)
        if carried is not None and not all(_tags(group)):
            whole = _tree_with(carried.modules, directory, group, trust_remote_code)
            known = whole or carried
        return None if known is None else _best(group, [known])
    whole = None if carried is not None else _tree_with({}, directory, group, trust_remote_code)
    return {file.path: _part_of(whole, own[file.path], file) for file in group}


def _part_of(
    whole: ModuleTree | None, own: ModuleTree | None, file: OpenFile
) -> tuple[ModuleTree, str]:
    """Return the tree of a file that names only itself, and the module that it was traced from."""
    tree = own or _named_tree(file)
    if whole is not None:
        base = tree_choice.place_of(tree, whole, file.model, file.path.stem)
        if base is not None:
            return whole, base
    return tree, ""


def _tree_with(
    called: Mapping[str, Module],
    directory: Path,
    group: Sequence[OpenFile],
    trust_remote_code: bool,
) -> ModuleTree | None:
    """Return the tree that config.json describes and that has these modules.

    The files can be tagged without it, so a useless description is not an error. A tool that
    replaces nodes, such as a quantizer, may have replaced all nodes that carried a module.

    Args:
        called: The modules, by path; those without a call may have another class.
        directory: The directory of config.json.
        group: The files of the directory.
        trust_remote_code: As for `tag`.

    Returns:
        The tree; None if it cannot be built, or if none has all these modules.
    """
    if not all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
        return None
    wanted = {path: module.module_class for path, module in called.items() if module.has_forward}
    with (
        contextlib.suppress(ModelExportError),
        own_code_refused(directory, trusted=trust_remote_code),
    ):
        for _, tree in _built(directory, group, trust_remote_code):
            classes = {path: module.module_class for path, module in tree.modules.items()}
            if wanted.items() <= classes.items():
                return tree
    return None


def _best(
    group: Sequence[OpenFile], trees: Sequence[ModuleTree]
) -> dict[Path, tuple[ModuleTree, str]]:
    """Return the tree that explains all files of a directory best."""
    tried = [(tree, [tree_choice.fit(file.model, tree) for file in group]) for tree in trees]
    tree, fits = max(tried, key=lambda entry: tree_choice.total(entry[1]))  # of equals the first
    return {file.path: (tree, found.base) for file, found in zip(group, fits, strict=True)}


def _described_trees(
    directory: Path, group: Sequence[OpenFile], trust_remote_code: bool
) -> dict[Path, tuple[ModuleTree, str]]:
    """Return the trees of the classes that config.json may mean, or trees made from the names."""
    tried: list[tuple[tuple[int, ...], ModuleTree, list[tree_choice.Fit]]] = []
    for index, (candidate, tree) in enumerate(_built(directory, group, trust_remote_code)):
        fits = [tree_choice.fit(file.model, tree) for file in group]
        agreeing = sum(_outputs_agree(file.model, candidate) for file in group)
        if not all(found.plausible for found in fits):
            continue
        tried.append((tree_choice.total(fits, agreeing), tree, fits))
        if index == 0 and agreeing == len(group) and all(found.whole for found in fits):
            break
    if tried:
        _, tree, fits = max(tried, key=lambda entry: entry[0])
        return {file.path: (tree, found.base) for file, found in zip(group, fits, strict=True)}
    known = _tracer_tree(group) or _carried_tree(group)
    if known is not None:
        return _best(group, [known])
    return {file.path: (_named_tree(file), "") for file in group}


def _named_tree(file: OpenFile) -> ModuleTree:
    return ModuleTree.from_names(called_scopes(file.model), shapes_of(file.model))


def _built(
    directory: Path, group: Sequence[OpenFile], trust_remote_code: bool
) -> Iterator[tuple[Candidate, ModuleTree]]:
    """Yield the classes that config.json may mean for some files, with their modules.

    Raises:
        ModelExportError: It describes no model that can be built; a configuration and a model may
            raise anything about its values.
    """
    config = directory / "config.json"
    check_counts(config)
    nodes = sum(len(file.carried) for file in group)
    try:
        for candidate in candidates(directory, trust_remote_code=trust_remote_code):
            with bounded_modules(config, nodes):
                tree = candidate.tree()
            yield candidate, tree
    except ModelExportError:
        raise
    except ImportError as error:
        raise ModelExportError(
            f"the model that {config} describes cannot be built here: {first_line(error)}"
        ) from error
    except Exception as error:
        raise ModelExportError(
            f"{config} describes a model that cannot be built ({first_line(error)}): repair it, or "
            "remove it and give the source with --model"
        ) from error


def _outputs_agree(model: Model, candidate: Candidate) -> bool:
    """Return whether the graph's outputs are those of the candidate's task in Optimum."""
    if candidate.outputs is None:
        return False
    named = {
        value.name: {
            axis: dim for axis, dim in enumerate(value.shape or ()) if isinstance(dim, str)
        }
        for value in model.graph.outputs
    }
    return named == {name: dict(axes) for name, axes in candidate.outputs.items()}


def _carried_tree(group: Sequence[OpenFile]) -> ModuleTree | None:
    """Return the tree in the nodes' own tags, if the files were tagged before."""
    qualified: dict[str, str] = {}
    for file in group:
        qualified.update(read_classes(file.model))
    modules = (module for tag in _tags(group) for module in parse_tag(tag) or ())
    return _called_tree((path, qualified.get(name, name)) for path, name in modules)


def _tags(group: Sequence[OpenFile]) -> Iterator[str]:
    """Yield the tag of each node, "" for a node without one."""
    return (carried.tag for file in group for carried in file.carried.values())


def _tracer_tree(group: Sequence[OpenFile]) -> ModuleTree | None:
    """Return the tree that PyTorch's dynamo exporter recorded on the nodes."""
    nodes = (node for file in group for node in walk_all_nodes(file.model))
    return _called_tree(module for node in nodes for module in recorded_modules(node))


def _called_tree(modules: Iterable[tuple[str, str]]) -> ModuleTree | None:
    """Return the tree of modules that are called, with what holds them; None without a root."""
    tree = ModuleTree(whole=False)
    for path, name in modules:
        tree.modules[path] = Module(path, name, path)
    if "" not in tree.modules:
        return None
    for path in list(tree.modules):
        for outer in outer_paths(path):
            container = Module(outer, UNKNOWN_CLASS, outer, has_forward=False)
            tree.modules.setdefault(outer, container)
    tree.classes_known = tree.modules[""].module_class != UNKNOWN_CLASS.rpartition(".")[2]
    return tree
