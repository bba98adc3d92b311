"""Inputs to run a graph on: made up from what the graph says of them, or read from a file.

What the graph does not say is asked of the user, not guessed: no name of an architecture or
of a task stands here. Nothing is run.
"""

from __future__ import annotations

import math
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import onnx

from modelexport_optimum.errors import InvalidModelError, UsageError, first_line
from modelexport_optimum.hierarchy.tagged_model import type_text
from modelexport_optimum.onnx_file.input_use import conv_channels, table_rows
from modelexport_optimum.system.json_files import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.onnx_file.skeleton import Value

    Arrays = dict[str, np.ndarray]

# The sides of a picture and the samples of a sound, unless the config or the user tells:
# those of Optimum's example inputs (optimum/utils/input_generators.py, DEFAULT_DUMMY_SHAPES).
SIDE = 64
SAMPLES = 16000

# More are no example: 2 GiB of numbers of 64 bits.
_MAX_ELEMENTS = 2**28


def generate(
    file: TaggedFile,
    *,
    batch_size: int,
    sequence_length: int,
    sizes: Mapping[str, int],
    seed: int = 0,
) -> Arrays:
    """Make an array for each input of a graph, the same ones every time.

    Numbers that select rows of a table are below its number of rows, other whole numbers
    (masks, mostly) are one, conditions are true, and the rest is normally distributed.

    Args:
        file: The file whose graph shall run.
        batch_size: Size of the dimensions that are a batch's.
        sequence_length: Size of the dimensions that are a length.
        sizes: Sizes of dimensions by name, before everything else.
        seed: What the numbers are made from.

    Returns:
        The arrays by the name of the input.

    Raises:
        UsageError: The graph does not tell the size of a dimension, nor does the user.
        InvalidModelError: An input is no tensor.
    """
    known = _Sizes(file, batch_size, sequence_length, sizes)
    random = np.random.default_rng(seed)
    return {value.name: _array(file, value, known.shape(value), random) for value in _asked(file)}


def load(path: Path, file: TaggedFile) -> Arrays:
    """Read the inputs of a graph from a file of NumPy's, as `numpy.savez` writes it.

    Args:
        path: The `.npz` file, with an array for each input by its name.
        file: The file whose graph shall run.

    Returns:
        The arrays of this graph's inputs.

    Raises:
        UsageError: The file cannot be read, or lacks an input.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            missing = [value.name for value in _asked(file) if value.name not in archive]
            if missing:
                raise UsageError(
                    f"{path} has no array {missing[0]}, which is an input of {file.path}: "
                    f"it has {', '.join(archive) or 'none'}"
                )
            return {value.name: archive[value.name] for value in _asked(file)}
    except UsageError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have ten classes for a damaged archive
        raise UsageError(
            f"cannot read {path} as a .npz file ({first_line(error)}): write it with numpy.savez"
        ) from error


def _asked(file: TaggedFile) -> list[Value]:
    """The inputs that have no value of their own; before IR version 4, weights are inputs."""
    given = {tensor.name for tensor in file.model.graph.initializers}
    return [value for value in file.model.graph.inputs if value.name not in given]


class _Sizes:
    """The sizes of a graph's symbolic dimensions."""

    def __init__(
        self, file: TaggedFile, batch_size: int, sequence_length: int, sizes: Mapping[str, int]
    ) -> None:
        self._file = file
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._sizes = sizes
        self._side = _image_size(file.path.parent / "config.json") or SIDE

    def shape(self, value: Value) -> tuple[int, ...]:
        if value.shape is None:
            raise InvalidModelError(
                f"{self._file.path} does not say the shape of its input {value.name}: "
                "give the inputs with --inputs FILE.npz"
            )
        channels = None
        if any(isinstance(dim, str) for dim in value.shape[1:2]):
            channels = conv_channels(self._file.model.graph, value.name)
        shape = tuple(
            channels if axis == 1 and channels else self._size(value, dim)
            for axis, dim in enumerate(value.shape)
        )
        if min(shape, default=0) < 0 or math.prod(shape) > _MAX_ELEMENTS:
            raise UsageError(
                f"the input {value.name} of {self._file.path} has the shape {list(shape)[:8]}, "
                "of which no input is made: give the inputs with --inputs FILE.npz"
            )
        return shape

    def _size(self, value: Value, dim: int | str | None) -> int:
        if isinstance(dim, int):
            return dim
        terms = [self._term(value, term.strip()) for term in (dim or "").split("+")]
        return sum(terms)

    def _term(self, value: Value, term: str) -> int:
        if term.isdecimal():
            return int(term)
        if term in self._sizes:
            return self._sizes[term]
        if "batch" in term:
            return self._batch_size
        if term.endswith(("height", "width")):
            return self._side
        if "audio" in term:
            return SAMPLES
        if "length" in term or "sequence" in term:
            return self._sequence_length
        raise UsageError(
            f"{self._file.path} does not tell the size of {term or 'a dimension'} of its input "
            f"{value.name}: give --size {term or 'NAME'}=N, or the inputs with --inputs FILE.npz"
        )


def _image_size(config: Path) -> int | None:
    """The side of the pictures that the model was made for, if a config.json tells."""
    if not config.is_file():
        return None
    size = parse_json_object(config.read_bytes(), config).get("image_size")
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _array(
    file: TaggedFile, value: Value, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    if not value.elem_type:
        raise InvalidModelError(f"the input {value.name} of {file.path} is no tensor")
    if value.elem_type not in onnx.TensorProto.DataType.values():
        kind = type_text(value.elem_type, value.shape)
        raise InvalidModelError(
            f"the input {value.name} of {file.path} is of no known type: {kind}"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.elem_type)
    if np.issubdtype(dtype, np.integer):
        rows = table_rows(file.model.graph, value.name)
        return random.integers(0, rows, shape, dtype) if rows else np.ones(shape, dtype)
    if dtype == np.bool_ or "mask" in value.name:
        return np.ones(shape, dtype)
    return random.standard_normal(shape).astype(dtype)
