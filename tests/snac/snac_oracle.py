"""The `snac` package with random weights: small codecs of the published structure and odd ones, noise injected."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from backends.layouts import snac as layouts
from backends.layouts.checkpoint import Checkpoint, read
from snac_port import SNACConfig, snac_24khz, snac_32khz, snac_44khz, torch_model
from snac_port.model import SNAC
from snac_port.torch_model import snac  # imported there without its warning

_SPEECH = replace(snac_24khz(), encoder_dim=6, decoder_dim=48, codebook_size=256)
_MUSIC = {"encoder_dim": 4, "decoder_dim": 64, "codebook_size": 128}
FULL = {"24khz": snac_24khz(), "32khz": snac_32khz(), "44khz": snac_44khz()}
NARROW = {
    "24khz": _SPEECH,
    "32khz": replace(snac_32khz(), **_MUSIC),
    "44khz": replace(snac_44khz(), **_MUSIC),
}
ODD = {
    "dense": replace(_SPEECH, depthwise=False, encoder_dim=3, decoder_dim=32, codebook_dim=5, codebook_size=77),
    "no noise blocks": replace(_SPEECH, noise=False, vq_strides=(2, 2, 1)),
    "odd strides": replace(_SPEECH, encoder_rates=(3, 3, 7), decoder_rates=(7, 3, 3), vq_strides=(6, 3, 1)),
    "upstream's defaults": SNACConfig(
        sampling_rate=44_100,
        encoder_rates=(3, 3, 7, 7),
        decoder_rates=(7, 7, 3, 3),
        attn_window_size=32,
        vq_strides=(8, 4, 2, 1),
        **_MUSIC,
    ),
    "window beside the codes": replace(
        _SPEECH,
        encoder_dim=8,
        encoder_rates=(5, 2, 2),
        decoder_dim=64,
        decoder_rates=(2, 2, 5),
        attn_window_size=6,
        vq_strides=(4, 2),
    ),
    "dense, attention, no noise, one level": replace(
        _SPEECH,
        encoder_dim=16,
        encoder_rates=(2, 3),
        decoder_dim=64,
        decoder_rates=(3, 2),
        attn_window_size=4,
        vq_strides=(1,),
        noise=False,
        depthwise=False,
    ),
}
SMALL = {**NARROW, **ODD}


def upstream(config: SNACConfig, seed: int = 0) -> "snac.SNAC":
    """Upstream's module with weights at which every layer counts: alphas, gains and biases all different."""
    torch.manual_seed(seed)
    model = snac.SNAC(**config.settings()).eval()
    generator = torch.Generator().manual_seed(seed)

    def spread(value: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.exp(0.3 * torch.randn(value.shape, generator=generator))

    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "parametrizations"):
                _randomise_convolution(name, module, spread, generator)
        for name, value in model.named_parameters():
            if name.endswith("alpha"):
                value.copy_(spread(value, 1.2))
            elif name.endswith("norm.weight"):
                value.copy_(spread(value, 1.0))
            elif name.endswith("bias"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def _randomise_convolution(name: str, module, spread, generator: torch.Generator) -> None:
    weight = module.parametrizations.weight
    weight.original1.copy_(torch.randn(weight.original1.shape, generator=generator))
    scale = 0.8
    if isinstance(module, torch.nn.ConvTranspose1d):
        scale = (
            0.8 * (module.stride[0] / 2) ** 0.5
        )  # keeps the size of the signal: see how few inputs meet in an output
    elif module.kernel_size == (1,) and ".block." in name and "linear" not in name:
        scale = 0.3  # the end of a residual unit
    elif "linear" in name or "model" in name and module.out_channels == 1:
        scale = 0.2  # noise, and what goes into the tanh
    weight.original0.copy_(spread(weight.original0, scale))


def checkpoint(model: "snac.SNAC", config: SNACConfig) -> Checkpoint:
    """Its weights as we read them."""
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return read(layouts.FAMILY, tensors, config.settings(), "upstream")


def twins(model: "snac.SNAC", config: SNACConfig) -> dict[str, SNAC | torch_model.SNAC]:
    """Ours on both backends, with its weights."""
    weights = checkpoint(model, config)
    return {"mlx": SNAC.of_checkpoint(weights), "torch": torch_model.SNAC.of_checkpoint(weights)}


def save(model: "snac.SNAC", config: SNACConfig, folder: Path) -> Path:
    """As its repositories on the Hub are: config.json and pytorch_model.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.settings()))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@contextmanager
def injected(noise: Sequence[np.ndarray]) -> Iterator[None]:
    """Upstream's noise blocks, in the order in which they run, take these arrays (B or 1, T)."""
    waiting = iter(noise)

    def given(shape, **options) -> torch.Tensor:
        values = torch.from_numpy(np.asarray(next(waiting), np.float32))[:, None]
        assert values.shape[-1] == shape[-1]
        return values.to(**options).expand(shape)

    with mock.patch("torch.randn", given):
        yield
    assert next(waiting, None) is None, "there are fewer blocks than arrays"


def sound(config: SNACConfig, samples: int, seed: int = 0, batch: int | None = None) -> np.ndarray:
    """Tones over noise, (samples,) or (batch, samples)."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / config.sampling_rate
    rows = [
        0.2 * np.sin(2 * np.pi * rng.uniform(80, 800) * t) * (1 + np.sin(2 * np.pi * 3 * t))
        + 0.1 * rng.standard_normal(samples)
        for _ in range(batch or 1)
    ]
    return np.stack(rows).astype(np.float32) if batch else rows[0].astype(np.float32)
