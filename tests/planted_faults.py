"""Faults planted in exported files: one weight of one module changed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of those nested in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                yield from nodes_of(nested)


def weights_by_module(file: Path) -> dict[str, list[str]]:
    """The weights that one module alone reads, by its path, in the order of the file."""
    model = onnx.load(file, load_external_data=False)
    readers: dict[str, set[str]] = {}
    for node in nodes_of(model.graph):
        chain = node.doc_string.partition("\n")[0].split("/")[2:]
        path = ".".join(segment.partition(".")[2] for segment in chain)
        for name in node.input:
            readers.setdefault(name, set()).add(path)
    found: dict[str, list[str]] = {}
    for tensor in model.graph.initializer:
        is_weight = tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1
        if is_weight and len(readers.get(tensor.name, ())) == 1:
            (path,) = readers[tensor.name]
            found.setdefault(path, []).append(tensor.name)
    return found


def plant(source: Path, target: Path, file: str, initializer: str) -> None:
    """Copy one file of an export, and what is no .onnx file, with one weight changed.

    A square matrix is transposed, half of a vector shifted (a normalization takes out what is
    added to all), a row of any other scaled and shifted (a weight norm takes out a factor). Of
    a table it is a column: rows that no token selects are not read.
    """

    def others(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name.endswith(".onnx")]

    shutil.copytree(source, target, ignore=others)
    model = onnx.load(source / file)
    tensor = next(t for t in model.graph.initializer if t.name == initializer)
    array = onnx.numpy_helper.to_array(tensor).copy()
    is_table = any(
        node.op_type == "Gather" and node.input[0] == initializer for node in nodes_of(model.graph)
    )
    flat = array.reshape(-1) if array.size == max(array.shape) else array
    if flat.ndim == 1:
        flat[::2] += 0.1
    elif is_table:
        flat[..., 0] = 3 * flat[..., 0] + 0.3
    elif flat.ndim == 2 and flat.shape[0] == flat.shape[1]:
        array = flat.T.copy()
    else:
        flat[0] = 3 * flat[0] + 0.3
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, initializer))
    (target / file).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target / file)
