"""The packages that an execution provider needs."""

from __future__ import annotations

_INSTEAD = "pip uninstall --yes onnxruntime && pip install "

INSTALL = {
    "CUDAExecutionProvider": f"{_INSTEAD}'onnxruntime-gpu[cuda,cudnn]'",
    "TensorrtExecutionProvider": f"{_INSTEAD}tensorrt 'onnxruntime-gpu[cuda,cudnn]'",
    "OpenVINOExecutionProvider": f"{_INSTEAD}onnxruntime-openvino openvino",
    "NvTensorRTRTXExecutionProvider": "pip install onnxruntime-ep-nv-tensorrt-rtx",
    "WebGpuExecutionProvider": "pip install onnxruntime-ep-webgpu",
    "DmlExecutionProvider": f"{_INSTEAD}onnxruntime-directml",
    "QNNExecutionProvider": f"{_INSTEAD}onnxruntime-qnn",
    "ggml": "pip install onnxruntime-ggml",
}
"""The command that installs a provider."""

_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


def needs(provider: str) -> str:
    """Return the requirements of a provider."""
    if provider in _NVIDIA:
        return "it needs an NVIDIA GPU with its driver, a PyTorch with CUDA, and onnxruntime-gpu"
    return (
        "it needs the build of ONNX Runtime or the package that has it "
        "(https://onnxruntime.ai/docs/execution-providers)"
    )
