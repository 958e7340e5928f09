"""Shapes of SNAC, and where they are read from."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from backends.errors import InputError
from backends.layouts import snac_settings


@dataclass(frozen=True)
class SNACConfig:
    """The SNAC codec (arXiv:2410.14411). Names are those of its config.json, defaults are the 24 kHz model."""

    sampling_rate: int = 24_000
    encoder_dim: int = 48
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)
    decoder_dim: int = 1024
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)
    attn_window_size: int | None = None
    codebook_size: int = 4096
    codebook_dim: int = 8
    vq_strides: tuple[int, ...] = (4, 2, 1)
    noise: bool = True
    depthwise: bool = True

    @property
    def name(self) -> str:
        """The published model of these shapes, "" if none is."""
        return next((name for name, settings in snac_settings.PUBLISHED.items() if settings == self.settings()), "")

    @property
    def latent_dim(self) -> int:
        """Channels between encoder and decoder: the encoder's doubles at every rate."""
        return self.encoder_dim * 2 ** len(self.encoder_rates)

    @property
    def hop_samples(self) -> int:
        """Samples per latent frame (512 or 384)."""
        return math.prod(self.encoder_rates)

    @property
    def unit_frames(self) -> int:
        """Latent frames that belong together: a code of the coarsest level, and a whole attention window."""
        return math.lcm(self.vq_strides[0], self.attn_window_size or 1)

    @property
    def unit_samples(self) -> int:
        """Audio is padded to a multiple of so many samples (2048: 85 ms; 12,288: 384 or 279 ms)."""
        return self.unit_frames * self.hop_samples

    @property
    def code_bits(self) -> int:
        """Bits of a code (12)."""
        return max(1, (self.codebook_size - 1).bit_length())

    @property
    def bits_per_second(self) -> float:
        """What the codes of a second take."""
        codes = sum(1 / stride for stride in self.vq_strides)
        return self.code_bits * codes * self.sampling_rate / self.hop_samples

    def frames(self, samples: int) -> int:
        """Latent frames of so many samples, padded."""
        return -(-samples // self.unit_samples) * self.unit_frames

    def settings(self) -> dict[str, Any]:
        """The same as a plain dictionary, which is what `backends.layouts` knows of a model."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def snac_24khz() -> SNACConfig:
    """The published speech codec: 24 kHz, 0.98 kbit/s, 19.8 M parameters."""
    return of_settings(snac_settings.PUBLISHED["snac_24khz"])


def snac_32khz() -> SNACConfig:
    """The published 32 kHz codec: 1.9 kbit/s, 54.5 M parameters."""
    return of_settings(snac_settings.PUBLISHED["snac_32khz"])


def snac_44khz() -> SNACConfig:
    """The published music codec: 44.1 kHz, 2.6 kbit/s, 54.5 M parameters."""
    return of_settings(snac_settings.PUBLISHED["snac_44khz"])


def snac_tiny() -> SNACConfig:
    """A codec of 0.3 M parameters at 8 kHz, for tests, demos and training from nothing on any machine."""
    return SNACConfig(
        sampling_rate=8000,
        encoder_dim=16,
        encoder_rates=(2, 4, 8),
        decoder_dim=128,
        decoder_rates=(8, 4, 2),
        codebook_size=256,
    )


def read_config(content: dict[str, Any], source: str) -> SNACConfig:
    """The configuration in a config.json as published; `source` is its name in errors."""
    settings = snac_settings.read(content, source)
    if settings is None:
        raise InputError(f"{source}: not a SNAC configuration; expected encoder_rates, decoder_rates and vq_strides")
    return of_settings(settings)


def of_settings(settings: dict[str, Any]) -> SNACConfig:
    """The configuration that these settings describe."""
    content: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return SNACConfig(**content)
