"""The `.onnx` files that a path means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def onnx_files(path: Path) -> list[Path]:
    """Return the file itself, or the `.onnx` files below a directory, sorted, without hidden ones.

    Raises:
        UsageError: There is no such file, or none in the directory.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist: give a .onnx file or an exported directory")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*.onnx") if is_onnx_file(file))
    if not files:
        raise UsageError(f"{path} has no .onnx file: give the directory of an export")
    return files


def onnx_files_by_name(path: Path) -> dict[str, Path]:
    """Return these files by their paths below the directory; a single file by its name."""
    top = path if path.is_dir() else path.parent
    return {file.relative_to(top).as_posix(): file for file in onnx_files(path)}


def is_onnx_file(path: Path) -> bool:
    """Return whether a path named `*.onnx` may be a model: it is not hidden and not a directory."""
    return not path.name.startswith(".") and not path.is_dir()
