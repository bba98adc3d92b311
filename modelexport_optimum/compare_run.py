"""`compare()`: one comparison of an export with PyTorch, another export, or another provider.

It finds the two sides and combines them. `comparing.compare` has the comparison itself, and
`exporting.torch_reference` the run in PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.comparing.compare import compare_files
from modelexport_optimum.comparing.comparison import node_data as node_data_of
from modelexport_optimum.comparing.file_pairs import (
    FilePair,
    default_tolerance,
    export_pairs,
    unpaired,
)
from modelexport_optimum.comparing.samples import LENGTH, SampleOptions
from modelexport_optimum.errors import ModelExportError, UsageError, first_line
from modelexport_optimum.example_inputs.generate import check_sizes
from modelexport_optimum.exporting.task_inference import library_of_export, task_of_directory
from modelexport_optimum.exporting.torch_reference import torch_parts
from modelexport_optimum.graph_runs.recorded_run import RecordedRun
from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.onnx_file.find import onnx_files, onnx_files_by_name
from modelexport_optimum.providers.choice import CPU, choose_provider
from modelexport_optimum.system.atomic_write import replacing, write_all
from modelexport_optimum.system.output_files import check_output_file
from modelexport_optimum.tags.model_record import record_of
from modelexport_optimum.tags.recorded_call import RecordedCall

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from modelexport_optimum.comparing.comparison import Comparison
    from modelexport_optimum.exporting.torch_reference import TorchPart
    from modelexport_optimum.graph_runs.tapped_run import Arrays
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.providers.choice import Settings


def compare(
    reference: str | os.PathLike[str],
    other: str | os.PathLike[str] | None = None,
    *,
    model: Any = None,  # noqa: ANN401
    task: str | None = None,
    provider: str = "cpu",
    provider_options: Settings = None,
    provider_libraries: Settings = None,
    tolerance: float | None = None,
    samples: int = 1,
    text: str | None = None,
    inputs: str | os.PathLike[str] | None = None,
    batch_size: int = 2,
    sequence_length: int | None = None,
    sizes: Mapping[str, int] | None = None,
    node_data: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Find the modules whose numbers differ between two sides, and where the difference begins.

    Args:
        reference: A tagged `.onnx` file or exported directory. Without `other`, it is compared with
            PyTorch or, on another provider, with itself on the CPU.
        other: Another export, to compare with the first.
        model: The model that PyTorch runs: a name on the Hub, a directory, or a model in memory; by
            default the source that the export records.
        task: Task of the export, in Optimum's name; by default detected from config.json.
        provider: Execution provider of the side that is compared.
        provider_options: Its options, by name.
        provider_libraries: Path of its library by its name, if no installed package has it.
        tolerance: Largest relative difference that does not count; by default the tolerance of the
            narrowest type that either side computes in.
        samples: Number of inputs to run both sides on.
        text: A text to run both sides on, with the export's tokenizer.
        inputs: A `.npz` file with inputs, instead of generated ones.
        batch_size: Batch size of the generated inputs.
        sequence_length: Their number of tokens; by default 16, or fewer if the model takes fewer.
        sizes: Sizes of their other dimensions, by name.
        node_data: A JSON file to write, with each node's own error for Model Explorer.
        overwrite: Replace that file if it exists.
        model_kwargs: Further arguments of the model, if it was exported with them (the vocoder of a
            SpeechT5).
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        The figures of every module and call, and the culprits, worst first.

    Raises:
        UsageError: There is no such export or provider, or the sides do not fit together.
        ModelExportError: A file is not tagged, or one side cannot be run.
    """
    if samples < 1:
        raise UsageError(f"--samples {samples}: give 1 or more")
    if other is not None and model is not None:
        raise UsageError("give another export or --model, not both: one side is the reference")
    paths = [Path(reference)] if other is None else [Path(reference), Path(other)]
    chosen = choose_provider(provider, options=provider_options, libraries=provider_libraries)
    given = dict(sizes or {})
    if other is not None or chosen.name != CPU:
        pairs, *names = _two_exports(paths, chosen.name, given)
    else:
        shapes = {"batch_size": batch_size, "sequence_length": sequence_length or LENGTH, **given}
        load = {"model_kwargs": model_kwargs, "trust_remote_code": trust_remote_code}
        pairs, *names = _with_pytorch(paths[0], model, task, shapes, load)
    target = None if node_data is None else Path(node_data)
    if target is not None:
        _check_node_data(target, pairs, overwrite=overwrite)
    asked = SampleOptions(
        batch_size=batch_size,
        sequence_length=sequence_length,
        sizes=given,
        file=None if inputs is None else Path(inputs),
        arrays={} if text is None else _tokens(text, pairs),
        samples=samples,
    )
    within = default_tolerance(pairs) if tolerance is None else tolerance
    found = compare_files(pairs, asked, *names, provider=chosen, tolerance=within)
    if target is not None:
        _write_node_data(target, found, pairs[0].file)
    return dataclasses.replace(found, unpaired=unpaired(pairs, *paths))


def _two_exports(
    paths: Sequence[Path], provider: str, sizes: Mapping[str, int]
) -> tuple[list[FilePair], str, str]:
    """Return the pairs of two exports, or of one on two providers, and the sides in words."""
    first, second = paths[0], paths[-1]
    pairs = export_pairs(first, second)
    check_sizes(first, [(pair.file.path, pair.file.model.graph) for pair in pairs], sizes)
    if len(paths) > 1:
        return pairs, str(first), str(second)
    return pairs, f"{first} on the CPU", f"{first} on {provider}"


def _with_pytorch(
    path: Path,
    model: Any,  # noqa: ANN401
    task: str | None,
    shapes: Mapping[str, int],
    load: Mapping[str, Any],
) -> tuple[list[FilePair], str, str]:
    """Return the pairs of an export with a model, by default its own, and the sides in words."""
    source = _recorded_source(path) if model is None else model
    name = source if isinstance(source, str | Path) else type(source).__name__
    try:
        pairs = _torch_pairs(path, source, task, shapes, load)
    except UsageError as error:
        if model is not None:
            raise
        raise UsageError(
            f"{path} was made from {source}, which cannot be loaded ({first_line(error)}): "
            "give --model NAME|DIR"
        ) from error
    return pairs, f"PyTorch ({name})", str(path)


def _write_node_data(target: Path, found: Comparison, file: TaggedFile) -> None:
    with replacing(target) as descriptor:
        write_all(descriptor, json.dumps(node_data_of(found, file), indent=1).encode())


def _check_node_data(target: Path, pairs: Sequence[FilePair], *, overwrite: bool) -> None:
    """Refuse to write node data over a file that is there, or of several graphs."""
    check_output_file(target, (".json",), overwrite=overwrite)
    if len(pairs) > 1:
        files = ", ".join(pair.name for pair in pairs)
        raise UsageError(f"node data is of one graph: give one file of {files}")


def _tokens(text: str, pairs: Sequence[FilePair]) -> Arrays:
    """Return a text as the export's tokenizer gives it."""
    from transformers import AutoTokenizer

    directory = pairs[0].file.path.parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        tokens = dict(tokenizer(text, return_tensors="np"))
    except Exception as error:  # of a directory without one, transformers raises anything
        raise UsageError(
            f"{directory} has no tokenizer that can be loaded ({first_line(error)}): "
            "give the inputs with --inputs FILE.npz"
        ) from error
    if not all(array.size for array in tokens.values()):
        raise UsageError(f"--text {text!r}: the tokenizer of {directory} makes no token of it")
    taken = {value.name for pair in pairs for value in pair.file.model.graph.inputs}
    if taken.isdisjoint(tokens):
        files = ", ".join(str(pair.file.path) for pair in pairs)
        raise UsageError(f"--text: {files} takes no text, give the inputs with --inputs FILE.npz")
    return tokens


def _recorded_source(path: Path) -> str:
    """Return the model that an export says it was made from."""
    for file in onnx_files(path):
        source = record_of(read_tagged(file).model).get("source")
        if source is not None:
            return source
    raise UsageError(f"{path} does not say which model it was made from: give --model NAME|DIR")


@dataclass(frozen=True, slots=True)
class TorchReference:
    """PyTorch as the reference of one file.

    Attributes:
        parts: What Optimum makes the file of: one part, or one for each branch of a merged
            decoder.
        tagged: The file.
    """

    parts: Sequence[TorchPart]
    tagged: TaggedFile

    def inputs(self, branch: Mapping[str, bool], seed: int) -> Arrays | None:
        """Make the inputs that Optimum exports with."""
        return self._part(branch).inputs(seed)

    def record(self, branch: Mapping[str, bool], feeds: Arrays) -> RecordedRun:
        """Run the part."""
        recorded = RecordedRun()
        try:
            calls, outputs = self._part(branch).run(feeds, recorded.values.add)
        except ModelExportError:
            raise
        except Exception as error:  # a model raises anything about its inputs
            raise ModelExportError(
                f"PyTorch cannot run the model of {self.tagged.path} on these inputs "
                f"({type(error).__name__}: {first_line(error)}): give others with --inputs, or "
                "other sizes"
            ) from error
        for name, value in outputs.items():
            recorded.add_output(name, value)
        recorded.calls = calls
        # An encoder that is exported alone is the whole of its graph, whose tags begin at the
        # root: nothing else of the root runs.
        if calls and calls[0].path:
            root = RecordedCall("", self.tagged.root.module_class, 0, outputs=calls[0].outputs)
            recorded.calls.insert(0, root)
        return recorded

    def _part(self, branch: Mapping[str, bool]) -> TorchPart:
        if len(self.parts) == 1:
            return self.parts[0]
        with_past = any(branch.values())
        return self.parts[int(with_past)]


def _torch_pairs(
    path: Path,
    source: Any,  # noqa: ANN401
    task: str | None,
    shapes: Mapping[str, int],
    options: Mapping[str, Any],
) -> list[FilePair]:
    top = path if path.is_dir() else path.parent
    files = {name: read_tagged(file) for name, file in onnx_files_by_name(path).items()}
    has_past = any(
        "past_key_values" in value.name
        for file in files.values()
        for value in file.model.graph.inputs
    )
    classes = [file.root.module_class for file in files.values()]
    library = library_of_export(top, classes)
    if task is None:
        task = task_of_directory(top, library, {})
        if not has_past:
            task = task.removesuffix("-with-past")
    load = functools.partial(torch_parts, source, task, library=library, **options)
    parts = load()
    pairs = _pairs_by_name(files, parts, shapes)
    if not pairs:
        variants = parts[0].config.VARIANTS or {}
        others = [{"_variant": name} for name in variants if name != "default"]
        for options in (*others, {} if "-with-past" in task else {"monolith": True}):
            if options and not pairs:
                pairs = _pairs_by_name(files, load(**options), shapes)
    if not pairs:
        raise ModelExportError(
            f"Optimum exports {', '.join(part.file for part in parts)} from {source} for {task}, "
            f"but {path} has {', '.join(files)}: give the --task of the export"
        )
    return pairs


def _pairs_by_name(
    files: Mapping[str, TaggedFile], parts: Sequence[TorchPart], shapes: Mapping[str, int]
) -> list[FilePair]:
    """Pair the files with the parts that Optimum exports into files of their names.

    It exports a merged decoder as two, and merges them.
    """
    by_file = {part.file: part for part in parts}
    decoders = [part for part in parts if "decoder" in part.file]
    decoders.sort(key=lambda part: "with_past" in part.file)
    pairs = []
    for name, file in files.items():
        wanted = {value.name: value.shape or () for value in file.model.graph.inputs}
        if name in by_file:
            found = [by_file[name].fitted(wanted, shapes)]
        elif "merged" in name and len(decoders) == 2:
            found = [part.fitted({}, shapes) for part in decoders]
        else:
            continue
        pairs.append(FilePair(name, file, TorchReference(found, file)))
    return pairs
