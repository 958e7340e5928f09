"""Mimi at its published size and a long clip against transformers, and the demo as a user runs it: make test-slow."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import oracles
import pytest
import torch
from transformers import MimiConfig, MimiModel

from backends.training.log import read
from csm_mlx.companions import load_codec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def test_mimi_at_full_size_on_twelve_seconds(tmp_path):
    """Longer than the window of 250 steps (10 s), with 32 codebooks of 2048."""
    torch.manual_seed(0)
    theirs = MimiModel(MimiConfig(attn_implementation="eager")).eval()
    oracles.randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_codec(tmp_path)
    audio = (0.3 * np.random.default_rng(0).standard_normal((1, 150 * 1920))).astype(np.float32)
    with torch.inference_mode():
        codes = theirs.encode(torch.from_numpy(audio)[:, None]).audio_codes
        decoded = theirs.decode(codes).audio_values[:, 0].numpy()
    own = np.array(ours.encode(mx.array(audio)))
    assert (own == codes.numpy()).mean() >= 0.999
    sound = np.array(ours.decode(mx.array(codes.numpy())))
    assert 10 * np.log10((decoded**2).sum() / ((decoded - sound) ** 2).sum()) >= 90


def test_the_demo():
    done = subprocess.run([sys.executable, "-m", "examples.demo"], check=True, cwd=ROOT, capture_output=True, text=True)
    for name in ("before.wav", "after.wav", "run/report.html"):
        assert (ROOT / "demo_output" / name).stat().st_size > 1000
        assert str(ROOT / "demo_output" / name) in done.stdout
    values = [row["val_loss"] for row in read(ROOT / "demo_output" / "run" / "metrics.csv") if "val_loss" in row]
    assert values[-1] < 0.8 * values[0]
