"""How a step over fused weights attends to its condition: the mirror of `musicgen_mlx.crossing`."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from musicgen_mlx.thresholds import is_short
from musicgen_mlx.torch_forms import normed, plus_product, product

Layer = dict[str, Any]  # of `musicgen_mlx.torch_fused`: linears as (in, out)
KeysValues = tuple[torch.Tensor, torch.Tensor]  # (rows, heads, T, d) each


class Crossing(Protocol):
    """What attention to the condition adds to activations."""

    def plus(self, x: torch.Tensor, index: int, layer: Layer) -> torch.Tensor:
        """Rows (rows, D) after the attention to the condition of layer `index`, whose weights are `layer`."""
        ...


def crossing_of(
    memory: Sequence[KeysValues], mask: torch.Tensor | None, empty: Sequence[bool], layers: Sequence[Layer]
) -> Crossing | None:
    """The cheaper way to attend to a memory whose items are `empty` or not; None where all are.

    `mask` (rows, 1, 1, T) is added to scores.
    """
    if all(empty):
        return None
    shape = memory[0][0].shape[2:]
    return Absorbed(memory, mask, empty, layers) if is_short(empty, *shape) else Attended(memory, mask)


class Attended:
    """Through queries over keys and values."""

    def __init__(self, memory: Sequence[KeysValues], mask: torch.Tensor | None):
        self.layers, self.mask = memory, mask

    def plus(self, x: torch.Tensor, index: int, layer: Layer) -> torch.Tensor:
        keys, values = self.layers[index]
        q = product(normed(x, layer["norm_cross"]), layer["cross_q"]).view(len(x), keys.shape[1], 1, -1)
        z = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask)
        return plus_product(x, z.reshape(x.shape), layer["cross_out"])


class Absorbed:
    """With the condition in the weights: S rows per head, of which an item sees its own."""

    def __init__(
        self, memory: Sequence[KeysValues], mask: torch.Tensor | None, empty: Sequence[bool], layers: Sequence[Layer]
    ):
        keys, _ = memory[0]
        self.heads, saying = keys.shape[1], [item for item, nothing in enumerate(empty) if not nothing]
        wide = keys.new_full((len(empty), len(saying), keys.shape[2]), -torch.inf)
        for block, item in enumerate(saying):
            wide[item, block] = 0 if mask is None else mask[item, 0, 0]
        wide = wide.flatten(1)
        if any(empty):
            wide = torch.cat(
                [wide, torch.where(torch.tensor(empty, device=wide.device), 0, -torch.inf)[:, None]], dim=1
            )
        self.mask = wide[:, None].to(keys.dtype).expand(-1, self.heads, -1).flatten(1)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for (keys, values), layer in zip(memory, layers, strict=True):
            said = _side_by_side(keys[saying], any(empty)), _side_by_side(values[saying], any(empty))
            self.layers.append(_absorbed(*said, layer["cross_q"], layer["cross_out"]))

    def plus(self, x: torch.Tensor, index: int, layer: Layer) -> torch.Tensor:
        project, out = self.layers[index]
        scores = plus_product(self.mask, normed(x, layer["norm_cross"]), project)
        chosen = scores.view(len(x), self.heads, -1).softmax(dim=-1)
        return plus_product(x, chosen.flatten(1), out)


def _side_by_side(x: torch.Tensor, zeros: bool) -> torch.Tensor:
    """(n, heads, T, d) -> float32 (heads, S, d), with a last row of zeros or without."""
    _, heads, _, width = x.shape
    rows = x.float().transpose(0, 1).reshape(heads, -1, width)
    return F.pad(rows, (0, 0, 0, int(zeros)))


def _absorbed(
    keys: torch.Tensor, values: torch.Tensor, project: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (heads, S, d) and projections (D, D) -> linears (D, heads S) and (heads S, D) as `product` takes
    them: their transposes lie in memory."""
    heads, _, width = keys.shape
    scores = (keys * width**-0.5) @ project.t().float().view(heads, width, -1)
    sums = values @ out.float().view(heads, width, -1)  # (heads, S, D)
    return scores.flatten(0, 1).to(project.dtype).t(), sums.flatten(0, 1).t().contiguous().to(out.dtype).t()
