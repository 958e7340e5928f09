"""A step of MusicGen on the CPU in few primitives, float32. Activations are rows or columns (`musicgen_mlx.forms`).

q, k and v are one product, and so are the heads of all codebooks; `mx.fast`'s norm and attention, which fall apart into
a dozen primitives each on the CPU, are written out. Fused weights share their memory with the model's: `q_proj.weight`
and its like become views of them.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.fusing import arrays, is_current, join
from backends.mlx_backend.lora import adapters
from musicgen_mlx.attention import KeysValues
from musicgen_mlx.forms import Form, Forms, form_for
from musicgen_mlx.model import Memory, MusicGen, sinusoids

Weights = dict[str, Any]

# A polynomial of t, constant first: Phi(-t) to the power of -1 / 32. Fitted for 0 <= t <= 6 to the least greatest error
# of t Phi(-t), which is 1.2e-7.
_ROOT_OF_TAIL = (
    1.0218973627714245, 0.025478277504221825, 0.010485194363795058, 0.0014191720454984915, -8.113124914327528e-05,
    2.0214854362224623e-05,
)  # fmt: skip


def fused_path(model: MusicGen, rows: int) -> "FusedPath | None":
    """The path for so many rows and the model as it is now, kept until a weight is replaced.

    None where its modules must be asked.
    """
    plain = model.dtype == mx.float32 and not any("scales" in module for _, module in model.named_modules())
    if on_gpu() or not plain or adapters(model):
        return None
    kept = model._companions.get("fused")
    if kept is None or not is_current(model, kept.source):
        kept = model._companions["fused"] = FusedPath(model, form_for(rows))
    kept.take(form_for(rows))
    return kept


class FusedPath:
    """Over fused weights, in one form or the other."""

    def __init__(self, model: MusicGen, form: Form):
        self.config = model.config
        self.joined, self.emb = fuse(model), join(list(model.emb))
        self.rows = (model.config.entries + 1) * mx.arange(model.config.codebooks)
        mx.eval(self.emb, self.rows, model.parameters())
        self.source = arrays(model)
        self.forms: Forms = form(model.config.width)
        self.weights: Weights = tree_map(self.forms.kept, self.joined)

    def take(self, form: Form) -> None:
        """Use this form from now on; the weights stay where they are."""
        if not isinstance(self.forms, form):
            self.forms = form(self.config.width)
            self.weights = tree_map(self.forms.kept, self.joined)

    def embed(self, codes: mx.array) -> mx.array:
        """Codes (B, K) -> the sum of their embeddings (B, D)."""
        return self.emb[codes + self.rows].sum(axis=1)

    def step(
        self, x: mx.array, positions: mx.array, caches: Sequence[KeysValues], taken: int, seen: mx.array | None,
        memory: Memory | None,
    ) -> tuple[mx.array, list[KeysValues]]:  # fmt: skip
        """Embeddings (rows, D) at `positions` (1,) or (rows, 1) -> logits (rows, K, V) and the caches with this step.

        `taken` slots of the caches hold what came before; `seen` (rows, slots) says which of them may be seen.
        """
        config, forms, kept = self.config, self.forms, []
        places = sinusoids(positions, config.width)
        x = forms.enter(x + (places if positions.ndim == 1 else places[:, 0]))
        start, filled = mx.array(taken), taken + 1
        mask = None if seen is None else mx.where(seen[:, None, None, :filled], 0.0, -mx.inf)
        crossed, cross_mask = memory if memory is not None else ([], None)
        cross_mask = None if cross_mask is None else mx.where(cross_mask, 0.0, -mx.inf)
        for index, layer in enumerate(self.weights["layers"]):
            q, k, v = mx.split(self._heads(forms.linear(forms.norm(x, layer["norm1"]), layer["qkv"])), 3, axis=1)
            keys, values = caches[index]
            keys = mx.slice_update(keys, k, start, axes=(2,))
            values = mx.slice_update(values, v, start, axes=(2,))
            kept.append((keys, values))
            attended = self._attended(q, keys[:, :, :filled], values[:, :, :filled], mask)
            x = forms.plus_linear(x, attended, layer["out"])
            if crossed:
                q = self._heads(forms.linear(forms.norm(x, layer["norm_cross"]), layer["cross_q"]))
                x = forms.plus_linear(x, self._attended(q, *crossed[index], cross_mask), layer["cross_out"])
            u = forms.linear(forms.norm(x, layer["norm2"]), layer["up"])
            x = forms.plus_linear(x, gelu(u), layer["down"])
        logits = forms.leave(forms.linear(forms.norm(x, self.weights["norm"]), self.weights["heads"]))
        return logits.reshape(-1, config.codebooks, config.entries), kept

    def _heads(self, x: mx.array) -> mx.array:
        """Activations -> (rows, heads, 1, d); of q, k and v side by side, theirs in turn."""
        rows = self.forms.leave(x)
        return rows.reshape(len(rows), -1, 1, self.config.width // self.config.heads)

    def _attended(self, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
        """Queries (rows, heads, 1, d) over keys and values (rows, heads, T, d) -> activations."""
        scores = (q * keys.shape[-1] ** -0.5) @ keys.swapaxes(2, 3)
        scores = scores if mask is None else scores + mask
        return self.forms.enter((mx.softmax(scores, axis=-1) @ values).reshape(len(keys), -1))


def gelu(x: mx.array) -> mx.array:
    """x Phi(x) within 1e-6, float32, of any shape: max(x, 0) - |x| Phi(-|x|).

    In more primitives than with MLX's erf, which costs 32 ns per element on a CPU, and in half of the time.
    """
    size = mx.abs(x)
    root = _ROOT_OF_TAIL[-1] * size + _ROOT_OF_TAIL[-2]
    for coefficient in _ROOT_OF_TAIL[-3::-1]:
        root = root * size + coefficient
    tail = mx.reciprocal(root)
    for _ in range(5):
        tail = tail.square()
    return mx.maximum(x, 0) - size * tail


def fuse(model: MusicGen) -> Weights:
    """What a step takes its products with, sharing memory with the model's. Layer by layer: little is held twice."""
    crossing = model.config.condition == "cross"
    weights: Weights = {
        "layers": [_fused_layer(layer, crossing=crossing) for layer in model.layers],
        "norm": (model.out_norm.weight, model.out_norm.bias),
        "heads": join(list(model.linears)),
    }
    mx.eval(weights, model.parameters())
    return weights


def _fused_layer(layer: Any, *, crossing: bool) -> Weights:
    attention, cross = layer.self_attn, layer.cross_attn if crossing else None
    fused: Weights = {
        "qkv": join([attention.q_proj, attention.k_proj, attention.v_proj]),
        "out": attention.out_proj.weight,
        "up": layer.linear1.weight,
        "down": layer.linear2.weight,
        "norm1": (layer.norm1.weight, layer.norm1.bias),
        "norm2": (layer.norm2.weight, layer.norm2.bias),
    }
    if cross is not None:
        fused["cross_q"], fused["cross_out"] = cross.q_proj.weight, cross.out_proj.weight
        fused["norm_cross"] = (layer.norm_cross.weight, layer.norm_cross.bias)
    mx.eval(fused, layer.parameters())
    return fused
