"""The task and the library of a model on disk or in memory, as Optimum names them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.exporting.optimum_errors import no_export_of
from modelexport_optimum.system.packages import require_optimum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def library_of_export(directory: Path, root_classes: Iterable[str]) -> str:
    """Return the library of an existing export, in Optimum's name."""
    if (directory / "model_index.json").is_file():
        return "diffusers"
    return "sentence_transformers" if "SentenceTransformer" in root_classes else "transformers"


def task_of_directory(directory: Path, library: str, options: Mapping[str, Any]) -> str:
    """Return the task of a model on disk, which Optimum infers only for names on the Hub.

    It is the task with past if that is Optimum's default.

    Raises:
        UsageError: Its config.json does not tell.
        ModelExportError: Optimum exports no model of its type.
    """
    require_optimum()
    from optimum.exporters.onnx import model_configs  # noqa: F401 (they register themselves)
    from optimum.exporters.tasks import TasksManager

    from modelexport_optimum.module_trees.model_classes import candidates, class_named

    if library == "sentence_transformers":
        return "feature-extraction"
    if library == "diffusers":
        import diffusers

        described = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
        name = described.get("_class_name")
        pipeline = class_named(name, diffusers, diffusers.DiffusionPipeline)
        if pipeline is None:
            raise ModelExportError(
                f"{directory / 'model_index.json'}: diffusers {diffusers.__version__} "
                f"has no pipeline {name}"
            )
        return str(TasksManager.infer_task_from_model(pipeline))
    described = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model_type = described.get("model_type", "")
    try:
        supported = TasksManager.get_supported_tasks_for_model_type(
            model_type, "onnx", library_name=library
        )
    except KeyError as error:
        if model_type and not options.get("custom_onnx_configs"):
            raise ModelExportError(no_export_of(model_type)) from error
        supported = {}
    architecture = next(iter(described.get("architectures") or ()), None)
    found = next(iter(candidates(directory)), None)
    if found is None or not found.task or found.model_class.__name__ != architecture:
        raise UsageError(
            f"the task of {architecture or directory} cannot be detected from its config.json: "
            "give --task"
        )
    if f"{found.task}-with-past" in supported and not options.get("monolith"):
        return f"{found.task}-with-past"
    return found.task


def task_of_model(model: Any, library: str, directory: Path, options: Mapping[str, Any]) -> str:  # noqa: ANN401
    """Return the task of a model in memory, whose configuration is saved in a directory."""
    from optimum.exporters.tasks import TasksManager

    if library == "diffusers":
        return str(TasksManager.infer_task_from_model(model))
    if library == "transformers":
        model.config.save_pretrained(directory)
        name_architecture(directory / "config.json", model)
    return task_of_directory(directory, library, options)


def name_architecture(config: Path, model: Any) -> None:  # noqa: ANN401
    """Write the exported class into config.json.

    Optimum keeps the class of the checkpoint, which is wrong if the model was loaded for another
    task.
    """
    import torch
    from transformers import PreTrainedModel

    if not isinstance(model, torch.nn.Module) or not config.is_file():
        return
    # config.json is that of the first transformers model: the root, or one within it.
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            break
    else:
        return
    # A class derived in a script is not one that transformers can find by its name.
    loadable = ("transformers", "transformers_modules")
    classes = [c for c in type(module).__mro__ if c.__module__.partition(".")[0] in loadable]
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.get("architectures") != [classes[0].__name__]:
        content["architectures"] = [classes[0].__name__]
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def library_of_model(model: Any) -> str:  # noqa: ANN401
    """Return Optimum's name of the library of a model in memory, by the bases of its class.

    Raises:
        UsageError: Optimum exports no models of its library.
    """
    from optimum.exporters.tasks import TasksManager

    libraries = ("transformers", "sentence_transformers", "diffusers", "timm")
    for base in type(model).__mro__:
        if base.__module__.partition(".")[0] in libraries:
            library: str = TasksManager.infer_library_from_model(base)
            return library
    raise UsageError(
        f"a {type(model).__name__} cannot be exported: give a name, a directory, "
        f"or a model of {', '.join(libraries)}"
    )
