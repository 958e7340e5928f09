"""One step of MusicGen on PyTorch over static caches: the mirror of `musicgen_mlx.decode`.

transformers' generate projects nothing twice either, but builds masks, processors and a growing cache at every step.
Here a step goes through the layers' own modules, so that adapters on them stay in effect, or over fused weights
(`musicgen_mlx.torch_fused`) where they are plain.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from backends.torch_backend.sampling import Sampler
from backends.torch_backend.sending import sent
from musicgen_mlx.known import UNKNOWN
from musicgen_mlx.torch_crossing import Crossing, crossing_of
from musicgen_mlx.torch_fused import Cache, fused_path
from musicgen_mlx.torch_model import AnyMusicGen, Condition, MusicGen

SLOTS = 256


class Decoder:
    """The state of a batch that is being generated; `steps` is how many there will be."""

    def __init__(
        self, model: AnyMusicGen, sampler: Sampler, seeds: Sequence[int], condition: Condition | None = None,
        guidance: float = 3.0, *, steps: int = 0,
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
        self.crosses = model.shapes.condition == "cross" and condition is not None
        self.caches: list[Cache] = []
        self.taken = self.count = 0
        self.path = fused_path(model, steps)

    @torch.inference_mode()
    def start(self, laid: np.ndarray, known: np.ndarray) -> torch.Tensor:
        """Read the first steps (B, K, S) and return the next one, (B, K); `known` (B, K) is what is given of it."""
        codes = self._native(np.concatenate([laid, laid]) if self.guided else laid)
        x = self._embedded(codes)
        if self.model.shapes.condition == "prepend" and self.condition is not None:
            x = torch.cat([self.condition.states.to(x.dtype), x], dim=1)
        self.memory, self.mask = [self._memory(layer) for layer in self.stack.layers], self._mask()
        self.crossing = self._crossing()
        return self._chosen(self._predicted(self._through(x)), known)

    @torch.inference_mode()
    def advance(self, codes: torch.Tensor, known: np.ndarray) -> torch.Tensor:
        """Read a step (B, K) and return the next one."""
        x = self._embedded(codes[:, :, None])
        x = torch.cat([x, x]) if self.guided else x
        if self.path is None:
            return self._chosen(self._predicted(self._through(x)), known)
        x = self._placed(x)
        logits = self.path.step(x[:, 0], self.caches, self.taken, self.crossing)
        self.taken += 1
        return self._chosen(logits, known)

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        """The next rows (rows, T, D) with their positions; the caches have room for them."""
        stop = self.taken + x.shape[1]
        self._make_room(x, stop)
        return (x.float() + self.places[self.taken : stop]).to(x.dtype)

    def _predicted(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (rows, T, D) -> logits (rows, K, V) of the step after them."""
        return torch.stack([head(hidden[:, -1]) for head in self.model.decoder.lm_heads], dim=1)

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        """Layers and final norm over the next rows (rows, T, D)."""
        T, x = x.shape[1], self._placed(x)
        for layer, cache, memory in zip(self.stack.layers, self.caches, self.memory, strict=True):
            y = layer.self_attn_layer_norm(x)
            x = x + self._attended(layer.self_attn, y, *self._kept(layer.self_attn, y, cache), causal=T > 1)
            if memory is not None:
                y = layer.encoder_attn_layer_norm(x)
                x = x + self._attended(layer.encoder_attn, y, *memory, mask=self.mask)
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        self.taken += T
        return self.stack.layer_norm(x)

    def _kept(self, attention: Any, y: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values so far, with those of y written behind the others."""
        start, stop = self.taken, self.taken + y.shape[1]
        for slots, project in zip(cache, (attention.k_proj, attention.v_proj), strict=True):
            slots[:, :, start:stop] = self._heads(project(y))
        keys, values = cache[:, :, :, :stop]
        return keys, values

    def _attended(
        self, attention: Any, y: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, causal: bool = False,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        B, T, D = y.shape
        q = self._heads(attention.q_proj(y))
        z = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
        return attention.out_proj(z.transpose(1, 2).reshape(B, T, D))

    def _memory(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A layer's keys and values of the condition, made once."""
        if not self.crosses or self.condition is None:
            return None
        attention = layer.encoder_attn
        states = self.condition.states.to(layer.encoder_attn_layer_norm.weight.dtype)  # a projection may be an adapter
        return self._heads(attention.k_proj(states)), self._heads(attention.v_proj(states))

    def _mask(self) -> torch.Tensor | None:
        """What is added to the scores of the condition (rows, 1, 1, T)."""
        if not self.crosses or self.condition is None or self.condition.mask.all():
            return None
        floor = torch.zeros_like(self.condition.mask, dtype=self.stack.layer_norm.weight.dtype)
        return floor.masked_fill(~self.condition.mask, -torch.inf)[:, None, None]

    def _crossing(self) -> Crossing | None:
        """How steps over fused weights attend to the condition."""
        memory = [pair for pair in self.memory if pair is not None]
        if self.path is None or self.condition is None or not memory:
            return None
        nothing = [*self.condition.empty, *[True] * (len(self.seeds) * self.guided)]
        return crossing_of(memory, self.mask, nothing, self.path.layers)

    def _make_room(self, x: torch.Tensor, needed: int) -> None:
        have = self.caches[0].shape[3] if self.caches else 0
        if needed <= have:
            return
        slots, heads = -(-needed // SLOTS) * SLOTS, self.model.shapes.heads
        more = x.new_zeros(2, x.shape[0], heads, slots - have, x.shape[-1] // heads)
        self.caches = [torch.cat([old, more], dim=3) for old in self.caches or [more[:, :, :, :0]] * len(self.memory)]
        self.places = sinusoids(torch.arange(slots, device=x.device), x.shape[-1])

    def _chosen(self, logits: torch.Tensor, known: np.ndarray) -> torch.Tensor:
        """Logits (rows, K, V) -> codes (B, K): those that are known, the others chosen."""
        logits = logits.float()
        if self.guided:
            said, unsaid = logits.chunk(2)
            logits = unsaid + self.guidance * (said - unsaid)
        B, K, V = logits.shape
        self.count += 1
        noise = self._sent(self.sampler.noise((K, V), self.seeds, self.count))
        chosen = self.sampler(logits.reshape(B * K, V), noise.flatten(0, 1)).reshape(B, K)
        given = self._native(known)
        return torch.where(given == UNKNOWN, chosen, given)

    def _embedded(self, codes: torch.Tensor) -> torch.Tensor:
        total = self.stack.embed_tokens[0](codes[:, 0])
        for k in range(1, codes.shape[1]):
            total = total + self.stack.embed_tokens[k](codes[:, k])
        return total

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        return x.view(B, T, self.model.shapes.heads, -1).transpose(1, 2)

    def _native(self, array: np.ndarray) -> torch.Tensor:
        return self._sent(torch.from_numpy(array.astype(np.int64)))

    def _sent(self, host: torch.Tensor) -> torch.Tensor:
        return sent(host, self.stack.layer_norm.weight.device)


def sinusoids(positions: torch.Tensor, width: int) -> torch.Tensor:
    """As `musicgen_mlx.model.sinusoids`."""
    half = width // 2
    frequencies = 10_000 ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / (half - 1))
    phases = positions.float()[..., None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1)
