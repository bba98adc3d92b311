"""One execution provider: load the export as its users do, run it once, see where it ran.

The right `ORTModel` class is found here, and what came out is compared with the CPU's. Which
providers, and what that means for the export, is decided in `verify.py`.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.errors import onnxruntime_line
from modelexport_optimum.verifying.example_inputs import as_array, make_inputs
from modelexport_optimum.verifying.exported_files import has_common_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnxruntime
    import torch
    from numpy.typing import NDArray

    from modelexport_optimum.verifying.exported_files import Exported

    Outputs = dict[str, NDArray[Any]]

CPU = "CPUExecutionProvider"

NEW_TOKENS = 3
"""Tokens to generate: the second is the first that comes from cached keys and values."""

MESSAGE = 300
"""Characters of an error's message to show: ONNX Runtime's are of several lines."""

SIDE = 128
"""Largest side, in pixels, of the picture that a diffusion pipeline is asked for."""

# Relative to the largest CPU value. A provider may round each product to fewer bits than the
# tensors have (CUDA's TF32 keeps 10, as float16 does), and errors add up over the layers.
TOLERANCES = {"float32": 1e-2, "float16": 5e-2, "bfloat16": 1e-1}

INSTALL = {
    "CUDAExecutionProvider": (
        "an NVIDIA GPU with its driver, a PyTorch with CUDA, and "
        "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime"
    ),
    "TensorrtExecutionProvider": (
        "an NVIDIA GPU with its driver, a PyTorch with CUDA, and "
        "pip install tensorrt 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime"
    ),
}

# What ONNX Runtime and PyTorch say of a machine or an installation that lacks something.
_LACKING = re.compile(
    r"\S+: cannot open shared object file|which is missing|Please install \w+ librar\w+"
    r"|no CUDA-capable device|[Nn]o CUDA GPUs|driver version is insufficient"
    r"|not compiled with CUDA|NVIDIA driver"
)


@dataclass(frozen=True)
class ProviderResult:
    """What one execution provider did with the export.

    Attributes:
        provider: ONNX Runtime's name of it.
        status: "ok" only if every session came up on it and it ran nodes; "failed";
            "unavailable" if this build of ONNX Runtime or this machine lacks it.
        message: one line.
        ort_class: the `ORTModel` class that loaded the export, None for plain sessions.
        ran: what was run: "forward", "generate", "pipeline" or "session".
        nodes: how many nodes ran on this provider.
        max_difference: the largest difference from the CPU's outputs, None for the CPU itself
            and where nothing was compared.
        seconds: time to load and run.
        asked: whether the provider was asked for by name.
    """

    provider: str
    status: str
    message: str
    ort_class: str | None = None
    ran: str | None = None
    nodes: int = 0
    max_difference: float | None = None
    seconds: float = 0.0
    asked: bool = False


@dataclass
class Run:
    """One provider's run.

    Attributes:
        status: "ok" if it ran, "failed", or "unavailable" if the machine lacks something.
        message: why it did not run, "" if it did.
        ran: what was run.
        nodes: how many nodes ran, by provider.
        outputs: what came out, by name.
        files: the `.onnx` files that were loaded.
        fell_back: the providers that sessions came up on instead.
        seconds: time to load and run.
    """

    status: str = "failed"
    message: str = ""
    ran: str | None = None
    nodes: Counter[str] = field(default_factory=Counter)
    outputs: Outputs = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    fell_back: set[str] = field(default_factory=set)
    seconds: float = 0.0


@dataclass(frozen=True)
class Loader:
    """How the export is loaded.

    Attributes:
        ort_class: the class of Optimum that its users load it with, None for plain sessions.
        reason: why it is not the class of the task, "" if it is.
    """

    ort_class: Any
    reason: str = ""

    @property
    def name(self) -> str | None:
        """The class's name."""
        return None if self.ort_class is None else str(self.ort_class.__name__)


# --- The class ----------------------------------------------------------------------------------


def find_loader(exported: Exported) -> Loader:
    """The `ORTModel` class that loads the export and can run it."""
    task = exported.task
    if exported.settings_error or task is None:
        return Loader(None, "it is not known what the model is for")
    if exported.library == "diffusers":
        from optimum.onnxruntime import ORTDiffusionPipeline
        from optimum.onnxruntime.modeling_diffusion import _get_ort_class

        name = exported.settings["_class_name"]
        if _get_ort_class(name, throw_error_if_not_exist=False) is None:
            return Loader(None, f"Optimum has no ONNX Runtime pipeline for {name}")
        return Loader(ORTDiffusionPipeline)
    found = _class_of_task(exported, task)
    if found is None:
        return Loader(None, f"Optimum has no ORTModel class for {task}")
    return _usable(exported, task, found)


def _class_of_task(exported: Exported, task: str) -> Any:  # noqa: ANN401 (classes are untyped)
    import transformers
    from optimum.exporters.tasks import TasksManager

    # Their modules hold all classes but the diffusion pipelines.
    from optimum.onnxruntime import ORTModel, ORTModelForCausalLM, ORTModelForSeq2SeqLM

    assert issubclass(ORTModelForCausalLM, ORTModel)
    assert issubclass(ORTModelForSeq2SeqLM, ORTModel)
    config = exported.config
    model_type = None if config is None else config.model_type
    try:
        loaded = TasksManager.get_model_class_for_task(task, model_type=model_type)
    except (KeyError, ValueError):  # no class of transformers does this task with such a model
        return None
    # Optimum also loads with AutoModel what has no auto class of its own.
    if loaded is transformers.AutoModel and task != "feature-extraction":
        return None
    classes = list(_subclasses(ORTModel))
    named = {found.model_class for found in exported.classes if found.task == task}
    for ort_class in classes:
        if ort_class.auto_model_class is loaded:
            return ort_class
    for ort_class in classes:  # some tasks are loaded with a model's own class
        mapping = getattr(ort_class.auto_model_class, "_model_mapping", {})
        if ort_class.auto_model_class is transformers.AutoModel or type(config) not in mapping:
            continue
        if mapping[type(config)] in named:
            return ort_class
    return None


def _subclasses(base: Any) -> Iterator[Any]:  # noqa: ANN401
    """Optimum's subclasses that stand for a class of transformers of their own."""
    for subclass in base.__subclasses__():
        if subclass.__module__.startswith("optimum.") and "auto_model_class" in vars(subclass):
            yield subclass
        yield from _subclasses(subclass)


def _usable(exported: Exported, task: str, found: Any) -> Loader:  # noqa: ANN401
    """The class, or another one if it cannot run these graphs."""
    from optimum.onnxruntime import ORTModelForCustomTasks
    from optimum.onnxruntime.modeling_seq2seq import ORTModelForConditionalGeneration
    from transformers import GenerationMixin

    name = found.__name__
    files = [Path(file).name for file in exported.graphs]
    single = len(files) == 1 or "model.onnx" in files
    if issubclass(found, ORTModelForConditionalGeneration):
        if any("encoder" in file for file in files):
            return Loader(found)
        reason = f"{name} needs the encoder and the decoder in a file each"
        return Loader(ORTModelForCustomTasks if single else None, reason)
    if not single and not issubclass(found, GenerationMixin):
        return Loader(None, f"{name} loads one file of {len(files)}")
    if issubclass(found, GenerationMixin):
        return Loader(found)
    if not has_common_outputs(exported, task):
        return Loader(ORTModelForCustomTasks, f"{name} needs other outputs than these")
    refused = exported.inputs - inspect.signature(found.forward).parameters.keys()
    if refused:
        return Loader(ORTModelForCustomTasks, f"{name} takes no {', '.join(sorted(refused))}")
    return Loader(found)


# --- The run ------------------------------------------------------------------------------------


def run(exported: Exported, loader: Loader, provider: str) -> Run:
    """Load the export on a provider, run it once, release it."""
    import onnxruntime

    result = Run()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, _captured_log(provider) as log:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True  # its events tell where each node ran
        options.profile_file_prefix = str(Path(folder) / "profile")
        if provider == CPU:
            options.log_severity_level = 4  # what it would log is in the error, too
        model: Any = None
        sessions: list[onnxruntime.InferenceSession] = []
        try:
            model = _load(exported, loader, provider, options)
            sessions = _sessions(model)
            result.files = {
                Path(session._model_path).relative_to(exported.directory).as_posix()
                for session in sessions
            }
            result.fell_back = {session.get_providers()[0] for session in sessions} - {provider}
            if not result.fell_back:
                result.ran, result.outputs = _infer(exported, model)
                result.status = "ok"
        except Exception as error:  # loading and running may raise whatever there is
            result.message = f"{type(error).__name__}: {' '.join(str(error).split())[:MESSAGE]}"
        for session in sessions:
            result.nodes += _nodes_by_provider(Path(session.end_profiling()))
        del model, sessions
        if exported.library == "diffusers":  # its pipelines are in reference cycles
            gc.collect()
    result.seconds = time.perf_counter() - started
    if result.fell_back:
        reason = log_reason("".join(log)) or "it gave no reason"
        others = ", ".join(sorted(result.fell_back))
        result.message = f"ONNX Runtime fell back to {others}: {reason}"
    if result.status == "failed" and provider != CPU and _LACKING.search(result.message):
        result.status = "unavailable"
        result.message += f"; to have it: {install_hint(provider)}"
    return result


def install_hint(provider: str) -> str:
    """What to install for a provider."""
    return INSTALL.get(
        provider,
        "install the build of ONNX Runtime that has it "
        "(https://onnxruntime.ai/docs/execution-providers)",
    )


def _load(
    exported: Exported, loader: Loader, provider: str, options: onnxruntime.SessionOptions
) -> Any:  # noqa: ANN401 (an ORTModel, a pipeline, or sessions by file)
    import onnxruntime
    from transformers import GenerationMixin

    directory = exported.directory
    if loader.ort_class is None:
        return {
            file: onnxruntime.InferenceSession(directory / file, options, providers=[provider])
            for file in exported.graphs
        }
    arguments: dict[str, Any] = {"export": False, "local_files_only": True}
    if exported.library != "diffusers":
        arguments["trust_remote_code"] = exported.trust_remote_code
        if issubclass(loader.ort_class, GenerationMixin):
            arguments["use_cache"] = exported.uses_cache
    model = loader.ort_class.from_pretrained(
        directory, provider=provider, session_options=options, **arguments
    )
    if exported.library == "diffusers":
        model.set_progress_bar_config(disable=True)
    return model


def _sessions(model: Any) -> list[onnxruntime.InferenceSession]:  # noqa: ANN401
    if isinstance(model, dict):
        return list(model.values())
    return [part.session for part in getattr(model, "parts", [model])]


def _infer(
    exported: Exported,
    model: Any,  # noqa: ANN401
) -> tuple[str, Outputs]:
    import torch

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        if isinstance(model, dict):
            return "session", _run_sessions(exported, model)
        if exported.library == "diffusers":
            return "pipeline", _draw(model)
        if model.can_generate():
            return "generate", _generate(exported, model)
        inputs = make_inputs(exported, model.session.get_inputs())
        answer = model(**_tensors(inputs, model.device))
        return "forward", {name: as_array(value) for name, value in answer.items()}


def _run_sessions(exported: Exported, sessions: Mapping[str, Any]) -> Outputs:
    outputs = {}
    for file, session in sessions.items():
        answer = session.run(None, make_inputs(exported, session.get_inputs()))
        for value, array in zip(session.get_outputs(), answer, strict=True):
            name = value.name if len(sessions) == 1 else f"{file}: {value.name}"
            outputs[name] = np.asarray(array)
    return outputs


def _generate(exported: Exported, model: Any) -> Outputs:  # noqa: ANN401
    encoder = getattr(model, "encoder", None)
    if encoder is None:
        wanted = [
            v for v in model.session.get_inputs() if v.name in ("input_ids", "attention_mask")
        ]
    else:
        wanted = encoder.session.get_inputs()
    inputs = make_inputs(exported, wanted, encoder=encoder is not None)
    if "attention_mask" in inputs:  # as a tokenizer makes it for one sentence
        inputs["attention_mask"] = np.ones_like(inputs["attention_mask"])
    answer = model.generate(
        **_tensors(inputs, model.device),
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = {f"logits.{step}": as_array(value) for step, value in enumerate(answer["logits"])}
    return {"tokens": as_array(answer["sequences"][:, -NEW_TOKENS:]), **logits}


def _draw(pipeline: Any) -> Outputs:  # noqa: ANN401 (a class of diffusers)
    import torch
    from PIL import Image

    parameters = inspect.signature(pipeline.__call__).parameters
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    arguments: dict[str, Any] = {
        "prompt": "a photo of a cat",
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
    }
    side = SIDE
    size = denoiser.config.get("sample_size")
    if isinstance(size, int):
        side = min(side, size * pipeline.vae_scale_factor)
    shape = denoiser.session.get_inputs()[0].shape
    if not isinstance(shape[-1 if len(shape) == 4 else 1], int):
        arguments |= {"height": side, "width": side}
    for name in ("image", "mask_image"):
        if name in parameters:
            arguments[name] = Image.new("RGB", (side, side), "white")
    given = {name: value for name, value in arguments.items() if name in parameters}
    return {"images": np.asarray(pipeline(**given).images)}


def _tensors(inputs: Outputs, device: torch.device) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}


# --- Where it ran, and what ONNX Runtime said ---------------------------------------------------


def _nodes_by_provider(profile: Path) -> Counter[str]:
    """Count the nodes that ran, by provider, from a session's profile."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    ran = {
        (event["name"], event["args"].get("node_index"), event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    return Counter(provider for _, _, provider in ran)


@contextlib.contextmanager
def _captured_log(provider: str) -> Iterator[list[str]]:
    """Catch what ONNX Runtime writes when a provider does not come up.

    It raises no error then: it logs to the process's stderr, which Python does not see, and
    its Python part prints. What others wrote to stderr meanwhile is passed on.
    """
    log: list[str] = []
    if provider == CPU:
        yield log
        return
    printed = io.StringIO()
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed):
                yield log
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            text = caught.read().decode(errors="replace")
            os.write(2, _LOG_ENTRY.sub("", text).encode())
            log += [text, printed.getvalue()]


# `2026-11-22 16:39:41.835302051 [E:onnxruntime:Default, file.cc:1 f()] message`, in colours.
_LOG_ENTRY = re.compile(
    r"(?:\x1b\[[\d;]*m)?\d{4}-\d\d-\d\d [\d:.]+ \[(?P<level>[A-Z]):onnxruntime:[^\]]*\] "
    r"(?P<message>.*?)(?:\x1b\[m\n?|(?=\n\d{4}-\d\d)|\Z)",
    re.DOTALL,
)


def log_reason(log: str) -> str:
    """The reason in ONNX Runtime's own words, on one line; "" if it gave none."""
    entries = list(_LOG_ENTRY.finditer(log))
    errors = [entry["message"] for entry in entries if entry["level"] in "EF"]
    printed = re.findall(r"^EP Error (.+)", log, re.MULTILINE)
    warnings = [entry["message"] for entry in entries if entry["level"] == "W"]
    message = next(iter([*errors, *printed, *warnings]), "")
    return onnxruntime_line(message) if message else ""


# --- The comparison -----------------------------------------------------------------------------


def compare(outputs: Outputs, reference: Outputs, precision: str) -> tuple[float, str]:
    """Compare a provider's outputs with the CPU's.

    Args:
        outputs: what the provider gave.
        reference: what the CPU gave for the same inputs.
        precision: the floating point type that the export computes in.

    Returns:
        The largest difference, and what is wrong, "" if nothing is.
    """
    largest = 0.0
    tolerance = TOLERANCES[precision]
    for name in _comparable(outputs, reference):
        ours, theirs = outputs[name].astype(np.float64), reference[name].astype(np.float64)
        if ours.shape != theirs.shape:
            return largest, f"{name} has the shape {ours.shape}, the CPU's {theirs.shape}"
        finite = np.isfinite(theirs)
        same = np.array_equal(ours[~finite], theirs[~finite], equal_nan=True)
        if not same or not np.isfinite(ours[finite]).all():
            return largest, f"{name} has NaN or infinity where the CPU's has not, or the reverse"
        if not finite.any():
            continue
        difference = float(np.abs(ours[finite] - theirs[finite]).max())
        largest = max(largest, difference)
        allowed = tolerance * max(1.0, float(np.abs(theirs[finite]).max()))
        if difference > allowed:
            return largest, f"{name} differs from the CPU's by {difference:.2g} > {allowed:.2g}"
    return largest, ""


def _comparable(outputs: Outputs, reference: Outputs) -> list[str]:
    """The outputs to compare: of what was generated, up to the first token that differs.

    Two tokens may be as good as equal, and after one that differs all is different.
    """
    if "tokens" not in reference:
        return list(reference)
    tokens, expected = outputs["tokens"], reference["tokens"]
    steps = [name for name in reference if name != "tokens"]
    same = [np.array_equal(tokens[:, :step], expected[:, :step]) for step in range(len(steps))]
    return [name for name, equal in zip(steps, same, strict=True) if equal]
