"""The files of a directory that the pass works on, open and read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelexport_optimum.errors import InvalidModelError, ModelExportError, UsageError
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import walk_graphs, walk_nodes
from modelexport_optimum.tagging import carriers
from modelexport_optimum.tagging.model_record import is_marked

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterable
    from pathlib import Path

    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.tagging.carriers import Carried


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
        """Every node carries its whole tag."""
        return self.marked and all(carried.complete for carried in self.carried.values())


def find_onnx_files(directory: Path) -> list[Path]:
    """Every `.onnx` file below a directory, sorted."""
    return sorted(path for path in directory.rglob("*.onnx") if not path.name.startswith("."))


def files_of(path: Path) -> list[Path]:
    """The `.onnx` files that a path means."""
    if not path.exists():
        raise UsageError(f"{path} does not exist: give a .onnx file or an exported directory")
    if not path.is_dir():
        return [path]
    files = find_onnx_files(path)
    if not files:
        raise UsageError(f"{path} has no .onnx file: give the directory of an export")
    return files


def writable_files(path: Path) -> list[Path]:
    """The files to write, after everything that can be known to forbid it."""
    files = files_of(path)
    for file in [path, *files]:
        if file.is_symlink():
            raise ModelExportError(
                f"{file} is a symbolic link to {file.readlink()}, which others may share: "
                "copy it (cp -rL) and give the copy, or give the real path"
            )
        if not os.access(file, os.W_OK):
            raise ModelExportError(f"{file} is read-only: make it writable or copy it")
    return files


def open_file(path: Path, stack: contextlib.ExitStack) -> OpenFile:
    """Opens and reads a file; the stack closes it."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    model = read_model(path, fd=fd)
    for _, graph in walk_graphs(model.graph):
        for tensor in graph.initializers:
            if tensor.location and not _exists(path.parent / tensor.location):
                raise InvalidModelError(
                    f"{path} keeps weights in {tensor.location}, which is not beside it: "
                    "copy that file too"
                )
    marked = is_marked(model)
    carried = {node.start: carriers.read(node, marked=marked) for node in walk_nodes(model.graph)}
    return OpenFile(path, fd, model, marked, carried)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False


def by_directory(files: Iterable[OpenFile]) -> dict[Path, list[OpenFile]]:
    """Groups files by the directory they are in."""
    groups: dict[Path, list[OpenFile]] = {}
    for file in files:
        groups.setdefault(file.path.parent, []).append(file)
    return groups
