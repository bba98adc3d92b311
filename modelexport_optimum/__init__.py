"""Export Hugging Face models to ONNX, every node tagged with its PyTorch module.

This file has only the public names. They are loaded on first use, so that importing the package
imports neither torch nor transformers nor onnxruntime. No top-level module has the name of a public
function, because the import system would replace the function with the module.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from modelexport_optimum.system.version import __version__ as __version__

if TYPE_CHECKING:  # for type checkers, which do not run `__getattr__`
    from modelexport_optimum.batches.run import BatchResult as BatchResult
    from modelexport_optimum.batches.run import batch as batch
    from modelexport_optimum.compare_run import compare as compare
    from modelexport_optimum.comparing.comparison import Comparison as Comparison
    from modelexport_optimum.errors import InvalidModelError as InvalidModelError
    from modelexport_optimum.errors import ModelExportError as ModelExportError
    from modelexport_optimum.errors import UsageError as UsageError
    from modelexport_optimum.export_run import ExportResult as ExportResult
    from modelexport_optimum.export_run import export as export
    from modelexport_optimum.hierarchy.diff import diff as diff
    from modelexport_optimum.hierarchy.extract import extract as extract
    from modelexport_optimum.hierarchy.inspect import inspect as inspect
    from modelexport_optimum.hierarchy.view import view as view
    from modelexport_optimum.profiling.profile import profile as profile
    from modelexport_optimum.reporting.report import report as report
    from modelexport_optimum.tagging.htp import NodeTag as NodeTag
    from modelexport_optimum.tagging.htp import read_hierarchy as read_hierarchy
    from modelexport_optimum.tagging.htp import strip as strip
    from modelexport_optimum.tagging.htp import tag as tag
    from modelexport_optimum.tagging.tag_report import TagReport as TagReport
    from modelexport_optimum.verify_run import verify as verify
    from modelexport_optimum.verifying.verify import VerifyReport as VerifyReport

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
"""Each public name, and the module that has it."""

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
