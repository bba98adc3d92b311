"""The conversion: calls Optimum's exporter, and records the exported model and its module tree.

Optimum loads and converts (`main_export`, `onnx_export_from_model`). Between these two steps this
module reads the module tree of the model. It also keeps the files if the comparison with PyTorch
fails. It does not tag, check or publish.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import UsageError, did_you_mean
from modelexport_optimum.exporting.companions import copy_companions, fetch_companions
from modelexport_optimum.exporting.missing_weights import missing_weights_recorded
from modelexport_optimum.exporting.optimum_errors import errors_explained
from modelexport_optimum.exporting.options import check_conflicts
from modelexport_optimum.exporting.pytorch_comparison import PendingComparison
from modelexport_optimum.exporting.source import Source
from modelexport_optimum.exporting.task_inference import (
    library_of_model,
    name_architecture,
    task_of_directory,
    task_of_model,
)
from modelexport_optimum.exporting.tasks import check_task
from modelexport_optimum.own_code.guard import own_code_refused
from modelexport_optimum.own_code.named_code import in_words
from modelexport_optimum.system.lean_imports import (
    EXPORTER,
    collector_frozen,
    import_diffusers,
    import_lean,
)
from modelexport_optimum.system.packages import require_optimum
from modelexport_optimum.system.private_names import (
    COMPARISON_WITH_PYTORCH,
    DUMMY_SHAPES,
    EXPORT_OF_LOADED_MODEL,
    LIBRARY_OF_MODEL,
    TOKENIZER_LOADER,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from modelexport_optimum.attribution.traced_graphs import TracedGraph
    from modelexport_optimum.module_trees.module_tree import ModuleTree

    Begin = Callable[[str], None]
    """Called with the name of the stage that begins."""


@dataclass
class ConvertedModel:
    """The model that Optimum exported.

    Attributes:
        task: After detection, in Optimum's name.
        library: "transformers", "diffusers", "timm" or "sentence_transformers".
        trees: The modules of the exported model, one tree for each component of a pipeline.
        traced: The module call that made each node of each traced graph.
        comparison: The pending comparison of its outputs with PyTorch's.
        warnings: Warnings for the user, one line each.
        model: The directory of the model's other files, if it has one.
    """

    task: str
    library: str | None = None
    trees: list[ModuleTree] = field(default_factory=list)
    traced: list[TracedGraph] = field(default_factory=list)
    comparison: PendingComparison = field(default_factory=PendingComparison)
    warnings: list[str] = field(default_factory=list)
    model: Path | None = None


@contextlib.contextmanager
def optimum_imported(begin: Begin) -> Iterator[None]:
    """Import the libraries of a run, and exclude their objects from garbage collection."""
    require_optimum()
    begin("import")
    import_lean(EXPORTER)
    import optimum.onnxruntime  # noqa: F401

    with collector_frozen():
        yield


def check_options(task: str, options: Mapping[str, Any], *, in_memory: bool) -> None:
    """Refuse options that are certainly wrong, before a model is loaded."""
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
    if source.may_be_pipeline or exported.library == "diffusers":
        import_diffusers()
    trust = bool(options.get("trust_remote_code"))
    if source.own_code:
        exported.warnings.append(f"the model has {in_words(source.own_code)}")

    def export_loaded(*, preprocessors: list[Any], **arguments: Any) -> None:  # noqa: ANN401
        # Optimum looks for the tokenizer in the default revision and cache, and saves only
        # one that lies at the top and needs no code of its own.
        elsewhere = source.directory is None and not source.place.is_default
        if elsewhere:
            preprocessors = _load_preprocessors(source, trust)
        _export_loaded(exported, preprocessors, begin, **arguments)
        if elsewhere or source.place.subfolder or trust:
            _save_preprocessors(preprocessors, directory)

    begin("load")
    with (
        errors_explained(source),
        own_code_refused(source.directory, trusted=trust),
        missing_weights_recorded(exported.warnings),
        TOKENIZER_LOADER.replaced(_TokenizerLoader(trust)),
        EXPORT_OF_LOADED_MODEL.replaced(export_loaded),
    ):
        if task == "auto" and source.directory is not None:
            subfolder = source.place.subfolder
            library = options.get("library_name") or TasksManager.infer_library_from_model(
                str(source.directory), subfolder=subfolder
            )
            task = task_of_directory(source.directory / subfolder, library, options)
        main_export(str(source), directory, task=task, **options)
        exported.model = fetch_companions(source)
        pooled = exported.library == "transformers" and exported.task == "feature-extraction"
        copy_companions(exported.model, directory, pooled=pooled)
    return exported


@dataclass(frozen=True)
class _TokenizerLoader:
    """Replaces `AutoTokenizer` where Optimum does not say whether code is trusted.

    In that case transformers would ask the user on the terminal.
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
    """Let Optimum export a model in memory, which changes it: see `unchanged`."""
    if preprocessors is None:
        preprocessors = []
    elif not isinstance(preprocessors, list | tuple):
        preprocessors = [preprocessors]
    library = library_of_model(model)
    if library == "diffusers":
        import_diffusers()

    with (
        errors_explained(Source(type(model).__name__, in_memory=True)),
        LIBRARY_OF_MODEL.replaced(lambda *_arguments, **_options: library),
    ):
        if task == "auto":
            task = task_of_model(model, library, directory, options)
        exported = ConvertedModel(task, library)
        _export_loaded(
            exported,
            list(preprocessors),
            begin,
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
    *,
    model: Any,  # noqa: ANN401
    output: Path,
    task: str,
    **arguments: Any,  # noqa: ANN401
) -> None:
    """Call `onnx_export_from_model` and record its arguments; postpone its comparison."""
    from optimum.exporters.onnx import convert
    from optimum.exporters.tasks import TasksManager
    from transformers.utils.import_utils import is_accelerate_available

    from modelexport_optimum.attribution.traced_graphs import traced_graphs
    from modelexport_optimum.exporting.written_files import headers_asked_first
    from modelexport_optimum.module_trees.module_tree import model_trees

    exported.task = task
    exported.library = TasksManager.infer_library_from_model(model)
    exported.trees = model_trees(model)
    if not is_accelerate_available() and (tied := _tied_parameters(model)):
        exported.warnings.append(
            f"tied weights were not deduplicated ({', '.join(tied)}), because accelerate is not "
            "installed: pip install accelerate, and export again"
        )

    exported.comparison.asked = arguments.get("atol") is not None
    begin("export")
    with (
        headers_asked_first(),
        COMPARISON_WITH_PYTORCH.replaced(exported.comparison.postpone),
        traced_graphs(model) as exported.traced,
    ):
        convert.onnx_export_from_model(
            model=model, output=output, task=task, preprocessors=preprocessors, **arguments
        )
    name_architecture(output / "config.json", model)


def _tied_parameters(model: Any) -> list[str]:  # noqa: ANN401
    """Return the names of parameters that a model also has under another name."""
    from modelexport_optimum.module_trees.module_tree import modules_of

    tied = []
    for part in modules_of(model):
        own = {name for name, _ in part.named_parameters()}
        every = [name for name, _ in part.named_parameters(remove_duplicate=False)]
        tied += [name for name in every if name not in own]
    return tied


def _load_preprocessors(source: Source, trust_remote_code: bool) -> list[Any]:
    """Return the tokenizer and processors, from the source of the model."""
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
def unchanged(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Restore a model in memory after the block: its modes and its configuration.

    Optimum changes both, and needs the changes for its comparison of the exported files.
    """
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
