"""The names of a graph's axes, which Optimum evaluates as Python when it binds outputs to a device.

`ORTModelMixin._dynamic_axis_inference` (optimum/onnxruntime/base.py, 0.1.0) passes every name that
is not the name of an input's axis to `eval`. "past_sequence_length + sequence_length" gives a sum,
and any other text runs as code. With CUDA this is the default.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError

if TYPE_CHECKING:
    import onnxruntime

_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.Constant),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub),
)
"""The syntax of sums and products of sizes. A power may take very long, and a call may do anything.
"""


def refuse_evaluated_axes(session: onnxruntime.InferenceSession) -> None:
    """Refuse a graph whose output axes would run code when Optimum evaluates them.

    Raises:
        ModelExportError: An axis has such a name.
    """
    for value in session.get_outputs():
        for name in value.shape:
            if isinstance(name, str) and not _is_harmless(name):
                raise ModelExportError(
                    f"Optimum would run the name of an axis of {value.name} as code: {name!r}; "
                    "give the axis another name"
                )


def _is_harmless(name: str) -> bool:
    """Return whether its evaluation only gives a number or fails."""
    try:
        tree = ast.parse(name.strip(), mode="eval")
    except SyntaxError:
        return True
    except (MemoryError, RecursionError, ValueError):  # nested too deeply, or with a null byte
        return False
    return all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree))
