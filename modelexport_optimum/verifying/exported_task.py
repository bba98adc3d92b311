"""The task of an export, from config.json and the outputs of the graphs."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelexport_optimum.module_trees.export_json import exported_architectures
from modelexport_optimum.module_trees.model_classes import candidates, class_named
from modelexport_optimum.system.packages import has_optimum
from modelexport_optimum.system.private_names import AUTO_CLASS, COMMON_OUTPUTS
from modelexport_optimum.verifying.described_model import compared_shapes, described_models
from modelexport_optimum.verifying.exported_files import CACHE_PREFIXES, Exported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig

    from modelexport_optimum.verifying.exported_files import Shape

    Axes = Mapping[str, Mapping[int, str]]
    """Outputs by name, each with the names of its dynamic axes."""


def with_tasks(exported: Exported) -> Exported:
    """Find the tasks of `architectures` and of the graphs, and choose one."""
    assert exported.config is not None
    try:
        classes = candidates(exported.directory, trust_remote_code=exported.trust_remote_code)
    except OSError:  # config.json names code that is not in the directory
        classes = candidates(exported.directory)
    named = set(exported.config.architectures or exported_architectures(exported.directory))
    declared = _declared_custom(exported.settings, named)
    for found in classes:
        if found.model_class.__name__ in named:
            declared.add(found.task or _task_of_class(found.model_class))
    known = {found.task: found.outputs for found in classes if found.outputs is not None}
    if not any(found.task for found in classes):  # Optimum does not know the model type
        known = dict(_common_outputs())
    outputs = exported.outputs
    library, shown = exported.library, _tasks_of_outputs(outputs, known)
    if library == "sentence_transformers":
        wrapped = _tasks_of_outputs(outputs, _wrapped_outputs(exported.config))
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
    """Return the task of a class that Optimum does not export, "" if it knows none."""
    if not has_optimum():
        return ""
    from optimum.exporters.tasks import TasksManager

    try:
        task: str = TasksManager.infer_task_from_model(model_class)
    except ValueError:
        return ""
    return task


def _declared_custom(settings: Mapping[str, Any], named: set[str]) -> set[str]:
    """Return the tasks of classes of custom code: the tasks of the auto classes that load them."""
    import transformers

    return {
        _task_of_class(loader)
        for name, reference in settings.get("auto_map", {}).items()
        if str(reference).rpartition(".")[2] in named
        and (loader := class_named(name, transformers, AUTO_CLASS.get()))
    }


def _tasks_of_outputs(
    outputs: Mapping[str, Shape], known: Mapping[str, Axes]
) -> tuple[tuple[int, ...], list[str]]:
    """Return the tasks that fit the outputs best, each with its mismatch."""
    mismatches = {task: _mismatch(outputs, expected) for task, expected in known.items()}
    found = {task: mismatch for task, mismatch in mismatches.items() if mismatch is not None}
    best = min(found.values(), default=(sys.maxsize,))
    return best, [task for task, mismatch in found.items() if mismatch == best]


def _mismatch(outputs: Mapping[str, Shape], expected: Axes) -> tuple[int, ...] | None:
    """Return how much the outputs differ from a task's, None if they cannot be its outputs.

    It counts outputs with other dynamic axes, missing outputs, and axes with another name; the
    exporter gives the graph's axes the names of the task's axes.
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
        if dynamic:  # the shapes of a fixed graph show nothing
            other_axes += dynamic.keys() != axes.keys()
            other_names += sum(dynamic.get(axis) != dim for axis, dim in axes.items())
    return other_axes, len(expected.keys() - outputs.keys()), other_names


def _common_outputs() -> Mapping[str, Axes]:
    """Return the default outputs of each task in Optimum's export configurations."""
    common: Mapping[str, Axes] = COMMON_OUTPUTS.get() if has_optimum() else {}
    return common


def _wrapped_outputs(config: PretrainedConfig) -> Mapping[str, Axes]:
    """Return the outputs of a sentence-transformers model, by the task of its export.

    There are none if Optimum exports no such model.
    """
    from optimum.exporters.tasks import TasksManager

    task = "feature-extraction"  # the only one that Optimum exports models of this library for
    try:
        export_config = TasksManager.get_exporter_config_constructor(
            exporter="onnx",
            task=task,
            model_type=getattr(config, "export_model_type", "transformer"),
            library_name="sentence_transformers",
        )
    except (KeyError, ValueError):  # not a model type, not a task of it
        return {}
    return {task: export_config(config).outputs}


def _decide(exported: Exported) -> str | None:
    """Choose among the tasks that fit the outputs and the architecture."""
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
    """Return whether the graphs have the common outputs of a task's models in Optimum."""
    common = _common_outputs().get(task)
    return common is not None and common.keys() <= exported.outputs.keys()
