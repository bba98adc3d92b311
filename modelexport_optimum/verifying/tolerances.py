"""The largest allowed difference of a provider's outputs from the CPU's, and the check of it.

Outputs may differ by rounding in the precision that the provider computes in, which adds up over
the layers. docs/verify.md has the tolerances in a table, with reasons and sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]

TOLERANCES = {"float32": 2e-3, "tf32": 3e-2, "float16": 5e-2, "bfloat16": 3e-1, "int8": 3e-1}
"""Largest difference of an output, relative to its scale, by the precision of the products."""

SMALLEST_SCALE = 1e-2
"""The smallest scale of an output: smaller values may be the remainder of terms that cancel."""

_DEFAULTS = {
    "CPUExecutionProvider": "float32",
    "AzureExecutionProvider": "float32",
    "CUDAExecutionProvider": "tf32",
    "TensorrtExecutionProvider": "tf32",
    "NvTensorRTRTXExecutionProvider": "tf32",
    "OpenVINOExecutionProvider": "float32",
    "CoreMLExecutionProvider": "float16",
    "QNNExecutionProvider": "float16",
}
"""The precision in which providers compute float32 models, unless a session option changes it."""

_UNKNOWN = "float16"
"""The precision for a provider whose precision is not known."""

_SWITCHES = {
    "trt_int8_enable": "int8",
    "trt_bf16_enable": "bfloat16",
    "migraphx_bf16_enable": "bfloat16",
    "trt_fp16_enable": "float16",
    "migraphx_fp16_enable": "float16",
    "enable_htp_fp16_precision": "float16",
    "use_tf32": "tf32",
}
"""Session options that turn on a precision, lower precisions first."""

_ON, _OFF = ("1", "true"), ("0", "false")


@dataclass(frozen=True)
class Agreement:
    """The difference of a provider's outputs from the CPU's.

    Attributes:
        difference: The largest difference, None if nothing could be compared.
        problem: What is wrong, "" if nothing is.
        output: The wrong output.
    """

    difference: float | None
    problem: str = ""
    output: str | None = None


def computed_in(provider: str, options: Mapping[str, str], stored: str) -> str:
    """Return the precision of a provider's products.

    Args:
        provider: ONNX Runtime's name of it.
        options: The options of its sessions.
        stored: The precision of the graphs themselves: the floating point type of the weights, or
            "int8" if they quantize factors.
    """
    computed = _DEFAULTS.get(provider, _UNKNOWN)
    settings = {name: str(value).lower() for name, value in options.items()}
    if settings.get("use_tf32") in _OFF or settings.get("enable_htp_fp16_precision") in _OFF:
        computed = "float32"
    if provider == "OpenVINOExecutionProvider" and "cpu" not in settings.get("device_type", "cpu"):
        computed = "float16"  # the default of its GPU and NPU
    for name, precision in _SWITCHES.items():
        if settings.get(name) in _ON:
            computed = precision
            break
    return max(computed, stored, key=lambda precision: TOLERANCES[precision])


def compare_outputs(
    outputs: Outputs, reference: Outputs, precision: str, drawn: Collection[str] = ()
) -> Agreement:
    """Compare a provider's outputs with the CPU's.

    Each value may differ by the tolerance, relative to its own absolute value or to its output's
    scale. The scale is the median absolute value of the output: a few values that stand for
    infinity, from masks, do not change it.
    """
    largest = None
    for name in _comparable(outputs, reference):
        if name in drawn:
            continue
        if name not in outputs:
            return Agreement(largest, f"there is no {name}, which the CPU gives", name)
        difference, problem = _compare_one(outputs[name], reference[name], TOLERANCES[precision])
        if difference is not None:
            largest = max(largest or 0.0, difference)
        if problem:
            return Agreement(largest, f"{name} {problem}", name)
    return Agreement(largest)


def _compare_one(
    ours: NDArray[Any], theirs: NDArray[Any], tolerance: float
) -> tuple[float | None, str]:
    if ours.shape != theirs.shape:
        return None, f"has the shape {ours.shape}, the CPU's {theirs.shape}"
    if theirs.dtype.kind not in "fiub":  # strings
        return None, "" if np.array_equal(ours, theirs) else "is not the same text as the CPU's"
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return None, "has NaN or infinity where the CPU's has not, or the reverse"
    ours, theirs = ours[finite], theirs[finite]
    if not np.isfinite(ours).all():
        return None, "has NaN or infinity where the CPU's has not, or the reverse"
    if not ours.size:
        return 0.0, ""
    sizes = np.abs(theirs)
    scale = max(float(np.median(sizes[sizes > 0])) if sizes.any() else 0.0, SMALLEST_SCALE)
    difference = np.abs(ours - theirs)
    excess = difference / np.maximum(sizes, scale) / tolerance
    worst = int(excess.argmax())
    largest = float(difference.max())
    if excess[worst] <= 1:
        return largest, ""
    allowed = tolerance * max(float(sizes[worst]), scale)
    return largest, f"differs from the CPU's by {difference[worst]:.2g} > {allowed:.2g}"


def _comparable(outputs: Outputs, reference: Outputs) -> list[str]:
    """Return the outputs to compare: those of generated text up to the first different token.

    Two tokens may have almost equal logits, and after a different token everything differs.
    """
    if "tokens" not in reference or "tokens" not in outputs:
        return list(reference)
    tokens, expected = outputs["tokens"], reference["tokens"]
    steps = [name for name in reference if name != "tokens"]
    same = [np.array_equal(tokens[:, :step], expected[:, :step]) for step in range(len(steps))]
    return [name for name, equal in zip(steps, same, strict=True) if equal]
