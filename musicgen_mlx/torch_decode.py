"""One step of MusicGen on PyTorch over static caches: the mirror of `musicgen_mlx.decode`.

transformers' generate projects nothing twice either, but builds masks, processors and a growing cache at every step;
here a step is the layers' own modules and nothing else, so adapters on them stay in effect.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from backends.torch_backend.sampling import Sampler, step_key
from musicgen_mlx.known import UNKNOWN
from musicgen_mlx.torch_model import AnyMusicGen, Condition, MusicGen

KeysValues = tuple[torch.Tensor, torch.Tensor]
SLOTS = 256


class Decoder:
    """The state of a batch that is being generated."""

    def __init__(
        self, model: AnyMusicGen, sampler: Sampler, seeds: Sequence[int], condition: Condition | None = None,
        guidance: float = 3.0,
    ):  # fmt: skip
        self.model, self.sampler, self.seeds, self.guidance = model, sampler, seeds, guidance
        self.guided = condition is not None and guidance != 1 and not all(condition.empty)
        self.condition = condition
        if self.guided and isinstance(model, MusicGen) and condition is not None:
            null = model.null(condition)
            self.condition = Condition(
                torch.cat([condition.states, null.states]), torch.cat([condition.mask, null.mask]), condition.empty
            )
        self.stack: Any = model.decoder.model.decoder
        self.crossing = model.shapes.condition == "cross" and condition is not None
        self.caches: list[KeysValues] = []
        self.taken = self.count = 0

    @torch.inference_mode()
    def start(self, laid: np.ndarray, known: np.ndarray) -> torch.Tensor:
        """Read the first steps (B, K, S) and return the next one, (B, K); `known` (B, K) is what is given of it."""
        codes = self._native(np.concatenate([laid, laid]) if self.guided else laid)
        x = self._embedded(codes)
        if self.model.shapes.condition == "prepend" and self.condition is not None:
            x = torch.cat([self.condition.states.to(x.dtype), x], dim=1)
        self.memory = [self._memory(layer) for layer in self.stack.layers]
        return self._chosen(self._through(x)[:, -1], known)

    @torch.inference_mode()
    def advance(self, codes: torch.Tensor, known: np.ndarray) -> torch.Tensor:
        """Read a step (B, K) and return the next one."""
        x = self._embedded(codes[:, :, None])
        return self._chosen(self._through(torch.cat([x, x]) if self.guided else x)[:, -1], known)

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        """Layers and final norm over the next rows (rows, T, D)."""
        T = x.shape[1]
        places = torch.arange(self.taken, self.taken + T, device=x.device)
        x = (x.float() + sinusoids(places, x.shape[-1])).to(x.dtype)
        self._make_room(x, self.taken + T)
        for layer, cache, memory in zip(self.stack.layers, self.caches, self.memory, strict=True):
            y = layer.self_attn_layer_norm(x)
            x = x + self._attended(layer.self_attn, y, *self._kept(layer.self_attn, y, cache), causal=T > 1)
            if memory is not None:
                y = layer.encoder_attn_layer_norm(x)
                x = x + self._attended(layer.encoder_attn, y, *memory, mask=self._cross_mask())
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        self.taken += T
        return self.stack.layer_norm(x)

    def _kept(self, attention: Any, y: torch.Tensor, cache: KeysValues) -> KeysValues:
        """All keys and values so far, with those of y written behind the others."""
        start, stop = self.taken, self.taken + y.shape[1]
        for slots, project in zip(cache, (attention.k_proj, attention.v_proj), strict=True):
            slots[:, :, start:stop] = self._heads(project(y))
        return cache[0][:, :, :stop], cache[1][:, :, :stop]

    def _attended(
        self, attention: Any, y: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, causal: bool = False,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        B, T, D = y.shape
        q = self._heads(attention.q_proj(y))
        z = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
        return attention.out_proj(z.transpose(1, 2).reshape(B, T, D))

    def _memory(self, layer: Any) -> KeysValues | None:
        """A layer's keys and values of the condition, made once."""
        if not self.crossing or self.condition is None:
            return None
        attention = layer.encoder_attn
        states = self.condition.states.to(layer.encoder_attn_layer_norm.weight.dtype)  # a projection may be an adapter
        return self._heads(attention.k_proj(states)), self._heads(attention.v_proj(states))

    def _cross_mask(self) -> torch.Tensor | None:
        assert self.condition is not None
        return self.condition.mask[:, None, None]

    def _make_room(self, x: torch.Tensor, needed: int) -> None:
        have = self.caches[0][0].shape[2] if self.caches else 0
        if needed <= have:
            return
        slots, heads = -(-needed // SLOTS) * SLOTS, self.model.shapes.heads
        shape = (x.shape[0], heads, slots - have, x.shape[-1] // heads)
        old = self.caches or [(x.new_empty(*shape[:2], 0, shape[3]),) * 2 for _ in self.stack.layers]
        self.caches = [(_longer(keys, shape), _longer(values, shape)) for keys, values in old]

    def _chosen(self, hidden: torch.Tensor, known: np.ndarray) -> torch.Tensor:
        """Hidden states (rows, D) -> codes (B, K): those that are known, the others chosen."""
        logits = torch.stack([head(hidden) for head in self.model.decoder.lm_heads], dim=1).float()
        if self.guided:
            said, unsaid = logits.chunk(2)
            logits = unsaid + self.guidance * (said - unsaid)
        B, K, V = logits.shape
        noise = logits[:0] if self.sampler.temperature == 0 else self._noise(K, V)
        chosen = self.sampler(logits.reshape(B * K, V), noise.reshape(-1, V)).reshape(B, K)
        given = self._native(known)
        return torch.where(given == UNKNOWN, chosen, given)

    def _noise(self, K: int, V: int) -> torch.Tensor:
        """Noise (B, K, V), an item's own from its own seed."""
        self.count += 1
        device = self.stack.layer_norm.weight.device
        return torch.stack([self.sampler.noise((K, V), step_key(seed, self.count, device)) for seed in self.seeds])

    def _embedded(self, codes: torch.Tensor) -> torch.Tensor:
        total = self.stack.embed_tokens[0](codes[:, 0])
        for k in range(1, codes.shape[1]):
            total = total + self.stack.embed_tokens[k](codes[:, k])
        return total

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        return x.view(B, T, self.model.shapes.heads, -1).transpose(1, 2)

    def _native(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.stack.layer_norm.weight.device, non_blocking=True)


def sinusoids(positions: torch.Tensor, width: int) -> torch.Tensor:
    """As `musicgen_mlx.model.sinusoids`."""
    half = width // 2
    frequencies = 10_000 ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / (half - 1))
    phases = positions.float()[..., None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


def _longer(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([x, x.new_zeros(shape)], dim=2)
