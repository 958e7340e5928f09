"""The memory that a run expects to need against what it takes."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import csm_mlx.task
from backends import get
from backends.base import OptimSpec
from backends.training.evaluation import term_weights
from csm_mlx import CSM, csm_tiny
from csm_mlx.config import LlamaConfig
from csm_mlx.finetune.estimate import describe, peak_bytes
from csm_mlx.finetune.lora import apply_lora_to_model
from csm_mlx.finetune.options import LoRAOptions
from csm_mlx.task import CSMTask, Example, Plan


def config():
    backbone = LlamaConfig(layers=6, width=256, heads=4, kv_heads=2, head_dim=64, mlp_width=1024)
    decoder = LlamaConfig(layers=2, width=128, heads=2, kv_heads=1, head_dim=64, mlp_width=512)
    return replace(csm_tiny(), backbone=backbone, decoder=decoder)


def example(frames: int) -> Example:
    rows = np.zeros((20 + frames, 9), np.int32)
    is_audio = np.arange(len(rows)) >= 20
    return Example(rows, is_audio, is_audio)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("fraction", [1 / 16, 1.0])
def test_the_estimate_is_within_a_factor_of_two(recompute, lora, fraction):
    backend = get("mlx")
    gc.collect()
    mx.clear_cache()
    before = backend.memory().active
    model = CSM(config())
    mx.eval(model.parameters())
    if lora:
        apply_lora_to_model(model, target_modules=["attn", "codebook0_head", "projection"])
    model.backbone.recompute = model.decoder.recompute = recompute
    task = CSMTask([example(120)] * 4, Plan(4, depth_fraction=fraction), backend.world)
    expected = peak_bytes(model, task, LoRAOptions(data_path=Path("x")), backend)
    step = backend.train_step(model, task.terms, OptimSpec("adamw"))
    update = next(task.batches(1, 0))
    backend.reset_peak_memory()
    for _ in range(2):
        step(update, term_weights(task, task.counts(update), backend.world), 1e-4)
    taken = backend.memory().peak - before
    assert taken / 2 < expected < 2 * taken


def test_the_largest_batch_counts_and_no_other_is_kept(monkeypatch):
    backend, model = get("mlx"), CSM.from_pretrained("tiny")
    options = LoRAOptions(data_path=Path("x"))
    made, most_alive = [], 0

    def counted(examples, frames):
        nonlocal most_alive
        array = collate(examples, frames)
        made.append(weakref.ref(array["rows"]))
        most_alive = max(most_alive, sum(rows() is not None for rows in made))
        return array

    collate = csm_mlx.task.collate
    monkeypatch.setattr(csm_mlx.task, "collate", counted)
    short = [example(10)] * 20
    alone = peak_bytes(model, CSMTask([example(300)], Plan(1), backend.world), options, backend)
    assert peak_bytes(model, CSMTask([*short, example(300)], Plan(1), backend.world), options, backend) == alone
    assert peak_bytes(model, CSMTask(short, Plan(1), backend.world), options, backend) < alone
    assert len(made) == 42
    assert most_alive <= 2


def test_the_table_names_what_trains():
    backend = get("mlx")
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), target_modules=["projection"])
    task = CSMTask([example(50)], Plan(1), backend.world)
    table = describe(model, task, LoRAOptions(data_path=Path("x")), backend)
    assert "1,536 of 1,154,688 parameters (0.13 %)" in table
    assert "projection" in table
    assert "1 rows, 0.1 minutes of audio" in table
    assert "this machine has" in table
