"""Training EnCodec on both backends: the graph against transformers, the two against each other, and whole runs."""

import json
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import music_training as training
import musicgen_oracle as oracle
import numpy as np
import pytest
import torch
from codec_runs import DATA, few, killed_at, refusal, short, swelling
from gradients import assert_gradients_equal
from transformers import EncodecModel

from backends import get
from backends.errors import InputError
from backends.layouts import encodec as layouts
from backends.layouts.checkpoint import find, open_checkpoint
from backends.layouts.encodec_settings import PUBLISHED
from backends.layouts.rules import to_ours
from backends.mlx_backend import parameters
from backends.mlx_backend import rvq_codec as mlx_side
from backends.mlx_backend.step import native as mlx_native
from backends.torch_backend import rvq_codec as torch_side
from backends.torch_backend.step import native as torch_native
from backends.training import codec_weights, log
from backends.training.codec_loss import CodecLoss
from backends.training.rvq_codec import Quantising, RVQFamily
from musicgen_mlx import codec_task
from musicgen_mlx.companions import codec_from, load_codec
from musicgen_mlx.config import encodec_of_settings
from musicgen_mlx.torch_encodec import Encodec as TorchEncodec
from musicgen_mlx.train_codec import TrainCodecOptions, train_codec

HOP = 640
SMALL = {"sample_rate_hz": 8000, "ratios": [8, 5, 2], "filters": 4, "width": 16, "lstm_layers": 1, "entries": 32}
LOSS = CodecLoss(1.0, 0.7, (64, 256), 0.5, 1e-2, 0.25, 32_000, HOP, 16)
LEARNED = ("quantizer.embed_sum", "quantizer.cluster_usage")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """transformers' codec with random weights, and ours of the same on both backends."""
    folder = tmp_path_factory.mktemp("encodec")
    theirs = oracle.encodec(folder)
    checkpoint = open_checkpoint(find(folder, layouts.FAMILY, "--codec"), layouts.FAMILY)
    return theirs, codec_from(checkpoint), TorchEncodec.of_checkpoint(checkpoint)


def test_torch_layers_equal_transformers(opened):
    theirs, _, ours = opened
    audio = torch.from_numpy(swelling(2, HOP * 9))
    with torch.no_grad():
        expected = theirs.encode(audio[:, None]).audio_codes[0]
        np.testing.assert_array_equal(ours.encode(audio).numpy(), expected.numpy())
        sound = theirs.decode(expected[None], [None]).audio_values[:, 0]
        assert (ours.decode(expected) - sound).abs().max() <= 1e-5 * sound.abs().max()


def test_training_forward_equals_coding(opened):
    """With all codebooks and no bypass, training quantises as encoding and decoding do."""
    _, ours, twin = opened
    audio = swelling(2, HOP * 5)
    batch = family().batch(audio, None, [1, 2], training=False)
    for model, native, side in (
        (ours, mlx_native(batch), mlx_side),
        (twin, torch_native(batch, torch.device("cpu")), torch_side),
    ):
        with torch.no_grad():
            made = side.rebuilt(model, native, LOSS)[1]
        expected = np.stack([side.reconstruct(model, item, HOP) for item in audio])
        np.testing.assert_allclose(np.asarray(made.tolist()), expected, atol=1e-5 * np.abs(expected).max())


def family(loss=LOSS):
    return RVQFamily(loss, 4, Quantising(dropout=0.6, bypass=0.5, slots=8), "mlx")


def test_terms_and_gradients_are_equal_on_both_backends(opened):
    _, ours, twin = opened
    batch = family().batch(swelling(6, HOP * 5 - 300), None, [3, 4, 5, 6, 7, 8], training=True)
    assert 0 < batch["bypass"].sum() < 6
    counts = family().counts(batch)
    weights = {name: value / counts[name] for name, value in LOSS.coefficients.items()}
    twin.train()
    expected = torch_side.terms(twin, torch_native(batch, torch.device("cpu")), LOSS)
    torch.stack([weights[name] * value for name, value in expected.items()]).sum().backward()
    twin.eval()
    theirs = {name: value.grad.numpy() for name, value in twin.named_parameters() if value.grad is not None}
    gradients = dict(to_ours(theirs, layouts.rules("encodec", twin.config.settings()), "gradients"))
    inputs = mlx_native(batch)
    parameters.train_only(ours, lambda name: name not in LEARNED)

    def objective():
        found = mlx_side.terms(ours, inputs, LOSS)
        return sum(weights[name] * value for name, value in found.items()), found

    (total, found), own = nn.value_and_grad(ours, objective)()
    ours.freeze()
    whole = sum(weights[name] * value.item() for name, value in expected.items())
    assert float(total) == pytest.approx(whole, rel=1e-5)
    for name, value in expected.items():
        assert weights[name] * abs(float(found[name]) - value.item()) <= 1e-5 * whole, name
    assert_gradients_equal(own, gradients)
    for part in ("encoder.layers.0.weight_v", "encoder.layers.13.lstm.0.weight_hh", "decoder.layers.0.weight_g"):
        assert np.linalg.norm(gradients[part]) > 1e-5, f"{part} gets no gradient"


def test_published_sizes_have_the_same_tensors():
    with torch.device("meta"):
        model = TorchEncodec(encodec_of_settings(PUBLISHED))
    state = model.state_dict().items()
    rest = {n: np.broadcast_to(np.float32(0), v.shape) for n, v in state if not n.startswith("quantizer.")}
    ours = {n: v.shape for n, v in to_ours(rest, layouts.rules("encodec", PUBLISHED), "EnCodec").items()}
    ours |= {n: tuple(v.shape) for n, v in state if n.startswith("quantizer.")}
    assert ours == layouts.shapes(PUBLISHED)


def options(folder: Path, backend: str, **changes) -> TrainCodecOptions:
    mine = {"epochs": 4, "segment_length": 0.4, "mel_weight": 0.0, "learning_rate": 3e-3, "eval_every": 100}
    return TrainCodecOptions(**{**short(folder, backend, SMALL), **mine, **changes})


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in log.read(folder / "run" / "metrics.csv") if "loss" in row]


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_short_run_learns_and_its_codec_reloads(tmp_path, backend):
    train_codec(options(tmp_path, backend))
    found = losses(tmp_path)
    assert found[-1] < 0.5 * found[0]
    report = (tmp_path / "run" / "report.html").read_text()
    used = [int(count) for count in re.findall(r"<td>(\d+) of 32</td>", report)]
    assert len(used) == 4
    assert min(used) >= 4, used
    folder, audio = tmp_path / "run" / "last", swelling(1, 80 * 30)
    theirs = EncodecModel.from_pretrained(folder).eval()
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(audio)[:, None]).audio_codes[0].numpy()
    np.testing.assert_array_equal(np.array(load_codec(folder).encode(mx.array(audio))), codes)
    twin = TorchEncodec.of_checkpoint(open_checkpoint(folder / "model.safetensors", layouts.FAMILY))
    np.testing.assert_array_equal(torch_side.codes(twin, audio[0], 80), codes[0])
    loops = training.loops(tmp_path / "loops", 3, 1.0, described=False)
    run = training.run(loops, tmp_path / "lm", backend, "--scale", "xsmall", "--codec", folder, "--epochs", 1)
    assert (run / "last_model" / "codec.safetensors").is_file()


def test_both_backends_train_alike(tmp_path):
    """From one start, on the same crops and draws, before and after the codebooks start."""
    small = {**few(tmp_path), "epochs": 3, "quantize_after": 2, "log_every": 1}
    for backend in ("mlx", "torch"):
        train_codec(options(tmp_path / backend, backend, **small))
    assert losses(tmp_path / "mlx") == pytest.approx(losses(tmp_path / "torch"), rel=1e-3)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_resume_is_exact(tmp_path, backend):
    small = {**few(tmp_path), "epochs": 4, "quantize_after": 4, "save_every": 3}
    train_codec(options(tmp_path / "whole", backend, **small))
    with killed_at(5):
        train_codec(options(tmp_path / "killed", backend, **small))
    train_codec(options(tmp_path / "killed", backend, **small))
    whole, killed = (tmp_path / name / "run" / "last" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_decoder_only_keeps_the_codes(tmp_path):
    settings = {**PUBLISHED, **SMALL}
    source = codec_task.KIND.save(tmp_path / "codec", dict(codec_task.fresh(settings, 3).ours), settings)
    same = {"scale": None, "codec": str(source.parent), "quantize_after": None, "epochs": 1}
    train_codec(options(tmp_path, "mlx", decoder_only=True, **same))
    audio = mx.array(swelling(1, 80 * 30))
    before, after = load_codec(source.parent), load_codec(tmp_path / "run" / "last")
    codes = before.encode(audio)
    assert mx.array_equal(codes, after.encode(audio))
    assert not mx.allclose(before.decode(codes), after.decode(codes))


@pytest.mark.parametrize("scale", codec_task.SCALES)
def test_random_weights_keep_the_size_of_sound(scale):
    """And are the same on both backends."""
    checkpoint = codec_task.fresh(codec_task.KIND.settings(scale), 5)
    audio = swelling(1, HOP * 20)
    if scale == "32khz":
        assert sum(value.size for value in checkpoint.ours.values()) > 56e6
        return
    ours = codec_task.KIND.native(get("mlx"), checkpoint)
    latents = ours.latents(mx.array(audio))
    assert 0.03 < mx.std(latents).item() / audio.std() < 30
    assert 0.03 < mx.std(ours.synthesise(latents)).item() / mx.std(latents).item() < 30
    for backend in (get("mlx"), get("torch")):
        tensors = codec_weights.tensors(backend, codec_task.KIND.native(backend, checkpoint))
        assert all(np.array_equal(value, checkpoint.ours[name]) for name, value in tensors.items())
        assert tensors.keys() == checkpoint.ours.keys()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "huge"], "--scale huge: expected tiny, small, 32khz or a JSON file"),
        ([], "--codec or --scale: expected one of them"),
        (["--scale", "tiny", "--decoder-only"], "--decoder-only: "),
        (["--codec", "nowhere/codec"], "nowhere/codec"),
        (["--scale", "tiny", "--epochs", 2], "--quantize-after 500: the run has 2 updates, none of which"),
        (["--scale", "tiny", "--mel-weight", 0, "--mel-clamp", 0.1], "--mel-clamp 0.1: there is no mel term"),
        (["--scale", "tiny", "--output-dir", DATA / "train" / "run"], "run: is inside --train-data"),
        (["--scale", "tiny", "--val-data", DATA / "train"], "is one of the recordings in --train-data"),
        (["--scale", "tiny", "--backend", "mlx", "--precision", "bfloat16"], "only for --backend torch"),
        (
            ["--scale", "tiny", "--backend", "torch", "--device", "cpu", "--precision", "bfloat16"],
            "transposed convolutions give wrong gradients in bfloat16; use float32, or a GPU",
        ),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, flags, message):
    data = ["--train-data", DATA / "train", "--val-data", DATA / "val", "--output-dir", tmp_path]
    assert message in refusal(train_codec, TrainCodecOptions, [*data, *flags], capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wings": 2}, "unknown key 'wings'"),
        ({"entries": 33}, "entries 33: expected a power of 2"),
        ({"lstm_layers": 0}, "lstm_layers 0: expected at least 1"),
        ({"channels": 2}, "only codecs of one channel"),
        ({"kernel": 4}, "expected odd ones"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, change, message):
    path = tmp_path / "scale.json"
    path.write_text(json.dumps({**SMALL, **change}))
    with pytest.raises(InputError, match=re.escape(message)):
        codec_task.KIND.settings(str(path))
