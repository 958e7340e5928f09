"""LoRA, rsLoRA and DoRA on PyTorch linear and embedding modules.

Parameter names and shapes are PEFT's: `lora_A` (r, in), `lora_B` (out, r), `lora_magnitude_vector` (out,). The adapted
module moves to `<name>.base`, so a base weight is `<name>.base.weight` while the adapter is on.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from backends.adapters.initial import initial
from backends.adapters.strict import check_names
from backends.base import Leaf, LoRASpec
from backends.errors import InputError


class LoRALinear(nn.Module):
    """`y = x W^T + b + scale * (dropout(x) A^T) B^T`; DoRA rescales the rows of W + scale B A to a learned length."""

    def __init__(self, base: Any, spec: LoRASpec, a: torch.Tensor, b: torch.Tensor):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(b)
        self.spec = spec
        self.dropout = nn.Dropout(spec.dropout)
        if spec.use_dora:
            self.lora_magnitude_vector = nn.Parameter(torch.linalg.norm(base.weight.detach().float(), dim=1))

    @property
    def leaf(self) -> Leaf:
        return Leaf("linear", (self.lora_B.shape[0], self.lora_A.shape[1]))

    def delta(self) -> torch.Tensor:
        """The update of the base weight, (out, in)."""
        return self.spec.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        dropped = self.dropout(x)
        low_rank = self.spec.scale * F.linear(F.linear(dropped.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        if not self.spec.use_dora:
            return y + low_rank.to(y.dtype)
        plain = F.linear(dropped, self.base.weight)
        ratio = self._magnitude_ratio()
        return y + ((ratio - 1) * plain + ratio * low_rank).to(y.dtype)

    def _magnitude_ratio(self) -> torch.Tensor:
        """Learned over actual row length; the length is a constant for the gradient (DoRA, section 4.3)."""
        merged = self.base.weight.to(self.lora_A.dtype) + self.delta()
        return self.lora_magnitude_vector / torch.linalg.norm(merged, dim=1).detach()

    def merged(self) -> torch.Tensor:
        """The base weight with the adapter folded in, (out, in), in the base's dtype."""
        weight = self.base.weight
        merged = weight.float() + self.delta()
        if self.spec.use_dora:
            merged = self._magnitude_ratio()[:, None] * merged
        return merged.to(weight.dtype)


class LoRAEmbedding(nn.Module):
    """`y = W[i] + scale * A^T[i] B^T` with A (r, entries), B (width, r); with DoRA the columns are rescaled."""

    def __init__(self, base: Any, spec: LoRASpec, a: torch.Tensor, b: torch.Tensor):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(b)
        self.spec = spec
        if spec.use_dora:
            self.lora_magnitude_vector = nn.Parameter(torch.linalg.norm(base.weight.detach().float(), dim=0))

    @property
    def leaf(self) -> Leaf:
        return Leaf("embedding", (self.lora_A.shape[1], self.lora_B.shape[0]))

    def delta(self) -> torch.Tensor:
        """The update of the base table, (entries, width)."""
        return self.spec.scale * (self.lora_A.T @ self.lora_B.T)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.base(ids)
        low_rank = self.spec.scale * F.linear(F.embedding(ids, self.lora_A.T), self.lora_B)
        if self.spec.use_dora:
            ratio = self._magnitude_ratio()
            return (ratio * (y + low_rank)).to(y.dtype)
        return y + low_rank.to(y.dtype)

    def _magnitude_ratio(self) -> torch.Tensor:
        merged = self.base.weight.to(self.lora_A.dtype) + self.delta()
        return self.lora_magnitude_vector / torch.linalg.norm(merged, dim=0).detach()

    def merged(self) -> torch.Tensor:
        """The base table with the adapter folded in, (entries, width), in the base's dtype."""
        weight = self.base.weight
        merged = weight.float() + self.delta()
        if self.spec.use_dora:
            merged = self._magnitude_ratio()[None] * merged
        return merged.to(weight.dtype)


def linears(model: nn.Module) -> dict[str, Leaf]:
    """Modules that can carry an adapter, by dotted name, in a stable order."""
    found = {name: _leaf(module) for name, module in model.named_modules() if not _inside_adapter(name, model)}
    return {name: leaf for name, leaf in sorted(found.items()) if leaf}


def adapters(model: nn.Module) -> dict[str, tuple[Leaf, LoRASpec]]:
    """The adapted modules by dotted name: what each was, and its adapter."""
    return {name: (adapter.leaf, adapter.spec) for name, adapter in _adapters(model).items()}


def adapt(model: nn.Module, names: Iterable[str], spec: LoRASpec, seed: int = 0) -> None:
    """Freeze the model and put a fresh adapter on each named module."""
    if _adapters(model):
        raise InputError("this model already carries an adapter: merge it first (merge_lora_weights)")
    names, leaves = list(names), linears(model)
    check_names(leaves, names, strict=False, source="modules to adapt")
    modules = dict(model.named_modules())
    model.requires_grad_(False)
    for name in names:
        _replace(model, name, _wrap(modules[name], name, leaves[name], spec, seed))


@torch.no_grad()
def fuse(model: nn.Module) -> None:
    """Fold every adapter into its base weight, which stays frozen.

    The weight is a new parameter: one that another module shares must not change there.
    """
    for name, adapter in _adapters(model).items():
        adapter.base.weight = nn.Parameter(adapter.merged(), requires_grad=False)
        _replace(model, name, adapter.base)


def _adapters(model: nn.Module) -> dict[str, LoRALinear | LoRAEmbedding]:
    return {name: m for name, m in sorted(model.named_modules()) if isinstance(m, (LoRALinear, LoRAEmbedding))}


def _leaf(module: nn.Module) -> Leaf | None:
    if isinstance(module, nn.Embedding):
        return Leaf("embedding", (module.num_embeddings, module.embedding_dim))
    if isinstance(module, nn.Linear):
        return Leaf("linear", (module.out_features, module.in_features))
    return None


def _inside_adapter(name: str, model: nn.Module) -> bool:
    return name.endswith(".base") and name.removesuffix(".base") in _adapters(model)


def _wrap(base: nn.Module, name: str, leaf: Leaf, spec: LoRASpec, seed: int) -> nn.Module:
    start = initial(name, leaf, spec, seed)
    device = next(base.parameters()).device
    kind = LoRAEmbedding if leaf.kind == "embedding" else LoRALinear
    adapter = kind(base, spec, *(torch.from_numpy(start[key]).to(device) for key in ("lora_A", "lora_B")))
    return adapter.train(base.training)  # no dropout on a model that is set to generate


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
