"""A step of MusicGen on PyTorch in few calls, as long as its layers are plain: the mirror of `musicgen_mlx.fused`.

Activations are rows (rows, D); q, k and v are one product, and so are the heads of all codebooks; what a product adds
to is given to it. Fused weights share their memory with the model's: `q_proj.weight` and its like become views of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from backends.blas import FEW_ROWS

KeysValues = torch.Tensor  # of one layer: keys, then values, (2, rows, heads, slots, d)
Norm = tuple[torch.Tensor, torch.Tensor]


def fused_path(model: Any) -> "FusedPath | None":
    """The path for the model as it is now, kept until weights move; None where its modules must be asked."""
    stack = model.decoder.model.decoder
    modules = [*stack.layers.modules(), *model.decoder.lm_heads]
    names = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    inner = [part for module in modules for name, part in module.named_children() if name in names]
    if not all(type(part) is nn.Linear for part in [*inner, *model.decoder.lm_heads]):
        return None
    kept = model.__dict__.get("_fused")
    if kept is None or kept.addresses != _addresses(model):
        kept = model.__dict__["_fused"] = FusedPath(model)
    return kept


class FusedPath:
    """Over fused weights."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: Any):
        decoder = model.decoder
        self.heads, self.codebooks = model.shapes.heads, model.shapes.codebooks
        self.layers = [_fused_layer(layer) for layer in decoder.model.decoder.layers]
        self.norm = _norm(decoder.model.decoder.layer_norm)
        self.out = _join(list(decoder.lm_heads))
        self.addresses = _addresses(model)

    def step(
        self, x: torch.Tensor, caches: Sequence[KeysValues], taken: int,
        memory: Sequence[tuple[torch.Tensor, torch.Tensor] | None], mask: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Rows (rows, D) with their positions -> logits (rows, K, V).

        The caches get their keys and values at slot `taken`. `mask` (rows, 1, 1, T) is added to the scores of `memory`.
        """
        rows, D = x.shape
        for layer, cache, crossed in zip(self.layers, caches, memory, strict=True):
            qkv = _product(_normed(x, layer["norm1"]), layer["qkv"]).view(rows, 3, self.heads, -1)
            cache[:, :, :, taken] = qkv[:, 1:].transpose(0, 1)
            keys, values = cache[:, :, :, : taken + 1]
            z = F.scaled_dot_product_attention(qkv[:, 0, :, None], keys, values)
            x = _plus_product(x, z.reshape(rows, D), layer["out"])
            if crossed is not None:
                q = _product(_normed(x, layer["norm_cross"]), layer["cross_q"]).view(rows, self.heads, 1, -1)
                z = F.scaled_dot_product_attention(q, *crossed, attn_mask=mask)
                x = _plus_product(x, z.reshape(rows, D), layer["cross_out"])
            u = _product(_normed(x, layer["norm2"]), layer["up"])
            x = _plus_product(x, F.gelu(u), layer["down"])
        return _product(_normed(x, self.norm), self.out).view(rows, self.codebooks, -1)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (rows, in) @ weight (in, out), whose transpose is what lies in memory.

    For more than a few rows MKL is nearly twice as fast at that transpose times columns.
    """
    if _as_rows(x):
        return torch.mm(x, weight)
    return torch.mm(weight.t(), x.t().contiguous()).t().contiguous()


def _plus_product(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.addmm(residual, x, weight) if _as_rows(x) else residual + _product(x, weight)


def _as_rows(x: torch.Tensor) -> bool:
    return len(x) <= FEW_ROWS or x.device.type != "cpu"


def _fused_layer(layer: Any) -> dict[str, Any]:
    attention = layer.self_attn
    fused: dict[str, Any] = {
        "qkv": _join([attention.q_proj, attention.k_proj, attention.v_proj]),
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


def _join(owners: Sequence[Any]) -> torch.Tensor:
    """The owners' weights as one, (in, sum of outs); theirs become views of it."""
    joined = torch.cat([owner.weight for owner in owners])
    for owner, part in zip(owners, joined.split([len(owner.weight) for owner in owners]), strict=True):
        owner.weight.data = part
    return joined.t()


def _norm(norm: nn.LayerNorm) -> Norm:
    return norm.weight, norm.bias


def _normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], *norm)


def _addresses(model: Any) -> list[tuple[int, torch.dtype]]:
    """Where the parameters lie."""
    return [(parameter.data_ptr(), parameter.dtype) for parameter in model.parameters()]
