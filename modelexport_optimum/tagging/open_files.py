"""The files of a directory that the pass works on, open and read."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.errors import InvalidModelError, ModelExportError
from modelexport_optimum.onnx_file.find import is_onnx_file, onnx_files
from modelexport_optimum.onnx_file.reader import damage_named, read_model
from modelexport_optimum.onnx_file.skeleton import walk_all_nodes, walk_initializers
from modelexport_optimum.system.atomic_write import remove_abandoned
from modelexport_optimum.system.files import open_to_read
from modelexport_optimum.system.locks import holding
from modelexport_optimum.tagging import config_json
from modelexport_optimum.tags import carriers
from modelexport_optimum.tags.model_record import is_marked

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.tags.carriers import Carried

_LOCK = ".modelexport-optimum.lock"
"""The lock of a run that writes in the directory."""


@dataclass(slots=True)
class OpenFile:
    """An open file of the pass."""

    path: Path
    fd: int
    model: Model
    marked: bool
    carried: dict[int, Carried] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every node has its complete tag."""
        return self.marked and all(carried.complete for carried in self.carried.values())


def writable_files(path: Path) -> list[Path]:
    """Return the files to write, after a check that they can be written."""
    files = onnx_files(path)
    for file in [path, *files]:
        if file.is_symlink():
            raise ModelExportError(
                f"{file} is a symbolic link to {file.readlink()}, which others may share: "
                "copy it (cp -rL) and give the copy, or give the real path"
            )
        if not os.access(file, os.W_OK):
            raise ModelExportError(f"{file} is read-only: make it writable or copy it")
    return files


def open_to_write(path: Path, stack: contextlib.ExitStack) -> list[OpenFile]:
    """Open the files of a path, when no other run works in their directories.

    Files of killed runs are removed.

    Raises:
        UsageError: There is no such file, or no `.onnx` file in the directory.
        ModelExportError: A file cannot be read or written, or is not a complete model.
    """
    files = writable_files(path)
    names = {file.name for file in files} | {config_json.NAME}
    for directory in sorted({file.parent for file in files}):
        try:
            stack.enter_context(holding(directory / _LOCK, wait=math.inf, what=str(directory)))
            remove_abandoned(directory, lambda name: name in names or name.endswith(".onnx"))
        except OSError as error:
            raise ModelExportError(f"cannot write in {directory}: {error.strerror}") from error
    return [open_file(file, stack) for file in files]


def open_file(path: Path, stack: contextlib.ExitStack) -> OpenFile:
    """Open and read a file; the stack closes it."""
    with damage_named(path):
        fd = open_to_read(path)
    stack.callback(os.close, fd)
    model = read_model(path, fd=fd)
    for tensor in walk_initializers(model.graph):
        if tensor.location and not _exists(path.parent / tensor.location):
            raise InvalidModelError(
                f"{path} keeps weights in {tensor.location}, which is not next to it: copy that "
                "file, too"
            )
    marked = is_marked(model)
    carried = {node.start: carriers.read(node, marked=marked) for node in walk_all_nodes(model)}
    return OpenFile(path, fd, model, marked, carried)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False


def tagged_beside(directory: Path, files: Iterable[OpenFile]) -> dict[str, str]:
    """Return the modules in the tags of the directory's other files.

    Returns:
        Module path to class name. A file that is not a complete model has no tags.
    """
    modules: dict[str, str] = {}
    known = {file.path for file in files}
    for path in sorted(directory.glob("*.onnx")):
        if path in known or path.is_symlink() or not is_onnx_file(path):
            continue
        with contextlib.suppress(InvalidModelError):
            model = read_model(path)
            marked = is_marked(model)
            carried = (carriers.read(node, marked=marked) for node in walk_all_nodes(model))
            modules.update(carriers.modules_in_tags(carried))
    return modules


def by_directory(files: Iterable[OpenFile]) -> dict[Path, list[OpenFile]]:
    """Group files by their directories."""
    groups: dict[Path, list[OpenFile]] = {}
    for file in files:
        groups.setdefault(file.path.parent, []).append(file)
    return groups
