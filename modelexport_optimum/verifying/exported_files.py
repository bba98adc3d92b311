"""What an exported directory is: its graphs, its library and task, the model it describes.

All of it is read from JSON and from the graphs' headers. Tasks, their outputs and model
classes are asked of Optimum: there is no table of architectures. Nothing is judged here
(that is `verify.py`), no weight is read and no session opened.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, UsageError, first_line
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import walk_initializers
from modelexport_optimum.own_code import find_own_code, in_words
from modelexport_optimum.tagging.model_classes import Candidate, candidates, class_named
from modelexport_optimum.verifying.described_model import compared_shapes, described_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PretrainedConfig

    from modelexport_optimum.onnx_file.skeleton import Graph, Tensor

    Shape = tuple[int | str | None, ...]

CACHE_PREFIXES = ("past_key_values", "present")
"""How Optimum's names of a decoder's cached keys and values begin, as inputs and outputs."""


@dataclass(frozen=True)
class Exported:
    """An exported directory, as far as it can be read.

    Attributes:
        directory: where it is.
        graphs: the `.onnx` files that could be read, by path below the directory.
        unreadable: the other `.onnx` files, each with the reason.
        settings: config.json, or model_index.json, as it stands.
        settings_error: what is wrong with it, "" if nothing is.
        config: what transformers makes of config.json.
        library: Optimum's name of the library that the model is of.
        classes: the classes that config.json may describe, with their tasks.
        declared: the tasks of those that `architectures` names.
        shown: the tasks whose outputs the graphs have.
        task: what the export is for, None if neither tells.
        trust_remote_code: whether code in the directory may run.
    """

    directory: Path
    graphs: dict[str, Graph]
    unreadable: dict[str, str]
    settings: dict[str, Any]
    settings_error: str = ""
    config: PretrainedConfig | None = None
    library: str = "transformers"
    classes: Sequence[Candidate] = ()
    declared: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    task: str | None = None
    trust_remote_code: bool = False

    @property
    def inputs(self) -> set[str]:
        """The names of all graphs' inputs."""
        return {value.name for graph in self.graphs.values() for value in graph.inputs}

    @property
    def outputs(self) -> dict[str, Shape]:
        """The outputs that show the task: those of the decoder, if there is one."""
        decoders = [name for name in self.graphs if "decoder" in Path(name).name]
        found: dict[str, Shape] = {}
        for name in decoders[:1] or self.graphs:
            for value in self.graphs[name].outputs:
                if not value.name.startswith(CACHE_PREFIXES):
                    found.setdefault(value.name, value.shape or ())
        return found

    @property
    def initializers(self) -> dict[str, list[Tensor]]:
        """The headers of each file's initializers, nested graphs' included."""
        return {file: list(walk_initializers(graph)) for file, graph in self.graphs.items()}

    @property
    def uses_cache(self) -> bool:
        """Whether a decoder takes cached keys and values."""
        return any(name.startswith(CACHE_PREFIXES) for name in self.inputs)


def read_exported(
    directory: Path, *, task: str | None, library: str | None, trust_remote_code: bool
) -> Exported:
    """Read what can be read of an exported directory.

    Args:
        directory: where it is.
        task: what it is for, if it shall not be found out.
        library: the library of the model, if it shall not be found out.
        trust_remote_code: whether code in the directory may run.

    Raises:
        UsageError: there is nothing to check, or no such task.
    """
    if not directory.is_dir():
        reason = "is a file" if directory.exists() else "does not exist"
        raise UsageError(f"{directory} {reason}: give an exported directory")
    files = sorted(path for path in directory.rglob("*.onnx") if not path.name.startswith("."))
    if not files:
        raise UsageError(f"{directory} has no .onnx file: give the directory of an export")
    graphs: dict[str, Graph] = {}
    unreadable: dict[str, str] = {}
    for file in files:
        name = file.relative_to(directory).as_posix()
        try:
            graphs[name] = read_model(file).graph
        except ModelExportError as error:
            unreadable[name] = str(error).replace(str(file), name)
    settings, wrong = _read_settings(directory)
    exported = Exported(
        directory,
        graphs,
        unreadable,
        settings,
        settings_error=wrong,
        library=library or _find_library(directory, settings),
        task=None if task is None else _known_task(task),
        trust_remote_code=trust_remote_code,
    )
    if not wrong and not trust_remote_code:
        needed = [one for one in find_own_code(directory) if one.needed]
        wrong = f"the export has {in_words(needed)}" if needed else ""
    if wrong:
        return replace(exported, settings_error=wrong)
    if exported.library == "diffusers":
        found, wrong = _pipeline_task(settings)
        return replace(exported, task=exported.task or found, settings_error=wrong)
    if exported.library == "timm":  # the one task that Optimum exports its models for
        return replace(exported, task=exported.task or "image-classification")
    config, wrong = _load_config(exported)
    if config is None:
        return replace(exported, settings_error=wrong)
    try:
        return _with_tasks(replace(exported, config=config))
    except Exception as error:  # Optimum takes the values in config.json for right
        return replace(exported, settings_error=f"config.json is wrong: {first_line(error)}")


def _read_settings(directory: Path) -> tuple[dict[str, Any], str]:
    for name in ("model_index.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return {}, f"{name} is not JSON: {first_line(error)}"
        if not isinstance(settings, dict):
            return {}, f"{name} is not a JSON object"
        return settings, ""
    return {}, "there is no config.json: copy the model's own beside the graphs"


def _known_task(task: str) -> str:
    """Optimum's own name of a task, without the suffix that says how decoders are split."""
    from optimum.exporters.tasks import TasksManager

    name: str = TasksManager.map_from_synonym(task.removesuffix("-with-past"))
    known = sorted(TasksManager.get_all_tasks())
    if name not in known:
        raise UsageError(f"task {task!r} is not one of {', '.join(known)}")
    return name


def _find_library(directory: Path, settings: Mapping[str, Any]) -> str:
    from optimum.exporters.tasks import TasksManager

    if "export_model_type" in settings:  # Optimum's exporter writes it for this library
        return "sentence_transformers"
    if not settings:
        return "transformers"
    try:
        library: str = TasksManager.infer_library_from_model(str(directory))
    except (TypeError, ValueError):  # wrong values in config.json, of which _load_config tells
        return "transformers"
    return library


def _pipeline_task(index: Mapping[str, Any]) -> tuple[str | None, str]:
    """The task of a diffusion pipeline, and what is wrong with its class."""
    from optimum.exporters.tasks import TasksManager

    try:
        import diffusers
    except ImportError:
        return None, "model_index.json is a diffusion pipeline's: pip install diffusers"
    name = index.get("_class_name")
    if not isinstance(name, str):
        return None, "model_index.json has no _class_name: copy it from the model's own"
    pipeline = class_named(name, diffusers, diffusers.DiffusionPipeline)
    if pipeline is None:
        return None, f"model_index.json: diffusers {diffusers.__version__} has no class {name}"
    try:
        return TasksManager.infer_task_from_model(pipeline), ""
    except ValueError:  # it is in none of diffusers' mappings
        return None, ""


def _load_config(exported: Exported) -> tuple[PretrainedConfig | None, str]:
    import transformers

    # AutoConfig would guess a missing model_type from the directory's name.
    model_type = exported.settings.get("model_type")
    if not isinstance(model_type, str):
        return None, "config.json has no model_type: copy it from the model's own config.json"
    custom = "AutoConfig" in exported.settings.get("auto_map", {})
    if custom and not exported.trust_remote_code:
        return None, f"config.json has {in_words(find_own_code(exported.directory))}"
    if not custom and model_type not in transformers.CONFIG_MAPPING:
        version = transformers.__version__
        return None, f"config.json: transformers {version} knows no model_type {model_type!r}"
    try:
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            exported.directory, trust_remote_code=custom, local_files_only=True
        )
    except Exception as error:  # a configuration class may raise anything about its values
        return None, f"transformers cannot read config.json: {first_line(error)}"
    return config, ""


# --- The task -----------------------------------------------------------------------------------


def _with_tasks(exported: Exported) -> Exported:
    """Find the tasks that `architectures` and the graphs tell, and decide for one."""
    import optimum.exporters.onnx.model_configs  # noqa: F401 (registers what Optimum exports)

    assert exported.config is not None
    try:
        classes = candidates(exported.directory, trust_remote_code=exported.trust_remote_code)
    except OSError:  # config.json names code that is not in the directory
        classes = candidates(exported.directory)
    named = set(exported.config.architectures or ())
    declared = _declared_custom(exported.settings, named)
    for found in classes:
        if found.model_class.__name__ in named:
            declared.add(found.task or _task_of_class(found.model_class))
    known = {found.task: found.outputs for found in classes if found.outputs is not None}
    if not any(found.task for found in classes):  # Optimum does not know the model type
        known = dict(_common_outputs())
    outputs = exported.outputs
    library, shown = exported.library, _fitting(outputs, known)
    if library == "sentence_transformers":
        wrapped = _fitting(outputs, _wrapped_outputs(exported.config))
        # The library's directories may hold an export of the plain model, too.
        library, shown = ("transformers", shown) if shown[0] < wrapped[0] else (library, wrapped)
    exported = replace(
        exported,
        library=library,
        classes=classes,
        declared=tuple(sorted(declared - {""})),
        shown=tuple(shown[1]),
    )
    return exported if exported.task else replace(exported, task=_decide(exported))


def _task_of_class(model_class: type) -> str:
    """The task of a class that Optimum does not export, "" if it knows none."""
    from optimum.exporters.tasks import TasksManager

    try:
        task: str = TasksManager.infer_task_from_model(model_class)
    except ValueError:
        return ""
    return task


def _declared_custom(settings: Mapping[str, Any], named: set[str]) -> set[str]:
    """The tasks of named classes that are custom code: of the auto classes that load them."""
    import transformers
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    return {
        _task_of_class(loader)
        for name, reference in settings.get("auto_map", {}).items()
        if str(reference).rpartition(".")[2] in named
        and (loader := class_named(name, transformers, _BaseAutoModelClass))
    }


def _fitting(
    outputs: Mapping[str, Shape], known: Mapping[str, Mapping[str, Mapping[int, str]]]
) -> tuple[tuple[int, ...], list[str]]:
    """The tasks whose outputs these are, with how badly they fit; of several, the best."""
    misfits = {task: _misfit(outputs, expected) for task, expected in known.items()}
    found = {task: misfit for task, misfit in misfits.items() if misfit is not None}
    best = min(found.values(), default=(sys.maxsize,))
    return best, [task for task, misfit in found.items() if misfit == best]


def _misfit(
    outputs: Mapping[str, Shape], expected: Mapping[str, Mapping[int, str]]
) -> tuple[int, ...] | None:
    """How badly the outputs fit a task's, None if they cannot be its outputs.

    Counts outputs whose dynamic axes are others, outputs that are missing, and axes that
    have another name: the exporter gives the graph's axes the names of the task's.
    """
    expected = {n: axes for n, axes in expected.items() if not n.startswith(CACHE_PREFIXES)}
    if not outputs or not outputs.keys() <= expected.keys():
        return None
    other_axes = other_names = 0
    for name, shape in outputs.items():
        axes = expected[name]
        if any(axis >= len(shape) for axis in axes):
            return None
        dynamic = {axis: dim for axis, dim in enumerate(shape) if not isinstance(dim, int)}
        if dynamic:  # a graph of fixed shapes tells nothing by them
            other_axes += dynamic.keys() != axes.keys()
            other_names += sum(dynamic.get(axis) != dim for axis, dim in axes.items())
    return other_axes, len(expected.keys() - outputs.keys()), other_names


def _common_outputs() -> Mapping[str, Mapping[str, Mapping[int, str]]]:
    """What Optimum's export configurations give by default to each task."""
    from optimum.exporters.onnx import OnnxConfig

    common: Mapping[str, Mapping[str, Mapping[int, str]]] = OnnxConfig._TASK_TO_COMMON_OUTPUTS
    return common


def _wrapped_outputs(config: PretrainedConfig) -> Mapping[str, Mapping[str, Mapping[int, str]]]:
    task = "feature-extraction"  # the one that Optimum exports models of this library for
    onnx_config = export_config(config, task, "sentence_transformers")
    return {} if onnx_config is None else {task: onnx_config.outputs}


def export_config(
    config: PretrainedConfig,
    task: str,
    library: str,
    preprocessors: Iterable[Any] = (),
) -> Any:  # noqa: ANN401 (an OnnxConfig)
    """Optimum's export configuration, None if it exports no such model for the task.

    Args:
        config: the model's configuration.
        task: Optimum's name of the task.
        library: Optimum's name of the model's library.
        preprocessors: the model's tokenizer and processors, which give some input shapes.
    """
    from optimum.exporters.tasks import TasksManager

    model_type = config.model_type
    if library == "sentence_transformers":
        model_type = getattr(config, "export_model_type", "transformer")
    try:
        constructor = TasksManager.get_exporter_config_constructor(
            exporter="onnx", task=task, model_type=model_type, library_name=library
        )
    except (KeyError, ValueError):  # not a model type, not a task of it
        return None
    return constructor(config, preprocessors=list(preprocessors))


def _decide(exported: Exported) -> str | None:
    """Decide between the tasks that the outputs and the architecture leave open."""
    both = [task for task in exported.shown if task in exported.declared]
    tasks = both or list(exported.shown) or list(exported.declared)
    if len(tasks) > 1:
        tasks = [task for task in tasks if has_common_outputs(exported, task)] or tasks
    if len(tasks) > 1:

        def carried(task: str) -> int:
            described = described_models(replace(exported, task=task))
            return sum(len(pairs) for pairs in compared_shapes(exported, described).values())

        # The head's parameters tell fill-mask from token-classification.
        tasks.sort(key=carried, reverse=True)
    return tasks[0] if tasks else None


def has_common_outputs(exported: Exported, task: str) -> bool:
    """Whether the graphs have the outputs that a task's models have in common in Optimum."""
    common = _common_outputs().get(task)
    return common is not None and common.keys() <= exported.outputs.keys()


# --- The model that config.json describes -------------------------------------------------------


def configured(config: PretrainedConfig | None, name: str) -> int | None:
    """The largest number that a configuration or one of its parts has under a name."""
    from transformers import PretrainedConfig

    if config is None:
        return None
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    found: list[Any] = []
    for part in (config, *parts):
        value = getattr(part, name, None)
        found += value if isinstance(value, list | tuple) else [value]
    numbers = [n for n in found if isinstance(n, int) and not isinstance(n, bool)]
    return max(numbers, default=None)


def precision(exported: Exported) -> str:
    """The floating point type of the weights."""
    from onnx import TensorProto

    found = {tensor.data_type for own in exported.initializers.values() for tensor in own}
    for kind, name in ((TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT16, "float16")):
        if kind in found:
            return name
    return "float32"
