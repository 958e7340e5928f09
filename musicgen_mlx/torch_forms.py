"""How a step on PyTorch multiplies: the mirror of `musicgen_mlx.forms`."""

import torch
import torch.nn.functional as F

from backends.blas import FEW_ROWS

Norm = tuple[torch.Tensor, torch.Tensor]


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (rows, in) @ weight (in, out), whose transpose is what lies in memory.

    For more than a few rows MKL is nearly twice as fast at that transpose times columns.
    """
    if _as_rows(x):
        return torch.mm(x, weight)
    return torch.mm(weight.t(), x.t().contiguous()).t().contiguous()


def plus_product(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`residual` (rows, out) plus `product`."""
    return torch.addmm(residual, x, weight) if _as_rows(x) else residual + product(x, weight)


def _as_rows(x: torch.Tensor) -> bool:
    return len(x) <= FEW_ROWS or x.device.type != "cpu"


def normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Layer norm of rows (rows, D)."""
    return F.layer_norm(x, x.shape[-1:], *norm)
