"""A step of MusicGen on PyTorch in few calls, as long as its layers are plain: the mirror of `musicgen_mlx.fused`.

Activations are rows (rows, D); what a product adds to is given to it. On a GPU, and where there are steps enough, q, k
and v are one product, and so are the heads of all codebooks. Joined weights share their memory with the model's:
`q_proj.weight` and its like become views of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from musicgen_mlx.thresholds import joining_pays
from musicgen_mlx.torch_crossing import Crossing
from musicgen_mlx.torch_forms import Norm, normed, plus_product, product

Cache = torch.Tensor  # of one layer: keys, then values, (2, rows, heads, slots, d)


def fused_path(model: Any, steps: int) -> "FusedPath | None":
    """The path for the model as it is now and so many steps; None where its modules must be asked.

    It is kept until weights move, or until there are steps enough to join them.
    """
    stack = model.decoder.model.decoder
    modules = [*stack.layers.modules(), *model.decoder.lm_heads]
    names = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    inner = [part for module in modules for name, part in module.named_children() if name in names]
    if not all(type(part) is nn.Linear for part in [*inner, *model.decoder.lm_heads]):
        return None
    on_gpu = stack.layer_norm.weight.device.type != "cpu"
    kept, joined = model.__dict__.get("_fused"), on_gpu or joining_pays(model.shapes.width, steps)
    if kept is None or (joined and not kept.joined) or kept.addresses != _addresses(model):
        kept = model.__dict__["_fused"] = FusedPath(model, joined=joined)
    return kept


class FusedPath:
    """Over weights that are `joined` or not."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: Any, *, joined: bool):
        decoder, self.joined = model.decoder, joined
        self.heads, self.codebooks = model.shapes.heads, model.shapes.codebooks
        self.layers = [_fused_layer(layer, joined=joined) for layer in decoder.model.decoder.layers]
        self.norm = _norm(decoder.model.decoder.layer_norm)
        self.out = _parts(list(decoder.lm_heads), joined=joined)
        self.addresses = _addresses(model)

    def step(self, x: torch.Tensor, caches: Sequence[Cache], taken: int, crossing: Crossing | None) -> torch.Tensor:
        """Rows (rows, D) with their positions -> logits (rows, K, V).

        The caches get their keys and values at slot `taken`.
        """
        rows, D = x.shape
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            qkv = _side_by_side(normed(x, layer["norm1"]), layer["qkv"]).view(rows, 3, self.heads, -1)
            cache[:, :, :, taken] = qkv[:, 1:].transpose(0, 1)
            keys, values = cache[:, :, :, : taken + 1]
            z = F.scaled_dot_product_attention(qkv[:, 0, :, None], keys, values)
            x = plus_product(x, z.reshape(rows, D), layer["out"])
            if crossing is not None:
                x = crossing.plus(x, index, layer)
            u = product(normed(x, layer["norm2"]), layer["up"])
            x = plus_product(x, F.gelu(u), layer["down"])
        return _side_by_side(normed(x, self.norm), self.out).view(rows, self.codebooks, -1)


def _side_by_side(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows through each of the linears, (rows, sum of outs)."""
    rows = [product(x, weight) for weight in weights]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def _fused_layer(layer: Any, *, joined: bool) -> dict[str, Any]:
    attention = layer.self_attn
    fused: dict[str, Any] = {
        "qkv": _parts([attention.q_proj, attention.k_proj, attention.v_proj], joined=joined),
        "out": attention.out_proj.weight.t(),
        "up": layer.fc1.weight.t(),
        "down": layer.fc2.weight.t(),
        "norm1": _norm(layer.self_attn_layer_norm),
        "norm2": _norm(layer.final_layer_norm),
    }
    if hasattr(layer, "encoder_attn"):
        cross = layer.encoder_attn
        fused["cross_q"], fused["cross_out"] = cross.q_proj.weight.t(), cross.out_proj.weight.t()
        fused["norm_cross"] = _norm(layer.encoder_attn_layer_norm)
    return fused


def _parts(owners: Sequence[Any], *, joined: bool) -> list[torch.Tensor]:
    """The owners' weights as (in, out): one that they share, or each its own."""
    return [_join(owners)] if joined else [owner.weight.t() for owner in owners]


def _join(owners: Sequence[Any]) -> torch.Tensor:
    """The owners' weights as one, (in, sum of outs); theirs become views of it."""
    joined = torch.cat([owner.weight for owner in owners])
    for owner, part in zip(owners, joined.split([len(owner.weight) for owner in owners]), strict=True):
        owner.weight.data = part
    return joined.t()


def _norm(norm: nn.LayerNorm) -> Norm:
    return norm.weight, norm.bias


def _addresses(model: Any) -> list[tuple[int, torch.dtype]]:
    """Where the parameters lie."""
    return [(parameter.data_ptr(), parameter.dtype) for parameter in model.parameters()]
