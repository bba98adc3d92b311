"""Models that transformers' own exporter (5.13 and later) exports, fused for ONNX Runtime and not.

One table. A model is exported once: what its graph was before the fusions is kept beside it.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import zoo

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


def model_of(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a model of the table, with the same weights every time, and inputs for it."""
    class_name, config, inputs = MODELS[name]
    torch.manual_seed(0)
    return zoo._create(class_name, **config), deepcopy(inputs)


def export(name: str, directory: Path, *, fusions: str = "cpu", **options: object) -> None:
    """Export a model fused, and what its graph was before to the directory ``unfused`` in it."""
    from transformers.exporters import exporter_onnx

    model, inputs = model_of(name)
    fuse = exporter_onnx.fuse_for_onnxruntime

    def keep(program: Any, provider: str) -> None:
        (directory / UNFUSED).mkdir(parents=True)
        exporter_onnx.OnnxExporter.save_program(program, directory / UNFUSED / "model.onnx")
        fuse(program, provider)

    config = exporter_onnx.OnnxConfig(ort_fusions=fusions, **options)
    with mock.patch.object(exporter_onnx, "fuse_for_onnxruntime", keep):
        exported = exporter_onnx.OnnxExporter().export(model, inputs, config=config)
    exported.save_pretrained(directory)
    model.config.save_pretrained(directory / UNFUSED)
    modules = {p: type(m).__name__ for p, m in model.named_modules(remove_duplicate=False)}
    (directory / "modules.txt").write_text(json.dumps(modules))
