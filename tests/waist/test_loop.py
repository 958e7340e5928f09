"""The loop on the small task: what it writes, when it saves, evaluates, stops, and what it refuses to continue."""

import errno
import inspect
import json
import math
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy import ToyTask, collate, examples

from backends.base import LoRASpec, Sample
from backends.errors import InputError
from backends.training import lock, loop, report, samples, usage
from backends.training.checkpoints import Checkpoints, damage, seal
from backends.training.evaluation import validate
from backends.training.log import read
from backends.training.options import TrainOptions
from backends.training.report import write_report
from backends.training.settings import Settings
from backends.training.state import check_early

SPEC = LoRASpec(rank=4, alpha=6.0, dropout=0.1)
# 20 clips, batches of 3, 2 per update: 4 updates per epoch


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The report has its own test; drawing it at each evaluation takes longer than all the rest."""
    monkeypatch.setattr(loop, "write_report", lambda run, _title, _more=(): run / "report.html")


def options(directory, **changes):
    defaults = {"epochs": 3, "learning_rate": 1e-2, "log_every": 3, "save_every": 0, "seed": 5}
    return TrainOptions(output_dir=directory, **{**defaults, **changes})


def train(side, directory, task=None, identity=None, settings=None, **changes):
    model = side.lora(SPEC, dropout=0.1)
    asked = options(directory, **changes)
    told = {"title": "toy", "identity": identity, "settings": settings}
    result = loop.train(side.backend, model, task or ToyTask(side), asked, **told)
    return result, side.trained(model)


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(value.tobytes() == theirs[name].tobytes() for name, value in ours.items())


def saved(directory):
    return [int(path.name.removeprefix("step_")) for path in Checkpoints(directory / "checkpoints").all()]


def logged(directory, column):
    return [(int(row["step"]), row[column]) for row in read(directory / "metrics.csv") if column in row]


def test_a_run_learns_and_leaves_what_it_promises(side, tmp_path):
    result, _ = train(side, tmp_path, epochs=8)
    assert (result.step, result.epoch) == (32, 8)
    losses = logged(tmp_path, "loss")
    assert [step for step, _ in losses] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 32]  # the rest has a row too
    assert result.loss == pytest.approx(losses[-1][1], rel=1e-6)
    assert losses[-1][1] < 0.8 * losses[0][1]
    assert [step for step, _ in logged(tmp_path, "val_loss")] == [4, 8, 12, 16, 20, 24, 28, 32]
    assert result.val_loss == pytest.approx(min(value for _, value in logged(tmp_path, "val_loss")), rel=1e-6)
    for row in read(tmp_path / "metrics.csv"):
        if "loss" in row:
            assert row["loss"] == pytest.approx(row["next"] + row["size"], rel=1e-6)
    epochs = {f"net_epoch_{epoch}.safetensors" for epoch in range(1, 9)}
    assert {path.name for path in tmp_path.glob("net_*")} == {"net_best.safetensors", *epochs}
    assert result.exported == tmp_path / "net_epoch_8.safetensors"
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == 1e-2
    assert saved(tmp_path) == [28, 32]


def test_the_exported_weights_are_the_live_ones(side, tmp_path):
    result, parameters = train(side, tmp_path)
    exported, _ = side.backend.read(result.exported)
    assert same(side.backend.to_host(exported), parameters)


def test_a_run_is_a_function_of_its_options(side, tmp_path):
    _, first = train(side, tmp_path / "a", max_norm=0.5, warmup_steps=2, schedule="cosine")
    _, second = train(side, tmp_path / "b", max_norm=0.5, warmup_steps=2, schedule="cosine")
    _, other = train(side, tmp_path / "c", max_norm=0.5, warmup_steps=2, schedule="cosine", seed=6)
    assert same(first, second)
    assert not same(first, other)
    assert [rate for _, rate in logged(tmp_path / "a", "learning_rate")] == pytest.approx(
        [
            1e-2,
            0.5e-2 * (1 + np.cos(0.3 * np.pi)),
            0.5e-2 * (1 + np.cos(0.6 * np.pi)),
            0.5e-2 * (1 + np.cos(0.9 * np.pi)),
        ]
    )


def test_saves_by_steps_and_at_the_end_of_epochs(side, tmp_path):
    train(side, tmp_path, save_every=3, keep_last=20)
    assert saved(tmp_path) == [3, 4, 6, 8, 9, 12]
    assert {path.name for path in tmp_path.glob("net_step_*")} == {f"net_step_{n}.safetensors" for n in (3, 6, 9, 12)}


def test_saves_by_minutes(side, tmp_path, monkeypatch):
    """With a clock that moves by 25 seconds per update."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(loop, "time", clock)

    class Slow(ToyTask):
        def seconds(self, micro_batches):
            clock.now += 25.0
            return super().seconds(micro_batches)

    train(side, tmp_path, Slow(side), save_minutes=1.0, keep_last=20, epochs=2)
    assert saved(tmp_path) == [3, 4, 7, 8]  # 75 s after the last one; epochs end at 4 and 8


def test_evaluates_every_so_many_steps(side, tmp_path):
    train(side, tmp_path, eval_every=5)
    assert [step for step, _ in logged(tmp_path, "val_loss")] == [5, 10]


def test_validation_loss_is_exact_over_unequal_batches(side):
    """Equal to one batch of all validation clips."""
    task = ToyTask(side)
    evaluate = side.backend.eval_step(side.net(), task.terms)
    assert len({batch["ids"].shape for batch in task.validation(1)}) > 1
    value = validate(evaluate, task, 1, side.backend.world)
    whole = [collate(examples(task.held_out, seed=5))]
    task.validation = lambda _epoch: whole
    assert value == pytest.approx(validate(evaluate, task, 1, side.backend.world), rel=1e-6)


def test_without_validation_there_is_no_best(side, tmp_path):
    result, _ = train(side, tmp_path, ToyTask(side, held_out=0))
    assert result.val_loss is None
    assert not (tmp_path / "net_best.safetensors").exists()


@pytest.fixture
def worsening(monkeypatch):
    """Validation losses with their best value, but for the last, at the second evaluation."""
    values = iter((3.0, 2.0, 2.5, 2.4, 2.3, 1.0))
    monkeypatch.setattr(loop, "validate", lambda *args: next(values))


@pytest.mark.usefixtures("worsening")
def test_patience_stops_and_the_best_is_kept(side, tmp_path):
    result, _ = train(side, tmp_path, epochs=10, patience=2)
    assert (result.step, result.val_loss) == (16, 2.0)
    assert [value for _, value in logged(tmp_path, "val_loss")] == [3.0, 2.0, 2.5, 2.4]
    again, _ = train(side, tmp_path, epochs=10, patience=2)  # the same command: it has stopped, and stays so
    assert again.step == 16
    assert logged(tmp_path, "val_loss")[-1][0] == 16
    more, _ = train(side, tmp_path, epochs=6, patience=5)  # more patience: it goes on
    assert (more.step, more.val_loss) == (24, 1.0)
    assert [step for step, _ in logged(tmp_path, "val_loss")] == [4, 8, 12, 16, 20, 24]


@pytest.mark.usefixtures("worsening")
@pytest.mark.parametrize(
    ("eval_every", "save_every", "step"), [(3, 0, 9), (3, 3, 9), (4, 0, 12)], ids=["off", "due", "at an epoch's end"]
)
def test_patience_within_an_epoch(side, tmp_path, eval_every, save_every, step):
    """What is exported is the model as it stopped; with more patience the epoch is then trained to its end."""
    every = {"eval_every": eval_every, "save_every": save_every}
    result, stopped = train(side, tmp_path, epochs=10, patience=1, **every)
    assert result.step == step
    assert saved(tmp_path)[-1] == step
    assert result.exported == tmp_path / "net_epoch_3.safetensors"
    assert same(side.backend.to_host(side.backend.read(result.exported)[0]), stopped)
    again, _ = train(side, tmp_path, epochs=10, patience=1, **every)
    assert (again.step, again.exported) == (step, result.exported)
    more, _ = train(side, tmp_path, epochs=3, patience=9, **every)
    assert (more.step, more.exported) == (12, result.exported)
    assert same(
        side.backend.to_host(side.backend.read(result.exported)[0]),
        train(side, tmp_path / "whole", epochs=3, eval_every=99)[1],
    )


@pytest.mark.parametrize("label", ["best", "epoch_2"])
def test_a_checkpoint_comes_before_the_exports(side, tmp_path, label):
    """A disk that an export fills costs no update, and the same command makes up for the export."""

    class Full(ToyTask):
        def export(self, model, directory, asked):
            if asked == label and (directory / "net_epoch_1.safetensors").exists():
                raise InputError("cannot be written")
            return super().export(model, directory, asked)

    with pytest.raises(InputError, match="cannot be written"):
        train(side, tmp_path / "full", Full(side), epochs=2)
    assert saved(tmp_path / "full") == [4, 8]
    assert not (tmp_path / "full" / "net_epoch_2.safetensors").exists()
    again, _ = train(side, tmp_path / "full", epochs=2)
    whole, _ = train(side, tmp_path / "whole", epochs=2)
    assert (again.step, again.exported.name) == (8, whole.exported.name)
    for name in ("net_best.safetensors", "net_epoch_2.safetensors"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert logged(tmp_path / "full", "val_loss") == logged(tmp_path / "whole", "val_loss")


def test_continued_run_equals_an_uninterrupted_one(side, tmp_path):
    """Five epochs at once, and three then five: parameters bit by bit, the log row by row."""
    _, straight = train(side, tmp_path / "a", epochs=5)
    train(side, tmp_path / "b", epochs=3)
    _, continued = train(side, tmp_path / "b", epochs=5)
    assert same(straight, continued)
    rows = [
        [
            {name: row[name] for name in ("step", "epoch", "loss", "val_loss", "grad_norm", "next") if name in row}
            for row in log
        ]
        for log in (read(tmp_path / "a" / "metrics.csv"), read(tmp_path / "b" / "metrics.csv"))
    ]
    assert rows[0] == rows[1]
    assert (tmp_path / "a" / "net_best.safetensors").read_bytes() == (
        tmp_path / "b" / "net_best.safetensors"
    ).read_bytes()


def test_a_finished_run_is_left_as_it_is(side, tmp_path):
    first, parameters = train(side, tmp_path)
    rows = logged(tmp_path, "loss")
    again, restored = train(side, tmp_path)
    assert (again.step, again.loss, again.val_loss) == (first.step, first.loss, first.val_loss)
    assert same(parameters, restored)
    assert logged(tmp_path, "loss") == rows


def test_no_resume_starts_over(side, tmp_path):
    _, first = train(side, tmp_path)
    result, again = train(side, tmp_path, resume=False)
    assert result.step == 12
    assert same(first, again)
    assert [step for step, _ in logged(tmp_path, "loss")] == [3, 6, 9, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [2, 4])  # within an epoch, and at its end
def test_a_signal_saves_and_stops(side, tmp_path, number, step, capfd):
    """Without any periodic checkpoint; the same command then ends as a run that was not stopped."""

    class Signalled(ToyTask):
        done = 0

        def seconds(self, micro_batches):
            self.done += 1
            if self.done == step:
                os.kill(os.getpid(), number)
            return super().seconds(micro_batches)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train(side, tmp_path / "a", Signalled(side), epochs=2, patience=3)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert (
        f"stopping after this step (signal {int(number)}); run the same command to continue" in capfd.readouterr().err
    )
    assert saved(tmp_path / "a") == [step]
    _, continued = train(side, tmp_path / "a", epochs=2, patience=3)
    _, straight = train(side, tmp_path / "b", epochs=2, patience=3)
    assert same(straight, continued)
    for column in ("loss", "val_loss"):
        assert logged(tmp_path / "a", column) == logged(tmp_path / "b", column)


DIFFERENT = {
    "learning_rate": (2e-2, "--learning-rate is 0.02, but .* was trained with 0.01"),
    "batch_size": (2, "--batch-size is 2, but .* was trained with 4"),
    "optimizer": ("sgd", "--optimizer is 'sgd', but .* was trained with 'adamw'"),
    "gradient_accumulation": (3, "--gradient-accumulation is 3, but .* was trained with 1"),
    "max_norm": (0.5, "--max-norm is 0.5, but .* was trained with 1.0"),
    "seed": (6, "--seed is 6, but .* was trained with 5"),
    "schedule": ("cosine", "--schedule is 'cosine', but .* was trained with 'constant'"),
    "warmup_steps": (3, "--warmup-steps is 3, but .* was trained with 0"),
}


def test_options_that_differ_are_an_error_with_both_values(side, tmp_path):
    train(side, tmp_path, epochs=1)
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    for name, (value, message) in DIFFERENT.items():
        with pytest.raises(InputError, match=message):
            train(side, tmp_path, epochs=1, **{name: value})
    several = "--batch-size is 2, --seed is 6, but .*step_4 was trained with --batch-size 4, --seed 5: use those values"
    with pytest.raises(InputError, match=several):
        train(side, tmp_path, epochs=1, batch_size=2, seed=6)
    after = sorted((path, path.read_bytes()) for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    assert before == after
    train(side, tmp_path, epochs=2, log_every=1, save_every=2, keep_last=1, eval_every=3, patience=9)  # these may


def test_options_are_compared_by_what_they_mean(side, tmp_path, monkeypatch):
    """A path by what is there; an option that is younger than the checkpoint by its default."""
    folder, run = tmp_path / "codec", tmp_path / "run"
    folder.mkdir()
    asked = Settings.of(options(run, epochs=1), codec=str(folder))
    train(side, run, epochs=1, settings=asked)
    monkeypatch.chdir(tmp_path)
    early = partial(check_early, side.backend, options(run))
    early(replace(asked, values={**asked.values, "codec": "codec"}))
    with pytest.raises(InputError, match=r"--codec is 'other', but .*step_4 was trained with '.*/codec'"):
        early(replace(asked, values={**asked.values, "codec": "other"}))
    younger = replace(asked, values={**asked.values, "new": 1}, defaults={**asked.defaults, "new": 1})
    early(younger)
    with pytest.raises(InputError, match="--new is 2, but .*step_4 was trained with 1"):
        early(replace(younger, values={**asked.values, "new": 2}))
    fewer = {name: value for name, value in asked.values.items() if name != "max_norm"}
    with pytest.raises(
        InputError, match="step_4: belongs to a run of another command or version, which has --max-norm"
    ):
        early(replace(asked, values=fewer))


def test_options_that_differ_are_refused_before_anything_is_read(side, tmp_path):
    train(side, tmp_path / "run", epochs=1)
    check_early(side.backend, options(tmp_path / "run", epochs=2))
    with pytest.raises(InputError, match="--learning-rate is 0.5, but .*step_4 was trained with 0.01"):
        check_early(side.backend, options(tmp_path / "run", epochs=2, learning_rate=0.5))
    check_early(side.backend, options(tmp_path / "run", learning_rate=0.5, resume=False))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output-dir .*file: cannot be written"):
        check_early(side.backend, options(tmp_path / "file"))


def test_with_a_falling_schedule_the_end_may_not_move(side, tmp_path):
    train(side, tmp_path, epochs=1, schedule="linear")
    with pytest.raises(InputError, match="--epochs is 2, but .* was trained with 1"):
        train(side, tmp_path, epochs=2, schedule="linear")


def test_other_data_is_an_error(side, tmp_path):
    train(side, tmp_path, epochs=1, identity={"dataset": "abc"})
    with pytest.raises(InputError, match="the dataset has changed since"):
        train(side, tmp_path, epochs=1, identity={"dataset": "xyz"})
    with pytest.raises(InputError, match="the dataset and the model have changed since"):
        train(side, tmp_path, epochs=1, identity={"dataset": "xyz", "model": "other"})
    with pytest.raises(InputError, match="the dataset has changed since"):
        train(side, tmp_path, epochs=1)


def test_other_trained_parameters_are_an_error(side, tmp_path):
    train(side, tmp_path, epochs=1)
    model = side.lora(SPEC, targets=["layers.0.q"])
    with pytest.raises(InputError, match=r"step_4: unexpected layers.1.up.lora_A"):
        loop.train(side.backend, model, ToyTask(side), options(tmp_path, epochs=1), title="toy")


def test_the_other_backend_does_not_continue(side, tmp_path):
    train(side, tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "step_4"
    trainer = json.loads((path / "trainer.json").read_text())
    other = {"mlx": "torch", "torch": "mlx"}[side.name]
    (path / "trainer.json").write_text(json.dumps({**trainer, "backend": other}))
    seal(path)
    with pytest.raises(InputError, match=f"--backend is '{side.name}', but .* was trained with '{other}'"):
        train(side, tmp_path, epochs=1)


def test_continues_from_a_checkpoint_of_another_run(side, tmp_path):
    _, straight = train(side, tmp_path / "a", epochs=3)
    train(side, tmp_path / "b", epochs=2)
    given = tmp_path / "b" / "checkpoints" / "step_8"
    result, continued = train(side, tmp_path / "c", epochs=3, resume_from=given)
    assert result.step == 12
    assert same(straight, continued)
    assert [step for step, _ in logged(tmp_path / "c", "val_loss")] == [12]
    train(side, tmp_path / "c", epochs=4, resume_from=given)  # the same command goes on from its own checkpoints
    assert saved(tmp_path / "c") == [12, 16]
    for folder in (given.parent, given.parents[1]):
        with pytest.raises(InputError, match=f"--resume-from {folder}: is no checkpoint, give .*step_"):
            train(side, tmp_path / "d", resume_from=folder)
    with pytest.raises(InputError, match="--resume-from .*nowhere: no such checkpoint"):
        train(side, tmp_path / "d", resume_from=tmp_path / "nowhere")
    (given / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"--resume-from .*step_8: weights.safetensors is 7 bytes"):
        train(side, tmp_path / "d", resume_from=given)


def test_starting_over_from_a_checkpoint_of_this_run_keeps_them(side, tmp_path):
    """The checkpoint to continue from is looked at before any is removed, and so is whether the options are its own."""
    train(side, tmp_path / "a")
    own = tmp_path / "a" / "checkpoints"
    outside = train(side, tmp_path / "b", epochs=1)[0].report.parent / "checkpoints" / "step_4"
    refused = {
        own / "step_8": "step_8: --no-resume removes the checkpoints in --output-dir .*a, this one too: name another",
        own / ".." / "checkpoints" / "step_8" / "weights.safetensors": "this one too: name another --output-dir",
        tmp_path / "nowhere": "nowhere: no such checkpoint",
    }
    for given, message in refused.items():
        with pytest.raises(InputError, match=message):
            train(side, tmp_path / "a", resume=False, resume_from=given)
        with pytest.raises(InputError, match=message):
            check_early(side.backend, options(tmp_path / "a", resume=False, resume_from=given))
    with pytest.raises(InputError, match="--seed is 6, but .*step_4 was trained with 5"):
        train(side, tmp_path / "a", resume=False, resume_from=outside, seed=6)
    with pytest.raises(
        InputError, match=r"--resume-from is .*step_8', but .*step_12 .*: use that value or another --o\S*$"
    ):
        train(side, tmp_path / "a", resume_from=own / "step_8")
    assert saved(tmp_path / "a") == [8, 12]
    result, _ = train(side, tmp_path / "a", resume=False, resume_from=outside, epochs=2)
    assert (result.step, saved(tmp_path / "a")) == (8, [8])


def test_what_a_checkpoint_to_start_from_would_refuse_is_refused_early(side, tmp_path):
    train(side, tmp_path / "a", epochs=1)
    given = tmp_path / "a" / "checkpoints" / "step_4"
    check_early(side.backend, options(tmp_path / "b", resume_from=given))
    with pytest.raises(InputError, match="--learning-rate is 0.5, but .*step_4 was trained with 0.01"):
        check_early(side.backend, options(tmp_path / "b", resume_from=given, learning_rate=0.5))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_is_refused_where_the_optimizer_has_none(tmp_path, optimizer):
    with pytest.raises(InputError, match=f"--weight-decay 0.5: does nothing with --optimizer {optimizer}: give adamw"):
        options(tmp_path, optimizer=optimizer, weight_decay=0.5)
    options(tmp_path, optimizer=optimizer)
    options(tmp_path, optimizer=optimizer, weight_decay=0)
    options(tmp_path, optimizer="adamw", weight_decay=0.5)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_be_another_s_are_refused(tmp_path, seed):
    with pytest.raises(InputError, match=f"--seed {seed}: expected 0 to 4294967295"):
        options(tmp_path, seed=seed)
    options(tmp_path, seed=2**32 - 1)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(side, tmp_path, capsys):
    _, straight = train(side, tmp_path / "a", epochs=4)
    train(side, tmp_path / "b", epochs=3)
    victim = tmp_path / "b" / "checkpoints" / "step_12" / "optimizer.safetensors"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    capsys.readouterr()
    _, continued = train(side, tmp_path / "b", epochs=4)
    said = capsys.readouterr().out
    assert f"passing over {victim.parent}: optimizer.safetensors does not match its SHA-256" in said
    assert f"resuming from {victim.parent.parent / 'step_8'}: step 8, epoch 3" in said
    assert same(straight, continued)
    assert [step for step, _ in logged(tmp_path / "b", "val_loss")] == [4, 8, 12, 16]
    assert damage(victim.parent) is None  # written anew on the way


def test_with_every_checkpoint_damaged_nothing_is_overwritten(side, tmp_path):
    _, straight = train(side, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "weights.safetensors").write_bytes(b"damaged")
    exported = {path: path.read_bytes() for path in [*tmp_path.glob("net_*"), tmp_path / "metrics.csv"]}
    with pytest.raises(
        InputError, match=r"every checkpoint is damaged \(step_12: .*; step_8: .*--no-resume to start over"
    ):
        train(side, tmp_path)
    assert exported == {path: path.read_bytes() for path in exported}
    _, again = train(side, tmp_path, resume=False)
    assert same(straight, again)


def test_a_run_directory_has_one_process(side, tmp_path):
    """Also one that starts over is refused; nothing of the first is touched, and it ends as if alone."""
    refused = []

    class Disturbed(ToyTask):
        def seconds(self, micro_batches):
            if not refused:
                with pytest.raises(InputError) as error:
                    train(side, tmp_path / "a", resume=False)
                refused.append(str(error.value))
            return super().seconds(micro_batches)

    _, first = train(side, tmp_path / "a", Disturbed(side))
    _, alone = train(side, tmp_path / "b")
    assert same(first, alone)
    (line,) = refused
    assert line == (
        f"--output-dir {tmp_path / 'a'}: in use by another process (pid {os.getpid()}): "
        "wait for it to end, or give another --output-dir"
    )
    with pytest.raises(InputError, match="the loss became nan"):
        train(side, tmp_path / "a", ToyTask(side, poison_step=12), epochs=4)
    train(side, tmp_path / "a")  # let go by a run that ended, and by one that failed


def test_without_locks_a_run_goes_without(tmp_path, monkeypatch):
    """As on Windows, and on file systems that have none."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    for stand_in in (None, SimpleNamespace(flock=refuse, LOCK_EX=0, LOCK_NB=0)):
        monkeypatch.setattr(lock, "fcntl", stand_in)
        with lock.held(tmp_path), lock.held(tmp_path):
            pass


def test_a_run_directory_that_cannot_be_made_is_named(side, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--output-dir .*file/run: cannot be written \(Not a directory\): check the"):
        train(side, tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoints(side, tmp_path):
    _, good = train(side, tmp_path, epochs=1)
    with pytest.raises(InputError, match=r"the loss became nan .* at step 7: .*the newest checkpoint is step 4"):
        train(side, tmp_path, ToyTask(side, poison_step=6), epochs=3)
    assert saved(tmp_path) == [4]
    weights, _ = side.backend.read(tmp_path / "checkpoints" / "step_4" / "weights.safetensors")
    assert same(side.backend.to_host(weights), good)
    with pytest.raises(InputError, match="no checkpoint was saved yet"):
        train(side, tmp_path / "fresh", ToyTask(side, poison_step=0))


def test_a_validation_loss_that_is_not_finite_is_no_best(side, tmp_path, monkeypatch):
    values = iter((3.0, math.nan))
    monkeypatch.setattr(loop, "validate", lambda *args: next(values))
    with pytest.raises(InputError, match=r"validation loss became nan at step 8: .*the newest checkpoint is step 4"):
        train(side, tmp_path, epochs=3, patience=2)
    assert logged(tmp_path, "val_loss") == [(4, 3.0)]


def test_base_weights_stay_bit_identical(side, tmp_path):
    model = side.lora(SPEC)
    frozen = {name: value for name, value in side.host(model).items() if ".lora_" not in name}
    loop.train(side.backend, model, ToyTask(side), options(tmp_path), title="toy")
    assert same(frozen, {name: value for name, value in side.host(model).items() if ".lora_" not in name})


def test_exports_may_have_a_folder_of_their_own(side, tmp_path):
    result, _ = train(side, tmp_path, ToyTask(side, exports="last"), epochs=1)
    assert result.exported == tmp_path / "last" / "net_epoch_1.safetensors"
    again, _ = train(side, tmp_path, ToyTask(side, exports="last"), epochs=1)
    assert again.exported == result.exported


@pytest.mark.parametrize(
    "draw",
    [report._curves, lambda rows: usage.section(np.array([[row["step"] for row in rows]]), "a")],
    ids=["curves", "codebooks"],
)
def test_legends_have_a_place(monkeypatch, draw):
    """Looking for the best one takes seconds with many points, of which matplotlib warns."""
    monkeypatch.setattr("matplotlib.legend.Legend._find_best_position", pytest.fail)
    draw([{"step": step, "loss": 1 / step} for step in range(1, 9)])


def test_starting_over_forgets_the_samples(side, tmp_path):
    train(side, tmp_path, ToyTask(side, sound=True), epochs=1)
    assert samples.kept(tmp_path)
    train(side, tmp_path, ToyTask(side), epochs=1, resume=False)
    assert samples.kept(tmp_path) == []


def test_the_report_of_a_long_run_shows_some_samples(tmp_path):
    sound = Sample("tone", "", np.zeros(160, np.float32), 16000)
    for step in range(0, 400, 10):
        samples.keep(tmp_path, step, [sound])
    (tmp_path / "metrics.csv").write_text("step,epoch,loss\n")
    (tmp_path / "config.json").write_text("{}")
    page = write_report(tmp_path, "toy").read_text()
    assert page.count("<audio") == 10
    assert "Those of 30 other steps are in" in page
    shown = [int(word.split(",")[0]) for word in page.split("<figcaption>Step ")[1:]]
    assert shown == [0, 390, 30, 80, 120, 170, 220, 270, 310, 360]


def test_report_and_samples(side, tmp_path, monkeypatch):
    """The one run of this suite that draws: pictures, sound and settings are inside the one page."""
    monkeypatch.setattr(loop, "write_report", write_report)
    result, _ = train(side, tmp_path, ToyTask(side, sound=True), epochs=2)
    page = result.report.read_text()
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "index.json", "step_000000_tone.wav", "step_000004_tone.wav", "step_000008_tone.wav"
    }  # fmt: skip
    assert page.count('<audio controls src="data:audio/wav;base64,') == 3
    assert page.count('<img alt="') == 3  # the curves, and spectrograms of the first and the last sample
    assert "learning_rate" in page
    assert "http" not in page


def test_every_option_is_used():
    """An option that is accepted does something: each field is read by the loop or by a task."""
    sources = "".join(path.read_text() for path in Path(loop.__file__).parent.glob("*.py"))
    by_the_family = {"config", "batch_size", "gradient_accumulation"}
    for name in TrainOptions.__dataclass_fields__:
        assert name in by_the_family or f"self.{name}" in sources or f"options.{name}" in sources, name
    assert replace(options("x"), max_norm=0).optim().max_norm is None


def test_shared_options_speak_of_no_family():
    """Their help stands in the commands of all."""
    text = inspect.getsource(TrainOptions)
    assert [name for name in ("CSM", "MusicGen", "SNAC", "Mimi", "EnCodec", "ckpt_") if name in text] == []
