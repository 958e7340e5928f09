"""What SNAC trains on.

    loss = l1_weight * mean |x - y|
         + stft_weight * mean over n_ffts of mean | |STFT x| - |STFT y| |
         + mel_weight * sum over DAC's seven windows of mean |log10 mel x - log10 mel y|
         + commitment_weight * commitment + codebook_weight * codebook

The STFT has torch.stft's defaults, as in the seed. The last line is there where encoder or quantiser train; its terms
are those of the snac package before version 1.2 (`snac_port.quantizer.Quantized`).
"""

from dataclasses import dataclass

from backends.base import Window
from backends.training.codec_loss import distance_coefficients, distance_counts
from snac_port.config import SNACConfig
from snac_port.finetune_options import FinetuneOptions


@dataclass(frozen=True)
class LossSpec:
    """The loss's weights, and what its native side needs to know of the codec."""

    l1_weight: float
    stft_weight: float
    n_ffts: tuple[int, ...]
    stft_window: Window
    mel_weight: float
    quantiser_weights: dict[str, float]  # of "commitment" and "codebook", where they take part
    rate_hz: int
    unit_samples: int
    levels: int
    noise_blocks: int

    @property
    def quantiser_terms(self) -> tuple[str, ...]:
        return tuple(self.quantiser_weights)

    @property
    def coefficients(self) -> dict[str, float]:
        """What each term's mean counts for."""
        return {**distance_coefficients(self), **self.quantiser_weights}

    def counts(self, B: int, samples: int) -> dict[str, float]:
        """How many values each term sums over, for B segments of so many samples."""
        return {**distance_counts(self, B, samples), **dict.fromkeys(self.quantiser_weights, float(B))}


def spec(options: FinetuneOptions, config: SNACConfig) -> LossSpec:
    """The loss that these options ask for."""
    quantiser = {} if options.decoder_only else {"commitment": options.commitment_weight}
    if not options.freeze_vq:
        quantiser["codebook"] = options.codebook_weight
    return LossSpec(
        l1_weight=options.l1_weight,
        stft_weight=options.stft_weight,
        n_ffts=tuple(options.n_ffts),
        stft_window=options.stft_window,
        mel_weight=options.mel_weight,
        quantiser_weights=quantiser,
        rate_hz=config.sampling_rate,
        unit_samples=config.unit_samples,
        levels=len(config.vq_strides),
        noise_blocks=len(config.decoder_rates) if config.noise else 0,
    )
