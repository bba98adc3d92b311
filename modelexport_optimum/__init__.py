"""Export Hugging Face models to ONNX, every node tagged with its PyTorch module.

This file has only the public names. They are loaded on first use, so that importing the package
imports neither torch nor transformers nor onnxruntime. No top-level module has the name of a public
function, because the import system would replace the function with the module.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from modelexport_optimum.system.version import __version__ as __version__

if TYPE_CHECKING:
    from modelexport_optimum.batches.run import BatchResult, batch
    from modelexport_optimum.compare_run import compare
    from modelexport_optimum.comparing.comparison import Comparison
    from modelexport_optimum.errors import InvalidModelError, ModelExportError, UsageError
    from modelexport_optimum.export_run import ExportResult, export
    from modelexport_optimum.hierarchy.diff import diff
    from modelexport_optimum.hierarchy.extract import extract
    from modelexport_optimum.hierarchy.inspect import inspect
    from modelexport_optimum.hierarchy.view import view
    from modelexport_optimum.profiling.profile import profile
    from modelexport_optimum.reporting.report import report
    from modelexport_optimum.tagging.htp import NodeTag, read_hierarchy, strip, tag
    from modelexport_optimum.tagging.tag_report import TagReport
    from modelexport_optimum.verify_run import verify
    from modelexport_optimum.verifying.verify import VerifyReport

__all__ = [
    "BatchResult",
    "Comparison",
    "ExportResult",
    "InvalidModelError",
    "ModelExportError",
    "NodeTag",
    "TagReport",
    "UsageError",
    "VerifyReport",
    "batch",
    "compare",
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

_MODULE_OF = {
    "BatchResult": "batches.run",
    "Comparison": "comparing.comparison",
    "ExportResult": "export_run",
    "InvalidModelError": "errors",
    "ModelExportError": "errors",
    "NodeTag": "tagging.htp",
    "TagReport": "tagging.tag_report",
    "UsageError": "errors",
    "VerifyReport": "verifying.verify",
    "batch": "batches.run",
    "compare": "compare_run",
    "diff": "hierarchy.diff",
    "export": "export_run",
    "extract": "hierarchy.extract",
    "inspect": "hierarchy.inspect",
    "profile": "profiling.profile",
    "read_hierarchy": "tagging.htp",
    "report": "reporting.report",
    "strip": "tagging.htp",
    "tag": "tagging.htp",
    "verify": "verify_run",
    "view": "hierarchy.view",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
