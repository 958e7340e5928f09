"""Upstream models with random weights, written in their official layouts."""

from pathlib import Path

import torch
from transformers import CsmConfig, CsmForConditionalGeneration, MimiConfig, MimiModel

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def mimi_config(codebooks: int = 8, window: int = 250, **changes) -> MimiConfig:
    return MimiConfig(
        **{
            "num_filters": 8,
            "hidden_size": 64,
            "upsampling_ratios": [8, 6, 5, 4],
            "num_quantizers": codebooks,
            "codebook_size": 64,
            "codebook_dim": 32,
            "vector_quantization_hidden_dimension": 32,
            "upsample_groups": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "intermediate_size": 96,
            "sliding_window": window,
            "layer_scale_initial_scale": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "attn_implementation": "eager",
            **changes,
        }
    )


def csm_config(
    codebooks: int = 8, heads: tuple[int, int] = (4, 1), depth_heads: tuple[int, int] = (2, 1), window: int = 250
) -> CsmConfig:
    codec = mimi_config(max(codebooks, 3), window)
    depth = {
        "num_codebooks": codebooks,
        "backbone_hidden_size": 64,
        "vocab_size": 67,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": depth_heads[0],
        "num_key_value_heads": depth_heads[1],
        "head_dim": 24,
        "max_position_embeddings": codebooks + 1,
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16, "low_freq_factor": 0.001953125,
                            "high_freq_factor": 0.0078125},
    }  # fmt: skip
    return CsmConfig(
        num_codebooks=codebooks,
        vocab_size=67,
        text_vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=16,
        rope_parameters=LLAMA3,
        depth_decoder_config=depth,
        codec_config=codec.to_dict(),
        codebook_pad_token_id=66,
        audio_token_id=290,
        audio_eos_token_id=291,
        bos_token_id=256,
        pad_token_id=290,
        attn_implementation="eager",
    )


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of a size at which errors show: LayerScale 0.3, used codebooks, norms that are not one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator)

    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "layer_scale" in name:
            value.copy_(0.3 + draw(value.shape, 0.03))
        elif name.endswith("embed_sum"):
            value.copy_(draw(value.shape))
        elif name.endswith("cluster_usage"):
            value.copy_(0.5 + draw(value.shape).abs())
        elif value.is_floating_point() and value.ndim == 1 and "norm" in name:
            value.copy_((0.0 if name.endswith("bias") else 1.0) + draw(value.shape, 0.2))
        elif name.endswith("codebooks_head.weight"):
            value.copy_(draw(value.shape, value.shape[1] ** -0.5))
        elif value.is_floating_point() and value.ndim >= 2:
            fan_in = value[0].numel()
            value.copy_(draw(value.shape, 1.0 if "embed" in name else fan_in**-0.5))
        elif name.endswith("conv.bias"):
            value.copy_(draw(value.shape, 0.1))


@torch.no_grad()
def never_special(model: CsmForConditionalGeneration) -> None:
    """Give the special codes past the codec's entries logit 0, which is never the largest: we do not draw them."""
    entries = model.config.codec_config.codebook_size
    model.lm_head.weight[entries:] = 0
    model.depth_decoder.codebooks_head.weight[..., entries:] = 0


def csm(folder: Path, seed: int = 0, **config) -> CsmForConditionalGeneration:
    """A small CSM with its codec, saved in transformers' layout in `folder`."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(csm_config(**config)).eval()
    randomise(model, seed)
    never_special(model)
    model.save_pretrained(folder)
    return model


def mimi(folder: Path, seed: int = 0, **config) -> MimiModel:
    """A small Mimi, saved in transformers' layout in `folder`."""
    torch.manual_seed(seed)
    model = MimiModel(mimi_config(**config)).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    return model
