"""Arrays for the inputs of a graph: the same ones in every run, with nothing masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx

from modelexport_optimum.errors import InvalidModelError, UsageError
from modelexport_optimum.example_inputs.declared import Declared
from modelexport_optimum.example_inputs.dimensions import FLOATS, Dimensions, InputOptions
from modelexport_optimum.onnx_file.input_use import InputUse
from modelexport_optimum.onnx_file.skeleton import wanted_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from modelexport_optimum.example_inputs.declared import Size
    from modelexport_optimum.onnx_file.skeleton import Graph, Value

    Arrays: TypeAlias = dict[str, np.ndarray]

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
"""Tokens with a special meaning, which do not occur inside a text."""

_PAGE = 1000
"""The size of a page to which boxes are normalized (LayoutLM and its successors)."""


@dataclass(frozen=True, slots=True)
class ExampleInputs:
    """Inputs for one graph.

    Attributes:
        arrays: The arrays by the name of the input.
        sizes: The size of each symbolic dimension, with its origin.
    """

    arrays: Arrays
    sizes: dict[str, Size]


def generate(
    path: Path,
    graph: Graph,
    input_options: InputOptions | None = None,
    *,
    given: Mapping[str, np.ndarray] | None = None,
    branch: Mapping[str, bool] | None = None,
    export: Path | None = None,
    seed: int = 0,
) -> ExampleInputs:
    """Make an array for each input of a graph, the same ones in every run.

    Indices into a table are below its number of rows, positions continue after the cache, boxes lie
    on their page, masks are one, conditions are true, and other numbers are normally distributed.
    No token but the last one is a token that begins or ends a text.

    Args:
        path: The `.onnx` file; the export's JSON files are next to it.
        graph: Its graph.
        input_options: The user's requests.
        given: Arrays for inputs by name, from another graph; those that fit are used.
        branch: Values of the inputs that choose a branch.
        export: The directory of the export; its JSON files may be in a directory above the file.
        seed: Seed of the random numbers.

    Raises:
        UsageError: Nothing tells the size of a dimension.
        InvalidModelError: An input is no tensor, or none that NumPy has.
    """
    inputs = wanted_inputs(graph)
    use = InputUse(graph)
    declared = Declared(path.parent, export)
    chosen = branch or {}
    dimensions = Dimensions(
        path,
        inputs,
        use,
        declared,
        input_options or InputOptions(),
        uses_past=any(chosen.values()) or not chosen,
    )
    arrays = _taken(path, inputs, given or {}, dimensions)
    # Inputs other than tokens show more lengths: sound has samples, an image has sides.
    ordered = sorted(inputs, key=lambda value: value.elem_type not in FLOATS)
    shapes = {value.name: dimensions.shape(value) for value in ordered}
    sides = [size for shape in shapes.values() for size in shape[1:]]
    makers = _Values(
        use,
        declared,
        np.random.default_rng(seed),
        past=_past_length(inputs, shapes),
        longest=max(sides, default=1),
    )
    for value in inputs:
        shape, dtype = shapes[value.name], _dtype(path, value)
        if value.name in chosen:
            arrays[value.name] = np.full(shape, chosen[value.name])
        elif value.name not in arrays:
            arrays[value.name] = makers.array(value, shape, dtype)
    return ExampleInputs({value.name: arrays[value.name] for value in inputs}, dimensions.sizes)


def check_sizes(given: Path, files: Iterable[tuple[Path, Graph]], sizes: Mapping[str, int]) -> None:
    """Refuse a requested size whose name no input of the files has.

    Raises:
        UsageError: There is no such dimension; `given` is the name from the user.
    """
    input_options = InputOptions(sizes=sizes, default_size=1)
    made = [generate(path, graph, input_options) for path, graph in files if sizes]
    names = dict.fromkeys(name for example in made for name in example.sizes)
    for name, size in sizes.items():
        if name not in names:
            raise UsageError(
                f"--size {name}={size} changes no input of {given}, whose dimensions are "
                f"{', '.join(names) or 'all fixed'}"
            )


def _taken(
    path: Path, inputs: list[Value], given: Mapping[str, np.ndarray], dimensions: Dimensions
) -> Arrays:
    """Return the given arrays that fit, and use their sizes."""
    taken: Arrays = {}
    for value in inputs:
        array = given.get(value.name)
        if array is None or array.dtype != _dtype(path, value):
            continue
        if dimensions.bind(value, array):
            taken[value.name] = array
    return taken


def _dtype(path: Path, value: Value) -> np.dtype[np.generic]:
    if not value.elem_type:
        raise InvalidModelError(f"the input {value.name} of {path} is not a tensor")
    if value.elem_type not in onnx.TensorProto.DataType.values():
        raise InvalidModelError(
            f"the input {value.name} of {path} has an unknown type: {value.elem_type}"
        )
    if value.elem_type == onnx.TensorProto.BFLOAT16:
        raise InvalidModelError(
            f"the input {value.name} of {path} is bfloat16, which NumPy does not have: ONNX "
            "Runtime does not take it from Python"
        )
    return onnx.helper.tensor_dtype_to_np_dtype(value.elem_type)


def _past_length(inputs: list[Value], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of cached tokens."""
    for value in inputs:
        for dim, size in zip(value.shape or (), shapes[value.name], strict=True):
            if isinstance(dim, str) and dim.startswith("past") and "+" not in dim:
                return size
    return 0


@dataclass
class _Values:
    """Makes the numbers of one graph's inputs.

    Attributes:
        use: What the nodes require of the inputs.
        declared: What the JSON files declare.
        random: Where numbers come from.
        past: How many tokens are cached.
        longest: The longest side of an input.
    """

    use: InputUse
    declared: Declared
    random: np.random.Generator
    past: int
    longest: int

    def array(
        self, value: Value, shape: tuple[int, ...], dtype: np.dtype[np.generic]
    ) -> np.ndarray:
        if dtype == np.bool_ or "mask" in value.name:
            return np.ones(shape, dtype)
        rows = self.use.table_rows(value.name)
        if value.elem_type in FLOATS:
            array = self.random.standard_normal(shape)
            # Some columns of a patch are its place, written as numbers among its pixels.
            return (np.minimum(np.abs(array), rows - 1) if rows else array).astype(dtype)
        if value.name.endswith("position_ids") and shape:
            positions = np.arange(self.past, self.past + shape[-1])
            return np.broadcast_to(positions, shape).astype(dtype)
        if value.name.endswith("input_ids"):
            vocabulary = self.declared.number("vocab_size")
            return self._tokens(shape, rows or (vocabulary.size if vocabulary else 2), dtype)
        if rows and len(shape) > 2 and shape[-1] == 4:
            corners = self.random.integers(0, min(rows, _PAGE + 1), (*shape[:-1], 2, 2))
            return np.sort(corners, axis=-2).reshape(shape).astype(dtype)
        if rows:
            return self.random.integers(0, rows, shape).astype(dtype)
        if len(shape) > 1:
            return np.ones(shape, dtype)
        setting = self.declared.token(value.name)
        if value.name.endswith("length"):  # to which something is to grow
            return np.full(shape, max(setting or 0, 2 * self.longest), dtype)
        return np.full(shape, 1 if setting is None else setting, dtype)

    def _tokens(self, shape: tuple[int, ...], rows: int, dtype: np.dtype[np.generic]) -> np.ndarray:
        found = {name: self.declared.token(name) for name in _SPECIAL}
        special = sorted({token for token in found.values() if token is not None and token < rows})
        if len(special) >= rows:
            return np.full(shape, rows - 1, dtype)
        tokens = self.random.integers(0, rows - len(special), shape)
        for token in special:
            tokens += tokens >= token
        end = found["eos_token_id"]
        if end is not None and end < rows and shape and shape[-1] > 1:
            tokens[..., -1] = end  # some models read the last token of a text
        return tokens.astype(dtype)
