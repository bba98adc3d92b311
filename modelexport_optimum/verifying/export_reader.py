"""Reading an exported directory: its graphs, its library, config and task.

It reads only JSON and the graphs' headers. Tasks, their outputs and model classes come from
Optimum: there is no table of architectures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, UsageError, first_line
from modelexport_optimum.module_trees.model_classes import class_named
from modelexport_optimum.onnx_file.find import onnx_files_by_name
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.own_code.named_code import find_own_code, in_words
from modelexport_optimum.system.json_files import parse_json
from modelexport_optimum.system.lean_imports import EXPORTER, import_diffusers, import_lean
from modelexport_optimum.system.packages import has_optimum
from modelexport_optimum.verifying.exported_files import Exported
from modelexport_optimum.verifying.exported_task import with_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PretrainedConfig

    from modelexport_optimum.onnx_file.skeleton import Model


def read_exported(
    directory: Path, *, task: str | None, library: str | None, trust_remote_code: bool
) -> Exported:
    """Read an exported directory, as far as possible.

    Raises:
        UsageError: There is nothing to check, or no such task.
    """
    if not directory.is_dir():
        reason = "is a file" if directory.exists() else "does not exist"
        raise UsageError(f"{directory} {reason}: give an exported directory")
    if has_optimum():
        import_lean(EXPORTER)
    models: dict[str, Model] = {}
    unreadable: dict[str, str] = {}
    for name, file in onnx_files_by_name(directory).items():
        try:
            models[name] = read_model(file)
        except ModelExportError as error:
            unreadable[name] = str(error).replace(str(file), name)
    settings, wrong = _read_settings(directory)
    exported = Exported(
        directory,
        models,
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
        return with_tasks(replace(exported, config=config))
    except Exception as error:  # Optimum takes the values in config.json for right
        return replace(exported, settings_error=f"config.json is wrong: {first_line(error)}")


def _read_settings(directory: Path) -> tuple[dict[str, Any], str]:
    for name in ("model_index.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            settings = parse_json(path.read_bytes(), doubles=True)
        except (OSError, ValueError) as error:
            return {}, f"{name} is not JSON: {first_line(error)}"
        if not isinstance(settings, dict):
            return {}, f"{name} is not a JSON object"
        return settings, ""
    return {}, "there is no config.json: copy the one of the model next to the graphs"


def _known_task(task: str) -> str:
    """Return Optimum's own name of a task, without the suffix for the split of decoders."""
    if not has_optimum():
        return task.removesuffix("-with-past")
    from optimum.exporters.tasks import TasksManager

    name: str = TasksManager.map_from_synonym(task.removesuffix("-with-past"))
    known = sorted(TasksManager.get_all_tasks())
    if name not in known:
        raise UsageError(f"task {task!r} is not one of {', '.join(known)}")
    return name


def _find_library(directory: Path, settings: Mapping[str, Any]) -> str:
    if not settings or not has_optimum():
        return "transformers"
    if "export_model_type" in settings:  # Optimum's exporter writes it for this library
        return "sentence_transformers"
    from optimum.exporters.tasks import TasksManager

    try:
        library: str = TasksManager.infer_library_from_model(str(directory))
    except (TypeError, ValueError):  # wrong values in config.json, of which _load_config tells
        return "transformers"
    return library


def _pipeline_task(index: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the task of a diffusion pipeline, and the problem with its class."""
    from optimum.exporters.tasks import TasksManager

    import_diffusers()
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
    names = exported.settings.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None, "architectures in config.json is not a list of class names: export again"
    auto_map = exported.settings.get("auto_map")
    custom = isinstance(auto_map, dict) and "AutoConfig" in auto_map
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
