"""What codecs ask of an update: averaged weights, terms that read a second model, bfloat16 products."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from toy import Side, collate, examples, weights

from backends.base import OptimSpec
from backends.errors import InputError

ROWS = examples(8)
AVERAGED = OptimSpec("adamw", weight_decay=0.1, max_norm=1.0, ema_decay=0.8)


def run(side, step, updates, first=0):
    for index in range(first, first + updates):
        micro = [collate([ROWS[(index + k) % len(ROWS)] for k in range(3)])]
        step(micro, weights(micro, side.backend.world), 1e-2)


def averages(side, step, model):
    with step.averaged():
        return side.trained(model)


def test_averages_are_those_of_the_definition(side):
    """Average after each update: 0.8 of itself and 0.2 of the new weights, from the first weights on."""
    model = side.net()
    step = side.backend.train_step(model, side.module.terms, AVERAGED)
    expected = side.trained(model)
    for index in range(4):
        run(side, step, 1, index)
        new = side.trained(model)
        expected = {name: 0.8 * value + 0.2 * new[name] for name, value in expected.items()}
    found = averages(side, step, model)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)
        assert np.abs(found[name] - new[name]).max() > 1e-4, name


def test_averages_agree_on_both_backends():
    found = []
    for side in (Side("mlx"), Side("torch")):
        model = side.net()
        step = side.backend.train_step(model, side.module.terms, OptimSpec("sgd", ema_decay=0.9))
        run(side, step, 6)
        found.append(averages(side, step, model))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=0, atol=1e-6, err_msg=name)


def test_own_weights_come_back_to_the_bit_even_after_an_error(side):
    model = side.net()
    step = side.backend.train_step(model, side.module.terms, AVERAGED)
    run(side, step, 2)
    own = side.trained(model)

    def fail():
        with step.averaged():
            assert any((side.trained(model)[name] != value).any() for name, value in own.items())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(side.trained(model)[name].tobytes() == value.tobytes() for name, value in own.items())


def test_without_averages_the_context_changes_nothing(side):
    model = side.net()
    step = side.backend.train_step(model, side.module.terms, OptimSpec())
    run(side, step, 1)
    own = side.trained(model)
    with step.averaged():
        assert all(side.trained(model)[name].tobytes() == value.tobytes() for name, value in own.items())
    assert not [name for name in step.state() if name.startswith("average.")]


def test_averages_continue_bit_exactly(side, tmp_path):
    model = side.net()
    step = side.backend.train_step(model, side.module.terms, AVERAGED)
    run(side, step, 3)
    side.backend.write(tmp_path / "weights.safetensors", side.backend.trainable(model), {})
    side.backend.write(tmp_path / "state.safetensors", step.state(), {})
    run(side, step, 3, first=3)

    again = side.net(seed=1)
    other = side.backend.train_step(again, side.module.terms, AVERAGED)
    side.backend.load(again, side.backend.read(tmp_path / "weights.safetensors")[0])
    other.load_state(side.backend.read(tmp_path / "state.safetensors")[0])
    run(side, other, 3, first=3)
    expected, found = averages(side, step, model), averages(side, other, again)
    assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())
    plain = side.backend.train_step(side.net(), side.module.terms, OptimSpec("adamw"))
    with pytest.raises(InputError, match="optimizer state: unexpected average"):
        plain.load_state(side.backend.read(tmp_path / "state.safetensors")[0])


def test_decay_is_checked():
    with pytest.raises(InputError, match=r"--ema-decay 1.0: expected 0 <= decay < 1"):
        OptimSpec(ema_decay=1.0)


def follow(side, other):
    """Terms that pull a model's output to that of `other`, which has dropout."""

    def terms(model, batch):
        return {"next": ((model(batch["ids"]) - other(batch["ids"])) ** 2).sum(), "size": 0 * model(batch["ids"]).sum()}

    return terms


def test_the_other_model_is_still(side):
    """Evaluation mode while the step runs, no update, no gradients left, its own mode and trainability after."""
    model, other = side.net(), side.net(seed=1, dropout=0.5)
    other.train()
    before = side.trained(other)
    step = side.backend.train_step(model, follow(side, other), OptimSpec("sgd"), also=[other])
    micro = [collate(ROWS)]
    losses = [step(micro, {"next": 1e-3, "size": 0.0}, 0.1)["next"] for _ in range(2)]
    assert losses[1] < losses[0]
    other.eval()
    expected = ((side.forward(side.net(), micro[0]["ids"]) - side.forward(other, micro[0]["ids"])) ** 2).sum() * 1e-3
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert all((side.trained(other)[name] == value).all() for name, value in before.items())
    if side.name == "torch":
        assert all(parameter.grad is None for parameter in other.parameters())


def test_the_other_model_has_its_mode_after(side):
    other = side.net(seed=1)
    step = side.backend.train_step(side.net(), follow(side, other), OptimSpec("sgd"), also=[other])
    for mode in (True, False):
        other.train(mode)
        step([collate(ROWS[:2])], {"next": 1e-3, "size": 0.0}, 0.1)
        assert other.training == mode


@pytest.fixture
def compiling():
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.compiles
@pytest.mark.usefixtures("compiling")
def test_a_compiled_step_sees_changes_of_the_other_model_and_averages():
    side = Side("mlx")
    inputs = {"x": np.ones((2, 4), np.float32)}

    def linear(value):
        module = nn.Linear(4, 3, bias=False)
        module.weight = value * mx.arange(12).reshape(3, 4) / 12
        return module

    results = []
    for compiled in (False, True):
        model, other = linear(0.5), linear(1.0)  # g++ takes about a second per fused kernel
        terms = lambda model, batch: {"next": (model(batch["x"]) * other(batch["x"])).sum()}  # noqa: B023, E731
        optim = OptimSpec("sgd", ema_decay=0.5)
        step = side.backend.train_step(model, terms, optim, compile=compiled, also=[other])
        losses = [step([inputs], {"next": 1.0}, 0.1)["loss"]]
        other.weight = mx.array(np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4))
        losses += [step([inputs], {"next": 1.0}, 0.1)["loss"] for _ in range(2)]
        results.append((losses, averages(side, step, model)))
    (losses, eager), (compiled_losses, compiled) = results
    assert len(set(losses)) == 3
    np.testing.assert_allclose(compiled_losses, losses, rtol=1e-6)
    for name, value in eager.items():
        np.testing.assert_allclose(compiled[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_bfloat16_products_with_float32_weights_and_sums():
    side = Side("torch")
    micro = [collate(ROWS)]
    results, seen = {}, []

    def terms(model, batch):
        seen.append(model.head(model.hidden(batch["ids"])).dtype)
        return side.module.terms(model, batch)

    for precision in ("float32", "bfloat16"):
        model = side.net()
        step = side.backend.train_step(model, terms, OptimSpec("adamw"), precision=precision)
        results[precision] = [step(micro, weights(micro, side.backend.world), 1e-2)["loss"] for _ in range(5)]
        assert {value.dtype for value in side.backend.parameters(model).values()} == {torch.float32}
    assert set(seen) == {torch.float32, torch.bfloat16}
    np.testing.assert_allclose(results["bfloat16"], results["float32"], rtol=2e-2)
    assert results["bfloat16"] != results["float32"]


def test_mlx_says_what_to_do_instead_of_bfloat16():
    side = Side("mlx")
    with pytest.raises(InputError, match=r"--precision bfloat16: only for --backend torch; on MLX use float32"):
        side.backend.train_step(side.net(), side.module.terms, OptimSpec(), precision="bfloat16")
