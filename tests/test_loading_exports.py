"""Tagged exports, used as people use them: `ORTModel`, pipelines, auto classes.

Every class of Optimum that has a pipeline answers through it, from the directory alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tagged = Callable[[str], Path]

WAVE = np.sin(np.arange(16000) / 50).astype(np.float32)
TEXT = "the quick brown fox"


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (40, 30), "red")


# fmt: off
# A model of the zoo, its class, its pipeline, what that is asked, what its answer must have.
USES: list[tuple[str, str, str, Callable[[], Any], dict[str, Any], str]] = [
    ("albert", "ORTModelForSequenceClassification", "text-classification",
     lambda: TEXT, {}, "label"),
    ("distilbert", "ORTModelForQuestionAnswering", "question-answering",
     lambda: {"question": "who?", "context": TEXT}, {}, "answer"),
    ("deberta-v2", "ORTModelForTokenClassification", "token-classification",
     lambda: TEXT, {}, "entity"),
    ("gpt2", "ORTModelForCausalLM", "text-generation",
     lambda: TEXT, {"max_new_tokens": 3}, "generated_text"),
    ("vit", "ORTModelForImageClassification", "image-classification", picture, {}, "label"),
    ("bert-fresh", "ORTModelForFeatureExtraction", "feature-extraction", lambda: TEXT, {}, ""),
    ("bert", "ORTModelForMaskedLM", "fill-mask", lambda: f"{TEXT} <mask>", {}, "token_str"),
    ("t5", "ORTModelForSeq2SeqLM", "text2text-generation",
     lambda: TEXT, {"max_new_tokens": 3}, "generated_text"),
    ("whisper", "ORTModelForSpeechSeq2Seq", "automatic-speech-recognition",
     WAVE.copy, {"generate_kwargs": {"max_new_tokens": 3}}, "text"),
    ("vit-gpt2", "ORTModelForVision2Seq", "image-to-text",
     picture, {"max_new_tokens": 3}, "generated_text"),
    ("hubert", "ORTModelForAudioClassification", "audio-classification", WAVE.copy, {}, "label"),
    ("segformer", "ORTModelForSemanticSegmentation", "image-segmentation", picture, {}, "mask"),
    ("clip", "ORTModelForZeroShotImageClassification", "zero-shot-image-classification",
     picture, {"candidate_labels": ["fox", "dog"]}, "label"),
]
SEVERAL_FILES = ("t5", "whisper", "vit-gpt2")
# fmt: on


def preprocessors(directory: Path) -> dict[str, Any]:
    """What a user loads beside the model."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    found: dict[str, Any] = {}
    if (directory / "tokenizer_config.json").is_file():
        found["tokenizer"] = AutoTokenizer.from_pretrained(directory)
    if (directory / "preprocessor_config.json").is_file():
        settings = json.loads((directory / "preprocessor_config.json").read_text())
        if "image_processor_type" in settings:
            found["image_processor"] = AutoImageProcessor.from_pretrained(directory)
        else:
            found["feature_extractor"] = AutoFeatureExtractor.from_pretrained(directory)
    return found


def first(answer: Any) -> Any:
    while isinstance(answer, list) and answer and isinstance(answer[0], dict | list):
        answer = answer[0]
    return answer


@pytest.mark.parametrize(("name", "ort_class", "task", "question", "options", "key"), USES)
def test_the_pipelines_answer(
    tagged: Tagged,
    name: str,
    ort_class: str,
    task: str,
    question: Callable[[], Any],
    options: dict[str, Any],
    key: str,
) -> None:
    import optimum.onnxruntime
    import optimum.pipelines
    import transformers

    directory = tagged(name)
    model = getattr(optimum.onnxruntime, ort_class).from_pretrained(directory)
    ours = transformers.pipeline(task, model=model, **preprocessors(directory))
    theirs = optimum.pipelines.pipeline(task, model=str(directory), accelerator="ort")
    assert type(theirs.model).__name__ == type(model).__name__

    answers = [first(pipeline(question(), **options)) for pipeline in (ours, theirs)]
    for answer in answers:
        assert key in answer if key else np.isfinite(answer).all()
    if "score" in answers[0] and answers[0]["score"] is not None:
        assert answers[0]["score"] == pytest.approx(answers[1]["score"])


def test_a_transcription_by_ctc(tagged: Tagged) -> None:
    """Without the pipeline: it asks for an attribute that ORTModelForCTC 0.1.0 does not have."""
    from optimum.onnxruntime import ORTModelForCTC

    directory = tagged("wav2vec2")
    loaded = preprocessors(directory)
    features = loaded["feature_extractor"](WAVE, sampling_rate=16000, return_tensors="pt")
    logits = ORTModelForCTC.from_pretrained(directory)(**features).logits
    assert isinstance(loaded["tokenizer"].decode(logits.argmax(-1)[0]), str)
    assert logits.shape[-1] == 31


@pytest.mark.parametrize(
    ("name", "ort_class"), [use[:2] for use in USES if use[0] not in SEVERAL_FILES]
)
def test_the_class_loads_it_with_and_without_the_file_s_name(
    tagged: Tagged, name: str, ort_class: str
) -> None:
    import optimum.onnxruntime

    directory = tagged(name)
    loaded = getattr(optimum.onnxruntime, ort_class)
    for options in ({}, {"file_name": "model.onnx"}):
        model = loaded.from_pretrained(directory, **options)
        assert model.path == directory / "model.onnx"


@pytest.mark.parametrize("name", sorted({use[0] for use in USES}))
def test_the_auto_classes_load_it(
    tagged: Tagged, model_directory: Callable[[str], Path], name: str
) -> None:
    from transformers import AutoConfig

    source = AutoConfig.from_pretrained(model_directory(name)).to_dict()
    config = AutoConfig.from_pretrained(tagged(name)).to_dict()
    # What generation and the exporter move elsewhere is not the model's.
    for key in ("model_type", "architectures", "vocab_size", "hidden_size", "id2label", "label2id"):
        assert config.get(key) == source.get(key), key
    if "tokenizer" in preprocessors(tagged(name)):
        tokens = preprocessors(tagged(name))["tokenizer"](TEXT)["input_ids"]
        assert tokens == preprocessors(model_directory(name))["tokenizer"](TEXT)["input_ids"]


def test_a_picture_from_the_diffusion_pipeline(tagged: Tagged) -> None:
    from optimum.onnxruntime import ORTDiffusionPipeline

    pipeline = ORTDiffusionPipeline.from_pretrained(tagged("stable-diffusion"))
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("a fox", num_inference_steps=2, height=16, width=16).images
    assert image.size == (16, 16)
