"""LoRA, rsLoRA and DoRA on MLX linear and embedding modules, quantised or not.

Parameter names and shapes are PEFT's: `lora_A` (r, in), `lora_B` (out, r), `lora_magnitude_vector` (out,). The adapted
module moves to `<name>.base`, so a base weight is `<name>.base.weight` while the adapter is on.
"""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from backends.adapters.initial import initial
from backends.adapters.strict import check_names
from backends.base import Leaf, LoRASpec
from backends.errors import InputError


class LoRALinear(nn.Module):
    """`y = x W^T + b + scale * (dropout(x) A^T) B^T`; DoRA rescales the rows of W + scale B A to a learned length."""

    def __init__(self, base: nn.Module, spec: LoRASpec, a: mx.array, b: mx.array):
        super().__init__()
        self.base = base
        self.lora_A = a
        self.lora_B = b
        self.spec = spec
        self.dropout = nn.Dropout(spec.dropout)
        if spec.use_dora:
            self.lora_magnitude_vector = mx.linalg.norm(_dense_weight(base).astype(mx.float32), axis=1)

    @property
    def leaf(self) -> Leaf:
        return Leaf("linear", (self.lora_B.shape[0], self.lora_A.shape[1]))

    def delta(self) -> mx.array:
        """The update of the base weight, (out, in)."""
        return self.spec.scale * (self.lora_B @ self.lora_A)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        dropped = self.dropout(x)
        low_rank = self.spec.scale * ((dropped.astype(self.lora_A.dtype) @ self.lora_A.T) @ self.lora_B.T)
        if not self.spec.use_dora:
            return y + low_rank.astype(y.dtype)
        plain = y if dropped is x else self.base(dropped)
        if "bias" in self.base:
            plain = plain - self.base.bias
        ratio = self._magnitude_ratio()
        return y + ((ratio - 1) * plain + ratio * low_rank).astype(y.dtype)

    def _magnitude_ratio(self) -> mx.array:
        """Learned over actual row length; the length is a constant for the gradient (DoRA, section 4.3)."""
        merged = _dense_weight(self.base).astype(self.lora_A.dtype) + self.delta()
        return self.lora_magnitude_vector / mx.stop_gradient(mx.linalg.norm(merged, axis=1))

    def merged(self) -> mx.array:
        """The base weight with the adapter folded in, (out, in), in the base's dtype."""
        weight = _dense_weight(self.base)
        merged = weight.astype(mx.float32) + self.delta()
        if self.spec.use_dora:
            merged = self._magnitude_ratio()[:, None] * merged
        return merged.astype(weight.dtype)


class LoRAEmbedding(nn.Module):
    """`y = W[i] + scale * A^T[i] B^T` with A (r, entries), B (width, r); with DoRA the columns are rescaled."""

    def __init__(self, base: nn.Module, spec: LoRASpec, a: mx.array, b: mx.array):
        super().__init__()
        self.base = base
        self.lora_A = a
        self.lora_B = b
        self.spec = spec
        if spec.use_dora:
            self.lora_magnitude_vector = mx.linalg.norm(_dense_weight(base).astype(mx.float32), axis=0)

    @property
    def leaf(self) -> Leaf:
        return Leaf("embedding", (self.lora_A.shape[1], self.lora_B.shape[0]))

    def delta(self) -> mx.array:
        """The update of the base table, (entries, width)."""
        return self.spec.scale * (self.lora_A.T @ self.lora_B.T)

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.base(ids)
        low_rank = self.spec.scale * (self.lora_A.T[ids] @ self.lora_B.T)
        if self.spec.use_dora:
            ratio = self._magnitude_ratio()
            return (ratio * (y + low_rank)).astype(y.dtype)
        return y + low_rank.astype(y.dtype)

    def _magnitude_ratio(self) -> mx.array:
        merged = _dense_weight(self.base).astype(self.lora_A.dtype) + self.delta()
        return self.lora_magnitude_vector / mx.stop_gradient(mx.linalg.norm(merged, axis=0))

    def merged(self) -> mx.array:
        """The base table with the adapter folded in, (entries, width), in the base's dtype."""
        weight = _dense_weight(self.base)
        merged = weight.astype(mx.float32) + self.delta()
        if self.spec.use_dora:
            merged = self._magnitude_ratio()[None] * merged
        return merged.astype(weight.dtype)


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
    model.freeze()
    model.update_modules(
        tree_unflatten([(name, _wrap(modules[name], name, leaves[name], spec, seed)) for name in names])
    )
    mx.eval(model.trainable_parameters())


def fuse(model: nn.Module) -> None:
    """Fold every adapter into its base weight, which stays frozen; a quantised base becomes full precision."""
    folded = [(name, _plain(adapter)) for name, adapter in _adapters(model).items()]
    if folded:
        mx.eval([module.parameters() for _, module in folded])
        model.update_modules(tree_unflatten(folded))


def _adapters(model: nn.Module) -> dict[str, LoRALinear | LoRAEmbedding]:
    return {name: m for name, m in sorted(model.named_modules()) if isinstance(m, (LoRALinear, LoRAEmbedding))}


def _leaf(module: nn.Module) -> Leaf | None:
    if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding)):
        return Leaf("embedding", _shape(module))
    if isinstance(module, (nn.Linear, nn.QuantizedLinear)):
        return Leaf("linear", _shape(module))
    return None


def _dense_weight(module: Any) -> mx.array:
    """The module's weight (out, in), or table (entries, width), dequantised if need be."""
    if "scales" not in module:
        return module.weight
    return mx.dequantize(
        module.weight, module.scales, module.get("biases"), module.group_size, module.bits, mode=module.mode
    )


def _shape(module: Any) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (rows, columns * 32 // module.bits) if "scales" in module else (rows, columns)


def _inside_adapter(name: str, model: nn.Module) -> bool:
    return name.endswith(".base") and name.removesuffix(".base") in _adapters(model)


def _wrap(base: nn.Module, name: str, leaf: Leaf, spec: LoRASpec, seed: int) -> nn.Module:
    start = initial(name, leaf, spec, seed)
    kind = LoRAEmbedding if leaf.kind == "embedding" else LoRALinear
    adapter = kind(base, spec, mx.array(start["lora_A"]), mx.array(start["lora_B"]))
    adapter.train(base.training)  # no dropout on a model that is set to generate
    return adapter


def _plain(adapter: LoRALinear | LoRAEmbedding) -> nn.Module:
    weight = adapter.merged()
    if isinstance(adapter, LoRAEmbedding):
        module: Any = nn.Embedding(1, 1)
    else:
        module = nn.Linear(1, 1, bias="bias" in adapter.base)
        if "bias" in adapter.base:
            module.bias = adapter.base.bias
    module.weight = weight
    module.freeze()
    return module.train(adapter.training)
