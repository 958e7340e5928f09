"""A step of MusicGen on the CPU in few primitives, float32. Activations are rows or columns (`musicgen_mlx.forms`).

`mx.fast`'s norm and attention, which fall apart into a dozen primitives each on the CPU, are written out. Where there
are steps enough, q, k and v are one product, and so are the heads of all codebooks. Joined weights share their memory
with the model's: `q_proj.weight` and its like become views of them.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.fusing import arrays, is_current, is_plain, parts
from musicgen_mlx.attention import KeysValues
from musicgen_mlx.condition import Condition
from musicgen_mlx.crossing import Crossing, crossing_of
from musicgen_mlx.forms import Form, Forms, attended, form_for, heads_of
from musicgen_mlx.model import Memory, MusicGen, sinusoids
from musicgen_mlx.thresholds import joining_pays

Weights = dict[str, Any]
Taken = int | mx.array  # how many slots of the caches are full

# A polynomial of t, constant first: Phi(-t) to the power of -1 / 32. Fitted for 0 <= t <= 6 to the least greatest error
# of t Phi(-t), which is 1.2e-7.
_ROOT_OF_TAIL = (
    1.0218973627714245, 0.025478277504221825, 0.010485194363795058, 0.0014191720454984915, -8.113124914327528e-05,
    2.0214854362224623e-05,
)  # fmt: skip


def fused_path(model: MusicGen, steps: int) -> "FusedPath | None":
    """The weights of the model as it is now for so many steps; None where its modules must be asked.

    They are kept until one is replaced, or until there are steps enough to join them.
    """
    if on_gpu() or model.dtype != mx.float32 or not is_plain(model):
        return None
    joined = joining_pays(model.config.width, steps)

    def serves(path: FusedPath) -> bool:
        return (path.joined or not joined) and is_current(model, path.source)

    return model.kept("fused", serves, lambda: FusedPath(model, joined=joined))


class FusedPath:
    """The weights of a step, which generations of any number of rows share: `joined` or not."""

    def __init__(self, model: MusicGen, *, joined: bool):
        self.config, self.joined = model.config, joined
        self.weights, self.emb = fuse(model, joined=joined), parts(list(model.emb), joined=joined)
        self.table = mx.zeros((0, model.config.width))
        mx.eval(self.emb, self.table, model.parameters())
        self.source = arrays(model)
        self.forms: dict[Form, tuple[Forms, Weights]] = {}

    def formed(self, form: Form) -> tuple[Forms, Weights]:
        """The form's functions and the weights as they take them, which stay where they are."""
        if form not in self.forms:
            made: Forms = form(self.config.width)
            weights = tree_map(made.kept, self.weights)
            mx.eval(vars(made), weights)  # before another thread can see them
            self.forms[form] = made, weights
        return self.forms[form]

    def places(self, slots: int) -> mx.array:
        """The sinusoids of at least so many positions, kept: (T, D)."""
        table = self.table
        if len(table) < slots:
            table = sinusoids(mx.arange(slots), self.config.width)
            mx.eval(table)
            self.table = table  # only now: what is not evaluated is this thread's alone
        return table


class FusedSteps:
    """The steps of one generation. Where `taken` is a number, shapes follow it; an array of it serves every step."""

    def __init__(self, path: FusedPath, rows: int, memory: Memory | None, condition: Condition | None, *, guided: bool):
        self.path, self.config, self.guided = path, path.config, guided
        self.forms, self.weights = path.formed(form_for(rows))
        self.rows = (self.config.entries + 1) * mx.arange(self.config.codebooks)
        self.crossing: Crossing | None = None
        if memory is not None and condition is not None:
            self.crossing = crossing_of(memory, condition.empty, path.weights["layers"], self.forms)

    def __call__(
        self, codes: mx.array, caches: Sequence[KeysValues], taken: Taken, padding: mx.array | None,
        seen: mx.array | None,
    ) -> tuple[mx.array, list[KeysValues]]:  # fmt: skip
        """A step (B, K) -> logits (rows, K, V) of the next and the caches with it.

        `taken` slots of the caches hold what came before; `seen` (rows, slots) says which of them may be seen, and
        `padding` (rows, 1) how many of them are no positions.
        """
        slots = caches[0][0].shape[2]
        x = self._embedded(codes)
        x = mx.concatenate([x, x]) if self.guided else x
        x = x + self.path.places(slots)[taken if padding is None else (taken - padding)[:, 0]]
        if isinstance(taken, int):
            slots = taken + 1
            visible = None if seen is None else seen[:, :slots]
        else:
            visible = mx.arange(slots) <= taken if seen is None else (mx.arange(slots) <= taken) & seen
        mask = mx.zeros((1,)) if visible is None else mx.where(visible, 0.0, -mx.inf)
        return self._through(x, caches, mx.array(taken), slots, mask.reshape(-1, 1, 1, mask.shape[-1]))

    def _embedded(self, codes: mx.array) -> mx.array:
        """A step (B, K) -> the sum of its embeddings (B, D)."""
        if len(self.path.emb) == 1:
            return self.path.emb[0][codes + self.rows].sum(axis=1)
        x = self.path.emb[0][codes[:, 0]]
        for k in range(1, self.config.codebooks):
            x = x + self.path.emb[k][codes[:, k]]
        return x

    def _through(
        self, x: mx.array, caches: Sequence[KeysValues], start: mx.array, slots: int, mask: mx.array
    ) -> tuple[mx.array, list[KeysValues]]:
        """Embeddings with their positions (rows, D) -> logits (rows, K, V) and the caches with this step at `start`.

        `mask` is added to the scores of the caches' first `slots`.
        """
        config, forms, kept = self.config, self.forms, []
        x = forms.enter(x)
        for index, layer in enumerate(self.weights["layers"]):
            qkv = _side_by_side(forms, forms.norm(x, layer["norm1"]), layer["qkv"])
            q, k, v = mx.split(heads_of(qkv, config.width // config.heads), 3, axis=1)
            keys, values = caches[index]
            keys = mx.slice_update(keys, k, start, axes=(2,))
            values = mx.slice_update(values, v, start, axes=(2,))
            kept.append((keys, values))
            z = attended(forms, q, keys[:, :, :slots], values[:, :, :slots], mask)
            x = forms.plus_linear(x, z, layer["out"])
            if self.crossing is not None:
                x = self.crossing.plus(x, index, layer)
            u = forms.linear(forms.norm(x, layer["norm2"]), layer["up"])
            x = forms.plus_linear(x, gelu(u), layer["down"])
        logits = _side_by_side(forms, forms.norm(x, self.weights["norm"]), self.weights["heads"])
        return logits.reshape(-1, config.codebooks, config.entries), kept


def _side_by_side(forms: Forms, x: mx.array, weights: Sequence[mx.array]) -> mx.array:
    """Activations through each of the linears, as rows (rows, sum of outs)."""
    rows = [forms.leave(forms.linear(x, weight)) for weight in weights]
    return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=1)


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


def fuse(model: MusicGen, *, joined: bool) -> Weights:
    """What a step takes its products with, sharing memory with the model's. Layer by layer: little is held twice."""
    crossing = model.config.condition == "cross"
    weights: Weights = {
        "layers": [_fused_layer(layer, crossing=crossing, joined=joined) for layer in model.layers],
        "norm": (model.out_norm.weight, model.out_norm.bias),
        "heads": parts(list(model.linears), joined=joined),
    }
    mx.eval(weights, model.parameters())
    return weights


def _fused_layer(layer: Any, *, crossing: bool, joined: bool) -> Weights:
    attention, cross = layer.self_attn, layer.cross_attn if crossing else None
    fused: Weights = {
        "qkv": parts([attention.q_proj, attention.k_proj, attention.v_proj], joined=joined),
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
