"""The classes that a config.json may describe, and models built of them without weights."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modelexport_optimum.errors import ModelExportError, UsageError, first_line
from modelexport_optimum.module_trees.export_json import exported_architectures
from modelexport_optimum.module_trees.module_tree import ModuleTree, model_trees
from modelexport_optimum.own_code.guard import own_code_refused, pickled_code
from modelexport_optimum.own_code.named_code import find_own_code, in_words, refuse_needed
from modelexport_optimum.system.json_files import read_json
from modelexport_optimum.system.lean_imports import EXPORT_CONFIGS, import_lean
from modelexport_optimum.system.packages import has_optimum, require_packages
from modelexport_optimum.system.private_names import (
    CLASS_OF_REMOTE_CODE,
    CLASSES_OF_AUTO_CLASS,
    CONSTRUCTION_FROM_CONFIG,
    EMPTY_WEIGHTS,
    NO_INITIALIZATION,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager
    from types import ModuleType

    import torch


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class that may have been exported.

    Attributes:
        model_class: The class.
        config: What it is built from.
        task: Optimum's name of the task of its export, or "".
        outputs: Names of the exported graph's outputs to their named axes, or None if Optimum does
            not say.
    """

    model_class: type
    config: Any
    task: str = ""
    outputs: Mapping[str, Mapping[int, str]] | None = None

    def tree(self) -> ModuleTree:
        """Build the model on the meta device and read its tree."""
        tree = ModuleTree.from_module(build_empty(self.model_class, self.config))
        tree.build = lambda: build_empty(self.model_class, self.config)
        return tree


def _empty_weights() -> list[AbstractContextManager[Any]]:
    """Return the context for models without weights: since transformers 5, PyTorch's own device."""
    try:
        return [NO_INITIALIZATION.get()(), EMPTY_WEIGHTS.get()()]
    except ModelExportError:
        import torch

        return [torch.device("meta")]


def build_empty(model_class: type, config: Any) -> torch.nn.Module:  # noqa: ANN401
    """Build a model without weights, prepared as by `from_pretrained`."""
    with contextlib.ExitStack() as stack:
        for context in _empty_weights():
            stack.enter_context(context)
        from_config = CONSTRUCTION_FROM_CONFIG.of(model_class)
        if from_config is not None:
            model = from_config(config)
        elif hasattr(model_class, "from_config"):
            model = model_class.from_config(config)
        else:
            model = model_class(config)
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            module.tie_weights()  # what was tied before was put on the meta device one by one
    return cast("torch.nn.Module", model)


def candidates(directory: Path, *, trust_remote_code: bool = False) -> list[Candidate]:
    """Return the classes that an exported or source directory's config.json may describe.

    The class that the config names comes first; it may be that of the checkpoint rather than of the
    export, so the other classes of its model type follow, with what Optimum knows of their outputs.

    Returns:
        The classes; none if there is no config, or it describes no known class.

    Raises:
        ModelExportError: The library of the classes is not installed.
    """
    described = read_json(directory / "config.json")
    if not isinstance(described, dict):
        return []
    if "_class_name" in described:
        return _diffusers_candidates(described)
    if "model_type" not in described:
        return []
    return _transformers_candidates(directory, described, trust_remote_code)


def class_named(name: object, package: ModuleType, base: type) -> Any:  # noqa: ANN401 (a subclass)
    """Return a package's class with this name and base class; None if there is none."""
    try:
        found = getattr(package, name, None) if isinstance(name, str) else None
    except ImportError:  # the class needs a library that is not installed
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def _diffusers_candidates(described: dict[str, Any]) -> list[Candidate]:
    require_packages("diffusers", "torch")
    import diffusers

    model_class = class_named(described["_class_name"], diffusers, diffusers.ModelMixin)
    return [] if model_class is None else [Candidate(model_class, described)]


def _transformers_candidates(
    directory: Path, described: dict[str, Any], trust_remote_code: bool
) -> list[Candidate]:
    require_packages("transformers", "torch")
    if has_optimum():
        import_lean(EXPORT_CONFIGS)
    import transformers

    custom = described.get("auto_map", {})
    if custom and trust_remote_code:
        try:
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
            class_of = CLASS_OF_REMOTE_CODE.get()
            return [
                Candidate(class_of(reference, directory), config)
                for loader, reference in custom.items()
                if loader.startswith("AutoModel")
            ]
        except OSError:  # Optimum does not copy the code: it is not next to an exported config
            return []
    if "AutoConfig" in custom or described["model_type"] not in transformers.CONFIG_MAPPING:
        return []
    config = transformers.AutoConfig.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True
    )
    named = [
        Candidate(model_class, config)
        for name in described.get("architectures") or exported_architectures(directory)
        if (model_class := class_named(name, transformers, transformers.PreTrainedModel))
        # Of what was exported in parts, export.json names the parts.
        and (described.get("architectures") or isinstance(config, model_class.config_class))
    ]
    by_task = exportable_classes(config)
    tasks = {other.model_class: other for other in by_task}
    named = [tasks.get(candidate.model_class, candidate) for candidate in named]
    return [*named, *(other for other in by_task if other not in named)]


def exportable_classes(config: Any) -> list[Candidate]:  # noqa: ANN401
    """Return the classes of a model type that Optimum exports, with their outputs."""
    if not has_optimum():
        return []
    import_lean(EXPORT_CONFIGS)  # it registers what is exported
    from optimum.exporters.tasks import TasksManager

    kind = type(config)
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            config.model_type, "onnx", library_name="transformers"
        )
    except KeyError:  # not a model type that Optimum exports
        return []
    found = []
    for task, constructor in tasks.items():
        if task.endswith("-with-past"):
            continue
        loader = TasksManager.get_model_class_for_task(
            task, model_type=config.model_type, library="transformers"
        )
        mapping = CLASSES_OF_AUTO_CLASS.of(loader)
        if mapping is None:
            classes: Iterable[type] = [loader]
        elif kind in mapping:
            classes = mapping[kind] if isinstance(mapping[kind], tuple) else [mapping[kind]]
        else:
            continue
        try:
            outputs = constructor(config).outputs
        except ValueError:  # a model that is exported in parts, each with outputs of its own
            outputs = None
        found += [Candidate(model_class, config, task, outputs) for model_class in classes]
    return found


def source_trees(source: str, *, trust_remote_code: bool = False) -> list[ModuleTree]:
    """Return the trees of a source model, without loading it if its config is enough.

    Raises:
        ModelExportError: There is no such model, or its classes cannot be built.
    """
    require_packages("transformers", "torch")
    if not source:
        raise UsageError("the model's name is empty")
    directory = Path(source)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            directory = Path(snapshot_download(source, allow_patterns=["*.json", "*.py"]))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ModelExportError(
                f"{source} is neither a directory nor a model that can be fetched: "
                f"{first_line(error)}"
            ) from error
    own_code = [] if trust_remote_code else find_own_code(directory)
    refuse_needed(source, own_code)
    with own_code_refused(directory, trusted=trust_remote_code):
        if (directory / "modules.json").exists():
            return _sentence_transformer_trees(source, trust_remote_code)
        if (directory / "model_index.json").exists():
            parts = sorted(path.parent for path in directory.glob("*/config.json"))
        else:
            parts = [directory]
        found = [
            candidate.tree()
            for part in parts
            for candidate in candidates(part, trust_remote_code=trust_remote_code)
        ]
    if not found and own_code:
        raise ModelExportError(f"{source} has {in_words(own_code)}")
    if not found:
        raise ModelExportError(
            f"config.json of {source} does not name the class of the model: give another source "
            "with --model"
        )
    return found


def _sentence_transformer_trees(source: str, trust_remote_code: bool) -> list[ModuleTree]:
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(source, device="cpu", trust_remote_code=trust_remote_code)
    except Exception as error:  # its modules' classes may raise anything about their files
        pickled = pickled_code(error)
        raise ModelExportError(
            f"{source} has {pickled}"
            if pickled
            else f"sentence-transformers cannot load {source}: {first_line(error)}"
        ) from error
    return model_trees(model)
