"""The EnCodec codec: 32 kHz audio to 50 frames of codes per second and back (arXiv:2210.13438).

Audio is (B, samples), or (B, samples, 2) for a stereo codec; codes are (B, K, T); names follow transformers' files.
Convolutions are centred, so they stream with a few frames of context on either side; the LSTMs carry their state. What
`backends.training.rvq_codec` trains through are `latents`, `quantize` and `synthesise`.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.lstm import State
from backends.mlx_backend.rvq import ResidualQuantizer
from backends.mlx_backend.seanet import (
    CentredConv1d,
    CentredConvTranspose1d,
    SEANetDecoder,
    SEANetEncoder,
    through,
)
from backends.mlx_backend.tiling import by_item
from musicgen_mlx.config import EncodecConfig
from musicgen_mlx.growing import Growing

CHUNK_S = 10  # longer audio goes through the convolutions in pieces of this length, so that memory stays bounded


class Encodec(nn.Module):
    """Encoder, residual quantiser and decoder; random weights until some are loaded."""

    def __init__(self, config: EncodecConfig):
        super().__init__()
        self.config = config
        seanet = {
            "ratios": config.ratios,
            "filters": config.filters,
            "width": config.width,
            "kernel": config.kernel,
            "last_kernel": config.last_kernel,
            "residual_kernel": config.residual_kernel,
            "residual_layers": config.residual_layers,
            "dilation_growth": config.dilation_growth,
            "compress": config.compress,
            "channels": config.channels,
            "lstm_layers": config.lstm_layers,
            "convolution": partial(CentredConv1d, pad=config.pad),
        }
        self.encoder = SEANetEncoder(**seanet)
        self.quantizer = ResidualQuantizer(config.codebooks, config.entries, config.width)
        self.decoder = SEANetDecoder(**seanet, transposed=CentredConvTranspose1d)

    def encode(self, audio: mx.array, codebooks: int | None = None) -> mx.array:
        """Audio -> codes (B, K, frames) of the first `codebooks`; the last frame is completed as upstream does."""
        return self.quantizer.encode(self.latents(audio), codebooks)

    def decode(self, codes: mx.array) -> mx.array:
        """Codes (B, K, T) -> audio of T frame_samples. Fewer than all codebooks may be given."""
        return self.synthesise(self.quantizer.decode(codes))

    def latents(self, audio: mx.array) -> mx.array:
        """Audio -> latents (B, frames, D)."""
        x = audio if audio.ndim == 3 else audio[..., None]
        front, back = self._encoder_parts()
        if self.training:
            return through([*front, *back], x)
        hop, T = self.config.frame_samples, -(-x.shape[1] // self.config.frame_samples)

        def latents(x: mx.array) -> mx.array:
            return self._in_pieces(lambda a, b: through(front, x[:, a * hop : b * hop]), T, self.config.encoder_halo)

        return through(back, by_item(latents, x))

    def synthesise(self, latents: mx.array) -> mx.array:
        """Latents (B, T, D) -> audio."""
        front, back = self._decoder_parts()
        x = through(front, latents)
        if self.training:
            return self._audio(through(back, x))
        halo, hop = self.config.decoder_halo, self.config.frame_samples

        def audio(x: mx.array) -> mx.array:
            return self._in_pieces(lambda a, b: through(back, x[:, a:b]), x.shape[1], halo, rate=hop)

        return self._audio(by_item(audio, x))

    def quantize(
        self,
        latents: mx.array,
        active: mx.array,
        bypass: mx.array,
        offered: mx.array | None = None,
        priority: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """`ResidualQuantizer.quantize` for latents (B, T, D) with the first `active` (B,) of all K codebooks."""
        return self.quantizer.quantize(latents, active, bypass, offered, priority)

    def quantised(self, latents: mx.array) -> dict[str, mx.array]:
        """What each residual quantiser gets of latents (B, T, D), by its dotted name."""
        return {"quantizer": latents}

    def _in_pieces(self, piece: Callable[[int, int], mx.array], frames: int, halo: int, *, rate: int = 1) -> mx.array:
        """`piece(start, stop)` for all frames, each with `halo` frames of context that are cut off, joined.

        `rate` is the number of outputs per frame. The last piece is never so short that its end, which is completed
        with a mirror of what comes before, would want more of it than the piece has.
        """
        step, least = max(halo + 1, round(CHUNK_S * self.config.frame_hz)), 2 * halo + 2
        parts = []
        for start, stop in pairwise([*range(0, max(1, frames - least), step), frames]):
            before = min(halo, start)
            y = piece(start - before, min(stop + halo, frames))
            parts.append(y[:, before * rate : (before + stop - start) * rate])
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def _encoder_parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """What has a bounded context, and the LSTM with what follows."""
        layers = self.encoder.layers
        cut = len(layers) - 2 - bool(self.config.lstm_layers)
        return layers[:cut], layers[cut:]

    def _decoder_parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """What comes up to the LSTM, and what has a bounded context."""
        cut = 1 + bool(self.config.lstm_layers)
        return self.decoder.layers[:cut], self.decoder.layers[cut:]

    def _audio(self, x: mx.array) -> mx.array:
        return x[..., 0] if self.config.channels == 1 else x


class DecodeStream:
    """Decoding codes as they come: what `push` and `finish` return, joined, is what `Encodec.decode` returns.

    Audio is held back while later codes could change it, for `delay_frames`.
    """

    def __init__(self, codec: Encodec):
        self.codec = codec
        self.first, self.halo = codec.config.kernel // 2, codec.config.decoder_halo
        self.state: State = {}
        self.latents, self.rows = (Growing(partial(mx.concatenate, axis=1)) for _ in range(2))

    @property
    def delay_frames(self) -> int:
        """Frames by which the audio is behind the codes."""
        return self.first + self.halo

    def push(self, codes: mx.array) -> mx.array | None:
        """The next codes (B, K, n) -> audio of the frames that are certain now, None if there are none."""
        self.latents.append(self.codec.quantizer.decode(codes))
        return self._certain(last=False)

    def finish(self) -> mx.array | None:
        """The rest of the audio."""
        return self._certain(last=True)

    def _certain(self, *, last: bool) -> mx.array | None:
        front, back = self.codec._decoder_parts()
        x = self.latents.certain(lambda piece: through(front[:1], piece), self.first, last=last)
        if x is not None:
            for lstm in front[1:]:
                x = lstm(x, self.state, "lstm")
            self.rows.append(x)
        hop = self.codec.config.frame_samples
        y = self.rows.certain(lambda piece: through(back, piece), self.halo, rate=hop, last=last)
        return None if y is None else self.codec._audio(y)
