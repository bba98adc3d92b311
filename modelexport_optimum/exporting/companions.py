"""The model's files that Optimum does not copy, copied next to the graphs.

Optimum saves the tokenizer and the processors that it could load, in the files that their current
classes write. The other files of the source are copied unchanged, so that any program that reads
the source can read the export. A tokenizer or processor that could not be loaded is not copied; the
check of the files says why.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from modelexport_optimum.system.model_files import (
    PATTERNS,
    PROCESSOR,
    TOKENIZER,
    companion_files,
    component_folders,
    module_folders,
)

if TYPE_CHECKING:
    from pathlib import Path

    from modelexport_optimum.exporting.source import Source


def fetch_companions(source: Source) -> Path:
    """Return the directory of a model's companion files: its own, or the Hub's cache."""
    subfolder = source.place.subfolder
    if source.directory is not None:
        return source.directory / subfolder
    below = f"{subfolder}/" if subfolder else ""
    names = [pattern for patterns in PATTERNS.values() for pattern in patterns]
    wanted = [f"{below}{name}" for name in (*names, "model_index.json")]
    directory = source.place.fetch(source.name, wanted) / subfolder
    folders = {f"{below}{name}/*.*" for name in module_folders(directory) if name}
    for folder in component_folders(directory):
        folders |= {f"{below}{folder}/{name}" for name in names if folder}
    if folders:
        source.place.fetch(source.name, folders)
    return directory


def copy_companions(model: Path, output: Path, *, pooled: bool) -> None:
    """Copy the companion files that the output lacks."""
    saved = {(file.folder, file.kind) for file in companion_files(output)}
    for file in companion_files(model, pooled=pooled):
        target = output / file.place
        left_out = file.kind in (TOKENIZER, PROCESSOR) and (file.folder, file.kind) not in saved
        if not (left_out or file.leads_out or target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.source, target)
