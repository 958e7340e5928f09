"""One optimizer update, and evaluation, on PyTorch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from backends.adapters.strict import check_names, check_shapes
from backends.base import Arrays, Batch, Metrics, OptimSpec, Precision, Terms, World
from backends.seeds import mix
from backends.torch_backend import parameters
from backends.torch_backend.sending import sent

AVERAGE = "average."  # begins the names of averaged weights in a step's state


class Step:
    """Accumulates gradients over micro-batches, sums them over ranks, clips, and updates.

    Dropout is seeded by (seed, step, rank) at the start of each update, so no generator state needs saving. `also` are
    other models that the terms read: in evaluation mode, and untrained. With precision "bfloat16" the terms run under
    autocast, in which the losses of `stft` and `rvq` take float32 themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Terms,
        spec: OptimSpec,
        world: World,
        device: torch.device,
        *,
        seed: int = 0,
        compile: bool = False,
        also: Sequence[nn.Module] = (),
        precision: Precision = "float32",
    ):
        self.model, self.spec, self.world, self.device, self.seed, self.also = model, spec, world, device, seed, also
        self.precision = precision
        self.terms = torch.compile(terms) if compile else terms
        self.trained = parameters.trainable(model)
        self.optimizer = _optimizer(spec, list(self.trained.values()))
        self.averages = {n: v.detach().clone() for n, v in self.trained.items()} if spec.ema_decay is not None else {}
        self.steps = 0

    def __call__(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        self.model.train()
        with _still(self.also):
            return self._step(micro_batches, weights, lr)

    def _step(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        torch.manual_seed(mix(self.seed, self.steps, self.world.rank))
        self.optimizer.zero_grad(set_to_none=True)
        values = {name: torch.zeros((), device=self.device) for name in weights}
        for batch in micro_batches:
            weighted = {name: weights[name] * value for name, value in self._sums(batch).items()}
            sum(weighted.values(), torch.zeros((), device=self.device)).backward()
            values = {name: value + weighted[name].detach() for name, value in values.items()}
        norm = self._update(lr)
        self.steps += 1
        sums = self.world.sum(torch.stack(list(values.values())).tolist())
        return {"loss": sum(sums), "grad_norm": norm, **dict(zip(values, sums, strict=True))}

    def state(self) -> Arrays:
        """Moments and averages by parameter name, and the step count."""
        arrays: Arrays = {f"{AVERAGE}{name}": value for name, value in self.averages.items()}
        arrays["steps"] = torch.tensor(self.steps)
        for name, parameter in self.trained.items():
            arrays.update({f"{name}.{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()})
        return arrays

    def load_state(self, arrays: Arrays) -> None:
        arrays = dict(arrays)
        self.steps = int(arrays.pop("steps"))
        self._make_moments()
        current = {name: value for name, value in self.state().items() if name != "steps"}
        check_names(current, arrays, source="optimizer state")
        check_shapes(
            {k: v.shape for k, v in current.items()}, {k: v.shape for k, v in arrays.items()}, source="optimizer state"
        )
        for name, value in arrays.items():
            current[name].copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has its averaged weights inside this context, and its own again after; no-op without averages."""
        own = {name: self.trained[name].detach().clone() for name in self.averages}
        parameters.load(self.model, self.averages, strict=False)
        try:
            yield
        finally:
            parameters.load(self.model, own, strict=False)

    def _sums(self, batch: Batch) -> dict[str, torch.Tensor]:
        mixed = self.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            sums = self.terms(self.model, native(batch, self.device))
        return {name: value.float() for name, value in sums.items()}

    def _update(self, lr: float) -> float:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trained.values()]
        for parameter, gradient in zip(self.trained.values(), gradients, strict=True):
            if self.world.size > 1:
                dist.all_reduce(gradient)
            parameter.grad = gradient
        limit = float("inf") if self.spec.max_norm is None else self.spec.max_norm
        norm = nn.utils.clip_grad_norm_(list(self.trained.values()), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.spec.ema_decay is not None:
            self._average(self.spec.ema_decay)
        return norm.item()

    def _average(self, decay: float) -> None:
        update = get_ema_multi_avg_fn(decay)
        update(list(self.averages.values()), list(self.trained.values()), self.steps)

    def _make_moments(self) -> None:
        """PyTorch makes moments at the first step: take one that changes nothing."""
        if self.spec.name == "sgd" or self.optimizer.state:
            return
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()


def eval_step(model: nn.Module, terms: Terms, device: torch.device) -> Callable[[Batch], Metrics]:
    """A function from a batch to each term's sum, with dropout off and no gradient."""

    @torch.inference_mode()
    def evaluate(batch: Batch) -> Metrics:
        training = model.training
        model.eval()
        sums = terms(model, native(batch, device))
        model.train(training)
        return {name: value.item() for name, value in sums.items()}

    return evaluate


def native(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Host arrays as tensors on the device. int32 becomes int64, which PyTorch's indexing wants."""
    tensors = {name: sent(torch.from_numpy(value), device) for name, value in batch.items()}
    return {name: value.long() if value.dtype == torch.int32 else value for name, value in tensors.items()}


@contextmanager
def _still(models: Sequence[nn.Module]) -> Iterator[None]:
    """Other models in evaluation mode and without gradients: no dropout, and no buffers that learn."""
    training = [model.training for model in models]
    wanted = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for model in models:
        model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)
        for parameter in wanted:
            parameter.requires_grad_(True)


def _optimizer(spec: OptimSpec, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    if spec.name == "adamw":
        return torch.optim.AdamW(trained, lr=0.0, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    if spec.name == "adam":
        return torch.optim.Adam(trained, lr=0.0, betas=spec.betas, eps=spec.eps)
    return torch.optim.SGD(trained, lr=0.0)
