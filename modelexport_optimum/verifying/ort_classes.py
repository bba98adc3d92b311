"""The `ORTModel` class with which users load an export.

Optimum chooses it: there is no table of architectures. Nothing is loaded here.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.system.packages import has_optimum
from modelexport_optimum.system.private_names import CLASSES_OF_AUTO_CLASS, DIFFUSION_CLASS
from modelexport_optimum.verifying.exported_task import has_common_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelexport_optimum.verifying.exported_files import Exported


@dataclass(frozen=True)
class Loader:
    """The way to load the export.

    Attributes:
        ort_class: The class of Optimum with which users load it, None for plain sessions.
        reason: Why it is not the class of the task; "" if it is.
    """

    ort_class: Any
    reason: str = ""

    @property
    def name(self) -> str | None:
        """The class's name."""
        return None if self.ort_class is None else str(self.ort_class.__name__)


def find_loader(exported: Exported) -> Loader:
    """Return the `ORTModel` class that loads the export and can run it."""
    if not has_optimum():
        return Loader(None, "Optimum is not installed")
    task = exported.task
    if exported.settings_error or task is None:
        return Loader(None, "it is not known what the model is for")
    if exported.library == "diffusers":
        from optimum.onnxruntime import ORTDiffusionPipeline

        name = exported.settings["_class_name"]
        if DIFFUSION_CLASS.get()(name, throw_error_if_not_exist=False) is None:
            return Loader(None, f"Optimum has no ONNX Runtime pipeline for {name}")
        return Loader(ORTDiffusionPipeline)
    found = _class_of_task(exported, task)
    if found is None:
        return Loader(None, f"Optimum has no ORTModel class for {task}")
    return _usable(exported, task, found)


def _class_of_task(exported: Exported, task: str) -> Any:  # noqa: ANN401 (classes are untyped)
    import optimum.onnxruntime.modeling_decoder
    import optimum.onnxruntime.modeling_seq2seq  # noqa: F401 (with it, all but diffusion)
    import transformers
    from optimum.exporters.tasks import TasksManager
    from optimum.onnxruntime import ORTModel

    config = exported.config
    model_type = None if config is None else config.model_type
    try:
        loaded = TasksManager.get_model_class_for_task(task, model_type=model_type)
    except (KeyError, ValueError):  # no class of transformers does this task with such a model
        return None
    # Optimum also loads with AutoModel what has no auto class of its own.
    if loaded is transformers.AutoModel and task != "feature-extraction":
        return None
    classes = list(_subclasses(ORTModel))
    named = {found.model_class for found in exported.classes if found.task == task}
    for ort_class in classes:
        if ort_class.auto_model_class is loaded:
            return ort_class
    for ort_class in classes:  # some tasks are loaded with a model's own class
        mapping = CLASSES_OF_AUTO_CLASS.of(ort_class.auto_model_class, {})
        if ort_class.auto_model_class is transformers.AutoModel or type(config) not in mapping:
            continue
        if mapping[type(config)] in named:
            return ort_class
    return None


def _subclasses(base: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield Optimum's subclasses that have their own class of transformers."""
    for subclass in base.__subclasses__():
        if subclass.__module__.startswith("optimum.") and "auto_model_class" in vars(subclass):
            yield subclass
        yield from _subclasses(subclass)


def _usable(exported: Exported, task: str, found: Any) -> Loader:  # noqa: ANN401
    """Return the class, or another one if it cannot run these graphs."""
    from optimum.onnxruntime import ORTModelForCustomTasks
    from optimum.onnxruntime.modeling_seq2seq import ORTModelForConditionalGeneration
    from transformers import GenerationMixin

    name = found.__name__
    files = [Path(file).name for file in exported.graphs]
    single = len(files) == 1 or "model.onnx" in files
    if issubclass(found, ORTModelForConditionalGeneration):
        if any("encoder" in file for file in files):
            return Loader(found)
        reason = f"{name} cannot use it: it needs the encoder and the decoder in separate files"
        return Loader(ORTModelForCustomTasks if single else None, reason)
    if not single and not issubclass(found, GenerationMixin):
        return Loader(None, f"{name} cannot use it: it loads one file, but there are {len(files)}")
    if issubclass(found, GenerationMixin):
        return Loader(found)
    if not has_common_outputs(exported, task):
        reason = f"{name} cannot use it, because its outputs have other names: use the former"
        if exported.library == "sentence_transformers":
            reason += ", or export with --library-name transformers"
        return Loader(ORTModelForCustomTasks, reason)
    refused = exported.inputs - inspect.signature(found.forward).parameters.keys()
    if refused:
        inputs = ", ".join(sorted(refused))
        reason = f"{name} cannot use it, because it does not take {inputs}: use the former"
        return Loader(ORTModelForCustomTasks, reason)
    return Loader(found)
