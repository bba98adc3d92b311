"""Inputs of a graph, read from a file of NumPy's, as `numpy.savez` writes it."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np

from modelexport_optimum.errors import UsageError, first_line
from modelexport_optimum.onnx_file.skeleton import wanted_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from modelexport_optimum.example_inputs.generate import Arrays
    from modelexport_optimum.onnx_file.skeleton import Graph


def load(archive_path: Path, path: Path, graph: Graph) -> Arrays:
    """Read the inputs of a graph.

    Args:
        archive_path: The `.npz` file, with an array for each input by its name.
        path: The `.onnx` file, for errors.
        graph: Its graph.

    Returns:
        The arrays of this graph's inputs.

    Raises:
        UsageError: The file cannot be read, or lacks an input.
    """
    names = [value.name for value in wanted_inputs(graph)]
    try:
        with zipfile.ZipFile(archive_path), np.load(archive_path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise UsageError(
                    f"{archive_path} has no array {missing[0]}, which is an input of {path}: "
                    f"it has {', '.join(archive) or 'none'}"
                )
            return {name: archive[name] for name in names}
    except UsageError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have ten classes for a damaged archive
        raise UsageError(
            f"cannot read {archive_path} as a .npz file ({first_line(error)}): "
            "write it with numpy.savez"
        ) from error
