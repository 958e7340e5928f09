"""Residual vector quantisation with Euclidean codebooks (EnCodec, arXiv:2210.13438). Latents are (B, T, D).

A codebook is kept as running sums, as its files hold it: entry = embed_sum / cluster_usage. It learns by exponential
averages of the vectors that chose an entry, not by gradients: `quantize` gathers an update's statistics over its
micro-batches, `apply_statistics` sums them over ranks and moves the averages once. All is float32, also under autocast.
"""

import numpy as np
import torch
from torch import nn

from backends.adapters.strict import check_names, check_shapes
from backends.base import Arrays
from backends.torch_backend.world import sum_arrays, world
from backends.training.kmeans import kmeans_levels

EPSILON = 1e-5  # least usage, so that entries that were never used stay finite
LEARNED = ["embed_sum", "cluster_usage"]


class ResidualQuantizer(nn.Module):
    """K codebooks of V entries of width D, each quantising what the ones before it left over."""

    embed_sum: torch.Tensor
    cluster_usage: torch.Tensor
    _sums: torch.Tensor
    _counts: torch.Tensor
    _samples: torch.Tensor
    _priorities: torch.Tensor

    def __init__(self, codebooks: int, entries: int, width: int):
        super().__init__()
        self.register_buffer("embed_sum", torch.randn(codebooks, entries, width))
        self.register_buffer("cluster_usage", torch.ones(codebooks, entries))
        self.collecting = False

    @property
    def tables(self) -> torch.Tensor:
        """The entries, (K, V, D)."""
        return self.embed_sum / self.cluster_usage.clamp(min=EPSILON)[..., None]

    def encode(self, x: torch.Tensor, codebooks: int | None = None) -> torch.Tensor:
        """Latents (B, T, D) -> codes (B, K, T), in float32."""
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            tables = self.tables.float()[:codebooks]
            half_norms = 0.5 * tables.square().sum(-1)
            residual = x.float()
            codes = []
            for table, half_norm in zip(tables, half_norms, strict=True):
                code = (half_norm - residual @ table.T).argmin(dim=-1)
                residual = residual - table[code]
                codes.append(code)
            return torch.stack(codes, dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, K, T) -> latents (B, T, D), the sum of the K entries."""
        B, K, T = codes.shape
        _, V, D = self.embed_sum.shape
        rows = (codes + V * torch.arange(K, device=codes.device)[:, None]).reshape(-1)
        sums = self.embed_sum.reshape(-1, D)[rows]
        usage = self.cluster_usage.reshape(-1)[rows].clamp(min=EPSILON)
        return (sums / usage[:, None]).reshape(B, K, T, D).sum(1)

    def collect(self, slots: int = 0) -> None:
        """Gather statistics from now on in training mode, with `slots` latents of each level to revive entries with.

        They are buffers that state_dict leaves out.
        """
        K, V, D = self.embed_sum.shape
        self.collecting = True
        device = self.embed_sum.device
        self.register_buffer("_sums", torch.zeros(K, V, D, device=device), persistent=False)
        self.register_buffer("_counts", torch.zeros(K, V, device=device), persistent=False)
        self.register_buffer("_samples", torch.zeros(K, slots, D, device=device), persistent=False)
        self.register_buffer("_priorities", torch.full((slots,), -1.0, device=device), persistent=False)

    def quantize(
        self,
        x: torch.Tensor,
        active: torch.Tensor,
        bypass: torch.Tensor,
        offered: torch.Tensor | None = None,
        priority: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (B, T, D) -> (quantised latents, codes (B, K, T), commitment as a sum of squares).

        Item b uses its first `active[b]` codebooks; where `bypass[b]`, its latents pass as they are. The gradient goes
        straight through the sum of all levels. The commitment is of the levels in use, bypassed or not, with the
        gradient to x; `backends.training.counts` has its count. The draws are those of
        `backends.training.codebooks.quantizer_draws`; `offered` and `priority` (B, slots) are needed with `collect`.
        """
        with torch.autocast(x.device.type, enabled=False):
            tables = self.tables.float()
            half_norms = 0.5 * tables.square().sum(-1)
            residual = x.float()
            quantized, commitment = torch.zeros_like(residual), residual.new_zeros(())
            codes, residuals = [], []
            for level, (table, half_norm) in enumerate(zip(tables, half_norms, strict=True)):
                used = (active > level).float()[:, None, None]
                code = (half_norm - residual.detach() @ table.T).argmin(dim=-1)
                entry = table[code]
                commitment = commitment + (used * (residual - entry).square()).sum()
                quantized = quantized + used * entry
                residuals.append(residual.detach())
                codes.append(code)
                residual = residual - entry
            stacked = torch.stack(codes, dim=1)
            if self.training and self.collecting:
                self._gather(torch.stack(residuals), stacked, active)
                self._keep(torch.stack(residuals), offered, priority)
        straight = x + (quantized.to(x.dtype) - x).detach()
        return torch.where(bypass[:, None, None], x, straight), stacked, commitment

    @torch.no_grad()
    def kmeans(self, x: torch.Tensor, seed: int) -> None:
        """Start the codebooks from latents (B, T, D) of the first rank: each level from what the ones before leave."""
        K, V, D = self.embed_sum.shape
        vectors = x.float().cpu().numpy().reshape(-1, D)
        first = world().rank == 0
        tables = kmeans_levels(vectors, K, V, seed) if first else np.zeros((K, V, D), np.float32)
        usage = np.full((K, V), first * len(vectors) / V, np.float32)
        started = {"embed_sum": torch.from_numpy(tables * usage[..., None]), "cluster_usage": torch.from_numpy(usage)}
        load_buffers(self, sum_arrays({name: value.to(x.device) for name, value in started.items()}))

    @torch.no_grad()
    def _gather(self, residuals: torch.Tensor, codes: torch.Tensor, active: torch.Tensor) -> None:
        """Add each level's vectors (K, B, T, D) to the sums of the entries that they chose."""
        K, B, T, D = residuals.shape
        used = torch.arange(K, device=codes.device)[:, None] < active
        chosen = codes.swapaxes(0, 1)[..., None] == torch.arange(self._counts.shape[1], device=codes.device)
        chosen = (chosen & used[..., None, None]).float().reshape(K, B * T, -1)
        self._sums += chosen.swapaxes(1, 2) @ residuals.reshape(K, B * T, D)
        self._counts += chosen.sum(dim=1)

    @torch.no_grad()
    def _keep(self, residuals: torch.Tensor, offered: torch.Tensor | None, priority: torch.Tensor | None) -> None:
        """Each slot keeps the vectors of the item with the highest priority of the update."""
        if not self._priorities.numel():
            return
        assert offered is not None, "slots need draws"
        assert priority is not None, "slots need draws"
        K, B, T, D = residuals.shape
        item, slot = priority.argmax(dim=0), torch.arange(priority.shape[1], device=priority.device)
        vectors = residuals.reshape(K, B * T, D)[:, item * T + offered[item, slot]]
        better = priority[item, slot] > self._priorities
        self._samples.copy_(torch.where(better[:, None], vectors, self._samples))
        self._priorities.copy_(torch.where(better, priority[item, slot], self._priorities))


@torch.no_grad()
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
    seen = counts.sum(dim=1, keepdim=True) > 0
    usage = torch.where(seen, decay * quantizer.cluster_usage + (1 - decay) * counts, quantizer.cluster_usage)
    embed = torch.where(seen[..., None], decay * quantizer.embed_sum + (1 - decay) * sums, quantizer.embed_sum)
    if draw is not None:
        assert quantizer._priorities.numel(), "revival needs collect(slots)"
        mean = usage.mean(dim=1, keepdim=True)
        dead = seen & (usage < revive_below * mean)
        vectors = samples[torch.arange(K)[:, None], torch.from_numpy(draw).long()]
        embed = torch.where(dead[..., None], vectors * mean[..., None], embed)
        usage = torch.where(dead, mean, usage)
    load_buffers(quantizer, {"embed_sum": embed, "cluster_usage": usage})
    for gathered in (quantizer._sums, quantizer._counts, quantizer._samples):
        gathered.zero_()
    quantizer._priorities.fill_(-1.0)


def quantizers(model: nn.Module) -> dict[str, ResidualQuantizer]:
    """The residual quantisers in a model by dotted name; "" for the model itself."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ResidualQuantizer)}


def buffers(model: nn.Module) -> Arrays:
    """What a checkpoint must hold of the model's codebooks, by dotted name. Between updates there is nothing else."""
    found = quantizers(model).items()
    return {(f"{name}.{leaf}" if name else leaf): getattr(part, leaf) for name, part in found for leaf in LEARNED}


@torch.no_grad()
def load_buffers(model: nn.Module, arrays: Arrays) -> None:
    """Set what `buffers` gave; raises InputError that names what is missing, unexpected or of the wrong shape."""
    current = buffers(model)
    check_names(current, arrays, source="codebooks")
    shapes = ({name: value.shape for name, value in some.items()} for some in (current, arrays))
    check_shapes(*shapes, source="codebooks")
    for name, value in current.items():
        value.copy_(arrays[name])


def _over_ranks(quantizer: ResidualQuantizer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums (K, V, D), counts (K, V) and samples (K, slots, D) of all ranks; a slot has the highest priority's vectors.

    Each rank puts its samples in a place of its own among zeros, so that the sum is all of them.
    """
    rank, size = world().rank, world().size
    mine = (torch.arange(size) == rank).to(quantizer.embed_sum.device)
    totals = sum_arrays(
        {
            "sums": quantizer._sums,
            "counts": quantizer._counts,
            "samples": torch.where(mine[:, None, None, None], quantizer._samples, 0.0),
            "priorities": torch.where(mine[:, None], quantizer._priorities, 0.0),
        }
    )
    if not quantizer._priorities.numel():
        return totals["sums"], totals["counts"], quantizer._samples
    best = totals["priorities"].argmax(dim=0)
    samples = totals["samples"][best, :, torch.arange(len(best))].swapaxes(0, 1)
    return totals["sums"], totals["counts"], samples
