"""One optimizer update, and evaluation, on MLX."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from backends.adapters.strict import check_names, check_shapes
from backends.base import Arrays, Batch, Metrics, OptimSpec, Terms, World
from backends.mlx_backend import parameters
from backends.seeds import mix

AVERAGE = "average."  # begins the names of averaged weights in a step's state


class Step:
    """Accumulates gradients over micro-batches, sums them over ranks, clips, and updates.

    Dropout is seeded by (seed, step, rank) at the start of each update, so no generator state needs saving.
    With `compile`, gradients are traced once per batch shape and the update once. `also` are other models that the
    terms read: in evaluation mode, and untrained.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Terms,
        spec: OptimSpec,
        world: World,
        *,
        seed: int = 0,
        compile: bool = False,
        also: Sequence[nn.Module] = (),
    ):
        self.model, self.terms, self.spec, self.world, self.seed, self.also = model, terms, spec, world, seed, also
        self.optimizer = _optimizer(spec)
        self.optimizer.init(model.trainable_parameters())
        self.averages = parameters.trainable(model) if spec.ema_decay is not None else {}
        self.steps = 0
        mx.eval(model.parameters(), self.optimizer.state)
        # Frozen weights are captured as inputs too, so that a compiled step sees later changes to them.
        captured = [model.state, mx.random.state]
        read = [*captured, *(other.state for other in also)]
        self._gradients = (
            mx.compile(self._gradients_of, inputs=read, outputs=captured) if compile else self._gradients_of
        )
        updated = [model.state, self.optimizer.state, self.averages]
        self._update = mx.compile(self._apply, inputs=updated, outputs=updated) if compile else self._apply

    def __call__(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        self.model.train()
        with _still(self.also):
            return self._step(micro_batches, weights, lr)

    def _step(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        mx.random.seed(mix(self.seed, self.steps, self.world.rank))
        native_weights = {name: mx.array(value, dtype=mx.float32) for name, value in weights.items()}
        gradients, values = None, dict.fromkeys(weights, mx.array(0.0))
        for batch in micro_batches:
            new, new_values = self._gradients(native(batch), native_weights)
            gradients = new if gradients is None else tree_map(mx.add, gradients, new)
            values = {name: values[name] + new_values[name] for name in values}
            mx.eval(gradients, values, self.model.state)  # the state: buffers that the forward pass changed
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
            mx.eval(gradients)  # so that the sum over ranks is the same graph as on ranks that have gradients
        norm = self._update(self._summed(gradients), mx.array(lr, dtype=mx.float32))
        mx.eval(self.model.trainable_parameters(), self.optimizer.state, self.averages, norm)
        self.steps += 1
        sums = self.world.sum([float(value) for value in values.values()])
        return {"loss": sum(sums), "grad_norm": float(norm), **dict(zip(values, sums, strict=True))}

    def state(self) -> Arrays:
        """Moments and averages by parameter name, and the step count."""
        averages = {f"{AVERAGE}{name}": value for name, value in self.averages.items()}
        moments = dict(tree_flatten(self.optimizer.state))
        return {**moments, **averages, "steps": mx.array(self.steps, dtype=mx.int64)}

    def load_state(self, arrays: Arrays) -> None:
        arrays = dict(arrays)
        current = self.state()
        check_names(current, arrays, source="optimizer state")
        check_shapes(
            {k: v.shape for k, v in current.items()}, {k: v.shape for k, v in arrays.items()}, source="optimizer state"
        )
        self.steps = int(arrays.pop("steps").item())
        for name in self.averages:
            self.averages[name] = arrays.pop(f"{AVERAGE}{name}")
        _assign(self.optimizer.state, tree_unflatten(list(arrays.items())))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has its averaged weights inside this context, and its own again after; no-op without averages."""
        own = parameters.trainable(self.model)
        self.model.update(tree_unflatten(list(self.averages.items())))
        try:
            yield
        finally:
            self.model.update(tree_unflatten(list(own.items())))

    def _gradients_of(self, batch: Mapping[str, mx.array], weights: Mapping[str, mx.array]) -> tuple[Any, dict]:
        def objective(batch: Mapping[str, mx.array]) -> tuple[mx.array, dict[str, mx.array]]:
            weighted = {name: weights[name] * value for name, value in self.terms(self.model, batch).items()}
            return sum(weighted.values(), mx.array(0.0)), weighted

        (_, weighted), gradients = nn.value_and_grad(self.model, objective)(batch)
        return gradients, weighted

    def _summed(self, gradients: Any) -> Any:
        if self.world.size == 1:
            return gradients
        mean = nn.average_gradients(gradients)
        return tree_map(lambda g: g * self.world.size, mean)

    def _apply(self, gradients: Any, lr: mx.array) -> mx.array:
        limit = float("inf") if self.spec.max_norm is None else self.spec.max_norm
        gradients, norm = optim.clip_grad_norm(gradients, limit)
        self.optimizer.learning_rate = lr
        self.optimizer.update(self.model, gradients)
        if self.spec.ema_decay is not None:
            self._average(1.0 - self.spec.ema_decay)
        return norm

    def _average(self, share: float) -> None:
        trained = parameters.trainable(self.model)
        for name, average in self.averages.items():
            self.averages[name] = average + share * (trained[name] - average)


def eval_step(model: nn.Module, terms: Terms) -> Callable[[Batch], Metrics]:
    """A function from a batch to each term's sum, with dropout off."""

    def evaluate(batch: Batch) -> Metrics:
        training = model.training
        model.eval()
        sums = terms(model, native(batch))
        values = {name: float(value) for name, value in sums.items()}
        model.train(training)
        return values

    return evaluate


def native(batch: Batch) -> dict[str, mx.array]:
    """Host arrays as MLX arrays. MLX arrays must be made in the thread that uses them."""
    return {name: mx.array(value) for name, value in batch.items()}


@contextmanager
def _still(models: Sequence[nn.Module]) -> Iterator[None]:
    """Other models in evaluation mode: no dropout, and no buffers that learn."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)


def _optimizer(spec: OptimSpec) -> optim.Optimizer:
    """MLX's Adam leaves out the bias correction unless asked; PyTorch's always has it."""
    if spec.name == "sgd":
        return optim.SGD(learning_rate=0.0)
    adam = {"learning_rate": 0.0, "betas": list(spec.betas), "eps": spec.eps, "bias_correction": True}
    if spec.name == "adam":
        return optim.Adam(**adam)
    return optim.AdamW(**adam, weight_decay=spec.weight_decay)


def _assign(target: Any, source: Any) -> None:
    """Copy leaves into the same containers: a compiled update holds on to them."""
    items = source.items() if isinstance(source, dict) else enumerate(source)
    for key, value in items:
        if isinstance(value, (dict, list)):
            _assign(target[key], value)
        else:
            target[key] = value
