"""CSM's frame step: through the modules, or, while the weights are plain, with as few dispatches as possible.

A frame is K + 1 passes through small stacks at batch 1, so the time goes into dispatching as much as into bytes. Here
q, k and v are one product, on a GPU gate and up another, and activations stay two-dimensional. Fused weights share
their memory with the model's: `q_proj.weight` and its like become views of them. What differs
between devices is in `csm_mlx.forms`.
"""

from collections.abc import Callable
from copy import copy
from typing import Any, Protocol

import mlx.core as mx

from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.fusing import arrays, is_current, is_plain, join
from backends.mlx_backend.generating import with_weights
from csm_mlx.config import LlamaConfig
from csm_mlx.forms import CPUForms, Forms, GPUForms, Weights
from csm_mlx.llama import FixedCache, Llama
from csm_mlx.model import CSM

Caches = list[mx.array]  # per backbone layer: keys, then values, (B, 2 kv heads, slots, d)
Pick = Callable[[mx.array, int], mx.array]  # (logits (B, V), codebook) -> codes (B,)


class FramePath(Protocol):
    """From a frame to the next one. `inputs` are the arrays that a compiled step takes as arguments."""

    def inputs(self) -> Any: ...
    def without_weights(self) -> "FramePath":
        """What a compiled step may hold: weights that it kept would stay in memory when the model has others."""
        ...

    def frame(self, hidden: mx.array, pick: Pick) -> mx.array:
        """One frame (B, K) after the backbone's output `hidden` (B, D)."""
        ...

    def step(
        self, frame: mx.array, caches: Caches, taken: mx.array | int, pick: Pick, inputs: Any = None
    ) -> tuple[mx.array, Caches]:
        """Frame (B, K) at position `taken` -> the next frame and the caches that hold this one.

        As an array (0-d) `taken` keeps all shapes the same from step to step; as a number it spares the empty slots.
        """
        ...


def frame_path(model: CSM) -> FramePath:
    """The path for the model as it is now; the fused one is kept until a weight is replaced or training goes on."""
    if not is_plain(model):
        return ModulePath(model)
    kernels = on_gpu() or model.dtype != mx.float32
    return model.kept("fused", lambda path: is_current(model, path.source), lambda: FusedPath(model, kernels=kernels))


class ModulePath:
    """Through the model's modules, whatever they are: with adapters, or quantised."""

    def __init__(self, model: CSM):
        self.model = model

    def inputs(self) -> Any:
        return self.model.parameters()

    def without_weights(self) -> FramePath:
        return self

    def frame(self, hidden: mx.array, pick: Pick) -> mx.array:
        return self.model.frame(hidden, pick)

    def step(
        self, frame: mx.array, caches: Caches, taken: mx.array | int, pick: Pick, inputs: Any = None
    ) -> tuple[mx.array, Caches]:
        model, taken = self.model if inputs is None else with_weights(self.model, inputs), mx.array(taken)
        visible = mx.arange(caches[0].shape[2]) <= taken
        layers = [FixedCache(cache, taken, visible) for cache in caches]
        hidden = model.backbone(model.embed_frames(frame)[:, None], layers)[:, -1]
        return model.frame(hidden, pick), [cache.keys_values for cache in layers]


class FusedPath:
    """Over fused weights and two-dimensional activations, which are rows or columns as `Forms` likes them."""

    def __init__(self, model: CSM, *, kernels: bool):
        self.config = model.config
        kind: Any = GPUForms if kernels else CPUForms
        self.backbone: Forms = kind(model.config.backbone, model.config.max_positions)
        self.decoder: Forms = kind(model.config.decoder, model.config.codebooks)
        self.weights = fuse(model, self.backbone, kernels=kernels)
        self.source = arrays(model)

    def inputs(self) -> Any:
        return self.weights

    def without_weights(self) -> FramePath:
        bare = copy(self)
        bare.weights, bare.source = {}, []
        return bare

    def step(
        self, frame: mx.array, caches: Caches, taken: mx.array | int, pick: Pick, inputs: Any = None
    ) -> tuple[mx.array, Caches]:
        weights = self.weights if inputs is None else inputs
        dtype = weights["projection"].dtype  # embeddings that were trained may have another
        x = self.backbone.enter(weights["audio"][frame + weights["rows"]].sum(axis=1).astype(dtype))
        position = self.backbone.position(taken, 1)
        filled = taken + 1 if isinstance(taken, int) else None
        mask = self.backbone.mask(caches[0].shape[2], taken) if isinstance(taken, mx.array) else None
        start, caches = mx.array(taken), list(caches)

        def remember(layer: int, keys_values: mx.array) -> mx.array:
            caches[layer] = mx.slice_update(caches[layer], keys_values, start, axes=(2,))
            return caches[layer] if filled is None else caches[layer][:, :, :filled]

        hidden = self._stack(weights["backbone"], self.config.backbone, self.backbone, x, 1, position, mask, remember)
        return self._frame(weights, hidden, pick), caches

    def frame(self, hidden: mx.array, pick: Pick) -> mx.array:
        return self._frame(self.weights, self.backbone.enter(hidden), pick)

    def _frame(self, weights: Weights, hidden: mx.array, pick: Pick) -> mx.array:
        """As `CSM.frame`, from activations."""
        K, forms = self.config.codebooks, self.decoder
        codes = [pick(forms.leave(forms.linear(hidden, weights["head0"])), 0)]
        past: list[mx.array] = []

        def remember(layer: int, keys_values: mx.array) -> mx.array:
            if layer == len(past):
                past.append(keys_values)
            else:
                past[layer] = mx.concatenate([past[layer], keys_values], axis=2)
            return past[layer]

        dtype = weights["projection"].dtype
        before, first = forms.leave(hidden), weights["audio"][codes[0]].astype(dtype)
        B, D = before.shape
        x = forms.enter(mx.stack([before, first], axis=1).reshape(2 * B, D))
        for codebook in range(1, K):
            length = 2 if codebook == 1 else 1
            position = forms.position(0 if codebook == 1 else codebook, length)
            x = forms.linear(x, weights["projection"])
            x = self._stack(weights["decoder"], self.config.decoder, forms, x, length, position, None, remember)
            last = forms.leave(x).reshape(B, length, -1)[:, -1] if length > 1 else forms.leave(x)
            # All columns, then a slice: a product with part of the head's columns would first copy them.
            codes.append(pick((last @ weights["heads"][codebook - 1])[:, : self.config.mimi.entries], codebook))
            if codebook < K - 1:
                x = forms.enter(weights["audio"][codes[-1] + weights["row"][codebook]].astype(dtype))
        return mx.stack(codes, axis=1)

    def _stack(
        self, weights: Weights, config: LlamaConfig, forms: Forms, x: mx.array, T: int, position: Any,
        mask: mx.array | None, remember: Callable[[int, mx.array], mx.array],
    ) -> mx.array:  # fmt: skip
        """Layers and final norm over activations. Keys and values are one array: a step writes them once."""
        for index, layer in enumerate(weights["layers"]):
            qkv = forms.heads(forms.linear(forms.norm(x, layer["norm1"]), layer["qkv"]), T)
            q, keys_values = forms.rotate(qkv, position)
            y = forms.attend(q, *mx.split(remember(index, keys_values), 2, axis=1), mask)
            x = forms.plus_linear(x, y, layer["out"])
            gate, up = forms.gate_and_up(forms.norm(x, layer["norm2"]), layer)
            x = forms.plus_linear(x, forms.gated(gate, up), layer["down"])
        return forms.norm(x, weights["norm"])


def fuse(model: CSM, forms: Forms, *, kernels: bool) -> Weights:
    """The weights for `FusedPath`, sharing memory with the model's. Layer by layer, so that little is held twice."""
    K, V, entries = model.config.codebooks, model.config.audio_vocab, model.config.mimi.entries
    weights = {
        "backbone": _fuse_stack(model.backbone, forms, kernels=kernels),
        "decoder": _fuse_stack(model.decoder, forms, kernels=kernels),
        "projection": forms.kept(model.projection.weight),
        "head0": forms.kept(model.codebook0_head.weight[:entries]),
        "heads": [model.audio_head[index] for index in range(K - 1)],
        "audio": model.audio_embeddings.weight,
        "rows": V * mx.arange(K, dtype=mx.uint32),  # codes are uint32, so sums need no conversion
        "row": [mx.array([V * index], mx.uint32) for index in range(K)],
    }
    mx.eval(weights)
    return weights


def _gate_and_up(mlp: Any, forms: Forms, *, together: bool) -> Weights:
    if together:
        return {"gate_up": forms.kept(join([mlp.gate_proj, mlp.up_proj]))}
    return {"gate": forms.kept(mlp.gate_proj.weight), "up": forms.kept(mlp.up_proj.weight)}


def _fuse_stack(stack: Llama, forms: Forms, *, kernels: bool) -> Weights:
    layers = []
    for layer in stack.layers:
        attention, mlp = layer.self_attn, layer.mlp
        fused = {
            "qkv": forms.kept(join([attention.q_proj, attention.k_proj, attention.v_proj])),
            "out": forms.kept(attention.o_proj.weight),
            **_gate_and_up(mlp, forms, together=kernels),
            "down": forms.kept(mlp.down_proj.weight),
            "norm1": forms.kept(layer.input_layernorm.weight),
            "norm2": forms.kept(layer.post_attention_layernorm.weight),
        }
        mx.eval(fused, layer.parameters())
        layers.append(fused)
    return {"layers": layers, "norm": forms.kept(stack.norm.weight)}
