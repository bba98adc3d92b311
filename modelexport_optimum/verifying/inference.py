"""One run of a loaded export: a forward pass, generated tokens, an image, or plain sessions."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from numpy.typing import NDArray

    from modelexport_optimum.verifying.run_plan import Outputs, RunPlan

NEW_TOKENS = 3
"""Number of tokens to generate: the second is the first one with cached keys and values."""

SIDE = 128
"""Largest side, in pixels, of the image from a diffusion pipeline."""


def infer(plan: RunPlan, model: Any) -> tuple[str, Outputs]:  # noqa: ANN401
    """Run a loaded export once.

    Args:
        plan: The plan of the run.
        model: An `ORTModel`, a pipeline, or sessions by file.

    Returns:
        The kind of run ("forward", "generate", "pipeline" or "session"), and the outputs by name.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        if isinstance(model, dict):
            return "session", _run_sessions(plan, model)
        if plan.library == "diffusers":
            return "pipeline", _draw(model)
        if model.can_generate():
            return "generate", _generate(plan, model)
        inputs = plan.inputs[plan.file_of(model.session)]
        answer = model(**_tensors(inputs, model.device))
        return "forward", {name: _as_array(value) for name, value in answer.items()}


def _run_sessions(plan: RunPlan, sessions: Mapping[str, Any]) -> Outputs:
    outputs = {}
    for file, session in sessions.items():
        answer = session.run(None, plan.inputs[file])
        for value, array in zip(session.get_outputs(), answer, strict=True):
            name = value.name if len(sessions) == 1 else f"{file}: {value.name}"
            outputs[name] = np.asarray(array)
    return outputs


def _generate(plan: RunPlan, model: Any) -> Outputs:  # noqa: ANN401
    encoder = getattr(model, "encoder", None)
    if encoder is None:
        tokens = plan.inputs[plan.file_of(model.session)]["input_ids"]
        # A beginning has no end, and leaves room for the tokens that follow it.
        prompt = tokens[:, : max(1, tokens.shape[1] - NEW_TOKENS)]
        inputs = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
    else:
        inputs = dict(plan.inputs[plan.file_of(encoder.session)])
    steps = _Steps()
    with steps.recorded(model):
        model.generate(
            **_tensors(inputs, model.device),
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            stopping_criteria=[steps],
        )
    # Whisper may call the model once more before, to find the language.
    logits = enumerate(steps.logits[-len(steps.tokens) :])
    return {
        "tokens": np.stack(steps.tokens, axis=1),
        **{f"logits.{step}": array for step, array in logits},
    }


class _Steps:
    """Records the tokens that `generate` chooses, and their logits.

    `return_dict_in_generate` would return both, but not for Whisper with transformers 5: there it
    also returns the cache, and expects one of transformers' own, which Optimum's is not
    (transformers/models/whisper/generation_whisper.py, `_postprocess_outputs`).

    Attributes:
        tokens: For each step the chosen tokens.
        logits: For each call of the model the logits of the last position.
    """

    def __init__(self) -> None:
        self.tokens: list[NDArray[Any]] = []
        self.logits: list[NDArray[Any]] = []

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: object,
        **_: object,
    ) -> torch.Tensor:
        """Record a token; this is a stopping criterion that never stops."""
        import torch

        chosen = input_ids[:, -1]
        self.tokens.append(_as_array(chosen))
        return torch.zeros_like(chosen, dtype=torch.bool)

    @contextlib.contextmanager
    def recorded(self, model: Any) -> Iterator[None]:  # noqa: ANN401
        """Record the logits of each call of the model in the block."""
        forward = model.forward

        @functools.wraps(forward)  # `generate` reads its signature
        def noting(*args: object, **kwargs: object) -> Any:  # noqa: ANN401
            answer = forward(*args, **kwargs)
            self.logits.append(_as_array(answer.logits[:, -1].float()))
            return answer

        model.forward = noting
        try:
            yield
        finally:
            del model.forward


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


def _tensors(inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}


def _as_array(value: Any) -> NDArray[Any]:  # noqa: ANN401
    """Return a tensor of PyTorch, or an array, as an array."""
    if not hasattr(value, "cpu"):
        return np.asarray(value)
    value = value.cpu()
    # numpy has no bfloat16.
    return np.asarray(value.float() if value.is_floating_point() else value)
