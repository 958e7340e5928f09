"""Upstream models of MusicGen's family with random weights, written in their official layouts."""

from pathlib import Path

import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForCausalLM,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

ENTRIES = 64


def encodec_config(**changes) -> EncodecConfig:
    return EncodecConfig(
        **{
            "sampling_rate": 32_000,
            "audio_channels": 1,
            "upsampling_ratios": [8, 5, 4, 4],
            "num_filters": 4,
            "hidden_size": 16,
            "codebook_size": ENTRIES,
            "target_bandwidths": [1.2],  # 4 codebooks of 6 bits, 50 times a second
            "use_causal_conv": False,
            "use_conv_shortcut": False,
            "pad_mode": "reflect",
            **changes,
        }
    )


def t5_config(**changes) -> T5Config:
    return T5Config(
        **{"vocab_size": 300, "d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 3, **changes}
    )


def decoder_settings(codebooks: int = 4, channels: int = 1, **changes) -> dict:
    return {
        "vocab_size": ENTRIES,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 256,
        "num_codebooks": codebooks,
        "audio_channels": channels,
        "pad_token_id": ENTRIES,
        "bos_token_id": ENTRIES,
        "decoder_start_token_id": ENTRIES,
        "dropout": 0.0,
        **changes,
    }


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of a size at which errors show: biases and norms that are not trivial, codebooks in use."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator)

    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or name.endswith(("inited", "embed_positions.weights")):
            continue
        if name.endswith("original0"):
            value.copy_(0.5 + draw(value.shape).abs())
        elif name.endswith("cluster_size"):
            value.copy_(1 + draw(value.shape).abs())
        elif value.ndim == 1:
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(around + draw(value.shape, 0.2))
        else:
            embeds = "embed" in name or "shared" in name or "relative_attention_bias" in name
            value.copy_(draw(value.shape, 1.0 if embeds else value[0].numel() ** -0.5))


def saved(model, folder: Path, seed: int = 0):
    """The model with random weights, in evaluation, saved in `folder`."""
    randomise(model, seed)
    model.eval()
    model.save_pretrained(folder)
    return model


def encodec(folder: Path, **changes) -> EncodecModel:
    return saved(EncodecModel(encodec_config(**changes)), folder)


def t5(folder: Path, **changes) -> T5EncoderModel:
    return saved(T5EncoderModel(t5_config(**changes)), folder)


def text(folder: Path, t5: dict | None = None, **decoder) -> MusicgenForConditionalGeneration:
    """A model conditioned on text, mono or stereo."""
    config = MusicgenConfig(
        text_encoder=t5_config(**(t5 or {})).to_dict(),
        audio_encoder=encodec_config().to_dict(),
        decoder=MusicgenDecoderConfig(**decoder_settings(**decoder)).to_dict(),
    )
    return saved(MusicgenForConditionalGeneration(config), folder)


def melody(folder: Path, t5: dict | None = None, **decoder) -> MusicgenMelodyForConditionalGeneration:
    """A model conditioned on chroma and text."""
    config = MusicgenMelodyConfig(
        text_encoder=t5_config(**(t5 or {})).to_dict(),
        audio_encoder=encodec_config().to_dict(),
        decoder=MusicgenMelodyDecoderConfig(**decoder_settings(**decoder)).to_dict(),
        chroma_length=7,
    )
    return saved(MusicgenMelodyForConditionalGeneration(config), folder)


def bare(folder: Path, **decoder) -> MusicgenMelodyForCausalLM:
    """A model without a condition."""
    return saved(MusicgenMelodyForCausalLM(MusicgenMelodyDecoderConfig(**decoder_settings(**decoder))), folder)
