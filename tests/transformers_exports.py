"""Models that transformers' own exporter (5.13 and later) exports, fused for ONNX Runtime and not.

One table. A model is exported once: what its graph was before the fusions is kept beside it.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from unittest import mock

import onnx_ir
import torch
import zoo
from transformers.exporters import exporter_onnx
from transformers.exporters.quantizers import quantizer_onnxruntime

if TYPE_CHECKING:
    from pathlib import Path

torch.manual_seed(0)
IDS = torch.randint(5, 60, (2, 8))
TEXT = {"input_ids": IDS, "attention_mask": torch.ones(2, 8, dtype=torch.long)}
PAIR = {**TEXT, "decoder_input_ids": IDS[:, :4]}
IMAGE = {"pixel_values": torch.randn(1, 3, 32, 32)}
SPEECH = {"input_features": torch.randn(1, 16, 100), "decoder_input_ids": IDS[:1, :4]}
WAVE = {"input_values": torch.randn(1, 800)}
NARROW = {**zoo.BERT, "embedding_size": 8}
EXPERTS = {**zoo.LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}

# fmt: off
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = {
    "albert": ("AlbertForMaskedLM", NARROW, TEXT),
    "bart": ("BartForConditionalGeneration", zoo.SEQ2SEQ, PAIR),
    "beit": ("BeitForImageClassification", zoo.VIT, IMAGE),
    "bert": ("BertForSequenceClassification", zoo.BERT, TEXT),
    "bloom": ("BloomForCausalLM", {
        "vocab_size": 320, "hidden_size": 16, "n_layer": 2, "n_head": 2}, TEXT),
    "clip": ("CLIPModel", zoo.CLIP, {**TEXT, **IMAGE}),
    "convnext": ("ConvNextForImageClassification", {
        "hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}, IMAGE),
    "deberta-v2": ("DebertaV2ForSequenceClassification", zoo.DEBERTA, TEXT),
    "deit": ("DeiTForImageClassification", zoo.VIT, IMAGE),
    "dinov2": ("Dinov2ForImageClassification", zoo.VIT, IMAGE),
    "distilbert": ("DistilBertForSequenceClassification", {
        "vocab_size": 320, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2,
        "max_position_embeddings": 64}, TEXT),
    "electra": ("ElectraForTokenClassification", NARROW, TEXT),
    "gemma": ("GemmaForCausalLM", zoo.GEMMA, TEXT),
    "gemma3": ("Gemma3ForCausalLM", zoo.GEMMA, TEXT),
    "gpt-neox": ("GPTNeoXForCausalLM", zoo.BERT, TEXT),
    "gpt2": ("GPT2LMHeadModel", zoo.GPT2, TEXT),
    "llama": ("LlamaForCausalLM", zoo.LLAMA, TEXT),
    "llama-base": ("LlamaModel", zoo.LLAMA, TEXT),
    "mamba": ("MambaForCausalLM", {
        "vocab_size": 320, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2,
        "time_step_rank": 4}, {"input_ids": IDS}),
    "mistral": ("MistralForCausalLM", zoo.LLAMA, TEXT),
    "mixtral": ("MixtralForCausalLM", EXPERTS, TEXT),
    "modernbert": ("ModernBertForMaskedLM", {
        **zoo.BERT, "cls_token_id": 1, "sep_token_id": 2}, TEXT),
    "mpnet": ("MPNetForMaskedLM", zoo.BERT, TEXT),
    "opt": ("OPTForCausalLM", {
        **zoo.TEXT, **zoo.LAYERS, "hidden_size": 16, "word_embed_proj_dim": 16,
        "ffn_dim": 32}, TEXT),
    "phi3": ("Phi3ForCausalLM", zoo.LLAMA, TEXT),
    "qwen2": ("Qwen2ForCausalLM", zoo.LLAMA, TEXT),
    "qwen3": ("Qwen3ForCausalLM", zoo.GEMMA, TEXT),
    "resnet": ("ResNetForImageClassification", zoo.RESNET, IMAGE),
    "roberta": ("RobertaForMaskedLM", zoo.BERT, TEXT),
    "segformer": ("SegformerForImageClassification", {
        **zoo.PYRAMID, "decoder_hidden_size": 8, "strides": [4, 2], "patch_sizes": [7, 3],
        "sr_ratios": [2, 1]}, IMAGE),
    "swin": ("SwinForImageClassification", zoo.SWIN, IMAGE),
    "t5": ("T5ForConditionalGeneration", zoo.T5, PAIR),
    "vit": ("ViTForImageClassification", zoo.VIT, IMAGE),
    "wav2vec2": ("Wav2Vec2ForCTC", zoo.WAV2VEC2, WAVE),
    "whisper": ("WhisperForConditionalGeneration", zoo.WHISPER, SPEECH),
}
# fmt: on

UNFUSED = "unfused"
PROVIDERS = ("cuda", "webgpu", "dml")
EVERY_PROVIDER = ("clip", "gemma3", "gpt2", "llama", "t5")

SOUND_AND_TEXT = {
    "text_config": {"model_type": "qwen2", **zoo.LLAMA},
    "audio_config": {
        "model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 2,
        "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16,
        "max_source_positions": 50,
    },
    "audio_token_index": 300, "audio_token_id": 300,
}  # fmt: skip


def model_of(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a model of the table, with the same weights every time, and inputs for it."""
    class_name, config, inputs = MODELS[name]
    torch.manual_seed(0)
    return zoo._create(class_name, **config), deepcopy(inputs)


def export(name: str, directory: Path, *, dynamic: bool = False) -> None:
    """Export a model fused for the CPU, and what its graph was before to ``unfused`` in there.

    What is in ``EVERY_PROVIDER`` is fused for the others, too, each in a directory of its name.
    """
    model, inputs = model_of(name)

    def keep(program: Any, provider: str) -> None:
        _save(program, directory / UNFUSED)
        for other in PROVIDERS if name in EVERY_PROVIDER else ():
            copy = program.clone()
            fuse(copy, other)
            _save(copy, directory / other)
        fuse(program, provider)

    config = exporter_onnx.OnnxConfig(ort_fusions="cpu", dynamic=dynamic)
    fuse = exporter_onnx.fuse_for_onnxruntime
    with mock.patch.object(exporter_onnx, "fuse_for_onnxruntime", keep):
        exported = exporter_onnx.OnnxExporter().export(model, inputs, config=config)
    exported.save_pretrained(directory)
    for beside in directory.glob("*/model.onnx"):
        model.config.save_pretrained(beside.parent)
    _write_modules(model, directory)


def export_for_generation(directory: Path) -> dict[str, str]:
    """Export a model of sound and text in its parts.

    Returns:
        For each part the path of its module in the model.
    """
    torch.manual_seed(0)
    model = zoo._create("Qwen2AudioForConditionalGeneration", **SOUND_AND_TEXT)
    ids = torch.tensor([[1, *[300] * 25, 7, 9]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.randn(1, 16, 100),
        "feature_attention_mask": torch.ones(1, 100, dtype=torch.long),
    }
    model.generation_config.pad_token_id = 0
    exported = exporter_onnx.OnnxExporter().export_for_generation(
        model, inputs, config=exporter_onnx.OnnxConfig()
    )
    exported.save_pretrained(directory)
    _write_modules(model, directory)
    return {
        "audio_encoder": "model.audio_tower",
        "language_model": "model.language_model",
        "multi_modal_projector": "model.multi_modal_projector",
        "lm_head": "lm_head",
        "decode": "",
    }


def quantize(path: Path, target: Path, name: str, *, dynamic: bool) -> None:
    """Quantize a model of the table, exported before, as the exporter does when it is asked to."""
    _, _, inputs = MODELS[name]
    if dynamic:
        quantizer = quantizer_onnxruntime.OnnxRuntimeQuantizer(
            quantizer_onnxruntime.OnnxRuntimeDynamicConfig()
        )
    else:
        quantizer = quantizer_onnxruntime.OnnxRuntimeQuantizer(calibration_dataset=[inputs])
    program = onnx_ir.load(path)
    _save(quantizer.quantize(program, inputs, exporter_onnx.ExportFormat.ONNX), target)


def _save(program: Any, directory: Path) -> None:
    directory.mkdir(parents=True)
    exporter_onnx.OnnxExporter.save_program(program, directory / "model.onnx")


def _write_modules(model: torch.nn.Module, directory: Path) -> None:
    modules = {p: type(m).__name__ for p, m in model.named_modules(remove_duplicate=False)}
    (directory / "modules.txt").write_text(json.dumps(modules))
