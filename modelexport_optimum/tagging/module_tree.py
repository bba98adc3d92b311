"""The module tree as plain data: path, class, parameters' shapes.

It is made from a model in memory, from an exported directory (the model is built on the
meta device, so that no weight is loaded), or, where the classes cannot be known, from the
names in a graph. It keeps no reference to the model.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modelexport_optimum.errors import ModelExportError, first_line
from modelexport_optimum.own_code import (
    find_own_code,
    in_words,
    own_code_refused,
    pickled_code,
    refuse_needed,
)
from modelexport_optimum.system.private_names import (
    CLASS_OF_REMOTE_CODE,
    EMPTY_WEIGHTS,
    NO_INITIALIZATION,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    import torch

# What every module is, for a tree whose classes cannot be known.
UNKNOWN_CLASS = "torch.nn.Module"


@dataclass(frozen=True, slots=True)
class Module:
    """One module under one of its paths.

    Attributes:
        path: As `named_modules(remove_duplicate=False)` spells it; "" for the root.
        qualified: Its class with the class's Python module.
        primary: The first of its paths; equal for all paths of one module.
        has_forward: It can be called. A ModuleList or ModuleDict cannot.
    """

    path: str
    qualified: str
    primary: str
    has_forward: bool = True

    @property
    def module_class(self) -> str:
        """Class name."""
        return self.qualified.rpartition(".")[2]


@dataclass(slots=True)
class ModuleTree:
    """The modules of one model.

    Attributes:
        modules: Every path to its module, in the order of `named_modules`.
        tensors: Shape of every parameter and buffer, under every name.
        tied: For each name of a parameter or buffer that has several, all of them.
        classes_known: False if the tree was made from names alone.
        build: Gives the model once more, with or without its weights, or None if it cannot.
    """

    modules: dict[str, Module] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tied: dict[str, list[str]] = field(default_factory=dict)
    classes_known: bool = True
    build: Callable[[], torch.nn.Module | None] = field(
        default=lambda: None, repr=False, compare=False
    )

    @property
    def root_class(self) -> str:
        """Class name of the root."""
        return self.modules[""].module_class

    @classmethod
    def from_module(cls, model: torch.nn.Module) -> ModuleTree:
        """Reads the tree of a model in memory, on any device.

        Args:
            model: The model; only names, classes and shapes are read.
        """
        import torch

        tree = cls()
        primary: dict[int, str] = {}
        unimplemented = torch.nn.Module.forward
        for path, module in model.named_modules(remove_duplicate=False):
            first = primary.setdefault(id(module), path)
            kind = type(module)
            name = f"{kind.__module__}.{kind.__name__}"
            has_forward = kind.forward is not unimplemented or "forward" in vars(module)
            tree.modules[path] = Module(path, name, first, has_forward)
        names: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    if tensor is not None:
                        tree.tensors[prefix + name] = tuple(tensor.shape)
                        names.setdefault(id(tensor), []).append(prefix + name)
        tree.tied = {name: same for same in names.values() if len(same) > 1 for name in same}
        tree.build = weakref.ref(model)  # the tree is not what keeps a model in memory
        return tree

    @classmethod
    def from_names(
        cls, scopes: Iterable[str], tensors: Mapping[str, tuple[int, ...]]
    ) -> ModuleTree:
        """Guesses the paths, without classes, from the names in a graph.

        Args:
            scopes: Scopes of nodes, `/bert/encoder/layer.0`.
            tensors: Named parameters and their shapes.
        """
        paths: dict[str, None] = {"": None}
        for scope in scopes:
            path = label = ""
            for following in scope.split("/")[1:]:
                # A Sequential's children carry its own label: `layer1/layer1.0`.
                if label and following.startswith(f"{label}."):
                    following = following[len(label) + 1 :]
                    label = f"{label}.{following}"
                else:
                    label = following
                path = f"{path}.{following}" if path else following
                paths[path] = None
        # A name without a path is as likely one that the exporter made: `onnx::MatMul_12`.
        named = {name: shape for name, shape in tensors.items() if "." in name}
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


def model_trees(model: object) -> list[ModuleTree]:
    """The trees of a model in memory: its own, or one for each component of a pipeline.

    Args:
        model: A `torch.nn.Module`, or what holds some in its `components`, as a
            `DiffusionPipeline` does.

    Raises:
        ModelExportError: It is neither.
    """
    import torch

    if isinstance(model, torch.nn.Module):
        return [ModuleTree.from_module(model)]
    components = getattr(model, "components", None)
    if isinstance(components, dict):
        modules = [part for part in components.values() if isinstance(part, torch.nn.Module)]
        if modules:
            return [ModuleTree.from_module(part) for part in modules]
    raise ModelExportError(
        f"a {type(model).__name__} has no module tree: give a torch.nn.Module or a pipeline"
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class that may have been exported.

    Attributes:
        model_class: The class.
        config: What it is built from.
        task: Optimum's name of the task it is exported for, or "".
        outputs: Names of the exported graph's outputs to their named axes, or None if
            Optimum does not say.
    """

    model_class: type
    config: Any
    task: str = ""
    outputs: Mapping[str, Mapping[int, str]] | None = None

    def tree(self) -> ModuleTree:
        """Builds the model on the meta device and reads its tree."""
        tree = ModuleTree.from_module(build_empty(self.model_class, self.config))
        tree.build = lambda: build_empty(self.model_class, self.config)
        return tree


def build_empty(model_class: type, config: Any) -> torch.nn.Module:  # noqa: ANN401
    """Builds a model without weights, in the way that `from_pretrained` prepares one.

    Args:
        model_class: A class of transformers or diffusers.
        config: Its configuration.
    """
    no_init_weights, init_empty_weights = NO_INITIALIZATION.get(), EMPTY_WEIGHTS.get()
    with no_init_weights(), init_empty_weights():
        if hasattr(model_class, "_from_config"):
            model = model_class._from_config(config)
        elif hasattr(model_class, "from_config"):
            model = model_class.from_config(config)
        else:
            model = model_class(config)
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            module.tie_weights()  # what was tied before was put on the meta device one by one
    return cast("torch.nn.Module", model)


def candidates(directory: Path, *, trust_remote_code: bool = False) -> list[Candidate]:
    """The classes that an exported or source directory's config.json may describe.

    The class that the config names comes first; it may be that of the checkpoint rather
    than of the export, so the other classes of its model type follow, with what Optimum
    knows of their outputs.

    Args:
        directory: Directory of a config.json.
        trust_remote_code: Whether the code that the config names may be run.

    Returns:
        The classes; none if there is no config, or it describes nothing that is known.
    """
    try:
        described = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(described, dict):
        return []
    if "_class_name" in described:
        return _diffusers_candidates(described)
    if "model_type" not in described:
        return []
    return _transformers_candidates(directory, described, trust_remote_code)


def class_named(name: object, package: ModuleType, base: type) -> Any:  # noqa: ANN401 (a subclass)
    """A class that a file names, looked up among the models of a package.

    Args:
        name: What the file says.
        package: The library's package, which also holds functions and modules of its own.
        base: The class of all that is meant.

    Returns:
        The class, or None if there is none of that name.
    """
    try:
        found = getattr(package, name, None) if isinstance(name, str) else None
    except ImportError:  # the class needs a library that is not installed
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def _diffusers_candidates(described: dict[str, Any]) -> list[Candidate]:
    import diffusers

    model_class = class_named(described["_class_name"], diffusers, diffusers.ModelMixin)
    return [] if model_class is None else [Candidate(model_class, described)]


def _transformers_candidates(
    directory: Path, described: dict[str, Any], trust_remote_code: bool
) -> list[Candidate]:
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
        except OSError:  # Optimum does not copy the code: it is not beside an exported config
            return []
    if "AutoConfig" in custom or described["model_type"] not in transformers.CONFIG_MAPPING:
        return []
    config = transformers.AutoConfig.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True
    )
    named = [
        Candidate(model_class, config)
        for name in described.get("architectures") or []
        if (model_class := class_named(name, transformers, transformers.PreTrainedModel))
    ]
    by_task = exportable_classes(config)
    tasks = {other.model_class: other for other in by_task}
    named = [tasks.get(candidate.model_class, candidate) for candidate in named]
    return [*named, *(other for other in by_task if other not in named)]


def exportable_classes(config: Any) -> list[Candidate]:  # noqa: ANN401
    """The classes of a model type that Optimum exports, with the outputs that it gives them."""
    import optimum.exporters.onnx.model_configs  # noqa: F401 (registers what is exported)
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
        mapping = getattr(loader, "_model_mapping", None)
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
    """The trees of a source model, which is not loaded where its config is enough.

    Args:
        source: Hub name or local directory.
        trust_remote_code: Whether the code in its repository may be run.

    Raises:
        ModelExportError: There is no such model, or its classes cannot be built.
    """
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
        raise ModelExportError(f"the classes of {source} cannot be known from its config.json")
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
