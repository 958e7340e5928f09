"""Spectral distances: both backends against each other, torch.stft, librosa's filters and DAC's definitions."""

import importlib

import numpy as np
import pytest
import torch
from gradients import assert_gradients_equal
from transformers.audio_utils import mel_filter_bank

from backends.base import OptimSpec
from backends.data.mel import DAC_SCALES, mel_filters
from backends.errors import InputError
from backends.seeds import rng
from backends.training.counts import mel_count, stft_count

RATE = 24000


def stft(side):
    return importlib.import_module(f"backends.{side.name}_backend.stft")


def audio(seed=0, shape=(3, 5000)):
    """Tones in noise, with a silent stretch in the first item."""
    draw = rng(seed, 501)
    x = 0.3 * np.sin(np.arange(shape[1]) * draw.uniform(0.01, 0.5, (shape[0], 1))) + 0.05 * draw.standard_normal(shape)
    x[0, 1000:4000] = 0
    return x.astype(np.float32)


def native(side, array):
    return side.backend.from_host({"x": array})["x"]


def host(side, array):
    return side.backend.to_host({"x": array})["x"]


def value_and_gradient(side, function, x):
    """A native scalar function of one array: its value and gradient."""
    if side.name == "torch":
        x = torch.tensor(x, requires_grad=True)
        value = function(x)
        value.backward()
        return value.item(), x.grad.numpy()
    import mlx.core as mx

    value, gradient = mx.value_and_grad(function)(mx.array(x))
    return value.item(), np.array(gradient)


def torch_stft(x, n_fft, **options):
    """torch.stft as the seed calls it; its own warning is that it has no window."""
    with torch.no_grad():
        window = options.pop("window", torch.ones(n_fft))
        return torch.stft(x, n_fft, window=window, return_complex=True, **options).abs().transpose(1, 2).numpy()


@pytest.mark.parametrize("n_fft", [1024, 2048, 4096, 30])
def test_magnitudes_are_those_of_torch_stft(side, n_fft):
    x = audio()
    found = host(side, stft(side).magnitudes(native(side, x), n_fft))
    expected = torch_stft(torch.tensor(x), n_fft)
    assert found.shape == expected.shape
    assert 3 * stft_count(5000, n_fft) == expected.size
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_plain_call_is_rectangular():
    """What the seed's `torch.stft(x, n_fft)` means, from PyTorch itself."""
    x = torch.tensor(audio())
    with pytest.warns(UserWarning, match="window was not provided"):
        plain = torch.stft(x, 1024, return_complex=True).abs().transpose(1, 2).numpy()
    np.testing.assert_array_equal(plain, torch_stft(x, 1024))


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (512, 120), (64, 64), (48, 50), (31, 7)])
def test_hann_windows_and_any_hop(side, n_fft, hop):
    x = audio()
    found = host(side, stft(side).magnitudes(native(side, x), n_fft, hop=hop, window="hann"))
    expected = torch_stft(torch.tensor(x), n_fft, hop_length=hop, window=torch.hann_window(n_fft))
    assert found.shape == expected.shape
    assert 3 * stft_count(5000, n_fft, hop) == expected.size
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def terms(side):
    module = stft(side)
    return {
        "stft": lambda x, y: module.stft_term(x, y, 1024),
        "hann": lambda x, y: module.stft_term(x, y, 512, window="hann"),
        "log": lambda x, y: module.log_stft_term(x, y, 512, clamp=1e-3),
        "mel": lambda x, y: module.mel_term(x, y, 512, 80, RATE),
        "small mel": lambda x, y: module.mel_term(x, y, 32, 5, RATE, clamp=1e-4),
        "l1": module.l1_term,
    }


@pytest.mark.parametrize("name", ["stft", "hann", "log", "mel", "small mel", "l1"])
def test_terms_and_their_gradients_agree(name, sides):
    x, y = audio(1), audio(2)
    y[1] = x[1]  # equal signals: distance and gradient are zero
    values, gradients = [], []
    for side in sides:
        value, gradient = value_and_gradient(side, lambda x, side=side: terms(side)[name](x, native(side, y)), x)
        values.append(value)
        gradients.append(gradient)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert np.isfinite(gradients[0]).all()
    assert (gradients[0][1] == 0).all()
    assert_gradients_equal({"x": gradients[0]}, {"x": gradients[1]})


def test_the_seeds_loss(side):
    """l1 + mean over n_ffts of the mean magnitude distance, from sums and the host's counts."""
    module, (x, y), n_ffts = stft(side), (audio(1), audio(2)), (1024, 2048, 4096)
    sums = [module.stft_term(native(side, x), native(side, y), n_fft) for n_fft in n_ffts]
    means = [host(side, value) / (3 * stft_count(5000, n_fft)) for value, n_fft in zip(sums, n_ffts, strict=True)]
    spectra = [[torch_stft(torch.tensor(signal), n_fft) for signal in (x, y)] for n_fft in n_ffts]
    assert np.mean(means) == pytest.approx(np.mean([np.abs(a - b).mean() for a, b in spectra]), rel=1e-5)
    l1 = host(side, module.l1_term(native(side, x), native(side, y)))
    assert l1 / x.size == pytest.approx(np.abs(x - y).mean(), rel=1e-5)


def test_digital_silence_has_finite_gradients(side):
    """Zero magnitudes: the gradient of each term is zero or finite, never NaN."""
    silent, y = np.zeros((1, 4000), np.float32), audio(2, (1, 4000))
    for name, term in terms(side).items():
        for other in (silent, y):
            _, gradient = value_and_gradient(
                side, lambda x, term=term, other=other: term(x, native(side, other)), silent
            )
            assert np.isfinite(gradient).all(), name
    _, gradient = value_and_gradient(side, lambda x: stft(side).magnitudes(x, 512).sum(), silent)
    assert (gradient == 0).all()


@pytest.mark.parametrize(("rate_hz", "window", "bands"), [(24000, 2048, 320), (44100, 512, 80), (8000, 32, 5)])
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_mel_filters_are_librosas(rate_hz, window, bands):
    expected = mel_filter_bank(window // 2 + 1, bands, 0.0, rate_hz / 2, rate_hz, norm="slaney", mel_scale="slaney")
    assert np.abs(mel_filters(rate_hz, window, bands) - expected).max() <= 1e-6 * expected.max()


def test_mel_loss_is_dacs(side):
    """Over all seven scales with DAC's clamp, against NumPy on torch's magnitudes."""
    x, y = audio(1), audio(2)
    found = expected = 0.0
    for window, bands in DAC_SCALES:
        term = stft(side).mel_term(native(side, x), native(side, y), window, bands, RATE, clamp=1e-5)
        found += host(side, term) / (3 * mel_count(5000, window, bands))
        options = {"hop_length": window // 4, "window": torch.hann_window(window)}
        logs = [
            np.log10(
                np.maximum(torch_stft(torch.tensor(s), window, **options) @ mel_filters(RATE, window, bands), 1e-5)
            )
            for s in (x, y)
        ]
        expected += np.abs(logs[0] - logs[1]).mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_loud_tone_weighs_more_than_what_is_left_of_silence(side):
    """Why the clamp is 1e-2: noise at -80 dB in place of silence against a tone at a tenth of its level."""
    time = np.arange(8000)
    tone, silence = 0.3 * np.sin(0.2 * time)[None].astype(np.float32), np.zeros((1, 8000), np.float32)
    noise = (1e-4 * rng(1, 502).standard_normal((1, 8000))).astype(np.float32)

    def distance(a, b, clamp):
        return float(host(side, stft(side).mel_term(native(side, a), native(side, b), 512, 80, RATE, clamp=clamp)))

    assert distance(noise, silence, 1e-5) > 0.3 * distance(0.1 * tone, tone, 1e-5)
    assert distance(noise, silence, 1e-2) < 1e-3 * distance(0.1 * tone, tone, 1e-2)


def test_a_segment_shorter_than_its_window_is_an_error(side):
    with pytest.raises(InputError, match="a segment of 512 samples is too short .* more than 512 samples"):
        stft(side).magnitudes(native(side, audio(0, (1, 512))), 1024)
    assert stft(side).magnitudes(native(side, audio(0, (1, 513))), 1024).shape == (1, 3, 513)


def test_terms_stay_float32_in_a_bfloat16_step(sides):
    """Under autocast the model's output is bfloat16; spectra and mel bands are not."""
    side = sides[1]
    model, seen = torch.nn.Linear(2000, 2000, bias=False), {}

    def losses(model, batch):
        y = model(batch["x"])
        seen["output"] = y.dtype
        module = stft(side)
        found = {"stft": module.stft_term(y, batch["x"], 512), "mel": module.mel_term(y, batch["x"], 512, 40, RATE)}
        seen.update({name: value.dtype for name, value in found.items()})
        filters = torch.tensor(mel_filters(RATE, 512, 40))
        with torch.autocast("cpu", enabled=False):
            exact = [module.magnitudes(signal, 512, window="hann") @ filters for signal in (y, batch["x"])]
        seen["error"] = (
            found["mel"] - (exact[0].clamp(min=1e-2) / exact[1].clamp(min=1e-2)).log10().abs().sum()
        ).item()
        seen["size"] = found["mel"].item()
        return found

    step = side.backend.train_step(model, losses, OptimSpec("sgd"), precision="bfloat16")
    step([{"x": audio(0, (2, 2000))}], {"stft": 1.0, "mel": 1.0}, 0.0)
    assert (seen["output"], seen["stft"], seen["mel"]) == (torch.bfloat16, torch.float32, torch.float32)
    assert abs(seen["error"]) <= 1e-4 * seen["size"]
