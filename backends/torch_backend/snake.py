"""Snake, the periodic activation of DAC and SNAC: x + sin(alpha x)^2 / alpha (arXiv:2006.08195). Tensors are (B, C, T).

The twin of `backends.mlx_backend.snake`. Gradients are written out, so that training keeps x alone instead of every
step in between (upstream's TorchScript keeps four tensors).
"""

from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

EPSILON = 1e-9  # upstream's guard of 1 / alpha


def snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """x (B, C, T), alpha (1, C, 1) -> x + sin(alpha x)^2 / (alpha + 1e-9)."""
    return cast(torch.Tensor, _Snake.apply(x, alpha)) if torch.is_grad_enabled() else _snake(x, alpha)


def _snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return (alpha * x).sin_().square_().mul_((alpha + EPSILON).reciprocal()).add_(x)


class _Snake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, alpha)
        return _snake(x, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of x: (1 + sin(2 alpha x)); of alpha: x sin(2 alpha x) / alpha - (sin(alpha x) / alpha)^2, summed."""
        x, alpha = ctx.saved_tensors
        scale = (alpha + EPSILON).reciprocal()
        angle = alpha * x
        sine = angle.sin()
        pulled = angle.cos_().mul_(sine).mul_(cotangent)  # half of cotangent sin(2 alpha x)
        to_x = torch.addcmul(cotangent, pulled, 2 * alpha * scale).to(x.dtype)
        if not ctx.needs_input_grad[1]:
            return to_x, None
        slope = pulled.mul_(x).sum((0, 2), keepdim=True)
        square = sine.square_().mul_(cotangent).sum((0, 2), keepdim=True)
        return to_x, ((2 * slope - square * scale) * scale).to(alpha.dtype)
