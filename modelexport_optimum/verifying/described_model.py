"""The model that config.json describes, and the parts of it that the graphs contain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.module_trees.model_classes import build_empty, candidates
from modelexport_optimum.module_trees.module_tree import ModuleTree
from modelexport_optimum.module_trees.name_prefixes import pairs_by_prefixes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelexport_optimum.module_trees.model_classes import Candidate
    from modelexport_optimum.onnx_file.skeleton import Tensor
    from modelexport_optimum.verifying.exported_files import Exported

_MERGED = re.compile(r"_merged_\d+$")
"""The suffix that Optimum's `merge_decoders` adds to the weights that two decoders share."""


@dataclass(frozen=True)
class Described:
    """The model that a config.json describes, or a component of a pipeline.

    Attributes:
        tree: Its modules, parameters and buffers.
        parameters: The names of its parameters.
        encoder: The path of the module that Optimum exports as its encoder, "" if it has none.
    """

    tree: ModuleTree
    parameters: frozenset[str]
    encoder: str = ""


def described_models(exported: Exported) -> dict[str, Described]:
    """Return the models that config.json describes, built on the meta device without weights.

    Returns:
        A model for each folder that has its own config.json: "" alone, or the components of a
        diffusion pipeline.

    Raises:
        Exception: The model cannot be built; its class may raise anything.
    """
    if exported.library == "diffusers":
        folders = sorted({Path(name).parent.as_posix() for name in exported.graphs})
        return {
            folder: _described(found[0])
            for folder in folders
            if (found := candidates(exported.directory / folder))
        }
    if not exported.classes:
        return {}
    # The class that the exporter loads for the task, or what `architectures` names first.
    for_task = [found for found in exported.classes if found.task == exported.task]
    return {"": _described((for_task or exported.classes)[0])}


def _described(candidate: Candidate) -> Described:
    model: Any = build_empty(candidate.model_class, candidate.config)
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    paths = {id(module): path for path, module in model.named_modules()}
    encoder = model.get_encoder() if _is_encoder_decoder(candidate) else None
    return Described(
        ModuleTree.from_module(model), frozenset(names), encoder=paths.get(id(encoder), "")
    )


def _is_encoder_decoder(candidate: Candidate) -> bool:
    return bool(getattr(candidate.config, "is_encoder_decoder", False)) and hasattr(
        candidate.model_class, "get_encoder"
    )


@dataclass(frozen=True)
class NamedShape:
    """A tensor with its own name in a graph: its shape in the described model and in the graph."""

    name: str
    described: tuple[int, ...]
    carried: tuple[int, ...]


def compared_shapes(
    exported: Exported, described: Mapping[str, Described]
) -> dict[str, list[NamedShape]]:
    """Pair each file's initializers with the described tensors of their names.

    Weights that were folded or transposed have other names, and no pair.
    """
    pairs = {}
    for file, initializers in exported.initializers.items():
        folder = "" if "" in described else Path(file).parent.as_posix()
        model = described.get(folder)
        pairs[file] = [] if model is None else _pair(initializers, model.tree.tensors)
    return pairs


def _pair(
    initializers: Iterable[Tensor], tensors: Mapping[str, tuple[int, ...]]
) -> list[NamedShape]:
    """Pair by name, for any module of the model that the graph was traced from.

    The prefixes are those that match most names and, among equals, most shapes.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for tensor in initializers:
        shapes.setdefault(_MERGED.sub("", tensor.name), []).append(tensor.dims)
    paired = [
        [NamedShape(ours, tensors[ours], shape) for name, ours in pairs for shape in shapes[name]]
        for pairs in pairs_by_prefixes(shapes, tensors).values()
    ]
    return max(
        paired,
        key=lambda pairs: (len(pairs), sum(p.described == p.carried for p in pairs)),
        default=[],
    )
