"""Inputs for a graph that any model of its kind can take: real shapes, meaningless values.

They are those that Optimum's exporter would validate the graph with. Where it has none, as for
one part of a model of its own kind, they are made from the graph's own inputs. The same graph
has the same inputs every time, bit for bit, and none of their positions is masked.
"""

from __future__ import annotations

import contextlib
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.onnx_file.input_use import InputUse
from modelexport_optimum.system.private_names import DUMMY_SHAPES
from modelexport_optimum.verifying.exported_files import configured
from modelexport_optimum.verifying.exported_task import export_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from modelexport_optimum.onnx_file.skeleton import Graph, Value
    from modelexport_optimum.verifying.exported_files import Exported

    Arrays = dict[str, NDArray[Any]]

_SEED = 0

_MAX_ELEMENTS = 2**28
"""More are no example: 2 GiB of numbers of 64 bits."""


def make_inputs(exported: Exported, file: str, *, generates: bool) -> Arrays:
    """Make the inputs of one graph of an export.

    Args:
        exported: the export.
        file: the graph, by its path below the export's directory.
        generates: whether a class of Optimum's runs the graphs, an encoder's before the others.

    Raises:
        ModelExportError: an input is no tensor, or of a type that numpy does not have.
        Exception: Optimum has no inputs for such a configuration; it may raise anything.
    """
    graph = exported.graphs[file]
    weights = {tensor.name for tensor in graph.initializers}  # inputs, too, before IR version 4
    wanted = [value for value in graph.inputs if value.name not in weights]
    with _seeded():
        names = [value.name for value in wanted]
        encoder = generates and len(exported.graphs) > 1 and "encoder" in Path(file).name
        dummies = _dummies(exported, names, encoder=encoder)
    draw = np.random.default_rng(_SEED)
    inputs = {}
    for value in wanted:
        dtype, shape = _dtype(value), value.shape or ()
        array = dummies.get(value.name)
        if array is None or array.ndim != len(shape):
            array = _invented(exported, graph, value, dtype, draw)
        for axis, size in enumerate(shape):
            if isinstance(size, int) and size != array.shape[axis]:  # exported with a fixed shape
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
        if value.name.endswith("mask"):
            # What is masked means nothing, and where all is masked the softmax of nothing is
            # NaN on one provider and a number on another.
            array = np.ones_like(array)
        elif value.name.endswith("input_ids"):
            array = _without_padding(exported, array)
        inputs[value.name] = np.ascontiguousarray(array.astype(dtype))
    return inputs


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed all that Optimum draws from, and leave it as it was.

    Its numbers are PyTorch's or numpy's, the lengths of its masks are Python's own
    (`DummyInputGenerator.random_mask_tensor`).
    """
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            random.seed(_SEED)
            np.random.seed(_SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _dummies(exported: Exported, names: list[str], *, encoder: bool) -> Arrays:
    """The inputs that Optimum's exporter itself would validate the graph with."""
    from optimum.utils.save_utils import maybe_load_preprocessors

    if exported.config is None or exported.task is None or not _is_whole(exported, encoder):
        return {}
    preprocessors = maybe_load_preprocessors(
        exported.directory, trust_remote_code=exported.trust_remote_code
    )
    config = export_config(exported.config, exported.task, exported.library, preprocessors)
    if config is None:
        return {}
    if encoder:
        config = config.with_behavior("encoder")
    inputs = config.generate_dummy_inputs(framework="pt", **_shapes(exported))
    inputs = config.rename_ambiguous_inputs(inputs)
    inputs = config.generate_dummy_inputs_for_validation(inputs, names)
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, list | tuple):
            flat |= config.flatten_output_collection_property(name, value)
        else:
            flat[name] = value
    return {name: as_array(value) for name, value in flat.items()}


def _shapes(exported: Exported) -> dict[str, int]:
    """The exporter's default shapes, but one of each, and no longer than the model takes."""
    shapes: dict[str, int] = {**DUMMY_SHAPES.get(), "batch_size": 1}
    longest = configured(exported.config, "max_source_positions")
    if longest is not None:
        shapes["audio_sequence_length"] = min(shapes["audio_sequence_length"], longest)
    return shapes


def _is_whole(exported: Exported, encoder: bool) -> bool:
    """Whether the export configuration of the task is that of the graph."""
    return encoder or len(exported.graphs) == 1 or "model.onnx" in exported.graphs


def _dtype(value: Value) -> np.dtype[Any]:
    from onnx import TensorProto

    if not value.elem_type:
        raise ModelExportError(f"its input {value.name} is no tensor")
    if value.elem_type == TensorProto.BFLOAT16:
        raise ModelExportError(f"its input {value.name} is bfloat16, which numpy lacks")
    return tensor_dtype_to_np_dtype(value.elem_type)


def _invented(
    exported: Exported,
    graph: Graph,
    value: Value,
    dtype: np.dtype[Any],
    draw: np.random.Generator,
) -> NDArray[Any]:
    """A value that any model can take: rows that its tables have, its own settings, noise."""
    sizes = [_size(exported, dim) for dim in value.shape or ()]
    if len(sizes) > 2 and not isinstance((value.shape or ())[1], int):
        sizes[1] = InputUse(graph).conv_channels(value.name) or sizes[1]
    if math.prod(sizes) > _MAX_ELEMENTS:
        raise ModelExportError(f"its input {value.name} has {math.prod(sizes)} elements")
    if dtype.kind == "f":
        return draw.uniform(-1, 1, sizes)
    if dtype.kind == "b":
        return np.ones(sizes)
    rows = InputUse(graph).table_rows(value.name)
    if rows is not None:
        return draw.integers(0, rows, sizes)
    if value.name.endswith("input_ids"):
        return draw.integers(0, 2, sizes)  # the first tokens, which every vocabulary has
    return np.full(sizes, configured(exported.config, value.name) or 0)


def _without_padding(exported: Exported, tokens: NDArray[Any]) -> NDArray[Any]:
    """Put another token where the padding token is, which models leave out of their sums."""
    padding = configured(exported.config, "pad_token_id")
    if padding is None or not (tokens == padding).any():
        return tokens
    others = tokens[tokens != padding]
    return np.where(
        tokens == padding, others.max() if others.size else max(0, padding - 1) or 1, tokens
    )


def _size(exported: Exported, dim: int | str | None) -> int:
    """A size for an axis, the same wherever the axis has that name."""
    if isinstance(dim, int):
        return dim
    if dim is None or dim.isdigit():
        return int(dim or 1)
    if " + " in dim:
        return sum(_size(exported, part) for part in dim.split(" + "))
    if "_x_" in dim:  # Optimum's word for a product
        return math.prod(_size(exported, part) for part in dim.split("_x_"))
    if "batch" in dim or "past" in dim:
        return 1
    known = configured(exported.config, "image_size" if dim in ("height", "width") else dim)
    default = DUMMY_SHAPES.get()["sequence_length"]
    return known or int(DUMMY_SHAPES.get().get(dim, default))


def as_array(value: Any) -> NDArray[Any]:  # noqa: ANN401
    """A tensor of torch, or an array, as an array."""
    if not hasattr(value, "cpu"):
        return np.asarray(value)
    value = value.cpu()
    # numpy has no bfloat16.
    return np.asarray(value.float() if value.is_floating_point() else value)
