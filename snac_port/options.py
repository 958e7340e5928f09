"""What every command of this package takes that runs a codec."""

from dataclasses import dataclass
from typing import Literal

from backends import seeds
from backends.errors import InputError
from backends.values import check_number
from snac_port.codec import Codec
from snac_port.load import from_pretrained
from snac_port.noise import Noise


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """Which codec, and where it runs."""

    checkpoint: str
    """A directory, a weights file, a Hub id such as hubertsiuzdak/snac_24khz, or "tiny" (random, to try things out)."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto: MLX where it has a GPU, else PyTorch with CUDA, else MLX."""
    device: str | None = None
    """PyTorch's device, e.g. cuda:0 or cpu."""
    chunk_s: float | None = None
    """Seconds of audio computed at a time; less takes less memory. Default: about 4 at 24 kHz, 9 at 44.1 kHz."""

    def __post_init__(self) -> None:
        if self.chunk_s is not None:
            check_number("--chunk-s", self.chunk_s, what="seconds")

    def codec(self) -> Codec:
        """Load it."""
        return from_pretrained(self.checkpoint, self.backend, self.device)


@dataclass(frozen=True, kw_only=True)
class DecoderOptions(CodecOptions):
    """The same, and the decoder's noise."""

    seed: int = 0
    """The decoder's noise is a function of it; the same seed is the same sound."""
    noise: bool = True
    """--no-noise: leave the decoder's noise out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        seeds.check(self.seed, "--seed")
        if self.seed and not self.noise and not self.draws:
            raise InputError(f"--seed {self.seed}: does nothing with --no-noise; leave one of them out")

    @property
    def draws(self) -> bool:
        """Whether the seed draws anything besides the noise."""
        return False

    def noise_source(self) -> Noise:
        """For `Codec.decode`."""
        return None if self.noise else 0
