"""The checks of an export that need no execution provider: its config against its graphs."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.errors import first_line
from modelexport_optimum.module_trees.export_json import exported_architectures
from modelexport_optimum.onnx_file.skeleton import walk_initializers, walk_nodes
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.packages import has_optimum
from modelexport_optimum.verifying.dimensions import check_dimensions, first_of
from modelexport_optimum.verifying.embeddings import check_embeddings, is_of_sentences
from modelexport_optimum.verifying.export_json_check import check_export_json
from modelexport_optimum.verifying.exported_files import vocabulary_size
from modelexport_optimum.verifying.source_files import check_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelexport_optimum.verifying.exported_files import Exported
    from modelexport_optimum.verifying.run_plan import Run

_TEXT_INPUTS = {"input_ids", "decoder_input_ids"}


@dataclass(frozen=True, repr=False)
class Check(Displayed):
    """One check of the configuration against the graphs.

    Attributes:
        name: The name of the check.
        status: "ok", "failed", or "unavailable" if the check was not possible.
        message: One line: the result, or what is wrong and what to do.
    """

    name: str
    status: str
    message: str


def check_all(exported: Exported, cpu: Run | None, model: Path | None) -> Iterator[Check]:
    """Yield the checks of an export that need no execution provider, in the order of display."""
    yield Check("graphs", *_check_graphs(exported))
    yield Check("config", *_check_config(exported))
    if exported.settings_error:
        return
    if exported.library == "diffusers":
        yield Check("components", *_check_components(exported))
    elif exported.config is not None:
        yield Check("architectures", *_check_architectures(exported))
        if _has_labels(exported):
            yield Check("labels", *_check_labels(exported, cpu))
    described = check_export_json(exported)
    if described is not None:
        yield Check("export.json", *described)
    yield Check("dimensions", *check_dimensions(exported))
    if _TEXT_INPUTS & exported.inputs:
        yield Check("tokenizer", *_check_tokenizers(exported))
    if model is not None:
        yield Check("files", *check_files(exported, model))
    if is_of_sentences(exported):
        yield Check("embeddings", *check_embeddings(exported, model))


def _check_graphs(exported: Exported) -> tuple[str, str]:
    if exported.unreadable:
        return "failed", first_of(list(exported.unreadable.values()))
    problems = []
    for file, graph in exported.graphs.items():
        external: Counter[str] = Counter()
        for tensor in walk_initializers(graph):
            if tensor.location:
                external[tensor.location] += tensor.nbytes
        for location, size in external.items():
            path = (exported.directory / file).parent / location
            if not path.is_file():
                problems.append(
                    f"{file} has its weights in {location}, which is missing: copy it next to that "
                    "file"
                )
            elif path.stat().st_size < size:
                problems.append(f"{location} is shorter than the weights of {file}: copy it again")
    if problems:
        return "failed", first_of(problems)
    nodes = sum(1 for graph in exported.graphs.values() for _ in walk_nodes(graph))
    files = len(exported.graphs)
    return "ok", f"{nodes:,} nodes in {files} file{'s' * (files > 1)}"


def _check_config(exported: Exported) -> tuple[str, str]:
    if exported.settings_error:
        return "failed", exported.settings_error
    for key in ("model_type", "_class_name", "architecture"):
        if key in exported.settings:
            return "ok", f"{key} {exported.settings[key]}"
    return "ok", "it can be read"


def _check_components(exported: Exported) -> tuple[str, str]:
    from optimum.onnxruntime import ORTDiffusionPipeline

    suffix = "_session"
    models = {
        name.removesuffix(suffix)
        for name in inspect.signature(ORTDiffusionPipeline.__init__).parameters
        if name.endswith(suffix)
    }
    present = [n for n, v in exported.settings.items() if isinstance(v, list) and v[0] is not None]
    needed = [name for name in present if name in models]
    if "vae" in present:  # it is exported in two halves
        needed.append("vae_decoder")
    missing = [
        f"{name}/model.onnx" for name in needed if f"{name}/model.onnx" not in exported.graphs
    ]
    if missing:
        return (
            "failed",
            f"model_index.json names {', '.join(missing)}, which is missing: export again",
        )
    return "ok", ", ".join(needed)


def _check_architectures(exported: Exported) -> tuple[str, str]:
    assert exported.config is not None
    names = exported.config.architectures or exported_architectures(exported.directory)
    if not names:
        return "failed", "config.json has no architectures: add the class that was exported"
    named = ", ".join(names)
    shown = " or ".join(exported.shown)
    if set(exported.declared) & set(exported.shown):
        return "ok", f"{named}, {exported.task}"
    if "feature-extraction" in exported.shown:  # what any architecture does without its head
        return "ok", f"{named} without its head, feature-extraction"
    if not has_optimum():
        return "unavailable", f"{named}: Optimum, which knows each task's outputs, is not installed"
    if not exported.shown:
        return "unavailable", f"{named}: Optimum knows no task with the outputs of these graphs"
    declared = " or ".join(exported.declared) or "no task that Optimum exports"
    return "failed", (
        f"config.json says {named} ({declared}), the graphs' outputs show {shown}: "
        "write the class that was exported into architectures"
    )


def _has_labels(exported: Exported) -> bool:
    task = exported.task or ""
    return task == "semantic-segmentation" or (
        task.endswith("classification") and not task.startswith("zero-shot")
    )


def _check_labels(exported: Exported, cpu: Run | None) -> tuple[str, str]:
    assert exported.config is not None
    settings = exported.settings
    names = settings.get("id2label") or exported.config.id2label or {}
    try:
        id2label = {int(index): str(label) for index, label in names.items()}
        label2id = {str(k): int(v) for k, v in (settings.get("label2id") or {}).items()}
    except (AttributeError, TypeError, ValueError):
        return "failed", "config.json: id2label must be numbers to labels, and label2id the reverse"
    count = settings.get("num_labels", len(id2label))
    if count != len(id2label):
        return "failed", f"config.json: num_labels is {count}, id2label has {len(id2label)} labels"
    if sorted(id2label) != list(range(len(id2label))):
        return "failed", f"config.json: id2label must number its labels 0 to {len(id2label) - 1}"
    for label, index in label2id.items():
        if id2label.get(index) != label:
            other = id2label.get(index)
            return "failed", f"config.json: label2id has {label!r} for {index}, id2label {other!r}"
    absent = sorted(set(id2label.values()) - label2id.keys()) if label2id else []
    if absent:
        return "failed", f"config.json: label2id lacks {absent[0]!r}, which id2label has"
    axis = 1 if exported.task == "semantic-segmentation" else -1
    shape = exported.outputs.get("logits", ())
    width = shape[axis] if shape else None
    if not isinstance(width, int) and cpu is not None and "logits" in cpu.outputs:
        width = cpu.outputs["logits"].shape[axis]
    if not isinstance(width, int):
        return "unavailable", "the width of the logits is not known: the model did not run"
    if width != len(id2label):
        return "failed", f"config.json has {len(id2label)} labels, the logits are {width} wide"
    return "ok", f"{width:,} labels"


def _check_tokenizers(exported: Exported) -> tuple[str, str]:
    from transformers import AutoConfig

    if exported.library != "diffusers":
        return _check_tokenizer(exported, "", vocabulary_size(exported.config))
    found = []
    for folder in sorted({Path(file).parent.name for file in exported.graphs}):
        if folder.startswith("text_encoder"):
            size = vocabulary_size(exported.load(AutoConfig, exported.directory / folder))
            tokenizer = folder.replace("text_encoder", "tokenizer")
            found.append(_check_tokenizer(exported, tokenizer, size))
    worst = ["failed", "unavailable", "ok"]
    return min(found, key=lambda check: worst.index(check[0]))


def _check_tokenizer(exported: Exported, folder: str, size: int | None) -> tuple[str, str]:
    from transformers import AutoTokenizer

    directory = exported.directory / folder
    name = folder or "the tokenizer"
    if not any((directory / f"tokenizer{end}").is_file() for end in ("_config.json", ".json")):
        return "unavailable", f"{name} is missing: save the one of the model next to the graphs"
    try:
        tokenizer = exported.load(AutoTokenizer, directory)
    except Exception as error:  # a tokenizer's class may raise anything about its files
        what = f"{name} cannot be loaded: {first_line(error)}"
        return "unavailable" if isinstance(error, ImportError) else "failed", what
    if size is None:
        return "unavailable", f"{name} has {len(tokenizer):,} tokens, config.json no vocab_size"
    if len(tokenizer) > size:
        return "failed", (
            f"{name} has {len(tokenizer):,} tokens, but the model has embeddings for {size:,}: "
            "save the tokenizer that the model was trained with"
        )
    return "ok", f"{len(tokenizer):,} tokens for {size:,} embeddings"
