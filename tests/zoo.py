"""The zoo: tiny random models of every family that Optimum's ONNX exporter knows, built offline.

One table, ``ARCHITECTURES``. Each row writes a complete model directory: configuration, weights,
tokenizer or processor. Nothing here exports, tags or tests anything.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Builder = Callable[[Path], None]


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: unique, the test id.
        family: what kind of model or export it stands for.
        task: what ``main_export`` is asked for.
        build: writes the model directory; go through :func:`build`, which fixes the seed.
        export: further arguments of ``main_export``; take them from :meth:`arguments`.
    """

    name: str
    family: str
    task: str
    build: Builder
    export: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, directory: Path) -> dict[str, Any]:
        """Return ``export`` with the model directory put where it says ``{directory}``."""
        template = json.dumps(dict(self.export))
        return json.loads(template.replace("{directory}", directory.as_posix()))


def build(architecture: Architecture, directory: Path) -> None:
    """Write the model directory of an architecture, with the same weights every time."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture.build(directory)


# --- Tokenizers, image processors, feature extractors ---------------------------------------------

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "a module of the model owns every node of the graph",
    "where does this operation come from and who called it",
)
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VOCABULARY = 320
LENGTH = 64


def tokenizer(
    template: str = "<s> $A </s>", class_name: str = "PreTrainedTokenizerFast"
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose special tokens have the ids of ``SPECIAL``."""
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=template,
        pair=f"{template} $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return getattr(transformers, class_name)(
        tokenizer_object=backend,
        model_max_length=LENGTH // 2,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
    )


def _sentencepiece(directory: Path) -> None:
    """Train a SentencePiece model, and save a tokenizer that has no other form, as Marian's."""
    import io

    import sentencepiece
    import transformers

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=60, minloglevel=2,
        hard_vocab_limit=False, pad_id=-1, bos_id=-1, eos_id=0, unk_id=1,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [pieces.id_to_piece(number) for number in range(len(pieces))]
    with TemporaryDirectory() as folder:
        spm, vocabulary = f"{folder}/source.spm", f"{folder}/vocab.json"
        Path(spm).write_bytes(model.getvalue())
        Path(vocabulary).write_text(json.dumps({n: i for i, n in enumerate([*names, "<pad>"])}))
        transformers.MarianTokenizer(
            source_spm=spm, target_spm=spm, vocab=vocabulary, model_max_length=LENGTH // 2
        ).save_pretrained(directory)


def _text(*args: str) -> Builder:
    return lambda directory: tokenizer(*args).save_pretrained(directory)


def _characters(directory: Path) -> None:
    import transformers

    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    transformers.Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(directory)


def _processor(class_name: str, **kwargs: object) -> Builder:
    def write(directory: Path) -> None:
        import transformers

        getattr(transformers, class_name)(**kwargs).save_pretrained(directory)

    return write


def _image(class_name: str = "ViTImageProcessor", side: int = 32, **kwargs: object) -> Builder:
    return _processor(class_name, size={"height": side, "width": side}, **kwargs)


ENCODER_TEXT = _text()
DECODER_TEXT = _text("$A")
SEQ2SEQ_TEXT = _text("$A </s>")
WHISPER_TEXT = _text("<s> $A </s>", "WhisperTokenizerFast")
WAVE = _processor("Wav2Vec2FeatureExtractor")
WHISPER_WAVE = _processor("WhisperFeatureExtractor", feature_size=16, chunk_length=1)
EDGE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


# --- Models ---------------------------------------------------------------------------------------


def _like_trained(model: torch.nn.Module) -> torch.nn.Module:
    """Give every tensor values of its own, as training does.

    Fresh models are full of equal tensors (biases, norms), and the exporter merges equal tensors.
    """
    import torch

    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and (tensor == tensor.flatten()[:1]).all():
                tensor += 0.1 * torch.rand_like(tensor)
    return model.eval()


def _create(class_name: str, *, fresh: bool = False, **config: object) -> PreTrainedModel:
    import transformers

    cls = getattr(transformers, class_name)
    # Configurations of several models take theirs apart in place.
    model = cls(cls.config_class(**deepcopy(config))).eval()
    return model if fresh else _like_trained(model)


def _row(
    family: str,
    name: str,
    task: str,
    class_name: str,
    *configs: Mapping[str, Any],
    preprocessors: tuple[Builder, ...] = (),
    export: Mapping[str, Any] | None = None,
    fresh: bool = False,
    **config: object,
) -> Architecture:
    """Make the row of a model of transformers.

    Args:
        family: see :class:`Architecture`.
        name: see :class:`Architecture`.
        task: see :class:`Architecture`.
        class_name: a model class of transformers.
        configs: arguments of its configuration, later ones replace earlier ones.
        preprocessors: write the tokenizer and the processors.
        export: see :class:`Architecture`.
        fresh: leave the weights as they were initialized, many equal tensors among them.
        config: the last of ``configs``.
    """

    def write(directory: Path) -> None:
        merged = {key: value for part in (*configs, config) for key, value in part.items()}
        _create(class_name, fresh=fresh, **merged).save_pretrained(directory)
        for preprocessor in preprocessors:
            preprocessor(directory)

    return Architecture(name, family, task, write, export or {})


# fmt: off
WIDTH = {"hidden_size": 16, "intermediate_size": 32}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
HALVES = {
    f"{half}_{key}": size
    for half in ("encoder", "decoder")
    for key, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}

TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, **SPECIAL}
BERT = {**TEXT, **WIDTH, **LAYERS}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
BOXES = {**BERT, "max_2d_position_embeddings": 1024}
PERCEIVER = {
    "d_latents": 16, "num_latents": 8, "num_blocks": 2, "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2, "num_cross_attention_heads": 2,
}
GPT2 = {
    "vocab_size": VOCABULARY, **SPECIAL, "n_embd": 16, "n_layer": 2, "n_head": 2,
    "n_positions": LENGTH,
}
LLAMA = {**BERT, "num_key_value_heads": 1}
GEMMA = {**LLAMA, "head_dim": 8}
T5 = {
    "vocab_size": VOCABULARY, **SPECIAL, "decoder_start_token_id": 0, "d_model": 16, "d_kv": 8,
    "d_ff": 32, "num_layers": 2, "num_heads": 2,
}
SEQ2SEQ = {
    **TEXT, **HALVES, "d_model": 16, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}
CROSS = {"is_decoder": True, "add_cross_attention": True, "is_encoder_decoder": False}
START = {**SPECIAL, "decoder_start_token_id": 1}
BERT_PART = {"model_type": "bert", **BERT}
GPT2_PART = {"model_type": "gpt2", **GPT2, **CROSS}

VIT = {**WIDTH, **LAYERS, "image_size": 32, "patch_size": 8}
SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2],
    "window_size": 4,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2]}
PYRAMID = {
    "num_encoder_blocks": 2, "depths": [2, 2], "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
}
DPT = {
    **VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False,
    "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
}
DETR = {
    **HALVES, "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False,
    "backbone_config": {"model_type": "resnet", **RESNET, "out_features": ["stage2"]},
    "d_model": 16, "num_queries": 5,
}
RT_DETR = {
    **HALVES, "use_timm_backbone": False,
    "backbone_config": {
        "model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 16],
        "depths": [1, 1, 1, 1], "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_layers": 1, "encoder_hidden_dim": 16, "encoder_in_channels": [8, 8, 16],
    "decoder_in_channels": [16, 16, 16], "d_model": 16, "num_queries": 10, "num_denoising": 0,
}
MASKFORMER = {
    "backbone_config": {
        "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1], "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "decoder_config": {"model_type": "detr", **HALVES, "d_model": 32, "num_queries": 5},
    "fpn_feature_size": 32, "mask_feature_size": 32,
}
SAM = {
    "vision_config": {
        **VIT, "output_channels": 16, "mlp_dim": 32, "num_pos_feats": 8, "window_size": 2,
        "global_attn_indexes": [1],
    },
    "prompt_encoder_config": {
        "hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4,
    },
    "mask_decoder_config": {
        **LAYERS, "hidden_size": 16, "mlp_dim": 16, "iou_head_hidden_dim": 16, "iou_head_depth": 2,
    },
}
CVT = {
    "embed_dim": [8, 16], "depth": [1, 2], "num_heads": [1, 2], "patch_sizes": [7, 3],
    "patch_stride": [4, 2], "patch_padding": [2, 1], "mlp_ratio": [2, 2],
    "attention_drop_rate": [0, 0], "drop_rate": [0, 0], "drop_path_rate": [0, 0],
    "qkv_bias": [True, True], "cls_token": [False, True],
    "qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3], "padding_kv": [1, 1],
    "stride_kv": [2, 2], "padding_q": [1, 1], "stride_q": [1, 1],
}
CLIP = {"text_config": BERT, "vision_config": VIT, "projection_dim": 16}
GROUPVIT = {
    "text_config": BERT,
    "vision_config": {
        **VIT, "depths": [2, 2], "num_hidden_layers": 4, "num_group_tokens": [8, 4],
        "num_output_groups": [8, 4],
    },
    "projection_dim": 16, "projection_intermediate_dim": 16,
}

WAV2VEC2 = {
    "vocab_size": 31, **WIDTH, **LAYERS, **SPECIAL, "conv_dim": (16, 16), "conv_kernel": (10, 8),
    "conv_stride": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
}
WHISPER = {
    **SEQ2SEQ, "decoder_start_token_id": 1, "num_mel_bins": 16, "max_source_positions": 50,
    "max_target_positions": LENGTH, "suppress_tokens": None, "begin_suppress_tokens": None,
}
HIFIGAN = {
    "upsample_initial_channel": 16, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4],
    "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
}
SPEECHT5 = {
    **HALVES, "vocab_size": 81, "hidden_size": 16, "num_mel_bins": 20, "speaker_embedding_dim": 16,
    "speech_decoder_prenet_units": 16, "speech_decoder_postnet_units": 16,
    "speech_decoder_postnet_layers": 2,
}
VITS = {
    **LAYERS, **HIFIGAN, "vocab_size": 38, "hidden_size": 16, "ffn_dim": 32, "flow_size": 16,
    "spectrogram_bins": 9, "noise_scale": 0.0, "noise_scale_duration": 0.0,
    "duration_predictor_num_flows": 2, "duration_predictor_filter_channels": 16,
    "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 2, "wavenet_dilation_rate": 1,
    "depth_separable_num_layers": 2,
}
MUSICGEN = {
    "text_encoder": {"model_type": "t5", **T5},
    "audio_encoder": {
        "model_type": "encodec", "num_filters": 4, "upsampling_ratios": [2, 2],
        "sampling_rate": 400, "target_bandwidths": [2.0], "codebook_size": 64, "codebook_dim": 8,
        "hidden_size": 8, "num_lstm_layers": 1, "num_residual_layers": 1,
    },
    "decoder": {
        "model_type": "musicgen_decoder", **LAYERS, "vocab_size": 64, "hidden_size": 16,
        "max_position_embeddings": LENGTH, "ffn_dim": 32, "num_codebooks": 2, "pad_token_id": 64,
        "bos_token_id": 64,
    },
}
PATCHES = {
    "num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8,
    "d_model": 16, "prediction_length": 8,
}
# fmt: on


# --- Directories that are more than one model of transformers ------------------------------------

BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def _pipeline(class_name: str, scheduler: str, **components: object) -> Builder:
    """Write a diffusion pipeline; components that are functions are called first."""

    def write(directory: Path) -> None:
        import diffusers

        made = {key: make() if callable(make) else make for key, make in components.items()}
        for name in [key for key in made if key.startswith("text_encoder")]:
            made[name.replace("text_encoder", "tokenizer")] = tokenizer()
        made["scheduler"] = getattr(diffusers, scheduler)()
        getattr(diffusers, class_name)(**made).save_pretrained(directory)

    return write


def _diffuser(class_name: str, **config: object) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        import diffusers

        return _like_trained(getattr(diffusers, class_name)(**config))

    return make


VAE = partial(
    _diffuser,
    "AutoencoderKL",
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    sample_size=16,
    **BLOCKS,
)
UNET = partial(_diffuser, "UNet2DConditionModel", sample_size=8, **BLOCKS)
CLIP_TEXT = partial(_create, "CLIPTextModel", **BERT, projection_dim=16)
CLIP_TEXT_PROJECTED = partial(_create, "CLIPTextModelWithProjection", **BERT, projection_dim=16)
T5_TEXT = partial(_create, "T5EncoderModel", **T5)

STABLE_DIFFUSION = _pipeline(
    "StableDiffusionPipeline",
    "DDIMScheduler",
    text_encoder=CLIP_TEXT,
    vae=VAE(),
    unet=UNET(
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    safety_checker=None,
    feature_extractor=None,
)
STABLE_DIFFUSION_XL = _pipeline(
    "StableDiffusionXLPipeline",
    "EulerDiscreteScheduler",
    text_encoder=CLIP_TEXT,
    text_encoder_2=CLIP_TEXT_PROJECTED,
    vae=VAE(),
    unet=UNET(
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
)
STABLE_DIFFUSION_3 = _pipeline(
    "StableDiffusion3Pipeline",
    "FlowMatchEulerDiscreteScheduler",
    text_encoder=CLIP_TEXT_PROJECTED,
    text_encoder_2=CLIP_TEXT_PROJECTED,
    text_encoder_3=partial(T5_TEXT, d_model=32),
    vae=VAE(shift_factor=0.1),
    transformer=_diffuser(
        "SD3Transformer2DModel",
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
    ),
)
FLUX = _pipeline(
    "FluxPipeline",
    "FlowMatchEulerDiscreteScheduler",
    text_encoder=CLIP_TEXT,
    text_encoder_2=T5_TEXT,
    vae=VAE(shift_factor=0.1),
    transformer=_diffuser(
        "FluxTransformer2DModel",
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ),
)


def _vocoder(directory: Path) -> None:
    _create("SpeechT5HifiGan", **HIFIGAN, model_in_dim=20).save_pretrained(directory / "vocoder")


def _sentence_transformer(directory: Path) -> None:
    from sentence_transformers import SentenceTransformer, models

    with TemporaryDirectory() as bert:
        _create("BertModel", **BERT).save_pretrained(bert)
        tokenizer().save_pretrained(bert)
        parts = [models.Transformer(bert), models.Pooling(16), models.Dense(16, 8)]
        SentenceTransformer(modules=[*parts, models.Normalize()]).save(str(directory))


CUSTOM_CODE = '''\
import torch
from torch import nn
from transformers import BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.scale + x.mean(1, keepdim=True)


class OddForSequenceClassification(BertPreTrainedModel):
    """Every way of naming and calling modules that a reader of names can stumble over."""

    _tied_weights_keys = ["alias.weight", "alias.bias"]

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        linear = lambda: nn.Linear(width, width)
        self.tokens_0 = nn.Embedding(config.vocab_size, width)
        self.grid = nn.ModuleList(
            nn.ModuleList([linear(), nn.LayerNorm(width)]) for _ in range(2)
        )
        self.branches = nn.ModuleDict({"a": Mixer(width), "a_1": Mixer(width)})
        self.dense = linear()
        self.dense_1 = linear()
        self.dense_1_1 = linear()
        self.alias = self.dense_1
        self.layer = nn.Sequential(nn.Sequential(linear(), nn.GELU()), Mixer(width))
        self.normed = nn.utils.parametrizations.weight_norm(linear())
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None):
        x = self.tokens_0(input_ids) * attention_mask.unsqueeze(-1) + self.tokens_0(token_type_ids)
        for linear, norm in self.grid:
            x = x + linear(norm(x))
        x = self.branches["a"](x) + self.branches["a_1"](x)
        x = self.dense(x) + self.dense_1(x) + self.dense_1_1(x)
        x = self.dense(x.relu()) + self.alias(x.tanh())
        x = self.layer(self.layer(x))
        return SequenceClassifierOutput(logits=self.classifier(self.normed(x).amax(1)))
'''


def _custom_code(directory: Path) -> None:
    from transformers import BertConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "modeling_odd.py").write_text(CUSTOM_CODE)
    reference = "modeling_odd.OddForSequenceClassification"
    cls = get_class_from_dynamic_module(reference, directory)
    config = BertConfig(**BERT, auto_map={"AutoModelForSequenceClassification": reference})
    _like_trained(cls(config)).save_pretrained(directory)
    ENCODER_TEXT(directory)


# --- The table ------------------------------------------------------------------------------------

_encoder = partial(_row, "text encoder", preprocessors=(ENCODER_TEXT,))
_decoder = partial(_row, "text decoder", preprocessors=(DECODER_TEXT,))
_seq2seq = partial(_row, "encoder-decoder", preprocessors=(SEQ2SEQ_TEXT,))
_vision = partial(_row, "vision", preprocessors=(_image(),))
_caption = partial(_row, "vision encoder-decoder", preprocessors=(_image(), DECODER_TEXT))
_speech = partial(_row, "speech", preprocessors=(WAVE,))
_spelled = partial(_row, "speech", preprocessors=(WAVE, _characters))
_clip_image = _processor("CLIPImageProcessor", **EDGE)
_multimodal = partial(_row, "multi-modal", preprocessors=(ENCODER_TEXT, _clip_image))
_series = partial(_row, "time series")

CAUSAL = "text-generation-with-past"
TEXT2TEXT = "text2text-generation-with-past"
CAPTION = "image-to-text-with-past"
SPEECH2TEXT = "automatic-speech-recognition"
CLASSIFY = "image-classification"
FRAMES = {"nb_max_frames": 100}

# fmt: off
ARCHITECTURES: tuple[Architecture, ...] = (
    _encoder("bert", "fill-mask", "BertForMaskedLM", BERT),
    _encoder("bert-fresh", "feature-extraction", "BertModel", BERT, fresh=True),
    _encoder("bert-fp16", "fill-mask", "BertForMaskedLM", BERT, export={"dtype": "fp16"}),
    _encoder("albert", "text-classification", "AlbertForSequenceClassification", BERT,
             num_hidden_layers=4, num_hidden_groups=2, embedding_size=8, fresh=True),
    _encoder("distilbert", "question-answering", "DistilBertForQuestionAnswering", TEXT,
             dim=16, hidden_dim=32, n_layers=2, n_heads=2),
    _encoder("roberta", "multiple-choice", "RobertaForMultipleChoice", BERT),
    _encoder("xlm-roberta", "feature-extraction", "XLMRobertaModel", BERT),
    _encoder("deberta", "fill-mask", "DebertaForMaskedLM", DEBERTA),
    _encoder("deberta-v2", "token-classification", "DebertaV2ForTokenClassification", DEBERTA,
             position_buckets=8, conv_kernel_size=3),
    _encoder("electra", "text-classification", "ElectraForSequenceClassification", BERT,
             embedding_size=8),
    _encoder("mpnet", "fill-mask", "MPNetForMaskedLM", BERT, fresh=True),
    _encoder("mobilebert", "question-answering", "MobileBertForQuestionAnswering", BERT,
             embedding_size=16, intra_bottleneck_size=8, true_hidden_size=8),
    _encoder("squeezebert", "text-classification", "SqueezeBertForSequenceClassification", BERT,
             embedding_size=16),
    _encoder("roformer", "token-classification", "RoFormerForTokenClassification", BERT),
    _encoder("convbert", "text-classification", "ConvBertForSequenceClassification", BERT,
             embedding_size=16),
    _encoder("ibert", "text-classification", "IBertForSequenceClassification", BERT),
    _encoder("modernbert", "fill-mask", "ModernBertForMaskedLM", BERT, cls_token_id=1,
             sep_token_id=2, global_attn_every_n_layers=2, local_attention=8),
    _encoder("xlm", "fill-mask", "XLMWithLMHeadModel", TEXT, emb_dim=16, n_layers=2, n_heads=2),
    _encoder("splinter", "question-answering", "SplinterForQuestionAnswering", BERT),
    _encoder("big-bird", "fill-mask", "BigBirdForMaskedLM", BERT, attention_type="original_full"),
    _encoder("esm", "fill-mask", "EsmForMaskedLM", BERT, mask_token_id=4,
             position_embedding_type="rotary"),
    _encoder("markuplm", "token-classification", "MarkupLMForTokenClassification", BERT,
             max_depth=8, xpath_unit_hidden_size=4),
    _encoder("perceiver", "fill-mask", "PerceiverForMaskedLM", PERCEIVER, d_model=16,
             vocab_size=VOCABULARY, max_position_embeddings=LENGTH, qk_channels=16, v_channels=16),

    _decoder("gpt2", CAUSAL, "GPT2LMHeadModel", GPT2, fresh=True),
    _decoder("gpt2-no-past", "text-generation", "GPT2LMHeadModel", GPT2),
    _decoder("gpt2-tokens", "token-classification", "GPT2ForTokenClassification", GPT2),
    _decoder("gpt-neo", CAUSAL, "GPTNeoForCausalLM", TEXT, hidden_size=16, num_layers=2,
             num_heads=2, attention_types=[[["global", "local"], 1]], window_size=4),
    _decoder("gpt-neox", CAUSAL, "GPTNeoXForCausalLM", BERT),
    _decoder("gptj", CAUSAL, "GPTJForCausalLM", GPT2, rotary_dim=4),
    _decoder("codegen", CAUSAL, "CodeGenForCausalLM", GPT2, n_head=4, rotary_dim=4),
    _decoder("gpt-bigcode", CAUSAL, "GPTBigCodeForCausalLM", GPT2),
    _decoder("opt", CAUSAL, "OPTForCausalLM", TEXT, LAYERS, hidden_size=16, ffn_dim=32,
             word_embed_proj_dim=8),
    _decoder("bloom", CAUSAL, "BloomForCausalLM", SPECIAL, vocab_size=VOCABULARY, hidden_size=16,
             n_layer=2, n_head=2),
    _decoder("mpt", CAUSAL, "MptForCausalLM", SPECIAL, vocab_size=VOCABULARY, d_model=16,
             n_heads=2, n_layers=2, max_seq_len=LENGTH),
    _decoder("falcon", CAUSAL, "FalconForCausalLM", BERT, alibi=False),
    _decoder("llama", CAUSAL, "LlamaForCausalLM", LLAMA),
    _decoder("mistral", CAUSAL, "MistralForCausalLM", LLAMA),
    _decoder("phi", CAUSAL, "PhiForCausalLM", BERT),
    _decoder("phi3", CAUSAL, "Phi3ForCausalLM", BERT),
    _decoder("qwen2", "text-classification", "Qwen2ForSequenceClassification", LLAMA),
    _decoder("qwen3", CAUSAL, "Qwen3ForCausalLM", GEMMA),
    _decoder("qwen3-moe", CAUSAL, "Qwen3MoeForCausalLM", GEMMA, num_experts=4,
             num_experts_per_tok=2, moe_intermediate_size=8),
    _decoder("gemma", CAUSAL, "GemmaForCausalLM", GEMMA, fresh=True),
    _decoder("gemma2", CAUSAL, "Gemma2ForCausalLM", GEMMA, sliding_window=8,
             num_key_value_heads=2),
    _decoder("gemma3", CAUSAL, "Gemma3ForCausalLM", GEMMA, sliding_window=8),
    _decoder("gpt-oss", CAUSAL, "GptOssForCausalLM", GEMMA, sliding_window=8, num_local_experts=4,
             num_experts_per_tok=2),
    _decoder("olmo", CAUSAL, "OlmoForCausalLM", BERT),
    _decoder("cohere", CAUSAL, "CohereForCausalLM", LLAMA),
    _decoder("deepseek-v3", CAUSAL, "DeepseekV3ForCausalLM", LLAMA, num_key_value_heads=2,
             q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
             n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
             moe_intermediate_size=8, first_k_dense_replace=1),

    _seq2seq("t5", TEXT2TEXT, "T5ForConditionalGeneration", T5),
    _seq2seq("t5-no-post-process", TEXT2TEXT, "T5ForConditionalGeneration", T5,
             export={"no_post_process": True}),
    _seq2seq("mt5", "text2text-generation", "MT5ForConditionalGeneration", T5),
    _seq2seq("longt5", TEXT2TEXT, "LongT5ForConditionalGeneration", T5, local_radius=4),
    _seq2seq("bart", TEXT2TEXT, "BartForConditionalGeneration", SEQ2SEQ, fresh=True),
    _seq2seq("bart-monolith", "text2text-generation", "BartForConditionalGeneration", SEQ2SEQ,
             export={"monolith": True}),
    _seq2seq("bart-sequence", "text-classification", "BartForSequenceClassification", SEQ2SEQ,
             preprocessors=(ENCODER_TEXT,)),
    _seq2seq("bart-features", "feature-extraction-with-past", "BartModel", SEQ2SEQ),
    _seq2seq("marian", TEXT2TEXT, "MarianMTModel", SEQ2SEQ),
    _seq2seq("mbart", TEXT2TEXT, "MBartForConditionalGeneration", SEQ2SEQ),
    _seq2seq("pegasus", TEXT2TEXT, "PegasusForConditionalGeneration", SEQ2SEQ),
    _seq2seq("m2m-100", TEXT2TEXT, "M2M100ForConditionalGeneration", SEQ2SEQ),
    _seq2seq("blenderbot", TEXT2TEXT, "BlenderbotForConditionalGeneration", SEQ2SEQ),
    _seq2seq("bigbird-pegasus", TEXT2TEXT, "BigBirdPegasusForConditionalGeneration", SEQ2SEQ,
             attention_type="original_full"),
    _seq2seq("bert-gpt2", TEXT2TEXT, "EncoderDecoderModel", START, encoder=BERT_PART,
             decoder=GPT2_PART),

    _vision("vit", CLASSIFY, "ViTForImageClassification", VIT, fresh=True),
    _vision("deit", "masked-im", "DeiTForMaskedImageModeling", VIT, encoder_stride=8),
    _vision("beit", CLASSIFY, "BeitForImageClassification", VIT, use_relative_position_bias=True),
    _vision("data2vec-vision", CLASSIFY, "Data2VecVisionForImageClassification", VIT,
            use_shared_relative_position_bias=True),
    _vision("dinov2", CLASSIFY, "Dinov2ForImageClassification", VIT, mlp_ratio=2),
    _vision("swin", CLASSIFY, "SwinForImageClassification", SWIN),
    _vision("swinv2", "masked-im", "Swinv2ForMaskedImageModeling", SWIN, encoder_stride=8),
    _vision("swin2sr", "image-to-image", "Swin2SRForImageSuperResolution", SWIN, image_size=16,
            patch_size=1, preprocessors=(_processor("Swin2SRImageProcessor"),)),
    _vision("convnext", CLASSIFY, "ConvNextForImageClassification", num_stages=2, image_size=32,
            hidden_sizes=[8, 16], depths=[2, 2]),
    _vision("convnextv2", CLASSIFY, "ConvNextV2ForImageClassification", num_stages=2, image_size=32,
            hidden_sizes=[8, 16], depths=[2, 2]),
    _vision("resnet", CLASSIFY, "ResNetForImageClassification", RESNET),
    _vision("regnet", CLASSIFY, "RegNetForImageClassification", RESNET, groups_width=4),
    _vision("efficientnet", CLASSIFY, "EfficientNetForImageClassification", image_size=32,
            width_coefficient=0.125, depth_coefficient=0.5, in_channels=[8, 8], out_channels=[8, 8],
            kernel_sizes=[3, 3], strides=[1, 2], num_block_repeats=[2, 2], expand_ratios=[1, 2],
            depthwise_padding=[], hidden_dim=160),
    _vision("mobilevit", "image-segmentation", "MobileViTForSemanticSegmentation", image_size=32,
            hidden_sizes=[16, 16, 16], neck_hidden_sizes=[4, 8, 8, 8, 8, 8, 16],
            num_attention_heads=2, aspp_out_channels=8,
            preprocessors=(_processor("MobileViTImageProcessor", **EDGE),)),
    _vision("mobilenet-v1", CLASSIFY, "MobileNetV1ForImageClassification", image_size=32,
            depth_multiplier=0.25, min_depth=4,
            preprocessors=(_processor("MobileNetV1ImageProcessor", **EDGE),)),
    _vision("mobilenet-v2", CLASSIFY, "MobileNetV2ForImageClassification", image_size=32,
            depth_multiplier=0.25, min_depth=4,
            preprocessors=(_processor("MobileNetV2ImageProcessor", **EDGE),)),
    _vision("levit", CLASSIFY, "LevitForImageClassification", image_size=64,
            hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2], depths=[2, 2, 2],
            key_dim=[8, 8, 8], preprocessors=(_image(side=64),)),
    _vision("poolformer", CLASSIFY, "PoolFormerForImageClassification", PYRAMID,
            patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1]),
    _vision("pvt", CLASSIFY, "PvtForImageClassification", PYRAMID, image_size=32,
            patch_sizes=[4, 2], strides=[4, 2], sequence_reduction_ratios=[2, 1]),
    _vision("hiera", CLASSIFY, "HieraForImageClassification", embed_dim=8, image_size=[32, 32],
            depths=[1, 2], num_heads=[1, 2], num_query_pool=1, masked_unit_size=[2, 2],
            query_stride=[2, 2], mlp_ratio=2.0),
    _vision("cvt", CLASSIFY, "CvtForImageClassification", CVT),
    _vision("perceiver-image", CLASSIFY, "PerceiverForImageClassificationConvProcessing", PERCEIVER,
            image_size=32),
    _vision("segformer", "semantic-segmentation", "SegformerForSemanticSegmentation", PYRAMID,
            sr_ratios=[2, 1], patch_sizes=[3, 3], strides=[2, 2], decoder_hidden_size=16,
            preprocessors=(_image("SegformerImageProcessor"),)),
    _vision("dpt", "depth-estimation", "DPTForDepthEstimation", DPT,
            preprocessors=(_image("DPTImageProcessor"),)),
    _vision("maskformer", "image-segmentation", "MaskFormerForInstanceSegmentation", MASKFORMER,
            preprocessors=(_image("MaskFormerImageProcessor", 64),)),
    _vision("detr", "object-detection", "DetrForObjectDetection", DETR,
            preprocessors=(_image("DetrImageProcessor", 64),)),
    _vision("yolos", "object-detection", "YolosForObjectDetection", VIT, image_size=[64, 64],
            num_detection_tokens=5, preprocessors=(_image("YolosImageProcessor", 64),)),
    _vision("rt-detr", "object-detection", "RTDetrForObjectDetection", RT_DETR,
            preprocessors=(_image("RTDetrImageProcessor", 64),)),
    _vision("vitpose", "keypoint-detection", "VitPoseForPoseEstimation", num_labels=4,
            backbone_config={"model_type": "vitpose_backbone", **LAYERS, "hidden_size": 16,
                             "mlp_ratio": 2, "image_size": [256, 192], "patch_size": [32, 32],
                             "out_indices": [2], "part_features": 0},
            preprocessors=(_processor("VitPoseImageProcessor"),)),
    _vision("sam", "feature-extraction", "SamModel", SAM,
            preprocessors=(_processor("SamImageProcessor", size={"longest_edge": 32}),)),
    _vision("mgp-str", "feature-extraction", "MgpstrForSceneTextRecognition", LAYERS,
            hidden_size=16, image_size=[32, 32], max_token_length=8, num_bpe_labels=20,
            num_wordpiece_labels=20),

    _caption("vit-gpt2", CAPTION, "VisionEncoderDecoderModel", START,
             encoder={"model_type": "vit", **VIT}, decoder=GPT2_PART),
    _caption("trocr", CAPTION, "VisionEncoderDecoderModel", START,
             encoder={"model_type": "deit", **VIT},
             decoder={"model_type": "trocr", **SEQ2SEQ, **CROSS,
                      "cross_attention_hidden_size": 16}),
    _caption("donut", CAPTION, "VisionEncoderDecoderModel", START,
             encoder={"model_type": "donut-swin", **SWIN},
             decoder={"model_type": "mbart", **SEQ2SEQ, **CROSS}),
    _caption("pix2struct", CAPTION, "Pix2StructForConditionalGeneration", SPECIAL,
             text_config={**T5, "hidden_size": 16},
             vision_config={**LAYERS, "hidden_size": 16, "d_ff": 32, "d_kv": 8},
             preprocessors=(_processor("Pix2StructImageProcessor", max_patches=16), SEQ2SEQ_TEXT)),

    _spelled("wav2vec2", SPEECH2TEXT, "Wav2Vec2ForCTC", WAV2VEC2, fresh=True),
    _spelled("wav2vec2-conformer", SPEECH2TEXT, "Wav2Vec2ConformerForCTC", WAV2VEC2,
             conv_depthwise_kernel_size=5),
    _spelled("sew", SPEECH2TEXT, "SEWForCTC", WAV2VEC2, squeeze_factor=2),
    _spelled("sew-d", SPEECH2TEXT, "SEWDForCTC", WAV2VEC2, squeeze_factor=2,
             max_position_embeddings=LENGTH, position_buckets=16),
    _spelled("mctct", SPEECH2TEXT, "MCTCTForCTC", WIDTH, LAYERS, vocab_size=31,
             attention_head_dim=8, input_feat_per_channel=16, conv_kernel=(7,), conv_stride=(3,),
             max_position_embeddings=LENGTH, export={"audio_sequence_length": 96}),
    _speech("hubert", "audio-classification", "HubertForSequenceClassification", WAV2VEC2),
    _speech("unispeech", "audio-classification", "UniSpeechForSequenceClassification", WAV2VEC2),
    _speech("unispeech-sat", "audio-frame-classification",
            "UniSpeechSatForAudioFrameClassification", WAV2VEC2),
    _speech("data2vec-audio", "audio-frame-classification",
            "Data2VecAudioForAudioFrameClassification", WAV2VEC2,
            conv_pos_kernel_size=5, num_conv_pos_embeddings=2),
    _speech("wavlm", "audio-xvector", "WavLMForXVector", WAV2VEC2, tdnn_dim=(8, 8),
            tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=8),
    _speech("audio-spectrogram-transformer", "audio-classification", "ASTForAudioClassification",
            WIDTH, LAYERS, max_length=64, num_mel_bins=16, patch_size=8, frequency_stride=8,
            time_stride=8,
            preprocessors=(_processor("ASTFeatureExtractor", max_length=64, num_mel_bins=16),)),
    _speech("whisper", SPEECH2TEXT + "-with-past", "WhisperForConditionalGeneration", WHISPER,
            preprocessors=(WHISPER_WAVE, WHISPER_TEXT), export=FRAMES),
    _speech("whisper-audio", "audio-classification", "WhisperForAudioClassification", WHISPER,
            classifier_proj_size=8, preprocessors=(WHISPER_WAVE,), export=FRAMES),
    _speech("speech-to-text", SPEECH2TEXT + "-with-past", "Speech2TextForConditionalGeneration",
            SEQ2SEQ, input_feat_per_channel=16, num_conv_layers=2, conv_kernel_sizes=(3, 3),
            conv_channels=16, max_source_positions=400, max_target_positions=LENGTH,
            preprocessors=(_processor("Speech2TextFeatureExtractor", num_mel_bins=16,
                                      feature_size=16), SEQ2SEQ_TEXT),
            export={"audio_sequence_length": 160}),
    _speech("moonshine", SPEECH2TEXT + "-with-past", "MoonshineForConditionalGeneration", SPECIAL,
            WIDTH, vocab_size=VOCABULARY, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2, decoder_num_attention_heads=2,
            preprocessors=(WAVE, SEQ2SEQ_TEXT)),
    _speech("speecht5", "text-to-audio", "SpeechT5ForTextToSpeech", SPEECHT5,
            preprocessors=(_vocoder,), export={"model_kwargs": {"vocoder": "{directory}/vocoder"}}),
    _speech("vits", "text-to-audio", "VitsModel", VITS, preprocessors=()),
    _speech("musicgen", "text-to-audio", "MusicgenForConditionalGeneration", MUSICGEN,
            preprocessors=(SEQ2SEQ_TEXT,)),

    _multimodal("clip", "zero-shot-image-classification", "CLIPModel", CLIP, fresh=True),
    _multimodal("clip-vision", "feature-extraction", "CLIPVisionModel", VIT,
                preprocessors=(_clip_image,)),
    _multimodal("siglip", "zero-shot-image-classification", "SiglipModel", vision_config=VIT,
                text_config={**BERT, "projection_size": 16}),
    _multimodal("chinese-clip", "zero-shot-image-classification", "ChineseCLIPModel", CLIP),
    _multimodal("metaclip2-split", "zero-shot-image-classification", "MetaClip2Model", CLIP,
                export={"_variant": "split"}),
    _multimodal("owlvit", "zero-shot-object-detection", "OwlViTForObjectDetection", CLIP),
    _multimodal("groupvit", "feature-extraction", "GroupViTModel", GROUPVIT),
    _multimodal("visual-bert", "feature-extraction", "VisualBertModel", BERT,
                visual_embedding_dim=16, preprocessors=(ENCODER_TEXT,)),
    _multimodal("layoutlm", "token-classification", "LayoutLMForTokenClassification", BOXES,
                preprocessors=(ENCODER_TEXT,)),
    _multimodal("layoutlmv3", "question-answering", "LayoutLMv3ForQuestionAnswering", BOXES,
                coordinate_size=3, shape_size=2, input_size=32, patch_size=8,
                preprocessors=(ENCODER_TEXT, _image("LayoutLMv3ImageProcessor", apply_ocr=False))),
    _multimodal("lilt", "token-classification", "LiltForTokenClassification", BOXES,
                hidden_size=24, channel_shrink_ratio=2, preprocessors=(ENCODER_TEXT,)),

    _series("patchtst", "time-series-forecasting", "PatchTSTForPrediction", PATCHES,
            num_hidden_layers=2, num_attention_heads=2, ffn_dim=32),
    _series("patchtsmixer", "time-series-forecasting", "PatchTSMixerForPrediction", PATCHES,
            num_layers=2),

    Architecture("sentence-transformers", "sentence-transformers", "sentence-similarity",
                 _sentence_transformer, {"library_name": "sentence_transformers"}),
    Architecture("sentence-transformers-as-transformers", "sentence-transformers",
                 "feature-extraction", _sentence_transformer, {"library_name": "transformers"}),

    Architecture("stable-diffusion", "diffusion", "text-to-image", STABLE_DIFFUSION),
    Architecture("stable-diffusion-xl", "diffusion", "text-to-image", STABLE_DIFFUSION_XL),
    Architecture("stable-diffusion-3", "diffusion", "text-to-image", STABLE_DIFFUSION_3),
    Architecture("flux", "diffusion", "text-to-image", FLUX),

    Architecture("custom-code", "custom code", "text-classification", _custom_code,
                 {"trust_remote_code": True}),
)
# fmt: on

OPUS_MT = _seq2seq("opus-mt", TEXT2TEXT, "MarianMTModel", SEQ2SEQ, preprocessors=(_sentencepiece,))
"""As `marian`, with the tokenizer that translation models have: sentencepiece alone reads it."""
