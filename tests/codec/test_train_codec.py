"""Training Mimi on both backends: the graph against transformers, the two against each other, and whole runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import oracles
import pytest
import soundfile
import torch
from codec_runs import DATA, few, killed_at, refusal, short, swelling
from gradients import assert_gradients_equal
from toy import Side

from backends.data import segments
from backends.errors import InputError
from backends.layouts import mimi as layouts
from backends.layouts.checkpoint import find, open_checkpoint
from backends.layouts.mimi_settings import PUBLISHED
from backends.layouts.rules import to_ours
from backends.mlx_backend import parameters
from backends.mlx_backend import rvq_codec as mlx_side
from backends.mlx_backend.step import native as mlx_native
from backends.torch_backend import rvq_codec as torch_side
from backends.torch_backend.step import native as torch_native
from backends.training import codec_weights, rvq_codec
from backends.training.codec_loss import CodecLoss
from backends.training.rvq_codec import Quantising, RVQFamily, Unquantised
from csm_mlx import codec_task
from csm_mlx.companions import codec_from, load_codec
from csm_mlx.config import mimi_of_settings
from csm_mlx.finetune.train_codec import TrainCodecOptions, train_codec
from csm_mlx.torch_mimi import Mimi as TorchMimi

SMALL = {
    "sample_rate_hz": 8000, "ratios": [8, 5, 4, 2], "filters": 4, "width": 32, "layers": 1, "heads": 2, "mlp_width": 64,
    "layer_scale": 0.1, "codebooks": 4, "entries": 32, "code_width": 16,
}  # fmt: skip
LOSS = CodecLoss(1.0, 0.7, (64, 256), 0.5, 1e-2, 0.25, 24_000, 1920, 32)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """transformers' codec with random weights, and ours of the same on both backends."""
    folder = tmp_path_factory.mktemp("mimi")
    theirs = oracles.mimi(folder, codebooks=8, window=20)
    checkpoint = open_checkpoint(find(folder, layouts.FAMILY, "--codec"), layouts.FAMILY)
    return theirs, codec_from(checkpoint), TorchMimi.of_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def pair():
    """Ours on both backends, with weights at which no distance lies so near its kink at 0 that rounding flips it."""
    sizes = {"sample_rate_hz": 24_000, "ratios": [8, 6, 5, 4], "filters": 8, "width": 64, "layers": 2, "window": 20}
    sizes |= {"codebooks": 8, "code_width": 32, "layer_scale": 0.3}
    checkpoint = codec_task.fresh({**PUBLISHED, **SMALL, **sizes}, 4)
    return codec_from(checkpoint), TorchMimi.of_checkpoint(checkpoint)


def families(loss=LOSS, codebooks=8):
    plan = Quantising(dropout=0.6, bypass=0.5, slots=8)
    return {name: RVQFamily(loss, codebooks, plan, name) for name in ("mlx", "torch")}


def test_torch_layers_equal_transformers(opened):
    theirs, _, ours = opened
    audio = torch.from_numpy(swelling(2, 1920 * 16))  # the transformers' 32 steps pass their window of 20
    with torch.no_grad():
        expected = theirs.encode(audio[:, None]).audio_codes
        np.testing.assert_array_equal(ours.encode(audio).numpy(), expected.numpy())
        sound = theirs.decode(expected).audio_values[:, 0]
        assert (ours.decode(expected) - sound).abs().max() <= 1e-5 * sound.abs().max()


def test_training_forward_equals_coding(opened):
    """With all codebooks and no bypass, training quantises as encoding and decoding do."""
    _, ours, twin = opened
    audio = swelling(2, 1920 * 5)
    batch = families()["mlx"].batch(audio, None, [1, 2], training=False)
    for model, native, side in (
        (ours, mlx_native(batch), mlx_side),
        (twin, torch_native(batch, torch.device("cpu")), torch_side),
    ):
        with torch.no_grad():
            made = side.rebuilt(model, native, LOSS)[1]
        expected = np.stack([side.reconstruct(model, item, 1920) for item in audio])
        np.testing.assert_allclose(np.asarray(made.tolist()), expected, atol=1e-5 * np.abs(expected).max())


def torch_gradients(model, batch, weights, loss=LOSS):
    """Terms, and gradients in our layout; for what transformers would not train too."""
    model.train()
    model.zero_grad()
    found = torch_side.terms(model, torch_native(batch, torch.device("cpu")), loss)
    sum(weights[name] * value for name, value in found.items()).backward()
    model.eval()
    named = {
        n: p.grad.numpy() if p.grad is not None else np.zeros(p.shape, np.float32) for n, p in model.named_parameters()
    }
    quantizer = {name: value for name, value in named.items() if name.startswith("quantizer.")}
    rest = {name: value for name, value in named.items() if name not in quantizer}
    return {n: v.item() for n, v in found.items()}, {
        **to_ours(rest, layouts.rules("mimi", model.config.settings()), "Mimi"),
        **quantizer,
    }


def test_terms_and_gradients_are_equal_on_both_backends(pair):
    ours, twin = pair
    family = families()["mlx"]
    batch = family.batch(swelling(6, 1920 * 5 - 700), None, [3, 4, 5, 6, 7, 8], training=True)
    assert 0 < batch["bypass"].sum() < 6
    assert len(set(batch["active"].tolist())) > 2
    counts = family.counts(batch)
    assert counts["commitment"] == batch["active"].sum() * 5 * 32
    weights = {name: value / counts[name] for name, value in LOSS.coefficients.items()}
    expected, gradients = torch_gradients(twin, batch, weights)
    parameters.train_only(ours, lambda name: ".rvq." not in name)
    inputs = mlx_native(batch)

    def objective():
        found = mlx_side.terms(ours, inputs, LOSS)
        return sum(weights[name] * value for name, value in found.items()), found

    (total, found), own = nn.value_and_grad(ours, objective)()
    ours.freeze()
    assert found.keys() == expected.keys() == LOSS.coefficients.keys()
    whole = sum(weights[name] * value for name, value in expected.items())
    assert float(total) == pytest.approx(whole, rel=1e-5)
    for name, value in expected.items():
        assert weights[name] * abs(float(found[name]) - value) <= 1e-5 * whole, name
    assert_gradients_equal(own, gradients)
    for part in (
        "encoder.layers.0.weight",
        "encoder_transformer.layers.0.self_attn.q_proj.weight",
        "downsample.weight",
    ):
        assert np.linalg.norm(gradients[part]) > 1e-4, f"{part} gets no gradient"


def test_decoder_only_gives_the_encoder_no_gradient(pair):
    ours, twin = pair
    loss = CodecLoss(1.0, 0.0, (64,), 0.0, 1e-2, 0.25, 24_000, 1920, 32, decoder_only=True)
    family = families(loss)["mlx"]
    batch = family.batch(swelling(2, 1920 * 4), None, [3, 4], training=True)
    assert not batch["bypass"].any()
    assert set(loss.coefficients) == {"l1", "stft_64"}
    weights = {name: value / family.counts(batch)[name] for name, value in loss.coefficients.items()}
    _, gradients = torch_gradients(twin, batch, weights, loss)
    inputs = mlx_native(batch)
    parameters.train_only(ours, lambda name: ".rvq." not in name)
    _, own = nn.value_and_grad(ours, lambda: weights["l1"] * mlx_side.terms(ours, inputs, loss)["l1"])()
    ours.freeze()
    assert_gradients_equal(own, gradients)
    for name, value in gradients.items():
        assert (np.linalg.norm(value) > 0) == name.startswith(codec_task.DECODER), name


def test_published_sizes_have_the_same_tensors():
    with torch.device("meta"):
        model = TorchMimi(mimi_of_settings(PUBLISHED))
    rest = {
        n: np.broadcast_to(np.float32(0), v.shape)
        for n, v in model.state_dict().items()
        if not n.startswith("quantizer.")
    }
    ours = {n: v.shape for n, v in to_ours(rest, layouts.rules("mimi", PUBLISHED), "Mimi").items()}
    ours |= {n: tuple(v.shape) for n, v in model.state_dict().items() if n.startswith("quantizer.")}
    assert ours == layouts.shapes(PUBLISHED)


class Counting:
    """A step that notes what it is given."""

    def __init__(self):
        self.seen = []

    def __call__(self, micro_batches, weights, lr):
        self.seen.append((bool(micro_batches[0]["bypass"].all()), weights["commitment"]))
        return {}

    def state(self):
        return {}

    def load_state(self, arrays):
        assert not arrays


def test_the_first_updates_are_unquantised(side):
    inner = Counting()
    step = Unquantised(inner, 2, side.backend, ("commitment",))
    batch = {"bypass": np.array([False, True])}
    step([batch], {"commitment": 0.5}, 1.0)
    resumed = Unquantised(inner, 2, side.backend, ("commitment",))
    resumed.load_state(step.state())
    resumed([batch], {"commitment": 0.5}, 1.0)
    resumed([batch], {"commitment": 0.5}, 1.0)
    assert inner.seen == [(True, 0.0), (True, 0.0), (False, 0.5)]


def options(folder, backend, **changes):
    mine = {"epochs": 7, "segment_length": 0.8, "learning_rate": 2e-3, "eval_every": 28}
    return TrainCodecOptions(**{**short(folder, backend, SMALL), **mine, **changes})


def rows(folder):
    lines = (folder / "run" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [{n: float(v) for n, v in zip(names, line.split(","), strict=True) if v} for line in lines[1:]]


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_short_run_learns_and_its_codec_reloads(tmp_path, backend):
    result = train_codec(options(tmp_path, backend))
    logged = rows(tmp_path)
    losses = [row["loss"] for row in logged if "loss" in row]
    assert result.step == 28
    assert losses[-1] < 0.4 * losses[0]
    baseline = json.loads((tmp_path / "run" / "baseline_metrics.json").read_text())["0.8s"]["val_loss"]
    assert logged[-1]["val_loss"] < 0.25 * baseline
    report = (tmp_path / "run" / "report.html").read_text()
    used = [int(count) for count in re.findall(r"<td>(\d+) of 32</td>", report)]
    assert len(used) == 4
    assert min(used) >= 3, used  # of 140 codes, many of them silence; two of each where codebooks collapse
    assert sum(used) >= 30, used

    folder = tmp_path / "run" / "last"
    audio = swelling(1, 640 * 9)
    theirs = oracles.MimiModel.from_pretrained(folder).eval()
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(audio)[:, None]).audio_codes.numpy()
    np.testing.assert_array_equal(np.array(load_codec(folder).encode(mx.array(audio))), codes)
    twin = TorchMimi.of_checkpoint(open_checkpoint(folder / "model.safetensors", layouts.FAMILY))
    np.testing.assert_array_equal(torch_side.codes(twin, audio[0], 640), codes[0])


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_resume_is_exact(tmp_path, backend):
    """Killed twice, before and after k-means starts the codebooks; the checkpoints hold codebooks and the start."""
    small = {**few(tmp_path), "segment_length": 0.32, "epochs": 6, "quantize_after": 6, "save_every": 4, "log_every": 4}
    train_codec(options(tmp_path / "whole", backend, **small))
    for at in (5, 10):
        with killed_at(at):
            train_codec(options(tmp_path / "killed", backend, **small))
    train_codec(options(tmp_path / "killed", backend, **small))
    whole, killed = (tmp_path / name / "run" for name in ("whole", "killed"))
    for file in ("weights", "optimizer", "buffers"):
        path = Path("checkpoints") / "step_12" / f"{file}.safetensors"
        assert (whole / path).read_bytes() == (killed / path).read_bytes(), file
    assert (whole / "last" / "model.safetensors").read_bytes() == (killed / "last" / "model.safetensors").read_bytes()
    losses = [[row.get("loss") for row in rows(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_codes_are_counted_on_beginnings_without_training(tmp_path, side, monkeypatch):
    model = codec_task.KIND.native(side.backend, codec_task.fresh({**PUBLISHED, **SMALL}, 5))
    family = families()[side.name]
    family = replace(family, loss=replace(family.loss, rate_hz=8000, frame_samples=640))
    sound = swelling(1, 8000 * 25)[0]
    for name, samples in (("long", 8000 * 25), ("short", 8000)):
        soundfile.write(tmp_path / f"{name}.wav", sound[:samples], 8000, subtype="FLOAT")
    native = {"mlx": mlx_side, "torch": torch_side}[side.name]
    seen, codes = [], native.codes

    def spy(model, samples, frame_samples):
        seen.append((samples.size, model.training))
        return codes(model, samples, frame_samples)

    monkeypatch.setattr(native, "codes", spy)
    model.train()
    source = segments.source(segments.find(tmp_path, "--x"), 8000, 640)
    counts = rvq_codec.code_counts(family, model, source, 32)
    assert model.training
    assert seen == [(8000 * 20, False), (8000, False)]
    model.eval()
    expected = np.concatenate([codes(model, sound[: size * 8000], 640) for size in (20, 1)], axis=1)
    np.testing.assert_array_equal(counts, [np.bincount(row, minlength=32) for row in expected])


def test_decoder_only_keeps_the_codes(tmp_path):
    source = codec_task.KIND.save(
        tmp_path / "codec", dict(codec_task.fresh({**PUBLISHED, **SMALL}, 3).ours), {**PUBLISHED, **SMALL}
    )
    same = {"scale": None, "codec": str(source.parent), "quantize_after": None, "epochs": 1, "eval_every": 100}
    train_codec(options(tmp_path, "mlx", decoder_only=True, **same))
    audio = mx.array(swelling(1, 640 * 9))
    before, after = load_codec(source.parent), load_codec(tmp_path / "run" / "last")
    codes = before.encode(audio)
    assert mx.array_equal(codes, after.encode(audio))
    assert not mx.allclose(before.decode(codes), after.decode(codes))


TORCH = ("--backend", "torch", "--device", "cpu")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "huge"], "--scale huge: expected tiny or a JSON file"),
        ([], "--codec or --scale: expected one of them"),
        (["--scale", "tiny", "--codec", "x"], "--codec or --scale: expected one of them"),
        (["--scale", "tiny", "--bypass", "1.5"], "--bypass 1.5: expected a number from 0 to 1"),
        (["--scale", "tiny", "--quantize-after", "-3"], "--quantize-after -3: expected 0 or more"),
        (["--scale", "tiny", "--mel-clamp", "0"], "--mel-clamp 0.0: expected more than 0"),
        (["--scale", "tiny", "--segment-length", "0.02"], "--n-ffts 2048 needs segments longer than 0.04 s"),
        (["--scale", "tiny", "--decoder-only", "--quantize-after", "5"], "restarts the codebooks"),
        (["--scale", "tiny", "--decoder-only"], "--decoder-only: "),
        (["--scale", "tiny", "--train-data", "nowhere"], "--train-data nowhere: no such folder"),
        (["--scale", "tiny", "--wings", "2"], "wings"),
        (
            ["--scale", "tiny", "--ddp", "--device", "0"],
            "--device 0: with --ddp each process takes a device of its own",
        ),
        (["--scale", "tiny", *TORCH, "--precision", "bfloat16"], "transposed convolutions give wrong gradients"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, flags, message):
    given = ["--train-data", DATA / "train", "--val-data", DATA / "val", "--output-dir", tmp_path, "--backend", "mlx"]
    assert message in refusal(train_codec, TrainCodecOptions, [*given, *flags], capsys)


def test_a_cut_recording_is_refused(tmp_path, capsys):
    folders = few(tmp_path)
    path = min(folders["val_data"].iterdir())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    given = ["--scale", "tiny", "--output-dir", tmp_path / "run", "--train-data", folders["train_data"], "--val-data"]
    error = refusal(train_codec, TrainCodecOptions, [*given, folders["val_data"], "--backend", "mlx"], capsys)
    assert error.startswith(f"error: {path}: is cut: holds {len(content) // 2 - 44} of the {len(content) - 44} bytes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wings": 2}, "unknown key 'wings'"),
        ({"entries": 33}, "entries 33: expected a power of 2"),
        ({"code_width": 32}, "code_width 32"),
        ({"codebooks": 1}, "codebooks 1: expected more than semantic_codebooks 1"),
        ({"heads": 3}, "expected an even multiple of heads 3"),
        ({"kernel": 4}, "expected odd ones"),
        ({"downsample": 3}, "downsample 3"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, change, message):
    path = tmp_path / "scale.json"
    path.write_text(json.dumps({**SMALL, **change}))
    with pytest.raises(InputError, match=re.escape(message)):
        codec_task.KIND.settings(str(path))


def test_random_weights_are_the_same_on_both_backends():
    found = {**PUBLISHED, **SMALL}
    checkpoint = codec_task.fresh(found, 5)
    for name in ("mlx", "torch"):
        side = Side(name)
        tensors = codec_weights.tensors(side.backend, codec_task.KIND.native(side.backend, checkpoint))
        assert tensors.keys() == layouts.shapes(found).keys()
        for key, value in tensors.items():
            np.testing.assert_array_equal(value, checkpoint.ours[key])
