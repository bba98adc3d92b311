"""Two checks by Optimum of a file that it has just written, answered from the file's header.

Optimum loads the file with all its weights twice: into memory, to see whether the weights are in a
separate file, and into ONNX Runtime, to see whether an axis of an output has an unknown name. The
header answers both questions without the weights. The file is loaded only if an answer is yes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import walk_initializers
from modelexport_optimum.system.private_names import LOADING_OF_FILES, MENDING_OF_AXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def headers_asked_first() -> Iterator[None]:
    """Answer Optimum from the headers of files in the block."""
    mend = MENDING_OF_AXES.get()

    def fix_if_needed(config: Any, model_path: Path, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # bfloat16 is what ONNX Runtime may not compute, which is to be known before all is done.
        if kwargs.get("dtype") == "bf16" or not _axes_known(config, model_path):
            mend(config, model_path, *args, **kwargs)

    with MENDING_OF_AXES.replaced(fix_if_needed), LOADING_OF_FILES.replaced(_Onnx()):
        yield


class _Onnx:
    """Replaces the package onnx where Optimum looks for weights in a separate file."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(onnx, name)

    def load(self, path: str, *, load_external_data: bool = True) -> Any:  # noqa: ANN401
        """Load a file, or nothing if Optimum only looks for separate weights and there are none."""
        if not load_external_data:
            graph = read_model(Path(path)).graph
            if not any(tensor.location for tensor in walk_initializers(graph)):
                return onnx.ModelProto()
        return onnx.load(path, load_external_data=load_external_data)


def _axes_known(config: Any, path: Path) -> bool:  # noqa: ANN401
    """Return whether every axis of a file's outputs is a number or has one of Optimum's names.

    For such a shape, ONNX Runtime infers only numbers, and no new names.
    """
    known = _names(config.inputs) | _names(config.outputs)
    outputs = read_model(path).graph.outputs
    dims = [dim for value in outputs for dim in value.shape or (None,)]
    return all(isinstance(dim, int) or dim in known for dim in dims)


def _names(values: Mapping[str, Mapping[int, str]]) -> set[str]:
    return {name for axes in values.values() for name in axes.values()}
