"""finetune: all weights, or those that are not frozen."""

import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from backends import cli
from csm_mlx import CSM, csm_tiny
from csm_mlx.finetune import finetune
from csm_mlx.finetune.options import FullOptions


def base() -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(CSM.from_pretrained("tiny").parameters())}


def moved(run) -> set[str]:
    saved, start = mx.load(str(run / "ckpt_epoch_1.safetensors")), base()
    assert saved.keys() == start.keys()
    return {name for name in start if (np.array(saved[name]) != start[name]).any()}


def test_everything_moves_and_the_file_loads_as_the_seed_shows(full):
    run = full("--learning-rate", 1e-3)
    assert moved(run) == set(base())
    csm = CSM(csm_tiny())
    csm.load_weights(str(run / "ckpt_epoch_1.safetensors"))
    saved = mx.load(str(run / "ckpt_epoch_1.safetensors"))
    assert all((value == saved[name]).all() for name, value in tree_flatten(csm.parameters()))


@pytest.mark.parametrize(("flag", "frozen"), [("--freeze-backbone", "backbone."), ("--freeze-decoder", "decoder.")])
def test_frozen_stacks_stay_and_the_rest_moves(full, flag, frozen):
    names = moved(full("--learning-rate", 1e-3, flag))
    assert not [name for name in names if name.startswith(frozen)]
    assert names == {name for name in base() if not name.startswith(frozen)}


def test_with_both_stacks_frozen_the_help_says_what_moves(full, capsys):
    names = moved(full("--learning-rate", 1e-3, "--freeze-backbone", "--freeze-decoder"))
    assert {name.split(".")[0] for name in names} == {
        "text_embeddings", "audio_embeddings", "projection", "codebook0_head", "audio_head",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        cli.run(finetune.main, FullOptions, ["--help"])
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert shown.count("With both frozen, the embeddings, the projection and the heads still train.") == 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers(full, optimizer):
    assert moved(full("--optimizer", optimizer, "--learning-rate", 1e-2))


def test_gradient_checkpointing_changes_nothing(full, tmp_path):
    plain = full("--learning-rate", 1e-3, output=tmp_path / "plain")
    recomputed = full("--learning-rate", 1e-3, "--gradient-checkpointing", output=tmp_path / "recomputed")
    one, two = (mx.load(str(run / "ckpt_epoch_1.safetensors")) for run in (plain, recomputed))
    assert all(mx.allclose(one[name], two[name], atol=1e-6) for name in one)


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_adapter(lora, tmp_path, dropout, compiled):
    """Dropout draws the same masks again in the backward pass."""
    flags = ("--dropout", dropout, "--learning-rate", 1e-2, "--compile", compiled)
    plain = lora(*flags, output=tmp_path / "plain")
    recomputed = lora(*flags, "--gradient-checkpointing", output=tmp_path / "recomputed")
    one, two = (mx.load(str(run / "lora_ckpt_epoch_1.safetensors")) for run in (plain, recomputed))
    assert all(mx.array_equal(one[name], two[name]) for name in one)


def test_a_continued_run_equals_an_unbroken_one(full, tmp_path):
    whole = full("--epochs", 2, output=tmp_path / "whole")
    full("--epochs", 1, output=tmp_path / "broken")
    broken = full("--epochs", 2, output=tmp_path / "broken")
    one, two = (mx.load(str(run / "ckpt_epoch_2.safetensors")) for run in (whole, broken))
    assert all((one[name] == two[name]).all() for name in one)
