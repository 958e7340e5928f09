"""The Mimi codec: 24 kHz audio to 12.5 frames of codes per second and back (arXiv:2410.00037).

Audio is (B, samples), codes (B, K, T); names follow transformers' files. Streaming state is a plain dict (a new one per
stream) that `encode_step` and `decode_step` read and replace. What `backends.training.rvq_codec` trains through are
`latents`, `quantize` and `synthesise`, which see their input in one piece.
"""

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.rvq import ResidualQuantizer
from backends.mlx_backend.seanet import CausalConv1d, CausalConvTranspose1d, SEANetDecoder, SEANetEncoder, State
from csm_mlx.config import MimiConfig

CHUNK_S = 20  # longer audio is streamed in chunks of this length, so that memory does not grow with its square


class Mimi(nn.Module):
    """Encoder, split residual quantiser and decoder; random weights until some are loaded."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.config = config
        seanet = {
            "ratios": config.ratios,
            "filters": config.filters,
            "width": config.width,
            "kernel": config.kernel,
            "last_kernel": config.last_kernel,
            "residual_kernel": config.residual_kernel,
            "residual_layers": config.residual_layers,
            "dilation_growth": config.dilation_growth,
            "compress": config.compress,
        }
        step, width = config.downsample, config.width
        self.encoder = SEANetEncoder(**seanet)
        self.encoder_transformer = Transformer(config)
        self.downsample = CausalConv1d(width, width, 2 * step, stride=step, bias=False, pad="replicate")
        self.quantizer = SplitQuantizer(config)
        self.upsample = CausalConvTranspose1d(width, width, 2 * step, stride=step, groups=width, bias=False)
        self.decoder_transformer = Transformer(config)
        self.decoder = SEANetDecoder(**seanet)

    def encode(self, audio: mx.array) -> mx.array:
        """(B, samples) -> codes (B, K, frames); the end is padded with silence to a whole frame of 1920 samples."""
        B, samples = audio.shape
        hop = self.config.frame_samples
        audio = mx.pad(audio, [(0, 0), (0, -samples % hop)])
        state: State = {}
        chunk = self._chunk_frames() * hop
        parts = [self.encode_step(audio[:, i : i + chunk], state) for i in range(0, audio.shape[1], chunk)]
        return mx.concatenate(parts, axis=2)

    def decode(self, codes: mx.array) -> mx.array:
        """Codes (B, K, T) -> audio (B, T frame_samples). Fewer than all codebooks may be given."""
        state: State = {}
        chunk = self._chunk_frames()
        parts = [self.decode_step(codes[:, :, i : i + chunk], state) for i in range(0, codes.shape[2], chunk)]
        return mx.concatenate(parts, axis=1)

    def encode_step(self, audio: mx.array, state: State) -> mx.array:
        """The codes of the next whole frames of a stream."""
        return self.quantizer.encode(self.latents(audio, state))

    def decode_step(self, codes: mx.array, state: State) -> mx.array:
        """The audio of the next frames of a stream."""
        return self.synthesise(self.quantizer.decode(codes), state)

    def latents(self, audio: mx.array, state: State | None = None) -> mx.array:
        """Audio (B, T frame_samples), of a new stream or the next of `state` -> latents (B, T, D)."""
        state = {} if state is None else state
        x = self.encoder(audio[..., None], state)
        x = self.encoder_transformer(x, state, "encoder_transformer")
        return self.downsample(x, state, "downsample")

    def synthesise(self, latents: mx.array, state: State | None = None) -> mx.array:
        """Latents (B, T, D), of a new stream or the next of `state` -> audio (B, T frame_samples)."""
        state = {} if state is None else state
        x = self.upsample(latents, state, "upsample")
        x = self.decoder_transformer(x, state, "decoder_transformer")
        return self.decoder(x, state)[..., 0]

    def quantize(
        self,
        latents: mx.array,
        active: mx.array,
        bypass: mx.array,
        offered: mx.array | None = None,
        priority: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """`ResidualQuantizer.quantize` for latents (B, T, D) with the first `active` (B,) of all K codebooks."""
        return self.quantizer.quantize(latents, active, bypass, offered, priority)

    def quantised(self, latents: mx.array) -> dict[str, mx.array]:
        """What each residual quantiser gets of latents (B, T, D), by its dotted name."""
        halves = {"semantic": self.quantizer.semantic, "acoustic": self.quantizer.acoustic}
        return {f"quantizer.{name}.rvq": half.input_proj(latents) for name, half in halves.items()}

    def _chunk_frames(self) -> int:
        return max(1, CHUNK_S * self.config.sample_rate_hz // self.config.frame_samples)


class SplitQuantizer(nn.Module):
    """One semantic codebook and K - 1 acoustic ones, which quantise the same latent side by side and are added."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        semantic = config.semantic_codebooks
        self.semantic_codebooks = semantic
        self.semantic = ProjectedQuantizer(config, semantic)
        self.acoustic = ProjectedQuantizer(config, config.codebooks - semantic)

    def encode(self, x: mx.array) -> mx.array:
        return mx.concatenate([self.semantic.encode(x), self.acoustic.encode(x)], axis=1)

    def decode(self, codes: mx.array) -> mx.array:
        split = self.semantic_codebooks
        x = self.semantic.decode(codes[:, :split])
        return x + self.acoustic.decode(codes[:, split:]) if codes.shape[1] > split else x

    def quantize(
        self,
        x: mx.array,
        active: mx.array,
        bypass: mx.array,
        offered: mx.array | None = None,
        priority: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Both halves on the same draws; the semantic codebooks are the first of the active ones."""
        split, draws = self.semantic_codebooks, (bypass, offered, priority)
        first, first_codes, first_commitment = self.semantic.quantize(x, mx.minimum(active, split), *draws)
        rest, rest_codes, rest_commitment = self.acoustic.quantize(x, mx.maximum(active - split, 0), *draws)
        codes = mx.concatenate([first_codes, rest_codes], axis=1)
        return first + rest, codes, first_commitment + rest_commitment


class ProjectedQuantizer(nn.Module):
    """A residual quantiser between two linear maps."""

    def __init__(self, config: MimiConfig, codebooks: int):
        super().__init__()
        self.input_proj = nn.Linear(config.width, config.code_width, bias=False)
        self.output_proj = nn.Linear(config.code_width, config.width, bias=False)
        self.rvq = ResidualQuantizer(codebooks, config.entries, config.code_width)

    def encode(self, x: mx.array) -> mx.array:
        return self.rvq.encode(self.input_proj(x))

    def decode(self, codes: mx.array) -> mx.array:
        return self.output_proj(self.rvq.decode(codes))

    def quantize(self, x: mx.array, active: mx.array, *draws: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
        latents, codes, commitment = self.rvq.quantize(self.input_proj(x), active, *draws)  # type: ignore[arg-type]
        return self.output_proj(latents), codes, commitment


class Transformer(nn.Module):
    """Pre-norm layers with LayerScale; attention sees the last `window` steps."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.window = config.window
        self.layers = [Layer(config) for _ in range(config.layers)]

    def __call__(self, x: mx.array, state: State, key: str) -> mx.array:
        offset = state.get(f"{key}.offset", mx.array(0))
        past = state[f"{key}.0.keys"].shape[2] if f"{key}.0.keys" in state else 0
        mask = self._mask(x.shape[1], past)
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, offset, state, f"{key}.{index}")
        state[f"{key}.offset"] = offset + x.shape[1]
        return x

    def _mask(self, length: int, past: int) -> mx.array | str:
        """Query i (after `past` kept steps) sees keys j with 0 <= i - j < window."""
        if past + length <= self.window:
            return "causal"
        distance = mx.arange(past, past + length)[:, None] - mx.arange(past + length)
        return (distance >= 0) & (distance < self.window)


class Layer(nn.Module):
    """`x + scale attn(norm(x))`, then `x + scale mlp(norm(x))`."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.self_attn = WindowAttention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.width, config.norm_eps)
        self.self_attn_layer_scale = LayerScale(config)
        self.mlp_layer_scale = LayerScale(config)

    def __call__(self, x: mx.array, mask: mx.array | str, offset: mx.array, state: State, key: str) -> mx.array:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), mask, offset, state, key))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class WindowAttention(nn.Module):
    """Causal attention over the keys kept from earlier chunks (at most window - 1) and the chunk's own."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.width // config.heads
        self.keep, self.theta = config.window - 1, config.rope_theta
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def __call__(self, x: mx.array, mask: mx.array | str, offset: mx.array, state: State, key: str) -> mx.array:
        B, T, D = x.shape
        q, k, v = (
            project(x).reshape(B, T, self.heads, self.head_dim).swapaxes(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self._rotate(q, offset), self._rotate(k, offset)
        if f"{key}.keys" in state:
            k = mx.concatenate([state[f"{key}.keys"], k], axis=2)
            v = mx.concatenate([state[f"{key}.values"], v], axis=2)
        state[f"{key}.keys"], state[f"{key}.values"] = k[:, :, -self.keep :], v[:, :, -self.keep :]
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask=mask)
        return self.o_proj(y.swapaxes(1, 2).reshape(B, T, D))

    def _rotate(self, x: mx.array, offset: mx.array) -> mx.array:
        return mx.fast.rope(x, self.head_dim, traditional=False, base=self.theta, scale=1.0, offset=offset)


class MLP(nn.Module):
    """Two linear maps around an exact (erf) GELU."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width, bias=False)
        self.fc2 = nn.Linear(config.mlp_width, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.scale = mx.full((config.width,), config.layer_scale)

    def __call__(self, x: mx.array) -> mx.array:
        return self.scale * x
