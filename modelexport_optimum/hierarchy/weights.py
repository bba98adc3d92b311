"""The data of a file's initializers, mapped into memory and not copied.

`diff` compares the data and `extract` copies it; the other views need only the headers.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import TYPE_CHECKING, cast

import onnx
from google.protobuf.message import DecodeError

from modelexport_optimum.errors import InvalidModelError, ModelExportError, first_line
from modelexport_optimum.hierarchy.tagged_model import nbytes
from modelexport_optimum.onnx_file.external_data import open_external_data
from modelexport_optimum.onnx_file.reader import damage_named, parse_length
from modelexport_optimum.onnx_file.skeleton import walk_graphs
from modelexport_optimum.onnx_file.wire import bytes_fields
from modelexport_optimum.system.files import open_to_read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Tensor

_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA = 1, 2, 9, 13


class Weights:
    """A model's file and its external data files, mapped as long as anything refers to them."""

    def __init__(self, model: Model) -> None:
        """Map the file that the skeleton was read from."""
        self._path = model.path
        self._maps: dict[Path, memoryview] = {}
        self.file = self._map(model.path)
        self._places: dict[int, tuple[int, int]] = {}
        for _, graph in walk_graphs(model.graph):
            self._places.update(self._initializers(graph))

    def message(self, tensor: Tensor) -> memoryview:
        """Return the initializer's TensorProto from the file."""
        start, end = self._places[id(tensor)]
        return self.file[start:end]

    def data(self, tensor: Tensor) -> memoryview:
        """Return the initializer's data in the form of `raw_data`, wherever it is stored.

        Raises:
            InvalidModelError: The external data file is missing or too short.
        """
        message = self.message(tensor)
        external = []
        for number, key, start, end in fields(message):
            if number == _TENSOR_RAW_DATA:
                return message[start:end]
            if number == _TENSOR_EXTERNAL_DATA:
                external.append(bytes(message[key:end]))
        with damage_named(self._path):
            if not tensor.location:
                return _raw_data(message)
            header = onnx.TensorProto.FromString(b"".join(external))
            place = {entry.key: entry.value for entry in header.external_data}
            offset = parse_length(place.get("offset", "0"))
        path = self._path.parent / tensor.location
        data = self._map(path, tensor.location)[offset : offset + nbytes(tensor)]
        if len(data) < nbytes(tensor):
            raise InvalidModelError(f"{path} ends before the data of {tensor.name}: copy it again")
        return data

    def release(self) -> None:
        """Release the memory of the data to the system; it is read again on demand."""
        for mapped in self._maps.values():
            pages = cast("mmap.mmap", mapped.obj)
            if hasattr(pages, "madvise") and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                pages.madvise(mmap.MADV_DONTNEED)

    def _initializers(self, graph: Graph) -> Iterator[tuple[int, tuple[int, int]]]:
        _, first, last = graph.enclosing[-1]
        found = (f for f in fields(self.file[first:last]) if f[0] == _GRAPH_INITIALIZER)
        for tensor, (_, _, start, end) in zip(graph.initializers, found, strict=True):
            yield id(tensor), (first + start, first + end)

    def _map(self, path: Path, location: str = "") -> memoryview:
        if path not in self._maps:
            try:
                fd = open_external_data(self._path, location) if location else open_to_read(path)
                with os.fdopen(fd, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._maps[path] = memoryview(mapped)
            except (OSError, ValueError) as error:  # an empty file cannot be mapped
                raise ModelExportError(f"cannot read {path}: {error}") from error
        return self._maps[path]


def external_header(tensor: Tensor, **place: object) -> onnx.TensorProto:
    """Return the TensorProto of an initializer whose data is external, in this place."""
    header = onnx.TensorProto(
        name=tensor.name,
        dims=tensor.dims,
        data_type=tensor.data_type,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in place.items():
        header.external_data.add(key=key, value=str(value))
    return header


def tensor_digest(message: memoryview) -> bytes:
    """Return a fingerprint of a TensorProto's type, shape and data; its name does not count.

    Raises:
        DecodeError: It is damaged.
    """
    header, data = [], None
    for number, key, start, end in fields(message):
        if number in (_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_EXTERNAL_DATA):
            header.append(bytes(message[key:end]))
        elif number == _TENSOR_RAW_DATA:
            data = message[start:end]
    tensor = onnx.TensorProto.FromString(b"".join(header))
    if data is None and not tensor.external_data:
        data = _raw_data(message)
    digest = hashlib.sha256(tensor.SerializeToString(deterministic=True))
    if data is not None:
        digest.update(data)
    return digest.digest()


def _raw_data(message: memoryview) -> memoryview:
    """Return the data of a TensorProto without raw_data, in the form of raw_data.

    Raises:
        DecodeError: They are not of the tensor's type and shape.
    """
    tensor = onnx.TensorProto.FromString(bytes(message))
    try:
        return memoryview(onnx.numpy_helper.to_array(tensor).tobytes())
    except (LookupError, TypeError, ValueError, NotImplementedError) as error:
        raise DecodeError(f"the data of {tensor.name!r:.100}: {first_line(error)}") from error


def array_or_none(tensor: onnx.TensorProto) -> np.ndarray | None:
    """Return a tensor's values, or None if it is damaged or has a type that NumPy lacks."""
    try:
        array: np.ndarray = onnx.numpy_helper.to_array(tensor)
    except (LookupError, TypeError, ValueError, NotImplementedError):
        return None
    return array


def fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, key's start, payload's start, end) of each field of a message."""
    return bytes_fields(cast("bytes", message))
