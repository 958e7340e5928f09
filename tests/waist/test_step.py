"""One update: exact accumulation, exact terms, clipping, optimizers that agree across frameworks, state, evaluation."""

import mlx.core as mx
import numpy as np
import pytest
from toy import CODES, HIDDEN, PLACES, WIDTH, Side, collate, examples, weights

from backends.base import LoRASpec, OptimSpec
from backends.errors import InputError

ROWS = examples(8)


def update(side, model, micro, optim=None, lr=1.0, term_weights=None):
    """One update on the model; returns the metrics and what was subtracted from each parameter."""
    before = side.trained(model)
    step = side.backend.train_step(model, side.module.terms, optim or OptimSpec("sgd"))
    metrics = step(micro, term_weights or weights(micro, side.backend.world), lr)
    return metrics, {name: before[name] - value for name, value in side.trained(model).items()}


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.abs(ours[name] - value).max() <= tolerance, name


def test_accumulation_over_unequal_lengths_equals_one_big_batch(side):
    """The two terms have different counts, and each micro-batch different lengths and paddings."""
    big = [collate(ROWS, 16)]
    small = [collate(ROWS[:1]), collate(ROWS[1:2]), collate(ROWS[2:5]), collate(ROWS[5:])]
    assert len({batch["ids"].shape for batch in small}) > 1
    assert big[0]["mask"].sum() != big[0]["sized"].sum()
    one, whole = update(side, side.net(), big)
    many, parts = update(side, side.net(), small)
    assert_close(parts, whole, 1e-6)
    assert many.keys() == {"loss", "grad_norm", "next", "size"}
    for name, value in one.items():
        assert many[name] == pytest.approx(value, abs=2e-6), name


def test_loss_is_the_weighted_sum_of_the_terms(side):
    """Against NumPy: mean cross-entropy over its count, plus a tenth of the mean size over another."""
    batch = collate(ROWS[:3])
    model = side.net()
    logits = side.forward(model, batch["ids"]).astype(np.float64)
    chosen = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    entropy = np.log(np.exp(logits).sum(-1)) - chosen
    metrics, _ = update(side, model, [batch])
    assert metrics["next"] == pytest.approx((entropy * batch["mask"]).sum() / batch["mask"].sum(), rel=1e-6)
    assert metrics["loss"] == pytest.approx(metrics["next"] + metrics["size"], rel=1e-6)


def test_gradients_do_not_depend_on_how_the_terms_are_split(side):
    """The gradient of the sum is the sum of the terms' gradients, each with its own weight."""
    micro = [collate(ROWS[:2]), collate(ROWS[2:])]
    _, both = update(side, side.net(), micro, term_weights={"next": 0.02, "size": 0.05})
    _, first = update(side, side.net(), micro, term_weights={"next": 0.02, "size": 0.0})
    _, second = update(side, side.net(), micro, term_weights={"next": 0.0, "size": 0.05})
    assert_close(both, {name: first[name] + second[name] for name in first}, 1e-6)


def norm(update):
    return np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in update.values()))


def test_clipping_is_by_global_norm(side):
    micro = [collate(ROWS)]
    metrics, free = update(side, side.net(), micro)
    assert metrics["grad_norm"] == pytest.approx(norm(free), rel=1e-5)
    limited_metrics, limited = update(side, side.net(), micro, OptimSpec("sgd", max_norm=0.1))
    assert limited_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-6)  # before clipping
    assert norm(limited) == pytest.approx(0.1, rel=1e-4)
    assert_close(limited, {name: value * (0.1 / norm(free)) for name, value in free.items()}, 1e-6)
    _, loose = update(side, side.net(), micro, OptimSpec("sgd", max_norm=100.0))
    assert_close(loose, free, 0)


OPTIMIZERS = {
    "adamw": OptimSpec("adamw", weight_decay=0.1, max_norm=1.0),
    "adamw, no clipping": OptimSpec("adamw", betas=(0.8, 0.95), eps=1e-6),
    "adam": OptimSpec("adam", weight_decay=0.1, max_norm=0.5),
    "sgd": OptimSpec("sgd", max_norm=1.0),
}


def run(side, model, optim, steps=12, seed=0, step=None):
    """Steps with accumulation, warm-up and a falling rate."""
    step = step or side.backend.train_step(model, side.module.terms, optim, seed=seed)
    losses = []
    for index in range(steps):
        rows = [ROWS[(index + k) % len(ROWS)] for k in range(4)]
        micro = [collate(rows[:3]), collate(rows[3:])]
        lr = (0.5 if optim.name == "sgd" else 1e-2) * min(1.0, (index + 1) / 4) * (1 - index / 20)
        losses.append(step(micro, weights(micro, side.backend.world), lr)["loss"])
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("lora", [False, True])
def test_steps_on_both_backends_give_the_same_parameters(name, lora):
    results = []
    for side in (Side("mlx"), Side("torch")):
        model = side.lora(LoRASpec(rank=4, alpha=6.0, use_dora=True)) if lora else side.net()
        losses = run(side, model, OPTIMIZERS[name])
        assert losses[-1] < losses[0]
        results.append((losses, side.trained(model)))
    (losses, parameters), (other_losses, other_parameters) = results
    np.testing.assert_allclose(losses, other_losses, rtol=0, atol=1e-5)
    assert_close(parameters, other_parameters, 1e-5)
    start = Side("mlx").trained(
        Side("mlx").lora(LoRASpec(rank=4, alpha=6.0, use_dora=True)) if lora else Side("mlx").net()
    )
    assert all(np.abs(parameters[key] - start[key]).max() > 1e-3 for key in parameters)


def test_a_parameter_without_gradient_is_only_decayed(side):
    """Both frameworks treat a parameter outside the loss as one whose gradient is zero."""
    terms = lambda model, batch: {"size": side.module.terms(model, batch)["size"]}  # noqa: E731
    model = side.net()
    step = side.backend.train_step(model, terms, OptimSpec("adamw", weight_decay=0.5))
    step([collate(ROWS)], {"size": 0.1}, 0.1)
    np.testing.assert_allclose(side.host(model)["head.weight"], 0.95 * side.weights()["head.weight"], rtol=1e-6)


def test_an_update_without_micro_batches_changes_nothing(side):
    """A rank may get no batch in an epoch's last update."""
    model = side.net()
    metrics, change = update(side, model, [], term_weights={"next": 1.0, "size": 1.0})
    assert metrics == {"loss": 0.0, "grad_norm": 0.0, "next": 0.0, "size": 0.0}
    assert all((value == 0).all() for value in change.values())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_state_continues_bit_exactly(side, name, tmp_path):
    """Weights and state of a step, through files, into a new model and step: dropout included."""
    optim = OPTIMIZERS[name]

    def fresh():
        model = side.lora(LoRASpec(rank=4, alpha=6.0, dropout=0.2), dropout=0.1)
        return model, side.backend.train_step(model, side.module.terms, optim, seed=3)

    model, step = fresh()
    run(side, model, optim, 4, step=step)
    side.backend.write(tmp_path / "weights.safetensors", side.backend.trainable(model), {})
    side.backend.write(tmp_path / "state.safetensors", step.state(), {})
    run(side, model, optim, 4, step=step)

    again, other = fresh()
    other.state()  # asking a step that has not run yet for its state does no harm
    side.backend.load(again, side.backend.read(tmp_path / "weights.safetensors")[0], strict=False)
    other.load_state(side.backend.read(tmp_path / "state.safetensors")[0])
    run(side, again, optim, 4, step=other)
    for name, value in side.trained(model).items():
        assert value.tobytes() == side.trained(again)[name].tobytes(), name


def test_state_is_by_parameter_name(side):
    model = side.lora(LoRASpec(rank=4, alpha=6.0))
    step = side.backend.train_step(model, side.module.terms, OptimSpec())
    run(side, model, OptimSpec(), 2, step=step)
    names = [name for name in step.state() if name.startswith("layers.1.up.lora_A.")]
    moments = {"mlx": {"m", "v"}, "torch": {"exp_avg", "exp_avg_sq", "step"}}[side.name]
    assert {name.rpartition(".")[2] for name in names} == moments
    assert int(step.state()["steps"].item()) == 2


def test_state_of_another_adapter_is_an_error(side):
    model = side.lora(LoRASpec(rank=4, alpha=6.0))
    step = side.backend.train_step(model, side.module.terms, OptimSpec())
    run(side, model, OptimSpec(), 1, step=step)
    state = step.state()
    fewer = side.lora(LoRASpec(rank=4, alpha=6.0), targets=["layers.0.q"])
    with pytest.raises(InputError, match="optimizer state: unexpected"):
        side.backend.train_step(fewer, side.module.terms, OptimSpec()).load_state(state)
    wider = side.lora(LoRASpec(rank=8, alpha=6.0))
    with pytest.raises(InputError, match="optimizer state: .* has shape"):
        side.backend.train_step(wider, side.module.terms, OptimSpec()).load_state(state)


def test_dropout_is_keyed_by_seed_and_step(side):
    def loss(seed, skip=0):
        model = side.net(dropout=0.3)
        step = side.backend.train_step(model, side.module.terms, OptimSpec("sgd"), seed=seed)
        micro = [collate(ROWS)]
        return [step(micro, weights(micro, side.backend.world), 0.0)["loss"] for _ in range(skip + 1)][-1]

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    assert loss(1) != loss(1, skip=1)


def test_evaluation_is_without_dropout_and_leaves_the_mode(side):
    batch = collate(ROWS)
    model = side.net(dropout=0.5)
    model.train()
    values = side.backend.eval_step(model, side.module.terms)(batch)
    assert model.training
    quiet = side.net()
    metrics, _ = update(side, quiet, [batch], term_weights={"next": 1.0, "size": 1.0})
    assert values == {
        "next": pytest.approx(metrics["next"], rel=1e-6),
        "size": pytest.approx(metrics["size"], rel=1e-6),
    }


def test_choosing_what_trains(side):
    model = side.net()
    side.backend.train_only(model, lambda name: name.startswith("layers.1."))
    assert set(side.trained(model)) == {name for name in side.weights() if name.startswith("layers.1.")}
    side.backend.train_only(model, lambda name: name == "head.weight")
    _, change = update(side, model, [collate(ROWS)])
    assert set(change) == {"head.weight"}
    assert np.abs(change["head.weight"]).max() > 0


def test_loading_is_strict(side):
    model, host = side.net(), side.backend.from_host
    arrays = side.weights(1)
    with pytest.raises(InputError, match=r"missing head.weight"):
        side.backend.load(model, host({name: value for name, value in arrays.items() if name != "head.weight"}))
    with pytest.raises(InputError, match="unexpected extra"):
        side.backend.load(model, host({**arrays, "extra": np.zeros(1, np.float32)}))
    with pytest.raises(InputError, match=r"head.weight has shape \(3, 32\), this model expects \(11, 32\)"):
        side.backend.load(model, host({**arrays, "head.weight": np.zeros((3, 32), np.float32)}))
    side.backend.load(model, host(arrays))
    assert all(np.array_equal(value, side.host(model)[name]) for name, value in arrays.items())


@pytest.fixture
def compiling():
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.compiles
@pytest.mark.usefixtures("compiling")
def test_compiled_step_equals_the_eager_one():
    """With dropout, accumulation, clipping and AdamW; a change to frozen weights in between is seen."""
    side = Side("mlx")
    rows = [ROWS[:3], ROWS[3:6]]
    micro = [collate(row, 12) for row in rows]
    results = []
    for compiled in (False, True):
        model = side.module.Net(CODES, PLACES, WIDTH, HIDDEN, 1, 0.0)  # g++ takes about a second per fused kernel
        shallow = {name: value for name, value in side.weights().items() if not name.startswith("layers.1.")}
        side.backend.load(model, side.backend.from_host(shallow))
        side.backend.adapt(model, ["layers.0.q"], LoRASpec(rank=4, alpha=6.0, dropout=0.2))
        step = side.backend.train_step(
            model, side.module.terms, OptimSpec(weight_decay=0.1, max_norm=0.5), seed=1, compile=compiled
        )
        losses = [step(micro, weights(micro, side.backend.world), lr)["loss"] for lr in (1e-2, 3e-2)]
        side.backend.load(model, side.backend.from_host({"head.weight": side.weights(1)["head.weight"]}), strict=False)
        losses += [step(micro, weights(micro, side.backend.world), lr)["loss"] for lr in (2e-2, 1e-2)]
        results.append((losses, side.trained(model)))
    (losses, parameters), (compiled_losses, compiled_parameters) = results
    np.testing.assert_allclose(compiled_losses, losses, rtol=1e-6)
    assert_close(compiled_parameters, parameters, 1e-6)
