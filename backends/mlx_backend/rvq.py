"""Residual vector quantisation with Euclidean codebooks (EnCodec, arXiv:2210.13438). Latents are (B, T, D).

A codebook is kept as running sums, as its files hold it: entry = embed_sum / cluster_usage.
"""

import mlx.core as mx
import mlx.nn as nn

EPSILON = 1e-5  # least usage, so that entries that were never used stay finite


class ResidualQuantizer(nn.Module):
    """K codebooks of V entries of width D, each quantising what the ones before it left over."""

    def __init__(self, codebooks: int, entries: int, width: int):
        super().__init__()
        self.embed_sum = mx.random.normal((codebooks, entries, width))
        self.cluster_usage = mx.ones((codebooks, entries))

    @property
    def tables(self) -> mx.array:
        """The entries, (K, V, D)."""
        return self.embed_sum / mx.maximum(self.cluster_usage, EPSILON)[..., None]

    def encode(self, x: mx.array, codebooks: int | None = None) -> mx.array:
        """Latents (B, T, D) -> codes (B, K, T), in float32."""
        tables = self.tables.astype(mx.float32)[:codebooks]
        half_norms = 0.5 * tables.square().sum(-1)
        residual = x.astype(mx.float32)
        codes = []
        for table, half_norm in zip(tables, half_norms, strict=True):
            code = mx.argmin(half_norm - residual @ table.T, axis=-1)
            residual = residual - table[code]
            codes.append(code)
        return mx.stack(codes, axis=1)

    def decode(self, codes: mx.array) -> mx.array:
        """Codes (B, K, T) -> latents (B, T, D), the sum of the K entries."""
        B, K, T = codes.shape
        _, V, D = self.embed_sum.shape
        rows = (codes + V * mx.arange(K)[:, None]).reshape(-1)
        sums = self.embed_sum.reshape(-1, D)[rows]
        usage = mx.maximum(self.cluster_usage.reshape(-1)[rows], EPSILON)
        return (sums / usage[:, None]).reshape(B, K, T, D).sum(1)
