"""Export Hugging Face models to ONNX, every node tagged with its PyTorch module.

The public names, and nothing else. They are loaded when they are first used, so that
importing the package imports neither torch nor transformers nor onnxruntime.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelexport_optimum.errors import InvalidModelError, ModelExportError, UsageError
    from modelexport_optimum.export import ExportResult, export
    from modelexport_optimum.htp import NodeTag, TagReport, read_hierarchy, strip, tag
    from modelexport_optimum.verify import VerifyReport, verify
    from modelexport_optimum.views.diff import diff
    from modelexport_optimum.views.extract import extract
    from modelexport_optimum.views.inspect import inspect
    from modelexport_optimum.views.profile import profile
    from modelexport_optimum.views.report import report
    from modelexport_optimum.views.view import view

__version__ = "0.1.0"

__all__ = [
    "ExportResult",
    "InvalidModelError",
    "ModelExportError",
    "NodeTag",
    "TagReport",
    "UsageError",
    "VerifyReport",
    "diff",
    "export",
    "extract",
    "inspect",
    "profile",
    "read_hierarchy",
    "report",
    "strip",
    "tag",
    "verify",
    "view",
]

_HOME = {
    "ExportResult": "export",
    "InvalidModelError": "errors",
    "ModelExportError": "errors",
    "NodeTag": "htp",
    "TagReport": "htp",
    "UsageError": "errors",
    "VerifyReport": "verify",
    "diff": "views.diff",
    "export": "export",
    "extract": "views.extract",
    "inspect": "views.inspect",
    "profile": "views.profile",
    "read_hierarchy": "htp",
    "report": "views.report",
    "strip": "htp",
    "tag": "htp",
    "verify": "verify",
    "view": "views.view",
}


class _Package(ModuleType):
    """Keeps `export` and `verify` the functions.

    The import system binds a submodule to the package under its name, which would
    hide the function of that name as soon as anything imported the submodule.
    """

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
