"""The record in the model's own metadata_props: our version, the source model, the libraries."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from modelexport_optimum.onnx_file.rewriter import Edit
from modelexport_optimum.onnx_file.wire import length_delimited
from modelexport_optimum.system.json_files import parse_json
from modelexport_optimum.system.packages import installed_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.tags import tag_grammar

PREFIX = "modelexport_optimum."
"""The prefix of this tool's keys in the model's own metadata_props."""

_VERSION = f"{PREFIX}version"
SOURCE = f"{PREFIX}source"
CLASSES = f"{PREFIX}classes"
SILENT = f"{PREFIX}silent"
"""The modules of the exported model with parameters, but without a node in the file: a pooler that
is not used, a BatchNorm that was folded into its convolution, the other half of a model that is
exported in two parts. Of nested modules only the outermost."""

RECORDED_PACKAGES = ("torch", "transformers", "optimum")


@functools.cache
def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {package: installed_version(package) for package in packages}
    return {package: version for package, version in versions.items() if version is not None}


def is_marked(model: Model) -> bool:
    """Return whether the model's metadata say that its nodes were tagged."""
    return any(key == _VERSION for key, *_ in model.metadata)


def record_of(model: Model) -> dict[str, str]:
    """Return the record of the export and the tags in the model's metadata, by short keys."""
    return {
        key.removeprefix(PREFIX): value
        for key, value, *_ in model.metadata
        if key.startswith(PREFIX)
    }


def read_classes(model: Model) -> dict[str, str]:
    """Return the qualified classes of the record by their names; none if it is damaged."""
    found = _json_of(model, CLASSES)
    items = found.items() if isinstance(found, dict) else ()
    return {
        name: qualified
        for name, qualified in items
        if isinstance(qualified, str) and qualified.rpartition(".")[2] == name
    }


def read_silent(model: Model) -> list[str] | None:
    """Return the record's modules without nodes, None if it has none or it is damaged."""
    found = _json_of(model, SILENT)
    is_list = isinstance(found, list) and all(isinstance(path, str) for path in found)
    return found if is_list else None


def _json_of(model: Model, key: str) -> Any:  # noqa: ANN401 (what the record says)
    """Return an entry of the record that is JSON; None if there is none, or it is damaged."""
    text = next((value for name, value, *_ in model.metadata if name == key), "null")
    try:
        return parse_json(text)
    except ValueError:
        return None


def record_edits(
    model: Model,
    chains: Iterable[tag_grammar.Chain],
    source: str | None,
    silent: Sequence[str] | None,
) -> list[Edit]:
    """Return the edits that write the record into the model's own metadata_props.

    `silent` are the exported model's modules without nodes (`SILENT`); None keeps those in the
    file's record.
    """
    from modelexport_optimum.system.version import __version__

    old = {key: value for key, value, *_ in model.metadata if key.startswith(PREFIX)}
    classes: dict[str, str | None] = {}
    for chain in chains:
        for segment in chain:
            name = segment.module_class
            same = classes.get(name, segment.qualified) == segment.qualified
            classes[name] = segment.qualified if same else None
    unambiguous = {name: qualified for name, qualified in sorted(classes.items()) if qualified}
    new = {_VERSION: __version__, CLASSES: json.dumps(unambiguous)}
    if silent is not None:
        new[SILENT] = json.dumps(silent)
    elif SILENT in old:
        new[SILENT] = old[SILENT]
    recorded = source or old.get(SOURCE)
    if recorded:
        # Of a directory whose name is not UTF-8, which protobuf's texts are.
        new[SOURCE] = recorded.encode(errors="backslashreplace").decode()
    versions = installed_versions(RECORDED_PACKAGES)
    new |= {PREFIX + package: version for package, version in versions.items()}
    if new == old:
        return []
    added = b"".join(
        length_delimited(14, length_delimited(1, k.encode()) + length_delimited(2, v.encode()))
        for k, v in sorted(new.items())
    )
    return [*record_removal(model), Edit(model.size, model.size, added)]


def record_removal(model: Model) -> list[Edit]:
    """Return the edits that remove the record."""
    return [
        Edit(start, end, b"") for key, _, start, end in model.metadata if key.startswith(PREFIX)
    ]
