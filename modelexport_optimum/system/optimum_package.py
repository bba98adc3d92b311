"""Whether Optimum's exporter is installed: what reads and runs exports does without it."""

from __future__ import annotations

import functools
import importlib.metadata

from modelexport_optimum.errors import ModelExportError

MISSING = (
    "Optimum's exporter is not installed, which this needs: pip install 'optimum-onnx[onnxruntime]'"
    " beside transformers below 4.58; or export with transformers' own exporter "
    "(transformers.exporters, since 5.13), then run `modelexport-optimum tag DIR`"
)


@functools.cache
def has_optimum() -> bool:
    """Whether Optimum's exporter is installed; nothing is imported."""
    try:
        importlib.metadata.version("optimum-onnx")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_optimum() -> None:
    """Say at once that Optimum's exporter is missing, and how to do without it.

    Raises:
        ModelExportError: It is not installed.
    """
    if not has_optimum():
        raise ModelExportError(MISSING)
