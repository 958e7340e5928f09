"""Weights of a loss's terms, and the validation loss."""

from collections.abc import Callable, Mapping

from backends.base import Batch, Metrics, Task, World


def term_weights(task: Task, counts: Mapping[str, float], world: World) -> dict[str, float]:
    """What each term's sum is multiplied by: its coefficient over its count on all ranks."""
    totals = dict(zip(counts, world.sum(list(counts.values())), strict=True))
    return {name: coefficient / max(totals[name], 1.0) for name, coefficient in task.coefficients.items()}


def validate(evaluate: Callable[[Batch], Metrics], task: Task, epoch: int, world: World) -> float | None:
    """The validation loss of an epoch's stage; None where there are no batches."""
    terms = validate_terms(evaluate, task, epoch, world)
    return None if terms is None else total(terms, task)


def total(terms: Metrics, task: Task) -> float:
    """The validation loss of its weighted terms."""
    return sum(value for name, value in terms.items() if name not in task.hooks.aside)


def validate_terms(evaluate: Callable[[Batch], Metrics], task: Task, epoch: int, world: World) -> Metrics | None:
    """The terms of an epoch's stage on validation data, weighted; each rank makes its share of the batches."""
    sums, counts = dict.fromkeys(task.coefficients, 0.0), dict.fromkeys(task.coefficients, 0.0)
    seen = 0
    for batch in task.validation(epoch):
        seen += 1
        for name, value in evaluate(batch).items():
            sums[name] += value
        for name, value in task.counts([batch]).items():
            counts[name] += value
    if not world.sum([float(seen)])[0]:
        return None
    weights = term_weights(task, counts, world)
    return dict(zip(sums, world.sum([weights[name] * value for name, value in sums.items()]), strict=True))
