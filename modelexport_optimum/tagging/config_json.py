"""The key `htp_metadata` of config.json: written and taken out as text."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.json_files import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelexport_optimum.tagging.tag_report import FileReport

_CONFIG_KEY = "htp_metadata"
# What a model's config.json has one of, in transformers and diffusers.
_MODEL_KEYS = {"model_type", "architectures", "_class_name"}


def write_config(directory: Path, reports: Sequence[FileReport]) -> None:
    """Says in config.json what was found in the directory's files."""
    from modelexport_optimum.system.version import __version__

    modules: dict[str, str] = {}
    for report in reports:
        if report.path.parent == directory:
            modules.update(report.modules)
    replace_metadata(
        directory,
        {
            "hierarchy_modules": len(modules),
            "module_types": sorted(set(modules.values())),
            "export_strategy": "htp",
            "version": __version__,
        },
    )


def read_config(directory: Path) -> str:
    """The text of config.json, "" if there is none."""
    path = directory / "config.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
    parse_json_object(data, path)
    return data.decode()


def replace_metadata(directory: Path, metadata: dict[str, Any] | None) -> bool:
    """Puts `htp_metadata` into config.json as its last key, or takes it out, as text.

    All else in the file stays as it is, to the byte.
    """
    path = directory / "config.json"
    before = read_config(directory)
    if not _MODEL_KEYS & json.loads(before.removeprefix("\ufeff") or "{}").keys():
        return False  # there is none, or it is not a model's
    text = before
    found = re.search(rf',?\n  "{_CONFIG_KEY}": ', text)
    if found:
        _, end = json.JSONDecoder().raw_decode(text, found.end())
        text = text[: found.start()] + text[end:]
    if metadata is not None:
        end = len(text[: text.rindex("}")].rstrip())
        comma = "" if text[:end].endswith("{") else ","
        value = json.dumps(metadata, indent=2).replace("\n", "\n  ")
        text = f'{text[:end]}{comma}\n  "{_CONFIG_KEY}": {value}{text[end:]}'
    if text == before:
        return False
    with path.open("rb") as like, replacing(path, like=like.fileno()) as target:
        os.write(target, text.encode())
    return True
