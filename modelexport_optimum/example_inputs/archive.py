"""Inputs of a graph, read from a `.npz` file that `numpy.savez` wrote."""

from __future__ import annotations

import os
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import onnx

from modelexport_optimum.errors import UsageError, first_line
from modelexport_optimum.onnx_file.skeleton import wanted_inputs
from modelexport_optimum.system.files import open_to_read

if TYPE_CHECKING:
    from pathlib import Path

    from modelexport_optimum.example_inputs.generate import Arrays
    from modelexport_optimum.onnx_file.skeleton import Graph, Value


def load(archive_path: Path, path: Path, graph: Graph) -> Arrays:
    """Read the inputs of a graph from a `.npz` file, which has one array for each input, by name.

    Raises:
        UsageError: The file cannot be read, lacks an input, or has one of another type or shape.
    """
    inputs = wanted_inputs(graph)
    names = [value.name for value in inputs]
    try:
        with (
            os.fdopen(open_to_read(archive_path), "rb") as file,
            zipfile.ZipFile(file),
            np.load(file, allow_pickle=False) as archive,
        ):
            missing = [name for name in names if name not in archive]
            if missing:
                raise UsageError(
                    f"{archive_path} has no array {missing[0]}, which is an input of {path}: "
                    f"it has {', '.join(archive) or 'none'}"
                )
            arrays = {name: archive[name] for name in names}
    except UsageError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have ten classes for a damaged archive
        raise UsageError(
            f"cannot read {archive_path} as a .npz file ({first_line(error)}): "
            "write it with numpy.savez"
        ) from error
    for value in inputs:
        if not _fits(arrays[value.name], value):
            array = arrays[value.name]
            raise UsageError(
                f"{archive_path}: {value.name} is {array.dtype}{list(array.shape)}, and {path} "
                f"takes {_in_words(value)}"
            )
    return arrays


def _fits(array: np.ndarray, value: Value) -> bool:
    """Return whether an input takes an array, as far as the graph shows."""
    if value.elem_type and array.dtype != onnx.helper.tensor_dtype_to_np_dtype(value.elem_type):
        return False
    return value.shape is None or (
        array.ndim == len(value.shape)
        and all(
            size == dim
            for size, dim in zip(array.shape, value.shape, strict=True)
            if isinstance(dim, int)
        )
    )


def _in_words(value: Value) -> str:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.elem_type) if value.elem_type else "?"
    shape = ", ".join("?" if dim is None else str(dim) for dim in value.shape or ())
    return f"{dtype}[{shape}]"
