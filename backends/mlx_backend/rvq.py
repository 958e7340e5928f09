"""Residual vector quantisation with Euclidean codebooks (EnCodec, arXiv:2210.13438). Latents are (B, T, D).

A codebook is kept as running sums, as its files hold it: entry = embed_sum / cluster_usage. It learns by exponential
averages of the vectors that chose an entry, not by gradients: `quantize` gathers an update's statistics over its
micro-batches, `apply_statistics` sums them over ranks and moves the averages once.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.adapters.strict import check_names, check_shapes
from backends.base import Arrays
from backends.mlx_backend.world import sum_arrays, world
from backends.training.kmeans import kmeans_levels

EPSILON = 1e-5  # least usage, so that entries that were never used stay finite
LEARNED = ["embed_sum", "cluster_usage"]


class ResidualQuantizer(nn.Module):
    """K codebooks of V entries of width D, each quantising what the ones before it left over."""

    def __init__(self, codebooks: int, entries: int, width: int):
        super().__init__()
        self.embed_sum = mx.random.normal((codebooks, entries, width))
        self.cluster_usage = mx.ones((codebooks, entries))
        self.freeze(keys=LEARNED, recurse=False)

    def unfreeze(self, *args, **kwargs):  # noqa: ANN002, ANN003, ANN201 (MLX's signature)
        """Gradients never train codebooks."""
        super().unfreeze(*args, **kwargs)
        self.freeze(keys=LEARNED, recurse=False)
        return self

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

    def collect(self, slots: int = 0) -> None:
        """Gather statistics from now on in training mode, with `slots` latents of each level to revive entries with.

        They are arrays of the module's state, so that a compiled step returns them, but not parameters.
        """
        K, V, D = self.embed_sum.shape
        self._sums, self._counts = mx.zeros((K, V, D)), mx.zeros((K, V))
        self._samples, self._priorities = mx.zeros((K, slots, D)), mx.full((slots,), -1.0)

    def quantize(
        self,
        x: mx.array,
        active: mx.array,
        bypass: mx.array,
        offered: mx.array | None = None,
        priority: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Latents (B, T, D) -> (quantised latents, codes (B, K, T), commitment as a sum of squares).

        Item b uses its first `active[b]` codebooks; where `bypass[b]`, its latents pass as they are. The gradient goes
        straight through the sum of all levels. The commitment is of the levels in use, bypassed or not, with the
        gradient to x; `backends.training.counts` has its count. The draws are those of
        `backends.training.codebooks.quantizer_draws`; `offered` and `priority` (B, slots) are needed with `collect`.
        """
        tables = mx.stop_gradient(self.tables.astype(mx.float32))
        half_norms = 0.5 * tables.square().sum(-1)
        residual = x.astype(mx.float32)
        quantized, commitment = mx.zeros_like(residual), mx.array(0.0)
        codes, residuals = [], []
        for level, (table, half_norm) in enumerate(zip(tables, half_norms, strict=True)):
            used = (active > level).astype(mx.float32)[:, None, None]
            code = mx.argmin(half_norm - mx.stop_gradient(residual) @ table.T, axis=-1)
            entry = table[code]
            commitment = commitment + (used * (residual - entry).square()).sum()
            quantized = quantized + used * entry
            residuals.append(mx.stop_gradient(residual))
            codes.append(code)
            residual = residual - entry
        stacked = mx.stack(codes, axis=1)
        if self.training and "_sums" in self:
            self._gather(mx.stack(residuals), stacked, active)
            self._keep(mx.stack(residuals), offered, priority)
        straight = x + mx.stop_gradient(quantized.astype(x.dtype) - x)
        return mx.where(bypass[:, None, None], x, straight), stacked, commitment

    def kmeans(self, x: mx.array, seed: int) -> None:
        """Start the codebooks from latents (B, T, D) of the first rank: each level from what the ones before leave."""
        K, V, D = self.embed_sum.shape
        vectors = np.array(x.astype(mx.float32)).reshape(-1, D)
        first = world().rank == 0
        tables = kmeans_levels(vectors, K, V, seed) if first else np.zeros((K, V, D), np.float32)
        usage = np.full((K, V), first * len(vectors) / V, np.float32)
        started = sum_arrays({"embed_sum": mx.array(tables * usage[..., None]), "cluster_usage": mx.array(usage)})
        load_buffers(self, started)

    def _gather(self, residuals: mx.array, codes: mx.array, active: mx.array) -> None:
        """Add each level's vectors (K, B, T, D) to the sums of the entries that they chose."""
        K, B, T, D = residuals.shape
        used = mx.arange(K)[:, None] < active
        chosen = codes.swapaxes(0, 1)[..., None] == mx.arange(self._counts.shape[1])
        chosen = (chosen & used[..., None, None]).astype(mx.float32).reshape(K, B * T, -1)
        self._sums = self._sums + chosen.swapaxes(1, 2) @ residuals.reshape(K, B * T, D)
        self._counts = self._counts + chosen.sum(axis=1)

    def _keep(self, residuals: mx.array, offered: mx.array | None, priority: mx.array | None) -> None:
        """Each slot keeps the vectors of the item with the highest priority of the update."""
        if not self._priorities.size:
            return
        assert offered is not None, "slots need draws"
        assert priority is not None, "slots need draws"
        K, B, T, D = residuals.shape
        item, slot = mx.argmax(priority, axis=0), mx.arange(priority.shape[1])
        vectors = residuals.reshape(K, B * T, D)[:, item * T + offered[item, slot]]
        better = priority[item, slot] > self._priorities
        self._samples = mx.where(better[:, None], vectors, self._samples)
        self._priorities = mx.where(better, priority[item, slot], self._priorities)


def apply_statistics(
    quantizer: ResidualQuantizer, *, decay: float = 0.99, revive_below: float = 0.1, draw: np.ndarray | None = None
) -> None:
    """Move the averages by an update's statistics, summed over ranks, and empty these.

    With `draw` (K, V), slots from `revival_draw`, an entry whose usage is below `revive_below` of its level's mean
    becomes one of the level's recent vectors, with the mean's usage, as kyutai's moshi does. A level that no item used
    stays as it is.
    """
    K, V = quantizer.cluster_usage.shape
    sums, counts, samples = _over_ranks(quantizer)
    seen = counts.sum(axis=1, keepdims=True) > 0
    usage = mx.where(seen, decay * quantizer.cluster_usage + (1 - decay) * counts, quantizer.cluster_usage)
    embed = mx.where(seen[..., None], decay * quantizer.embed_sum + (1 - decay) * sums, quantizer.embed_sum)
    if draw is not None:
        assert quantizer._priorities.size, "revival needs collect(slots)"
        mean = usage.mean(axis=1, keepdims=True)
        dead = seen & (usage < revive_below * mean)
        vectors = samples[mx.arange(K)[:, None], mx.array(draw)]
        embed = mx.where(dead[..., None], vectors * mean[..., None], embed)
        usage = mx.where(dead, mean, usage)
    load_buffers(quantizer, {"embed_sum": embed, "cluster_usage": usage})
    quantizer.collect(quantizer._priorities.size)
    mx.eval(quantizer.state)


def quantizers(model: nn.Module) -> dict[str, ResidualQuantizer]:
    """The residual quantisers in a model by dotted name; "" for the model itself."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ResidualQuantizer)}


def buffers(model: nn.Module) -> Arrays:
    """What a checkpoint must hold of the model's codebooks, by dotted name. Between updates there is nothing else."""
    found = quantizers(model).items()
    return {(f"{name}.{leaf}" if name else leaf): quantizer[leaf] for name, quantizer in found for leaf in LEARNED}


def load_buffers(model: nn.Module, arrays: Arrays) -> None:
    """Set what `buffers` gave; raises InputError that names what is missing, unexpected or of the wrong shape."""
    current = buffers(model)
    check_names(current, arrays, source="codebooks")
    shapes = ({name: value.shape for name, value in some.items()} for some in (current, arrays))
    check_shapes(*shapes, source="codebooks")
    for name, quantizer in quantizers(model).items():
        for leaf in LEARNED:
            setattr(quantizer, leaf, arrays[f"{name}.{leaf}" if name else leaf])


def _over_ranks(quantizer: ResidualQuantizer) -> tuple[mx.array, mx.array, mx.array]:
    """Sums (K, V, D), counts (K, V) and samples (K, slots, D) of all ranks; a slot has the highest priority's vectors.

    Each rank puts its samples in a place of its own among zeros, so that the sum is all of them.
    """
    rank, size = world().rank, world().size
    mine = mx.arange(size) == rank
    totals = sum_arrays(
        {
            "sums": quantizer._sums,
            "counts": quantizer._counts,
            "samples": mx.where(mine[:, None, None, None], quantizer._samples, 0.0),
            "priorities": mx.where(mine[:, None], quantizer._priorities, 0.0),
        }
    )
    if not quantizer._priorities.size:
        return totals["sums"], totals["counts"], quantizer._samples
    best = mx.argmax(totals["priorities"], axis=0)
    samples = totals["samples"][best, :, mx.arange(best.size)].swapaxes(0, 1)
    return totals["sums"], totals["counts"], samples
