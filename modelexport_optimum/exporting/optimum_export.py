"""Optimum's exporter, driven: which model it exported, and what its errors mean.

Loading and converting are Optimum's (`main_export`, `onnx_export_from_model`). This room
stands between the two to learn the module tree of the very model that is converted, and
does not let a failed comparison with PyTorch take the files away. It neither tags nor
checks nor publishes.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import logging
import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import (
    ModelExportError,
    UsageError,
    did_you_mean,
    first_line,
    one_line,
)
from modelexport_optimum.exporting.companions import copy_companions, fetch_companions
from modelexport_optimum.exporting.hub import explain_hub_error
from modelexport_optimum.exporting.options import check_conflicts
from modelexport_optimum.exporting.source import Source
from modelexport_optimum.exporting.tasks import check_task
from modelexport_optimum.own_code import in_words, own_code_refused, pickled_code
from modelexport_optimum.system.private_names import (
    COMPARISON_WITH_PYTORCH,
    DUMMY_SHAPES,
    EXPORT_OF_LOADED_MODEL,
    LIBRARY_OF_MODEL,
    TOKENIZER_LOADER,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from modelexport_optimum.tagging.module_tree import ModuleTree
    from modelexport_optimum.tagging.traced_graphs import TracedGraph

    Begin = Callable[[str], None]
    """Called with the name of the stage that begins."""


@dataclass(frozen=True)
class ComparisonWithPyTorch:
    """How the outputs of the exported model compare with PyTorch's.

    Attributes:
        status: "ok"; "differs" (by more than Optimum's own tolerance, which it takes for
            a warning); "failed" (by more than the tolerance that was asked for, in their
            shape, or the model did not run); "skipped".
        message: one line.
    """

    status: str
    message: str


@dataclass
class ConvertedModel:
    """What Optimum exported.

    Attributes:
        task: after detection, as Optimum names it.
        library: "transformers", "diffusers", "timm" or "sentence_transformers".
        trees: the modules of the exported model, one tree for each component of a pipeline.
        traced: which module's call made each node of each graph that was traced.
        comparison: its outputs against PyTorch's.
        warnings: what the user must know, a line each.
        model: the directory of the model's files beside its weights, if it has one.
    """

    task: str
    library: str | None = None
    trees: list[ModuleTree] = field(default_factory=list)
    traced: list[TracedGraph] = field(default_factory=list)
    comparison: ComparisonWithPyTorch = ComparisonWithPyTorch(
        "skipped", "Optimum did not compare with PyTorch"
    )
    warnings: list[str] = field(default_factory=list)
    model: Path | None = None


@contextlib.contextmanager
def optimum_imported(begin: Begin) -> Iterator[None]:
    """Import what a run needs, and keep the garbage collector off it in the block.

    Importing makes half a million objects, all of which stay. Looking through them again and
    again would take the collector a second or two of a run.
    """
    begin("import")
    spared = gc.isenabled() and not gc.get_freeze_count()
    if spared:
        gc.disable()
    try:
        import optimum.exporters.onnx.__main__
        import optimum.onnxruntime  # noqa: F401

        if spared:
            gc.freeze()
            gc.enable()
        yield
    finally:
        if spared:
            gc.enable()
            gc.unfreeze()


def check_options(task: str, options: Mapping[str, Any], *, in_memory: bool) -> None:
    """Refuse what can be seen to be wrong before a model is loaded."""
    from optimum.exporters.onnx import main_export, onnx_export_from_model

    function = onnx_export_from_model if in_memory else main_export
    # Both take any further name for the size of a dummy input, and ignore a wrong one.
    known = {*inspect.signature(function).parameters, *DUMMY_SHAPES.get()}
    for name in options:
        if name not in known:
            raise UsageError(
                f"option {name} is unknown to Optimum's {function.__name__}"
                + did_you_mean(name, known)
            )

    check_task(task)
    check_conflicts(task, options)


def export_source(
    source: Source, directory: Path, task: str, options: Mapping[str, Any], begin: Begin
) -> ConvertedModel:
    """Let Optimum load a model and export it."""
    from optimum.exporters.onnx import main_export
    from optimum.exporters.tasks import TasksManager

    exported = ConvertedModel(task, options.get("library_name"))
    trust = bool(options.get("trust_remote_code"))
    if source.own_code:
        exported.warnings.append(f"the model has {in_words(source.own_code)}")

    def export_loaded(*, preprocessors: list[Any], **arguments: Any) -> None:  # noqa: ANN401
        # Optimum looks for the tokenizer in the default revision and cache, and saves only
        # one that lies at the top and needs no code of its own.
        elsewhere = source.directory is None and not source.place.is_default
        if elsewhere:
            preprocessors = _load_preprocessors(source, trust)
        _export_loaded(exported, preprocessors, begin, options, **arguments)
        if elsewhere or source.place.subfolder or trust:
            _save_preprocessors(preprocessors, directory)

    begin("load")
    with (
        _explained(source),
        own_code_refused(source.directory, trusted=trust),
        _random_weights_noted(exported),
        TOKENIZER_LOADER.replaced(_TokenizerLoader(trust)),
        EXPORT_OF_LOADED_MODEL.replaced(export_loaded),
    ):
        if task == "auto" and source.directory is not None:
            subfolder = source.place.subfolder
            library = options.get("library_name") or TasksManager.infer_library_from_model(
                str(source.directory), subfolder=subfolder
            )
            task = _task_of_directory(source.directory / subfolder, library, options)
        main_export(str(source), directory, task=task, **options)
        exported.model = fetch_companions(source)
        pooled = exported.library == "transformers" and exported.task == "feature-extraction"
        copy_companions(exported.model, directory, pooled=pooled)
    return exported


@dataclass(frozen=True)
class _TokenizerLoader:
    """Stands for `AutoTokenizer` where Optimum loads it without saying whether code is trusted.

    transformers asks the user then, on the terminal.
    """

    trust_remote_code: bool

    def from_pretrained(self, name: str) -> Any:  # noqa: ANN401 (a tokenizer)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, trust_remote_code=self.trust_remote_code)


def export_model(
    model: Any,  # noqa: ANN401
    preprocessors: Any,  # noqa: ANN401
    directory: Path,
    task: str,
    options: Mapping[str, Any],
    begin: Begin,
) -> ConvertedModel:
    """Let Optimum export a model in memory, and leave the model as it was."""
    if preprocessors is None:
        preprocessors = []
    elif not isinstance(preprocessors, list | tuple):
        preprocessors = [preprocessors]
    library = _library_of_model(model)

    def infer_library(*_arguments: Any, **_options: Any) -> str:  # noqa: ANN401
        return library

    # Optimum tells the library by the module that defines the class, which is the user's
    # own for a class derived from one of transformers'.
    with (
        _explained(Source(type(model).__name__, None)),
        _unchanged(model),
        LIBRARY_OF_MODEL.replaced(infer_library),
    ):
        if task == "auto":
            task = _task_of_model(model, library, directory, options)
        exported = ConvertedModel(task, library)
        _export_loaded(
            exported,
            list(preprocessors),
            begin,
            options,
            model=model,
            output=directory,
            task=task,
            **options,
        )
        _save_preprocessors(preprocessors, directory)
    return exported


def _export_loaded(
    exported: ConvertedModel,
    preprocessors: Sequence[Any],
    begin: Begin,
    options: Mapping[str, Any],
    *,
    model: Any,  # noqa: ANN401
    output: Path,
    task: str,
    **arguments: Any,  # noqa: ANN401
) -> None:
    """`onnx_export_from_model`, noting what it is given and how its comparison ends."""
    from optimum.exporters.error_utils import AtolError, OutputMatchError
    from optimum.exporters.onnx import convert
    from optimum.exporters.tasks import TasksManager
    from transformers.utils.import_utils import is_accelerate_available

    from modelexport_optimum.tagging.module_tree import model_trees
    from modelexport_optimum.tagging.traced_graphs import traced_graphs

    exported.task = task
    exported.library = TasksManager.infer_library_from_model(model)
    exported.trees = model_trees(model)
    if not is_accelerate_available() and (tied := _tied_parameters(model)):
        exported.warnings.append(
            f"tied weights were not deduplicated ({', '.join(tied)}), since accelerate is not "
            "installed: pip install accelerate, and export again"
        )

    validate = COMPARISON_WITH_PYTORCH.get()

    def compare(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        begin("compare")
        try:
            validate(*args, **kwargs)
        except (AtolError, OutputMatchError) as error:
            asked = options.get("atol") is not None
            exported.comparison = ComparisonWithPyTorch(
                "failed" if asked else "differs", one_line(error)
            )
        except Exception as error:
            exported.comparison = ComparisonWithPyTorch("failed", one_line(error))
        else:
            atol = kwargs.get("atol")
            within = "" if atol is None else f" within {atol:g}"
            exported.comparison = ComparisonWithPyTorch(
                "ok", f"the outputs equal PyTorch's{within}"
            )

    begin("export")
    with (
        COMPARISON_WITH_PYTORCH.replaced(compare),
        traced_graphs(model) as exported.traced,
    ):
        convert.onnx_export_from_model(
            model=model, output=output, task=task, preprocessors=preprocessors, **arguments
        )
    _name_architecture(output / "config.json", model)


def _tied_parameters(model: Any) -> list[str]:  # noqa: ANN401
    """The names under which a model has parameters that it has under another name, too."""
    import torch

    parts = [model] if isinstance(model, torch.nn.Module) else list(model.components.values())
    tied = []
    for part in parts:
        if isinstance(part, torch.nn.Module):
            own = {name for name, _ in part.named_parameters()}
            every = [name for name, _ in part.named_parameters(remove_duplicate=False)]
            tied += [name for name in every if name not in own]
    return tied


def task_of_export(directory: Path, root_classes: Iterable[str]) -> tuple[str, str]:
    """The task and library of an export that exists, as Optimum names them.

    Args:
        directory: The export.
        root_classes: The classes of the models that its files are of, as their tags say.

    Raises:
        UsageError: Its config.json does not tell.
    """
    if (directory / "model_index.json").is_file():
        library = "diffusers"
    elif "SentenceTransformer" in root_classes:
        library = "sentence_transformers"
    else:
        library = "transformers"
    return _task_of_directory(directory, library, {}), library


def _task_of_directory(directory: Path, library: str, options: Mapping[str, Any]) -> str:
    """The task of a model on disk, which Optimum infers only for names on the Hub.

    With past wherever Optimum makes that the default.
    """
    from optimum.exporters.onnx import model_configs  # noqa: F401 (they register themselves)
    from optimum.exporters.tasks import TasksManager

    from modelexport_optimum.tagging.model_classes import candidates, class_named

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
    architecture = next(iter(described.get("architectures") or ()), None)
    found = next(iter(candidates(directory)), None)
    if found is None or not found.task or found.model_class.__name__ != architecture:
        raise UsageError(
            f"the task of {architecture or directory} cannot be told from its config.json: "
            "give --task"
        )
    supported = TasksManager.get_supported_tasks_for_model_type(
        described["model_type"], "onnx", library_name=library
    )
    if f"{found.task}-with-past" in supported and not options.get("monolith"):
        return f"{found.task}-with-past"
    return found.task


def _task_of_model(model: Any, library: str, directory: Path, options: Mapping[str, Any]) -> str:  # noqa: ANN401
    """The task of a model in memory, whose configuration is saved in a directory for it."""
    from optimum.exporters.tasks import TasksManager

    if library == "diffusers":
        return str(TasksManager.infer_task_from_model(model))
    if library == "transformers":
        model.config.save_pretrained(directory)
        _name_architecture(directory / "config.json", model)
    return _task_of_directory(directory, library, options)


def _name_architecture(config: Path, model: Any) -> None:  # noqa: ANN401
    """Name in config.json the class that was exported.

    Optimum keeps what the checkpoint says, which is another class when it was loaded for
    another task.
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


def _library_of_model(model: Any) -> str:  # noqa: ANN401
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


def _load_preprocessors(source: Source, trust_remote_code: bool) -> list[Any]:
    """The tokenizer and processors, from where the model itself came from."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

    options = {**asdict(source.place), "trust_remote_code": trust_remote_code}
    found = []
    for auto in (AutoTokenizer, AutoProcessor, AutoFeatureExtractor, AutoImageProcessor):
        # No model has all of them, and there is no telling which errors say so: Optimum
        # takes any.
        with contextlib.suppress(Exception):
            found.append(auto.from_pretrained(str(source), **options))  # type: ignore[no-untyped-call]
    return found


def _save_preprocessors(preprocessors: Sequence[Any], directory: Path) -> None:
    for preprocessor in preprocessors:
        preprocessor.save_pretrained(directory)


@contextlib.contextmanager
def _random_weights_noted(exported: ConvertedModel) -> Iterator[None]:
    """Keep the one warning of loading that must not get lost: weights that were made up."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "newly initialized" in record.getMessage():
                exported.warnings.append(record.getMessage().splitlines()[0])

    logger, handler = logging.getLogger("transformers"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _unchanged(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Restore the modes and the configuration, both of which Optimum changes."""
    import torch

    if not isinstance(model, torch.nn.Module):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    configs = [
        (module.config, dict(vars(module.config)))
        for module in modes
        if hasattr(module, "config") and hasattr(module.config, "__dict__")
    ]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for config, values in configs:
            vars(config).clear()
            vars(config).update(values)


@contextlib.contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Raise every error as one line that says why Optimum did not export the model."""
    try:
        yield
    except ModelExportError:
        raise
    except Exception as error:
        message = explain_hub_error(error, source.name, source.place.revision)
        raise ModelExportError(message or _explain(error, source)) from error


def _explain(error: Exception, source: Source) -> str:
    pickled = pickled_code(error)
    if pickled is not None:
        return f"model {source.name} has {pickled}"
    text = first_line(error)
    if source.own_code and "trust_remote_code" in str(error):
        return f"model {source.name} has {in_words(source.own_code)}"
    frames = traceback.extract_tb(error.__traceback__)
    if "pad token" in text or any("tokenization" in frame.filename for frame in frames):
        return (
            f"model {source.name} has no tokenizer that can be loaded, and this task needs its "
            f"padding token: put the tokenizer's files beside the model, or give --pad_token_id "
            f"({text})"
        )
    if "custom_onnx_configs" in text:
        return (
            f"Optimum cannot export {source.name}: {text.partition(',')[0]}; "
            "export() in Python takes custom_onnx_configs for it"
        )
    # Optimum's own advice is to open an issue; the sentences before it say what is wrong.
    text = text.partition(" Please open an issue")[0]
    if error.__cause__ is not None:
        text += f" ({first_line(error.__cause__)})"
    if source.own_code:
        text += f" (the model has {in_words(source.own_code)})"
    return f"Optimum cannot export {source.name}: {text}"
