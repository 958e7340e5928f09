"""Codebooks that learn: the same on both backends, exact under accumulation and over ranks, alive, and not trained."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import quantizing
import torch
from gradients import assert_gradients_equal
from quantizing import DRAWS, SLOTS, D, K, V, cut, host, items, learned, native, quantizer, rvq, tables, update
from test_world import free_port
from toy import Side

from backends.base import OptimSpec
from backends.errors import InputError
from backends.seeds import rng
from backends.training.codebooks import perplexity, quantizer_draws, revival_draw
from backends.training.counts import commitment_count


def run(side, made, batch):
    inputs = native(side, batch)
    return made.quantize(inputs["x"], *(inputs[name] for name in DRAWS if name in inputs))


def test_both_backends_learn_the_same_codebooks(sides):
    """Quantiser dropout, bypass, revival; codes equal, codebooks within 1e-5."""
    made = [quantizer(side) for side in sides]
    start = tables(sides[0], made[0])
    for step in range(6):
        ours, theirs = (update(side, one, cut(items(step), 2, 4), step) for side, one in zip(sides, made, strict=True))
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
        found, expected = (learned(side, one) for side, one in zip(sides, made, strict=True))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)
    assert np.abs(tables(sides[0], made[0]) - start).max() > 0.1


def test_quantised_latents_codes_and_commitment_by_the_definition(side):
    """Against NumPy: what each item's codebooks add up to, bypassed items untouched, commitment of levels in use."""
    made, batch = quantizer(side), items(0)
    assert len(set(batch["active"])) > 1
    assert len(set(batch["bypass"])) == 2
    x, entries = batch["x"], tables(side, made)
    quantized, codes, commitment = run(side, made, batch)
    found = host(side, quantized=quantized, codes=codes, commitment=commitment)
    residual, total, squares = x.copy(), np.zeros_like(x), 0.0
    for level in range(K):
        code = ((residual[:, :, None] - entries[level]) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(found["codes"][:, level], code)
        used = (batch["active"] > level)[:, None, None]
        squares += (used * (residual - entries[level][code]) ** 2).sum()
        total += used * entries[level][code]
        residual = residual - entries[level][code]
    np.testing.assert_allclose(found["quantized"], np.where(batch["bypass"][:, None, None], x, total), atol=1e-5)
    assert found["commitment"] == pytest.approx(squares, rel=1e-5)
    assert commitment_count(batch["active"], x.shape[1], D) == sum(batch["active"]) * x[0].size
    np.testing.assert_array_equal(host(side, codes=made.encode(native(side, batch)["x"]))["codes"], found["codes"])
    decoded = host(side, x=made.decode(codes))["x"]
    whole = (batch["active"] == K) & ~batch["bypass"]
    np.testing.assert_allclose(decoded[whole], found["quantized"][whole], atol=1e-5)


def gradient(side, batch, weight):
    """Of sum(weight * quantised) + 0.1 commitment, to the latents."""
    made = quantizer(side)
    if side.name == "torch":
        inputs = native(side, batch)
        inputs["x"].requires_grad_()
        quantized, _, commitment = made.quantize(*(inputs[name] for name in ("x", *DRAWS)))
        ((quantized * torch.tensor(weight)).sum() + 0.1 * commitment).backward()
        return inputs["x"].grad.numpy()

    def loss(x):
        quantized, _, commitment = made.quantize(x, *(mx.array(batch[name]) for name in DRAWS))
        return (quantized * mx.array(weight)).sum() + 0.1 * commitment

    return np.array(mx.grad(loss)(mx.array(batch["x"])))


def test_the_gradient_goes_straight_through_and_the_commitment_reaches_every_level(sides):
    batch = items(1)
    weight = rng(3, 611).standard_normal(batch["x"].shape, dtype=np.float32)
    ours, theirs = (gradient(side, batch, weight) for side in sides)
    assert_gradients_equal({"x": ours}, {"x": theirs})
    entries, residual, expected = tables(sides[0], quantizer(sides[0])), batch["x"], weight.copy()
    for level in range(K):
        entry = entries[level][((residual[:, :, None] - entries[level]) ** 2).sum(-1).argmin(-1)]
        expected += 0.2 * (batch["active"] > level)[:, None, None] * (residual - entry)
        residual = residual - entry
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_accumulation_equals_one_big_batch(side):
    whole, parts = quantizer(side), quantizer(side)
    for step in range(4):
        update(side, whole, [items(step)], step)
        update(side, parts, cut(items(step), 1, 3, 2), step)
    expected = learned(side, whole)
    for name, value in learned(side, parts).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5, err_msg=name)


def test_two_ranks_equal_one_process(side, tmp_path):
    """k-means of the first rank's latents; in one update the second rank has nothing."""
    script = Path(quantizing.__file__)
    paths = [str(script.parents[2]), str(script.parents[1] / "waist"), str(script.parent)]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), side.name, str(tmp_path / "rank")]
    if side.name == "mlx":
        launcher = str(Path(sys.executable).with_name("mlx.launch"))
        started = [([launcher, "-n", "2", "--starting-port", str(free_port()), *command], shared)]
    else:
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = [(command, {**shared, **group, "RANK": str(rank)}) for rank in range(2)]
    children = [
        subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for arguments, environment in started
    ]
    output = "".join(child.communicate(timeout=120)[0] for child in children)
    files = [tmp_path / f"rank_{rank}.npz" for rank in range(2)]
    assert all(file.exists() for file in files), output
    first, second = (dict(np.load(file)) for file in files)
    alone = quantizing.train(side)
    for name, value in alone.items():
        assert first[name].tobytes() == second[name].tobytes(), name
        np.testing.assert_allclose(first[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_dead_entries_come_back_to_life(side):
    """Codebooks far from the data: one entry takes everything, until the others revive."""
    made = quantizer(side)
    far = learned(side, made)
    far["embed_sum"] = far["embed_sum"] + 50 * far["cluster_usage"][..., None]
    rvq(side).load_buffers(made, side.backend.from_host(far))
    used = []
    for step in range(40):
        codes = np.concatenate(update(side, made, [items(step, 12, dropout=0, bypass=0)], step))
        used.append([len(np.unique(codes[:, level])) for level in range(K)])
    assert used[0][0] <= 2
    assert min(used[-1]) >= 9
    assert perplexity(learned(side, made)["cluster_usage"]).min() > 8


def test_without_revival_the_same_codebooks_stay_collapsed(side):
    made = quantizer(side)
    far = learned(side, made)
    far["embed_sum"] = far["embed_sum"] + 50 * far["cluster_usage"][..., None]
    rvq(side).load_buffers(made, side.backend.from_host(far))
    for step in range(20):
        codes = np.concatenate(update(side, made, [items(step, 12, dropout=0, bypass=0)], step, revive=False))
    assert len(np.unique(codes[:, 0])) <= 2


def test_a_level_without_items_keeps_its_entries_and_usage(side):
    """All items drop the last two codebooks: those neither fade nor die."""
    made, batch = quantizer(side), items(0)
    batch["active"][:] = 1
    before = learned(side, made)
    update(side, made, [batch], 0)
    after = learned(side, made)
    for name in before:
        assert (after[name][1:] == before[name][1:]).all()
        assert (after[name][0] != before[name][0]).any()


def test_only_training_mode_gathers(side):
    made = quantizer(side)
    made.eval()
    run(side, made, items(0))
    before = learned(side, made)
    rvq(side).apply_statistics(made, draw=revival_draw(0, 0, codebooks=K, entries=V, slots=SLOTS))
    assert all((value == before[name]).all() for name, value in learned(side, made).items())


def test_statistics_can_be_gathered_without_slots(side):
    made, batch = quantizer(side, slots=0), items(0, slots=0)
    assert "offered" not in batch
    before = tables(side, made)
    run(side, made, batch)
    rvq(side).apply_statistics(made)
    assert (tables(side, made) != before).any()


class MLXNet(nn.Module):
    def __init__(self, codebooks):
        super().__init__()
        self.layer = nn.Linear(D, D, bias=False)
        self.rvq = quantizer(Side("mlx"), codebooks=codebooks)

    def quantize(self, batch):
        return self.rvq.quantize(self.layer(batch["x"]), *(batch[name] for name in DRAWS))


class TorchNet(torch.nn.Module):
    def __init__(self, codebooks):
        super().__init__()
        self.layer = torch.nn.Linear(D, D, bias=False)
        self.rvq = quantizer(Side("torch"), codebooks=codebooks)

    def quantize(self, batch):
        return self.rvq.quantize(self.layer(batch["x"]), *(batch[name] for name in DRAWS))


def net(side, codebooks=K):
    model = {"mlx": MLXNet, "torch": TorchNet}[side.name](codebooks)
    weight = side.backend.from_host({"layer.weight": np.eye(D, dtype=np.float32)})
    side.backend.load(model, weight, strict=False)
    return model


def terms(model, batch):
    quantized, _, commitment = model.quantize(batch)
    return {"error": ((quantized - batch["x"]) ** 2).sum(), "commitment": commitment}


def trained(side, updates=3, codebooks=K, optim="adamw", **options):
    """A linear encoder and codebooks after some updates of two micro-batches: losses and everything learned."""
    model = net(side, codebooks)
    side.backend.train_only(model, lambda _name: True)
    step = side.backend.train_step(model, terms, OptimSpec(optim, weight_decay=0.1), **options)
    losses = []
    for number in range(updates):
        losses.append(step(cut(items(number), 3, 3), {"error": 1e-2, "commitment": 1e-2}, 1e-2)["loss"])
        draw = revival_draw(0, number, codebooks=codebooks, entries=V, slots=SLOTS)
        for part in rvq(side).quantizers(model).values():
            rvq(side).apply_statistics(part, decay=0.7, draw=draw)
    return losses, {**side.trained(model), **learned(side, model)}


def test_the_optimizer_trains_the_encoder_and_leaves_codebooks_alone(side):
    """With decay 1 nothing moves codebooks but an optimizer that it should not; its state has nothing of them."""
    model = net(side)
    side.backend.train_only(model, lambda _name: True)
    assert list(side.backend.trainable(model)) == ["layer.weight"]
    before = learned(side, model)
    step = side.backend.train_step(model, terms, OptimSpec("adamw", weight_decay=0.1))
    for number in range(2):
        step([items(number)], {"error": 1e-2, "commitment": 1e-2}, 1e-2)
    assert not any("rvq" in name or "embed" in name for name in step.state())
    assert all((value == before[name]).all() for name, value in learned(side, model).items())
    assert (side.trained(model)["layer.weight"] != np.eye(D)).any()
    names = {"rvq.embed_sum", "rvq.cluster_usage"}
    assert set(before) == names
    if side.name == "mlx":
        assert set(side.backend.parameters(model)) == {"layer.weight", *names}
    else:
        assert set(model.state_dict()) == {"layer.weight", *names}


def test_training_agrees_on_both_backends(sides):
    (losses, ours), (other_losses, theirs) = (trained(side) for side in sides)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_autocast_does_not_reach_the_codebooks():
    (losses, exact), (rough_losses, rough) = (
        trained(Side("torch"), updates=1, precision=name) for name in ("float32", "bfloat16")
    )
    assert rough_losses == pytest.approx(losses, rel=2e-2)
    assert {value.dtype for value in rough.values()} == {np.dtype(np.float32)}
    assert (
        np.abs(rough["rvq.cluster_usage"] - exact["rvq.cluster_usage"]).sum() < 0.2 * exact["rvq.cluster_usage"].sum()
    )


@pytest.fixture
def compiling():
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.compiles
@pytest.mark.usefixtures("compiling")
def test_a_compiled_step_gathers_what_an_eager_one_does():
    """g++ takes about a second per fused kernel: one level, the plainest optimizer."""
    (losses, eager), (compiled_losses, compiled) = (
        trained(Side("mlx"), codebooks=1, optim="sgd", compile=value) for value in (False, True)
    )
    np.testing.assert_allclose(compiled_losses, losses, rtol=1e-5)
    for name, value in eager.items():
        np.testing.assert_allclose(compiled[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_buffers_through_a_file_and_strictly(side, tmp_path):
    model = net(side)
    path = tmp_path / "codebooks.safetensors"
    side.backend.write(path, rvq(side).buffers(model), {})
    other = net(side)
    update(side, other.rvq, [items(0)], 0)
    assert (learned(side, other)["rvq.embed_sum"] != learned(side, model)["rvq.embed_sum"]).any()
    arrays, _ = side.backend.read(path)
    rvq(side).load_buffers(other, arrays)
    assert all((value == learned(side, model)[name]).all() for name, value in learned(side, other).items())
    with pytest.raises(InputError, match="codebooks: missing rvq.cluster_usage"):
        rvq(side).load_buffers(other, {"rvq.embed_sum": arrays["rvq.embed_sum"]})
    smaller = {name: value[:1] for name, value in arrays.items()}
    with pytest.raises(InputError, match=r"codebooks: rvq\..* has shape \(1, "):
        rvq(side).load_buffers(other, smaller)
    assert list(rvq(side).buffers(model.rvq)) == ["embed_sum", "cluster_usage"]


def test_draws_depend_on_the_segments_key_alone():
    keys = [5, 1 << 40, 7]
    draws = quantizer_draws(keys, codebooks=8, frames=9, dropout=0.5, bypass=0.5, slots=4)
    for index, key in enumerate(keys):
        alone = quantizer_draws([key], codebooks=8, frames=9, dropout=0.5, bypass=0.5, slots=4)
        assert all((alone[name][0] == draws[name][index]).all() for name in draws)
    assert {name: value.dtype.name for name, value in draws.items()} == {
        "active": "int32", "bypass": "bool", "offered": "int32", "priority": "float32",
    }  # fmt: skip
    many = quantizer_draws(range(2000), codebooks=8, frames=9, dropout=0.25, bypass=0.5)
    assert many["bypass"].mean() == pytest.approx(0.5, abs=0.05)
    assert (many["active"] < 8).mean() == pytest.approx(0.25 * 7 / 8, abs=0.05)
    assert many["active"].min() == 1


def test_revival_uses_every_slot_before_it_uses_one_twice():
    draw = revival_draw(1, 2, codebooks=2, entries=30, slots=12)
    assert draw.shape == (2, 30)
    for level in draw:
        assert sorted(level[:12]) == sorted(level[12:24]) == list(range(12))
    assert (draw == revival_draw(1, 2, codebooks=2, entries=30, slots=12)).all()
    assert (draw != revival_draw(1, 3, codebooks=2, entries=30, slots=12)).any()


def test_perplexity():
    usage = np.array([[1.0, 1, 1, 1], [5, 0, 0, 0], [2, 2, 0, 0]])
    np.testing.assert_allclose(perplexity(usage), [4, 1, 2], rtol=1e-6)
