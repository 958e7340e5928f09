"""A step of MusicGen on the CPU in few primitives, float32. Activations are columns, (D, rows).

There a step is bound by reading weights, and a product of a matrix with a few columns reads them up to twice as fast as
one of a few rows with its transpose. q, k and v are one product, and so are the heads of all codebooks; `mx.fast`'s
norm and attention, which fall apart into a dozen primitives each on the CPU, are written out. Fused weights share their
memory with the model's: `q_proj.weight` and its like become views of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from backends.mlx_backend.lora import adapters
from musicgen_mlx.attention import KeysValues
from musicgen_mlx.model import Memory, MusicGen, sinusoids

Weights = dict[str, Any]
NORM_EPS = 1e-5


def fused_path(model: MusicGen) -> "FusedPath | None":
    """The path for the model as it is now, kept until a weight is replaced; None where its modules must be asked."""
    plain = model.dtype == mx.float32 and not any("scales" in module for _, module in model.named_modules())
    if mx.default_device() != mx.Device(mx.cpu) or not plain or adapters(model):
        return None
    kept = model._companions.get("fused")
    if kept is None or not kept.is_current(model):
        kept = model._companions["fused"] = FusedPath(model)
    return kept


class FusedPath:
    """Over fused weights."""

    def __init__(self, model: MusicGen):
        self.config = model.config
        self.weights = fuse(model)
        self.source = [value for _, value in tree_flatten(model.parameters())]
        self.mean = mx.full((1, model.config.width), 1 / model.config.width)
        self.eps = mx.full((1, 1), NORM_EPS)
        mx.eval(self.mean, self.eps)

    def is_current(self, model: MusicGen) -> bool:
        """Whether the model still has the very arrays that were fused."""
        now = [value for _, value in tree_flatten(model.parameters())]
        return len(now) == len(self.source) and all(a is b for a, b in zip(now, self.source, strict=True))

    def embed(self, codes: mx.array) -> mx.array:
        """Codes (B, K) -> the sum of their embeddings (B, D)."""
        return self.weights["emb"][codes + self.weights["rows"]].sum(axis=1)

    def step(
        self, x: mx.array, positions: mx.array, caches: Sequence[KeysValues], taken: mx.array, visible: mx.array,
        memory: Memory | None,
    ) -> tuple[mx.array, list[KeysValues]]:  # fmt: skip
        """Embeddings (rows, D) at `positions` (1,) or (rows, 1) -> logits (rows, K, V) and the caches with this step.

        `visible` (slots,) or (rows, 1, 1, slots) says which slots may be seen.
        """
        config, kept = self.config, []
        places = sinusoids(positions, config.width)
        x = (x + (places if positions.ndim == 1 else places[:, 0])).T
        mask = mx.where(visible, 0.0, -mx.inf)
        crossed, cross_mask = memory if memory is not None else ([], None)
        cross_mask = None if cross_mask is None else mx.where(cross_mask, 0.0, -mx.inf)
        for index, layer in enumerate(self.weights["layers"]):
            q, k, v = mx.split(layer["qkv"] @ self._norm(x, *layer["norm1"]), 3)
            keys, values = caches[index]
            keys = mx.slice_update(keys, self._heads(k), taken, axes=(2,))
            values = mx.slice_update(values, self._heads(v), taken, axes=(2,))
            kept.append((keys, values))
            x = mx.addmm(x, layer["out"], self._attended(q, keys, values, mask))
            if crossed:
                q = layer["cross_q"] @ self._norm(x, *layer["norm_cross"])
                x = mx.addmm(x, layer["cross_out"], self._attended(q, *crossed[index], cross_mask))
            u = layer["up"] @ self._norm(x, *layer["norm2"])
            x = mx.addmm(x, layer["down"], u * (1 + mx.erf(u * math.sqrt(0.5))), alpha=0.5)
        logits = self.weights["heads"] @ self._norm(x, *self.weights["norm"])
        return logits.T.reshape(-1, config.codebooks, config.entries), kept

    def _norm(self, x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        centred = x - self.mean @ x
        return centred * mx.rsqrt(mx.addmm(self.eps, self.mean, centred.square())) * weight + bias

    def _heads(self, x: mx.array) -> mx.array:
        """(D, rows) -> (rows, heads, 1, d)."""
        return x.T.reshape(x.shape[1], self.config.heads, 1, -1)

    def _attended(self, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
        """Queries (D, rows) over keys and values (rows, heads, T, d) -> (D, rows)."""
        scores = (self._heads(q) * keys.shape[-1] ** -0.5) @ keys.swapaxes(2, 3)
        scores = scores if mask is None else scores + mask
        return (mx.softmax(scores, axis=-1) @ values).reshape(q.shape[1], -1).T


def fuse(model: MusicGen) -> Weights:
    """The weights for `FusedPath`, sharing memory with the model's. Layer by layer, so that little is held twice."""
    config = model.config
    weights: Weights = {
        "layers": [_fused_layer(layer, crossing=config.condition == "cross") for layer in model.layers],
        "norm": _column(model.out_norm),
        "emb": _join(list(model.emb)),
        "rows": (config.entries + 1) * mx.arange(config.codebooks),
        "heads": _join(list(model.linears)),
    }
    mx.eval(weights, model.parameters())
    return weights


def _fused_layer(layer: Any, *, crossing: bool) -> Weights:
    attention = layer.self_attn
    fused: Weights = {
        "qkv": _join([attention.q_proj, attention.k_proj, attention.v_proj]),
        "out": attention.out_proj.weight,
        "up": layer.linear1.weight,
        "down": layer.linear2.weight,
        "norm1": _column(layer.norm1),
        "norm2": _column(layer.norm2),
    }
    if crossing:
        fused["cross_q"], fused["cross_out"] = layer.cross_attn.q_proj.weight, layer.cross_attn.out_proj.weight
        fused["norm_cross"] = _column(layer.norm_cross)
    mx.eval(fused, layer.parameters())
    return fused


def _column(norm: Any) -> tuple[mx.array, mx.array]:
    return norm.weight[:, None], norm.bias[:, None]


def _join(owners: Sequence[Any]) -> mx.array:
    """The owners' weights as one; theirs become views of it."""
    joined = mx.concatenate([owner.weight for owner in owners])
    start = 0
    for owner in owners:
        rows = owner.weight.shape[0]
        owner.weight = joined[start : start + rows]
        start += rows
    return joined
