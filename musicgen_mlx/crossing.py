"""How a step on the CPU attends to its condition, which is the same for a whole generation.

A condition of few rows goes into the weights: per head, keys times the projection of queries, and the projection of
outputs times values, have as many rows as the condition instead of the head's width. A step reads so much less, for the
same sums in another order. Who says nothing, as guidance's null condition, attends to zeros.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from musicgen_mlx.forms import Forms, attended, heads_of
from musicgen_mlx.model import Memory
from musicgen_mlx.thresholds import is_short

Layer = dict[str, Any]  # of `musicgen_mlx.fused.fuse`


class Crossing(Protocol):
    """What attention to the condition adds to activations."""

    def plus(self, x: mx.array, index: int, layer: Layer) -> mx.array:
        """Activations after the attention to the condition of layer `index`, whose weights are `layer`."""
        ...


def crossing_of(memory: Memory, empty: Sequence[bool], layers: Sequence[Layer], forms: Forms) -> Crossing | None:
    """The cheaper way to attend to a memory whose items are `empty` or not; None where all are.

    `layers` has the weights as they are in the modules.
    """
    if all(empty):
        return None
    shape = memory[0][0][0].shape[2:]
    return Absorbed(memory, empty, layers, forms) if is_short(empty, *shape) else Attended(memory, forms)


class Attended:
    """Through queries over keys and values."""

    def __init__(self, memory: Memory, forms: Forms):
        (self.layers, mask), self.forms = memory, forms
        self.mask = mx.where(mask, 0.0, -mx.inf)

    def plus(self, x: mx.array, index: int, layer: Layer) -> mx.array:
        forms, (keys, values) = self.forms, self.layers[index]
        q = forms.leave(forms.linear(forms.norm(x, layer["norm_cross"]), layer["cross_q"]))
        return forms.plus_linear(
            x, attended(forms, heads_of(q, keys.shape[-1]), keys, values, self.mask), layer["cross_out"]
        )


class Absorbed:
    """With the condition in the weights. All that is said lies side by side, and a last row of zeros for who says
    nothing: S rows per head, of which an item sees its own."""

    def __init__(self, memory: Memory, empty: Sequence[bool], layers: Sequence[Layer], forms: Forms):
        keys_values, mask = memory
        self.forms, self.heads = forms, keys_values[0][0].shape[1]
        saying = [item for item, nothing in enumerate(empty) if not nothing]
        own = mx.array(saying)
        seen = _blocks(mask[own, 0, 0], saying, len(empty))
        if any(empty):
            seen = mx.concatenate([seen, mx.array(list(empty))[:, None]], axis=1)
        self.count = seen.shape[1]
        wide = mx.broadcast_to(mx.where(seen, 0.0, -mx.inf)[:, None], (len(empty), self.heads, self.count))
        self.mask = forms.enter(wide.reshape(len(empty), -1))
        self.layers: list[tuple[mx.array, mx.array]] = []
        for (keys, values), layer in zip(keys_values, layers, strict=True):
            said = _side_by_side(keys[own], any(empty)), _side_by_side(values[own], any(empty))
            project, out = _absorbed(*said, layer["cross_q"], layer["cross_out"])
            self.layers.append((forms.kept(project), forms.kept(out)))
            mx.eval(self.layers[-1])
        mx.eval(self.mask)

    def plus(self, x: mx.array, index: int, layer: Layer) -> mx.array:
        forms, (project, out) = self.forms, self.layers[index]
        scores = forms.leave(forms.plus_linear(self.mask, forms.norm(x, layer["norm_cross"]), project))
        chosen = mx.softmax(scores.reshape(len(scores), self.heads, self.count), axis=-1)
        return forms.plus_linear(x, forms.enter(chosen.reshape(len(scores), -1)), out)


def _blocks(mask: mx.array, saying: Sequence[int], items: int) -> mx.array:
    """Which of what is said, mask (n, T) side by side, each item sees: (items, n T)."""
    own = mx.array(list(saying)) == mx.arange(items)[:, None]
    return (own[..., None] & mask).reshape(items, -1)


def _side_by_side(x: mx.array, zeros: bool) -> mx.array:
    """(n, heads, T, d) -> (heads, S, d), with a last row of zeros or without."""
    _, heads, _, width = x.shape
    rows = x.swapaxes(0, 1).reshape(heads, -1, width)
    return mx.pad(rows, [(0, 0), (0, int(zeros)), (0, 0)])


def _absorbed(keys: mx.array, values: mx.array, project: mx.array, out: mx.array) -> tuple[mx.array, mx.array]:
    """Keys and values (heads, S, d) and projections (D, D) -> linears' weights (heads S, D) and (D, heads S)."""
    heads, _, width = keys.shape
    scores = (keys * width**-0.5) @ project.reshape(heads, width, -1)
    sums = out.reshape(-1, heads, width).swapaxes(0, 1) @ values.swapaxes(1, 2)  # (heads, D, S)
    return scores.reshape(-1, scores.shape[-1]), sums.swapaxes(0, 1).reshape(sums.shape[1], -1)
