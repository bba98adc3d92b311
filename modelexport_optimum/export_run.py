"""One run: Optimum exports, the HTP pass tags, ONNX Runtime checks, a rename publishes.

The published export may then be uploaded to the Hub. `export()` calls these steps in this order;
the steps are in other rooms.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.exporting import optimum_export
from modelexport_optimum.exporting.hub import HubPlace
from modelexport_optimum.exporting.source import Source, find_source
from modelexport_optimum.exporting.staging import (
    check_output,
    flushed_meanwhile,
    publish,
    staging_directory,
)
from modelexport_optimum.system.atomic_write import unflushed
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.locks import ONE_THREAD
from modelexport_optimum.system.notebook import line, shown, table
from modelexport_optimum.system.packages import require_optimum, require_packages
from modelexport_optimum.uploading.model_card import CardFacts, card_of, check_card, place_card
from modelexport_optimum.uploading.upload import check_repository, push, skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxruntime import InferenceSession

    from modelexport_optimum.exporting.optimum_export import ConvertedModel
    from modelexport_optimum.exporting.pytorch_comparison import ComparisonWithPyTorch
    from modelexport_optimum.providers.choice import Provider, Settings
    from modelexport_optimum.tagging.tag_report import TagReport
    from modelexport_optimum.uploading.upload import Upload
    from modelexport_optimum.verifying.verify import VerifyReport

    Progress = Callable[[str, float | None], None]
    """Called with a stage's name and None when it begins, with its seconds when it ends."""


@dataclass(frozen=True, repr=False)
class ExportResult(Displayed):
    """The result of one run.

    Attributes:
        output: The published directory.
        model: The model as given, or the class of a model in memory.
        task: The exported task, after detection.
        files: Bytes of every file, by its path below the output.
        tags: The HTP pass, for each `.onnx` file.
        comparison: The comparison of the outputs with PyTorch's.
        verification: The checks of the config and of the execution providers.
        warnings: Warnings about the exported model, such as weights that the checkpoint lacks and
            that are random.
        stages: Seconds of each stage, in order.
        upload: The result of the upload to the Hub; None if none was requested.
    """

    output: Path
    model: str
    task: str
    files: dict[str, int]
    tags: TagReport
    comparison: ComparisonWithPyTorch
    verification: VerifyReport
    warnings: tuple[str, ...]
    stages: dict[str, float]
    upload: Upload | None = None

    @property
    def ok(self) -> bool:
        """Whether everything succeeded: see `exit_status`. The files are written in either case."""
        return self.exit_status == 0

    @property
    def checks_ok(self) -> bool:
        """Whether every check passed."""
        return self.verification.ok and self.comparison.status != "failed"

    @property
    def exit_status(self) -> int:
        """3 if a check failed, 4 if the upload failed, and 0 otherwise."""
        if not self.checks_ok:
            return 3
        return 0 if self.upload is None or self.upload.ok else 4

    @property
    def check_rows(self) -> list[tuple[str, str, str]]:
        """Name, status and message of every check."""
        comparison = self.comparison
        return [*self.verification.rows(), ("PyTorch", comparison.status, comparison.message)]

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        files = (
            (file.file.name, file.node_count, len(file.modules), self.files[name])
            for file in self.tags.files
            if (name := file.file.relative_to(self.output).as_posix()) in self.files
        )
        return shown(
            f"{self.output}: {self.task}",
            table(("file", "nodes", "modules", "bytes"), files),
            table(("check", "result", ""), self.check_rows),
            *(line(warning, "bad") for warning in self.warnings),
            *([] if self.upload is None else [line(self.upload.message)]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data for JSON."""
        return {
            "ok": self.ok,
            "output": str(self.output),
            "model": self.model,
            "task": self.task,
            "files": files_to_list(self.files),
            "tags": self.tags.to_dict(),
            "comparison": asdict(self.comparison),
            "verification": self.verification.to_dict(),
            "warnings": list(self.warnings),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "upload": None if self.upload is None else self.upload.to_dict(),
        }


def export(
    model: Any,  # noqa: ANN401
    output: str | os.PathLike[str],
    *,
    task: str = "auto",
    overwrite: bool = False,
    preprocessors: Any = None,  # noqa: ANN401
    providers: Sequence[str] | None = None,
    provider_options: Settings = None,
    provider_libraries: Settings = None,
    push_to_hub: str | None = None,
    private: bool = True,
    model_card: bool = False,
    progress: Progress | None = None,
    before_publish: Callable[[ExportResult, Path], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> ExportResult:
    """Export a model to ONNX, tag every node with its module, and check the result.

    Threads of one process export one after another, because Optimum's exporter and PyTorch's cannot
    run twice at the same time.

    Args:
        model: A name on the Hugging Face Hub, a directory, or a model in memory: a
            `PreTrainedModel`, `SentenceTransformer` or `DiffusionPipeline`.
        output: The directory to write. It appears only when the export is complete.
        task: Task of the model; "auto" detects it.
        overwrite: Replace an existing export.
        preprocessors: The tokenizer or processor, or several, of a model in memory.
        providers: The execution providers to check; by default CPU, CUDA and TensorRT.
        provider_options: Options of the one provider besides the CPU's, by name.
        provider_libraries: Paths of the libraries of providers that are in no installed package, by
            the providers' names.
        push_to_hub: The repository on the Hub to upload the finished export to, with a model card;
            it is created if it does not exist. If a check fails, nothing is uploaded.
        private: Whether a new repository is private. If True, an existing public repository is
            refused.
        model_card: Write the model card into the export, as README.md.
        progress: Called at the beginning and at the end of each stage.
        before_publish: Called just before the final rename, with the result and the directory that
            will be renamed to the output.
        **options: Further arguments of Optimum's `main_export`, or of its `onnx_export_from_model`
            for a model in memory.

    Returns:
        The result. Its `ok` is False if the files are written but a check or the upload failed.

    Raises:
        ModelExportError: Nothing was written, and the message says why.
    """
    require_optimum()
    require_packages("onnxruntime")
    check_repository(push_to_hub, private=private)
    trust = bool(options.get("trust_remote_code"))
    source = Source(type(model).__name__, in_memory=True)
    if isinstance(model, str | os.PathLike):
        library = options.get("library_name")
        place = HubPlace.among(options)
        source = find_source(model, place, library=library, trust_remote_code=trust)
    path = check_output(output, source.directory, overwrite=overwrite)
    if model_card:
        check_card(path)
    stages = _Stages(progress)

    with (
        staging_directory(path) as staging,
        ONE_THREAD,
        optimum_export.optimum_imported(stages.begin),
        optimum_export.unchanged(model),
    ):
        # Another run may have published since, or while this one waited for its turn.
        check_output(path, source.directory, overwrite=overwrite)
        from modelexport_optimum.tagging import htp
        from modelexport_optimum.verifying.verify import chosen_providers

        given = providers, provider_options, provider_libraries
        if any(given):  # ONNX Runtime's 20 MB are not in memory yet when the exporter needs most
            chosen_providers(*given)
        optimum_export.check_options(task, options, in_memory=source.in_memory)
        how = staging, task, options, stages.begin
        if source.in_memory:
            exported = optimum_export.export_model(model, preprocessors, *how)
        else:
            exported = optimum_export.export_source(source, *how)

        stages.begin("tag")
        with unflushed():  # `publish` does
            tags = htp.tag(
                staging,
                model=exported.trees or str(source),
                source=source.name,
                trust_remote_code=trust,
                traced=exported.traced,
            )
        stages.begin("compare" if exported.comparison.pending else "check")
        chosen = chosen_providers(*given)  # with the import of ONNX Runtime
        verification = _check(exported, staging, stages, chosen, trust_remote_code=trust)
        stages.end()
        result = _result(source.name, exported, tags, verification, stages.seconds, staging, path)
        card = ""
        if model_card or push_to_hub is not None:
            card = _card(result, staging, source, push_to_hub or path.name)
        result = _with_card(result, staging, card if model_card else None)
        if before_publish is not None:
            before_publish(result, staging)
        publish(staging, path, overwrite=overwrite)
    if push_to_hub is None:
        return result
    settings = {"private": private, "token": options.get("token")}
    return _uploaded(result, card, push_to_hub, settings, stages)


def _check(
    exported: ConvertedModel,
    staging: Path,
    stages: _Stages,
    providers: Sequence[Provider],
    *,
    trust_remote_code: bool,
) -> VerifyReport:
    """Check the tagged files; their CPU sessions are first used for the comparison with PyTorch."""
    from modelexport_optimum.verifying.verify import verify

    def compare(sessions: Mapping[Path, InferenceSession]) -> None:
        exported.comparison.make(sessions)
        stages.begin("check")
        gc.collect()  # the PyTorch model lies in reference cycles, and is a session's size

    with flushed_meanwhile(staging):
        verification = verify(
            staging,
            providers,
            task=None if exported.task == "auto" else exported.task,
            library=exported.library,
            model=exported.model,
            trust_remote_code=trust_remote_code,
            loaded=compare,
        )
    if exported.comparison.pending:  # it did not run on the CPU
        compare({})
    return verification


def _result(
    name: str,
    exported: ConvertedModel,
    tags: TagReport,
    verification: VerifyReport,
    stages: dict[str, float],
    staging: Path,
    output: Path,
) -> ExportResult:
    """Return the result of a run, as it will be after the staging directory is renamed."""
    return ExportResult(
        output=output,
        model=name,
        task=exported.task,
        files=file_sizes(staging),
        tags=_moved(tags, staging, output),
        comparison=exported.comparison.result,
        verification=_moved(verification, staging, output),
        warnings=tuple(exported.warnings),
        stages=stages,
    )


def _card(result: ExportResult, staging: Path, source: Source, loaded_from: str) -> str:
    """Return the model card of a run; it contains no path of this machine."""
    checks = result.check_rows
    for directory in (result.output, Path(source.name)):
        checks = [
            (name, status, message.replace(str(directory), directory.name))
            for name, status, message in checks
        ]
    facts = CardFacts(
        source=source.name if source.on_hub else Path(source.name).name,
        on_hub=source.on_hub,
        task=result.task,
        library=result.verification.library,
        ort_class=result.verification.ort_class,
        checks=checks,
        loaded_from=loaded_from,
    )
    return card_of(staging, facts)


def _with_card(result: ExportResult, staging: Path, card: str | None) -> ExportResult:
    """Write the card if there is one, and keep a card that the user wrote."""
    warnings = place_card(staging, result.output, card)
    return replace(result, warnings=(*result.warnings, *warnings), files=file_sizes(staging))


def _uploaded(
    result: ExportResult, card: str, repository: str, settings: Mapping[str, Any], stages: _Stages
) -> ExportResult:
    """Upload the published export if every check passed, and return the result."""
    if not result.checks_ok:
        return replace(result, upload=skipped(repository))
    stages.begin("upload")
    upload = push(result.output, result.files, card, repository, **settings)
    stages.end()
    return replace(result, upload=upload)


def files_to_list(files: Mapping[str, int]) -> list[dict[str, Any]]:
    """List files and their sizes as data for JSON."""
    return [{"file": name, "bytes": size} for name, size in files.items()]


def file_sizes(directory: Path) -> dict[str, int]:
    """Return the bytes of every file, by its path below the directory."""
    return {
        file.relative_to(directory).as_posix(): file.stat().st_size
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def default_output(model: str) -> Path:
    """Return the output without `-o`: in the current directory, named after the model."""
    return Path(Path(os.path.abspath(model)).name + "-onnx")  # noqa: PTH100


def _moved(value: Any, staging: Path, output: Path) -> Any:  # noqa: ANN401
    """Return a report on the staging directory as a report on the output."""
    if isinstance(value, Path):
        return output / value.relative_to(staging) if value.is_relative_to(staging) else value
    if isinstance(value, str):
        return value.replace(str(staging), str(output)).replace(staging.name, output.name)
    if isinstance(value, tuple):
        return tuple(_moved(item, staging, output) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changes = {
            each.name: _moved(getattr(value, each.name), staging, output) for each in fields(value)
        }
        return replace(value, **changes)
    return value


class _Stages:
    """The clock of a run: a stage lasts until the next begins."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._current: tuple[str, float] | None = None

    def begin(self, name: str) -> None:
        if self._current is not None and self._current[0] == name:
            return
        self.end()
        self._current = name, time.perf_counter()
        if self._progress is not None:
            self._progress(name, None)

    def end(self) -> None:
        if self._current is None:
            return
        name, started = self._current
        self._current = None
        self.seconds[name] = time.perf_counter() - started
        if self._progress is not None:
            self._progress(name, self.seconds[name])
