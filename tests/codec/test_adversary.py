"""The adversarial stage: a small Mimi against small discriminators, on both backends."""

import math
from pathlib import Path

import numpy as np
import pytest
from codec_runs import few, killed_at, swelling
from test_train_codec import SMALL, options, rows
from toy import Side

from backends.base import OptimSpec
from backends.errors import InputError
from backends.layouts.mimi_settings import PUBLISHED
from backends.training import codec_weights
from backends.training.adversary import AdversaryPlan, Alternating, DiscriminatorSpec, against
from backends.training.codec_loss import CodecLoss
from backends.training.codec_options import CodecOptions
from backends.training.rvq_codec import Quantising, RVQFamily, codebook_hooks, collect
from csm_mlx import codec_task
from csm_mlx.finetune.train_codec import train_codec

SPEC = DiscriminatorSpec(periods=(2, 3), period_widths=(4, 8), windows=(128, 64), width=4)
PLAN = AdversaryPlan(learning_rate=2e-3, spec=SPEC)
LOSS = CodecLoss(1.0, 1.0, (64,), 0.0, 1e-2, 0.25, 8000, 640, 16)
SETTINGS = {**PUBLISHED, **SMALL, "layer_scale": 0.3}
LR = 1e-3


class Game:
    """A codec and its adversary, in training."""

    def __init__(self, side: Side):
        self.side, self.backend = side, side.backend
        self.model = codec_task.KIND.native(side.backend, codec_task.fresh(SETTINGS, 4))
        family = RVQFamily(LOSS, 4, Quantising(slots=8), side.name)
        self.backend.train_only(self.model, lambda name: ".rvq." not in name)
        collect(family, self.model)
        family = RVQFamily(LOSS, 4, Quantising(slots=8), side.name, codebook_hooks(family, None, 5))  # type: ignore[arg-type]
        optim = OptimSpec("adamw", 1e-4, max_norm=1.0)
        self.family = against(family, side.backend, self.model, PLAN, optim=optim, learning_rate=2 * LR, seed=7)
        self.step = self.family.hooks.make_step()
        self.done = 0

    def update(self, lr: float = LR) -> dict[str, float]:
        audio = swelling(4, 640 * 3)
        keys = [10 * self.done + item for item in range(4)]
        halves = [self.family.batch(audio[i : i + 2], None, keys[i : i + 2], training=True) for i in (0, 2)]
        counts = [self.family.counts(half) for half in halves]
        weights = {n: c / sum(count[n] for count in counts) for n, c in self.family.coefficients.items()}
        metrics = self.step(halves, weights, lr)
        self.done += 1
        self.family.hooks.after_step(self.model, self.done)
        return metrics

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that learns: in our layout, so that both backends compare."""
        buffers = self.backend.to_host(self.family.hooks.buffers(self.model))
        return {**codec_weights.tensors(self.backend, self.model), **buffers}


def test_both_backends_play_the_same_game(sides):
    games = [Game(side) for side in sides]
    start = games[0].arrays()
    for _ in range(3):
        first, second = (game.update() for game in games)
        assert first.keys() == second.keys() >= {"adversarial", "feature", "discriminator", "l1", "commitment", "loss"}
        for name, value in first.items():
            assert value == pytest.approx(second[name], rel=1e-4), name
    ours, theirs = (game.arrays() for game in games)
    assert ours.keys() == theirs.keys() == start.keys()
    for part in ("adversary.periods.", "adversary.resolutions.", "encoder.", "decoder.", "quantizer."):
        moved = np.sqrt(sum(((ours[n] - start[n]) ** 2).sum() for n in ours if n.startswith(part)))
        apart = np.sqrt(sum(((ours[n] - theirs[n]) ** 2).sum() for n in ours if n.startswith(part)))
        assert moved > 0, part
        assert apart <= 1e-2 * moved, (part, apart, moved)  # Adam divides by the size of tiny gradients


def test_the_loss_is_the_codecs_with_weights(side):
    game = Game(side)
    metrics = game.update()
    assert game.family.coefficients["feature"] == 2.0
    parts = [value for name, value in metrics.items() if name not in ("loss", "grad_norm", "discriminator")]
    assert metrics["loss"] == pytest.approx(sum(parts), rel=1e-5)
    game.model.eval()
    assert set(game.family.terms(game.model, _native(game))) == set(LOSS.coefficients)  # validation is without it


def test_discriminators_learn_to_tell(side):
    game = Game(side)
    told = [game.update(lr=1e-9)["discriminator"] for _ in range(2)]
    assert told[0] == pytest.approx(told[1], rel=1e-2)  # the rate follows the codec's
    game = Game(side)
    game.step.rate_ratio = 2e6
    told = [game.update(lr=1e-9)["discriminator"] for _ in range(5)]
    assert told[-1] < 0.95 * told[0]


def test_resume_is_exact(side):
    game = Game(side)
    for _ in range(2):
        game.update()
    copies = (game.backend.parameters(game.model), game.family.hooks.buffers(game.model), game.step.state())
    parameters, buffers, state = (game.backend.from_host(game.backend.to_host(arrays)) for arrays in copies)
    expected = game.update()
    other = Game(side)
    other.done = 2
    other.backend.load(other.model, parameters)
    other.family.hooks.load_buffers(other.model, buffers)
    other.step.load_state(state)
    assert other.update() == expected
    ours, theirs = game.arrays(), other.arrays()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


class Noting:
    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def __call__(self, micro_batches, weights, lr):
        self.notes.append((self.name, dict(weights), lr))
        return {"loss": 1.0, "grad_norm": 2.0, **weights}


def test_discriminators_go_first_at_their_rate():
    notes = []
    step = Alternating(Noting("codec", notes), Noting("judges", notes), 0.5)  # type: ignore[arg-type]
    metrics = step([], {"l1": 1.0, "adversarial": 3.0, "feature": 4.0, "discriminator": 5.0}, 0.1)
    assert notes == [
        ("judges", {"discriminator": 5.0}, 0.05),
        ("codec", {"l1": 1.0, "adversarial": 3.0, "feature": 4.0}, 0.1),
    ]
    assert metrics == {
        "loss": 1.0,
        "grad_norm": 2.0,
        "l1": 1.0,
        "adversarial": 3.0,
        "feature": 4.0,
        "discriminator": 5.0,
    }


def test_a_run_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(CodecOptions, "adversary", lambda _options: PLAN)
    small = {
        **few(tmp_path),
        "segment_length": 0.32,
        "epochs": 2,
        "quantize_after": 2,
        "save_every": 2,
        "log_every": 1,
        "adversarial": True,
    }
    backend = "torch"
    train_codec(options(tmp_path / "whole", backend, **small))
    with killed_at(3):
        train_codec(options(tmp_path / "killed", backend, **small))
    train_codec(options(tmp_path / "killed", backend, **small))
    for file in ("weights", "optimizer", "buffers"):
        path = Path("run/checkpoints/step_4") / f"{file}.safetensors"
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "killed" / path).read_bytes(), file
    logged = rows(tmp_path / "killed")
    assert logged[0]["discriminator"] > 0
    assert logged[0]["commitment"] == 0 < logged[3]["commitment"]


def test_bad_values_are_refused(tmp_path):
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match=f"--adversarial-learning-rate {rate}: expected a positive number"):
            options(tmp_path, "mlx", adversarial=True, adversarial_learning_rate=rate)
    with pytest.raises(
        InputError, match=r"--adversarial, whose largest window is 2048, needs segments longer than 0.16 s"
    ):
        train_codec(options(tmp_path, "mlx", adversarial=True, segment_length=0.15))


def _native(game):
    import importlib

    step = importlib.import_module(f"backends.{game.side.name}_backend.step")
    batch = game.family.batch(swelling(2, 640 * 3), None, [1, 2], training=False)
    return step.native(batch) if game.side.name == "mlx" else step.native(batch, game.backend.device)
