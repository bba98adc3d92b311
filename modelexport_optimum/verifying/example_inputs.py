"""Inputs for a graph that any model of its kind can take: real shapes, meaningless values.

They are those that Optimum's exporter would validate the graph with. Where it has none, as for
one part of a model of its own kind, they are made from the graph's own inputs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.verifying.exported_files import configured, export_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelexport_optimum.verifying.exported_files import Exported


def make_inputs(
    exported: Exported, wanted: list[Any], *, encoder: bool = False
) -> dict[str, NDArray[Any]]:
    """Make inputs for a graph.

    Args:
        exported: the export.
        wanted: inputs of a session.
        encoder: whether the graph is the encoder of a model in several files.
    """
    from onnxruntime.transformers.io_binding_helper import TypeHelper

    names = [value.name for value in wanted]
    dummies = _dummies(exported, names, encoder=encoder)
    inputs = {}
    for value in wanted:
        dtype = np.dtype(TypeHelper.ort_type_to_numpy_type(value.type))
        array = dummies.get(value.name)
        if array is None or array.ndim != len(value.shape):
            array = _invented(exported, value.name, dtype, value.shape)
        for axis, size in enumerate(value.shape):
            if isinstance(size, int) and size != array.shape[axis]:  # exported with a fixed shape
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
        inputs[value.name] = np.ascontiguousarray(array.astype(dtype))
    return inputs


def _dummies(exported: Exported, names: list[str], *, encoder: bool) -> dict[str, NDArray[Any]]:
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
    from optimum.utils import DEFAULT_DUMMY_SHAPES

    shapes: dict[str, int] = {**DEFAULT_DUMMY_SHAPES, "batch_size": 1}
    longest = configured(exported.config, "max_source_positions")
    if longest is not None:
        shapes["audio_sequence_length"] = min(shapes["audio_sequence_length"], longest)
    return shapes


def _is_whole(exported: Exported, encoder: bool) -> bool:
    """Whether the export configuration of the task is that of the graph."""
    return encoder or len(exported.graphs) == 1 or "model.onnx" in exported.graphs


def _invented(
    exported: Exported, name: str, dtype: np.dtype[Any], shape: list[int | str | None]
) -> NDArray[Any]:
    """A value that any model can take: the first tokens, full masks, its own settings, noise."""
    sizes = [_size(exported, dim) for dim in shape]
    if dtype.kind == "f":
        return np.random.default_rng(0).uniform(-1, 1, sizes)
    if name.endswith("input_ids"):
        return np.random.default_rng(0).integers(0, 2, sizes)
    if "mask" in name:
        return np.ones(sizes)
    return np.full(sizes, configured(exported.config, name) or 0)


def _size(exported: Exported, dim: int | str | None) -> int:
    """A size for an axis, the same wherever the axis has that name."""
    from optimum.utils import DEFAULT_DUMMY_SHAPES

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
    default = DEFAULT_DUMMY_SHAPES["sequence_length"]
    return known or int(DEFAULT_DUMMY_SHAPES.get(dim, default))


def as_array(value: Any) -> NDArray[Any]:  # noqa: ANN401
    """A tensor of torch, or an array, as an array."""
    if not hasattr(value, "cpu"):
        return np.asarray(value)
    value = value.cpu()
    # numpy has no bfloat16.
    return np.asarray(value.float() if value.is_floating_point() else value)
