"""MusicGen's training task: batches, loss and gradients, against definitions written out and against transformers."""

import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import music_training as training
import numpy as np
import pytest
import torch
from gradients import assert_gradients_equal

from backends import get
from backends.base import LoRASpec, OptimSpec
from backends.layouts import musicgen
from backends.layouts.rules import to_ours
from backends.torch_backend.step import native
from musicgen_mlx import condition, initial, load, pattern, studio, torch_model
from musicgen_mlx.dataset import split
from musicgen_mlx.mlx_terms import codebook_sums

BACKENDS = ("mlx", "torch")
SEED = 7


@pytest.fixture(params=BACKENDS)
def backend(request):
    return get(request.param)


def fresh(backend: str = "mlx", texts: bool = True) -> Any:
    """musicgen_tiny with the weights that training starts from."""
    checkpoint = studio.drawn(training.tiny_config(texts), SEED)
    return load.of_checkpoint(checkpoint) if backend == "mlx" else torch_model.of_checkpoint(checkpoint)


def mean_loss(backend, task, model, batches) -> float:
    """What the loop minimises, for these micro-batches."""
    counts = task.counts(batches)
    evaluate = backend.eval_step(model, task.terms)
    sums = [evaluate(batch) for batch in batches]
    return sum(task.coefficients[k] * sum(s[k] for s in sums) / counts[k] for k in task.coefficients)


def only(task) -> dict:
    """The validation batch: all clips, none of whose conditions is dropped."""
    (batch,) = task.validation(1)
    return batch


def test_the_loss_starts_at_ln_entries(backend):
    task = training.task(backend.name)
    assert mean_loss(backend, task, fresh(backend.name), [only(task)]) == pytest.approx(math.log(64), abs=0.02)


def test_the_loss_is_the_mean_over_codebooks_of_the_valid_cells():
    task, model = training.task(), fresh()
    batch = only(task)
    clips = sorted(task.held_out, key=len)
    codes = [clip.codes[:, :24] for clip in clips]
    total = np.zeros(4)
    logits = np.array(model(mx.array(batch["steps"][:, :, :-1]), said(model, batch))).astype(np.float64)
    for b, found in enumerate(codes):
        for k, row in enumerate(found):
            for t, code in enumerate(row):
                cell = logits[b, k, t + k]  # the step before the one that holds the code
                total[k] -= cell[code] - np.log(np.exp(cell).sum())
    expected = (total / sum(found.shape[1] for found in codes)).mean()
    assert mean_loss(get("mlx"), task, model, [batch]) == pytest.approx(expected, rel=1e-5)


def said(model, batch):
    rows = mx.where(mx.array(batch["said"])[..., None], model.text_conditioner(mx.array(batch["rows"])), 0)
    return condition.Condition(rows, mx.array(batch["rows_seen"]), ())


@pytest.mark.parametrize("texts", [True, False])
def test_neither_padding_nor_company_change_the_loss(backend, texts):
    together = training.task(backend.name, texts=texts)
    model = fresh(backend.name, texts)
    whole = mean_loss(backend, together, model, [only(together)])
    alone = replace(together, plan=replace(together.plan, batch_size=1))
    apart = list(alone.validation(1))
    assert len(apart) == 3
    assert len({batch["steps"].shape for batch in apart}) > 1
    assert mean_loss(backend, alone, model, apart) == pytest.approx(whole, rel=1e-6)


def test_what_cells_of_padding_hold_does_not_matter(backend):
    task, model = training.task(backend.name), fresh(backend.name)
    batch = only(task)
    value = mean_loss(backend, task, model, [batch])
    first = batch["targets"][0, 0].nonzero()[0].max() + 5  # past the shortest clip and its delays
    batch["steps"][0, :, first:] = 3
    batch["rows"][~batch["said"]] = 100.0
    assert mean_loss(backend, task, model, [batch]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("texts", [True, False])
def test_gradients_are_equal_on_both_backends(texts):
    tasks = {name: training.task(name, texts=texts) for name in BACKENDS}
    batch, models = only(tasks["mlx"]), {name: fresh(name, texts) for name in BACKENDS}
    weights = {k: 1 / (4 * count) for k, count in tasks["mlx"].counts([batch]).items()}

    def loss(parameters):
        models["mlx"].update(parameters)
        sums = tasks["mlx"].terms(models["mlx"], {name: mx.array(value) for name, value in batch.items()})
        return sum(weights[k] * sums[k] for k in weights)

    value, gradients = mx.value_and_grad(loss)(models["mlx"].trainable_parameters())
    sums = tasks["torch"].terms(models["torch"].train(), native(batch, torch.device("cpu")))
    theirs = torch.stack([weights[k] * sums[k] for k in weights]).sum()
    theirs.backward()
    assert value.item() == pytest.approx(theirs.item(), rel=1e-6)
    named = {name: value.grad.numpy() for name, value in models["torch"].named_parameters()}
    rules = musicgen.rules("musicgen", training.tiny_config(texts).settings())
    assert_gradients_equal(gradients, dict(to_ours(named, rules, "gradients")))


def test_the_loss_is_transformers():
    """Theirs builds no delays: its labels are our cells."""
    task, model = training.task(), fresh("torch")
    batch = only(task)
    labels = np.where(batch["targets"], batch["steps"], -100)[:, :, 1:].swapaxes(1, 2)
    rows = model.enc_to_dec_proj(torch.from_numpy(batch["rows"])) * torch.from_numpy(batch["said"])[..., None]
    B, K, S = batch["steps"].shape
    theirs = model.decoder(
        input_ids=torch.from_numpy(batch["steps"][:, :, :-1]).long().reshape(B * K, S - 1),
        encoder_hidden_states=rows, encoder_attention_mask=torch.from_numpy(batch["rows_seen"]),
        labels=torch.from_numpy(labels).long(),
    )  # fmt: skip
    assert mean_loss(get("mlx"), task, fresh(), [batch]) == pytest.approx(theirs.loss.item(), rel=1e-6)


def test_batches_are_the_delayed_codes():
    task = training.task(condition_dropout=0.0)
    (micro_batches,) = task.batches(1, 0)
    (batch,) = micro_batches
    assert batch["steps"].shape == (3, 4, 32)
    for row, length in enumerate([9, 22, 24]):  # sorted by length
        codes = pattern.reverted(batch["steps"][row, :, : length + 4], task.config.delays)
        clip = next(clip for clip in task.train if min(len(clip), 24) == length)
        starts = [s for s in range(len(clip) - length + 1) if (clip.codes[:, s : s + length] == codes).all()]
        assert starts
        assert batch["targets"][row].sum() == 4 * length
    assert task.counts([batch]) == {f"codebook{k}": 55.0 for k in range(4)}
    assert task.seconds([batch]) == pytest.approx(55 / 50)


def test_all_conditions_of_a_segment_are_dropped_together():
    task, dropped = training.task(batch_size=1, visits=20), 0
    seen = [micro[0] for epoch in range(1, 11) for micro in task.batches(epoch, 0)]
    assert len(seen) == 600
    for batch in seen:
        said = batch["said"].sum()
        assert said in (0, 3, 6, 9)
        assert batch["rows_seen"].sum() == max(1, said)
        dropped += said == 0
    assert dropped / 600 == pytest.approx(0.3, abs=0.05)
    again = [micro[0] for micro in task.batches(3, 5)]
    assert all((a["steps"] == b["steps"]).all() for a, b in zip(again, seen[2 * 60 + 5 :], strict=False))


def test_segments_come_from_everywhere():
    task = training.task(texts=False, frames=(40,), segment_frames=8, visits=200)
    starts = set()
    for micro in task.batches(1, 0):
        for row in micro[0]["steps"]:
            codes = pattern.reverted(row[:, :12], task.config.delays)
            starts |= {s for s in range(33) if (task.train[0].codes[:, s : s + 8] == codes).all()}
    assert starts == set(range(33))


def test_a_dropped_condition_adds_exactly_nothing():
    task, model = training.task(condition_dropout=1.0), fresh()
    ((batch,),) = task.batches(1, 0)
    assert not batch["said"].any()
    steps = mx.array(batch["steps"][:, :, :-1])
    assert mx.array_equal(model(steps, said(model, batch)), model(steps, None))
    states = mx.random.normal((3, 5, 32))
    null = condition.null(model, condition.from_states(model, states, np.ones((3, 5), bool)))
    assert mx.array_equal(model(steps, null), model(steps, said(model, batch)))  # what guidance contrasts with


def test_validation_is_always_the_same():
    task = training.task()
    one, two = only(task), next(iter(task.validation(5)))
    assert all((one[name] == two[name]).all() for name in one)
    assert one["said"].sum() == 3 + 6 + 9


def test_a_split_hangs_on_names_alone(tmp_path):
    names = [f"{n}.wav" for n in range(20)]
    train, held = split([tmp_path / name for name in names], 0.25)
    assert (len(train), len(held)) == (15, 5)
    elsewhere = split([tmp_path / "sub" / name for name in reversed(names)], 0.25)[1]
    assert {path.name for path in held} == {path.name for path in elsewhere}
    assert split([tmp_path / name for name in names], 0.0)[1] == []


def test_random_weights_are_audiocrafts():
    config = replace(training.tiny_config(), width=256, mlp_width=1024, heads=4)
    drawn = initial.tensors(config, 0)
    assert drawn["emb.0.weight"].std() == pytest.approx(256**-0.5, rel=0.03)
    assert drawn["layers.0.self_attn.out_proj.weight"].std() == pytest.approx((2 * 256) ** -0.5, rel=0.03)
    assert drawn["layers.1.linear2.weight"].std() == pytest.approx((4 * 1024) ** -0.5, rel=0.03)
    assert drawn["layers.1.self_attn.q_proj.weight"].std() == pytest.approx((3 * 256) ** -0.5, rel=0.03)
    for name in ("layers.1.cross_attn.q_proj.weight", "linears.0.weight", "emb.1.weight"):
        assert np.abs(drawn[name]).max() <= 3 * 256**-0.5
    assert (drawn["out_norm.weight"] == 1).all()
    assert not any(drawn[name].any() for name in drawn if name.endswith("bias"))
    assert not np.array_equal(drawn["emb.0.weight"], initial.tensors(config, 1)["emb.0.weight"])


def test_a_model_from_scratch_fits_its_codec():
    made = studio.from_scratch(training.tiny_config(), SEED, get("mlx"), "tiny", "tiny")
    assert (made.config.entries, made.config.text_width) == (64, 32)
    drawn = initial.tensors(made.config, SEED)
    assert all((value == drawn[name]).all() for name, value in made.side.tensors(made.model).items())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_adapter(dropout):
    """Dropout draws the same masks again in the backward pass."""
    backend, trained = get("mlx"), []
    for recompute in (False, True):
        model = fresh()
        backend.adapt(model, [name for name in backend.linears(model) if "attn" in name], LoRASpec(4, 8.0, dropout))
        steps = np.random.default_rng(1).integers(0, 64, (2, model.config.codebooks, 12)).astype(np.int32)
        rows = np.random.default_rng(2).standard_normal((2, 5, model.config.text_width)).astype(np.float32)
        batch = {"steps": steps, "targets": steps >= 0, "rows": rows, "said": np.ones((2, 5), bool)}
        batch["rows_seen"] = batch["said"]
        model.recompute = recompute
        step = backend.train_step(model, lambda m, b: {"loss": codebook_sums(m, b).sum()}, OptimSpec("sgd"), seed=1)
        for _ in range(2):
            step([batch, batch], {"loss": 0.01}, 1e-1)
        trained.append({name: np.array(value) for name, value in backend.trainable(model).items()})
    assert any(np.abs(value).max() > 0 for name, value in trained[0].items() if name.endswith("lora_B"))
    assert all(np.array_equal(trained[0][name], trained[1][name]) for name in trained[0])
