"""SI-SDR, STFT and mel distance of streams against their definitions in PyTorch."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from backends.data.mel import DAC_SCALES, mel_filters
from backends.data.metrics import SCALES, Comparison, compare


def pair(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A sound with silence in it, and what a codec may make of it."""
    rng = np.random.default_rng(seed)
    x = 0.3 * np.sin(np.arange(samples) * 0.05) + 0.05 * rng.standard_normal(samples)
    x[samples // 3 : samples // 2] = 0
    y = 0.8 * x + 0.02 * rng.standard_normal(samples) + 0.01
    y[samples // 3 : samples // 2] *= 1e-4
    return x.astype(np.float32), y.astype(np.float32)


def magnitudes(x: np.ndarray, window: int) -> torch.Tensor:
    """(bins, frames): torch.stft as audiotools calls it."""
    hann = torch.hann_window(window)
    found = torch.stft(torch.from_numpy(x), window, window // 4, window=hann, pad_mode="reflect", return_complex=True)
    return found.abs()


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    logs = [value.clamp(min=1e-5).pow(2).log10() for value in (x, y)]
    return float((logs[0] - logs[1]).abs().mean() + (x - y).abs().mean())


def expected(x: np.ndarray, y: np.ndarray, rate_hz: int) -> tuple[float, float]:
    stft = mel = 0.0
    for window, bands in SCALES:
        a, b = magnitudes(x, window), magnitudes(y, window)
        filters = torch.from_numpy(_filters(rate_hz, window, bands)).float().T
        stft, mel = stft + distance(a, b), mel + distance(filters @ a, filters @ b)
    return stft, mel


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def _filters(rate_hz: int, window: int, bands: int) -> np.ndarray:
    return mel_filter_bank(window // 2 + 1, bands, 0.0, rate_hz / 2, rate_hz, norm="slaney", mel_scale="slaney")


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 44_100])
@pytest.mark.parametrize(("window", "bands"), [*SCALES, *DAC_SCALES])
def test_mel_filters_are_librosas(rate_hz, window, bands):
    """transformers has librosa's filters too."""
    np.testing.assert_allclose(mel_filters(rate_hz, window, bands), _filters(rate_hz, window, bands), atol=1e-7)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("samples", [2000, 2049, 24_000, 50_001])
def test_distances_are_audiotools(samples):
    x, y = pair(samples)
    found = compare(x, y, 24_000)
    stft, mel = expected(x, y, 24_000)
    assert found.stft_distance == pytest.approx(stft, rel=1e-4)
    assert found.mel_distance == pytest.approx(mel, rel=1e-4)


def test_si_sdr_is_its_definition():
    x, y = (part.astype(np.float64) for part in pair(30_000))
    x, y = x - x.mean(), y - y.mean()
    target = (x @ y) / (x @ x) * x
    expected_db = 10 * np.log10((target @ target) / ((y - target) @ (y - target)))
    assert compare(*pair(30_000), 24_000).si_sdr_db == pytest.approx(expected_db, abs=1e-4)


def test_si_sdr_ignores_scale_and_offset():
    x, y = pair(30_000)
    assert compare(x, 0.5 * y + 0.1, 24_000).si_sdr_db == pytest.approx(compare(x, y, 24_000).si_sdr_db, abs=1e-3)


def test_streams_equal_the_whole():
    """Pieces of any lengths, one signal ahead of the other."""
    x, y = pair(50_001)
    whole = compare(x, y, 24_000)
    streamed = Comparison(24_000)
    edges = np.sort(np.random.default_rng(1).integers(0, 50_001, 40))
    for piece in np.split(x, edges[::3]):
        streamed.add(reference=piece)
    for piece in np.split(y, edges):
        streamed.add(estimate=piece)
    for name in ("si_sdr_db", "stft_distance", "mel_distance"):
        assert getattr(streamed, name) == pytest.approx(getattr(whole, name), rel=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 100, 300, 1024, 1025])
def test_short_signals_have_distances(samples):
    """Where PyTorch's reflection would refuse them."""
    x, y = pair(2000)
    found = compare(x[:samples], y[:samples], 24_000)
    assert np.isfinite([found.stft_distance, found.mel_distance]).all()
    assert found.stft_distance > 0


def test_equal_signals_have_none():
    x, _ = pair(10_000)
    found = compare(x, x, 24_000)
    assert (found.stft_distance, found.mel_distance) == (0, 0)
    assert found.si_sdr_db > 80


def test_silence_is_no_error():
    """Of either signal, and of both."""
    x, _ = pair(10_000)
    for a, b in ((x, 0 * x), (0 * x, x), (0 * x, 0 * x)):
        found = compare(a, b, 24_000)
        assert np.isfinite([found.si_sdr_db, found.stft_distance, found.mel_distance]).all()


def test_memory_does_not_grow():
    """What waits for later frames stays below a window and a hop, however much has passed."""
    comparison = Comparison(24_000)
    x, y = pair(24_000)
    for _ in range(8):
        comparison.add(x, y)
        assert all(scale.kept.shape[1] < 2 * scale.window + 300 for scale in comparison._scales)
