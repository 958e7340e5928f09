"""Products, norms, rotary positions and attention of a frame step: MLX's kernels, or few primitives.

On a GPU norms, positions and attention are MLX's fused kernels, and activations are rows (B T, D). On the CPU, where
those fall apart into 11, 29 and 13 primitives, `CPUForms` does the same with 7, 4 and 6, and activations are columns
(D, B T): a frame's one column is a vector either way, and of the rows of a batch BLAS reads the weights faster so.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from backends.mlx_backend.activations import Activations, Columns, Rows
from csm_mlx.config import LlamaConfig
from csm_mlx.llama import rope_wavelengths

Weights = dict[str, Any]  # a tree of arrays, so that a compiled step can take it as an argument


class Forms(Activations, Protocol):
    """What a step is made of, on activations as the device likes them; heads are (B, H, T, d) everywhere."""

    def heads(self, x: mx.array, T: int) -> mx.array:
        """Activations of width H d -> heads."""
        ...

    def norm(self, x: mx.array, weight: mx.array) -> mx.array: ...
    def gate_and_up(self, x: mx.array, layer: Weights) -> Sequence[mx.array]: ...
    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        """silu(gate) up."""
        ...

    def rotate(self, qkv: mx.array, position: Any) -> Sequence[mx.array]:
        """The heads of q, k and v -> rotated queries, and rotated keys before values (B, 2 kv heads, T, d)."""
        ...

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array: ...
    def position(self, offset: Any, length: int) -> Any: ...
    def mask(self, slots: int, taken: mx.array) -> mx.array: ...


class GPUForms(Rows):
    """MLX's fused kernels."""

    def __init__(self, config: LlamaConfig, positions: int):
        self.config = config
        self.wavelengths = rope_wavelengths(config.head_dim, config.rope_theta, config.rope_scaling)

    def heads(self, x: mx.array, T: int) -> mx.array:
        return _heads(x, T, self.config.head_dim)

    def norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self.config.norm_eps)

    def gate_and_up(self, x: mx.array, layer: Weights) -> Sequence[mx.array]:
        return tuple(mx.split(x @ layer["gate_up"], 2, axis=-1))

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        return gate * mx.sigmoid(gate) * up

    def position(self, offset: Any, length: int) -> Any:
        return offset

    def rotate(self, qkv: mx.array, position: Any) -> Sequence[mx.array]:
        heads, d = self.config.heads, self.config.head_dim
        q_and_k, v = mx.split(qkv, [heads + self.config.kv_heads], axis=1)
        q_and_k = mx.fast.rope(
            q_and_k, d, traditional=True, base=None, scale=1.0, offset=position, freqs=self.wavelengths
        )
        q, k = mx.split(q_and_k, [heads], axis=1)
        return q, mx.concatenate([k, v], axis=1)

    def mask(self, slots: int, taken: mx.array) -> mx.array:
        return mx.arange(slots) <= taken

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        causal = "causal" if mask is None and q.shape[2] > 1 else mask
        return _rows(mx.fast.scaled_dot_product_attention(q, k, v, scale=self.config.head_dim**-0.5, mask=causal))


class CPUForms(Columns):
    """The same in few primitives, float32. Pairs of numbers are rotated as complex numbers."""

    def __init__(self, config: LlamaConfig, positions: int):
        self.config = config
        self.mean = mx.full((1, config.width), 1 / config.width)
        self.eps = mx.full((1, 1), config.norm_eps)
        self.phases = self._phases(positions)
        mx.eval(self.mean, self.eps, self.phases)

    def enter(self, rows: mx.array) -> mx.array:
        """A single row is its own column, which BLAS then takes for a vector."""
        return rows.reshape(-1, 1) if rows.shape[0] == 1 else rows.T

    def leave(self, x: mx.array) -> mx.array:
        return x.reshape(1, -1) if x.shape[1] == 1 else x.T

    def heads(self, x: mx.array, T: int) -> mx.array:
        one = x.shape[1] == 1  # then a column is its own row
        return x.reshape(1, -1, 1, self.config.head_dim) if one else _heads(x.T, T, self.config.head_dim)

    def norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return x * mx.rsqrt(mx.addmm(self.eps, self.mean, x.square())) * weight

    def gate_and_up(self, x: mx.array, layer: Weights) -> Sequence[mx.array]:
        """Two products: OpenBLAS is slower on the one, which is past what it calls a small matrix."""
        return layer["gate"] @ x, layer["up"] @ x

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        return gate * up / (1 + mx.power(1 / math.e, gate))  # e^-gate, as in mlx_backend/elu.py

    def position(self, offset: Any, length: int) -> mx.array:
        """The rotations (1, heads, length, d / 2) of the positions from `offset` on."""
        if isinstance(offset, int):
            return self.phases[offset : offset + length].swapaxes(0, 1)[None]
        return self.phases[offset][None, :, None]

    def rotate(self, qkv: mx.array, position: Any) -> Sequence[mx.array]:
        turned = (qkv.view(mx.complex64) * position).view(mx.float32)
        q, keys_values = mx.split(turned, [self.config.heads], axis=1)
        return q, keys_values

    def mask(self, slots: int, taken: mx.array) -> mx.array:
        return mx.where(mx.arange(slots) <= taken, 0.0, -mx.inf)[None, None]

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """Queries that share keys are rows of one product; the scale is in their phases."""
        B, H, T, d = q.shape
        scores = q.reshape(B, k.shape[1], -1, d) @ k.swapaxes(2, 3)
        if mask is not None:
            scores = scores + mask
        elif T > 1:
            scores = scores + self._causal(H // k.shape[1], T, k.shape[2])
        y = mx.softmax(scores, axis=-1) @ v
        return y.reshape(H * d, 1) if B * T == 1 else _rows(y.reshape(B, H, T, d)).T

    def _causal(self, groups: int, T: int, L: int) -> mx.array:
        visible = mx.arange(L) <= mx.arange(L - T, L)[:, None]
        return mx.tile(mx.where(visible, 0.0, -mx.inf), (groups, 1))

    def _phases(self, positions: int) -> mx.array:
        """exp(i position / wavelength), (positions, heads of q, k and v, d / 2).

        Those of q carry the attention scale, those of v are 1.
        """
        config = self.config
        wavelengths = rope_wavelengths(config.head_dim, config.rope_theta, config.rope_scaling)
        angles = mx.arange(positions)[:, None, None] / wavelengths
        scale = mx.array([config.head_dim**-0.5] * config.heads + [1.0] * config.kv_heads)[:, None]
        turns = scale * (mx.cos(angles) + 1j * mx.sin(angles))
        return mx.concatenate([turns, mx.ones((positions, config.kv_heads, turns.shape[2]), turns.dtype)], axis=1)


def _heads(x: mx.array, T: int, d: int) -> mx.array:
    """Rows (B T, heads d) -> (B, heads, T, d)."""
    if T == 1:
        return x.reshape(x.shape[0], -1, 1, d)
    return x.reshape(-1, T, x.shape[1] // d, d).swapaxes(1, 2)


def _rows(x: mx.array) -> mx.array:
    """(B, heads, T, d) -> (B T, heads d)."""
    B, heads, T, d = x.shape
    return (x if T == 1 else x.swapaxes(1, 2)).reshape(B * T, heads * d)
