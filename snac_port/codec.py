"""Encoding and decoding with SNAC, whole, in batches and as streams: the same for both frameworks.

A native model (`snac_port.model`, `snac_port.torch_model`) brings `encode_window` and `decode_window`; here audio is
cut on one fixed grid, each window with the context that makes it exact (`snac_port.grid`). NumPy in, NumPy out.
"""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, overload

import ml_dtypes
import numpy as np

from backends.data.audio import floats
from backends.errors import InputError
from snac_port import codes as layout
from snac_port import grid
from snac_port.codes import Codes
from snac_port.config import SNACConfig
from snac_port.grid import Window
from snac_port.noise import Noise, Source, source


class Codec:
    """What every SNAC can do. `chunk_s` is the length of the pieces that long audio is computed in."""

    config: SNACConfig

    def encode_window(self, audio: np.ndarray) -> list[np.ndarray]:
        """Audio (B, samples) of whole units -> codes of each level, int32 (B, T)."""
        raise NotImplementedError

    def decode_window(self, codes: Sequence[np.ndarray], noise: Sequence[np.ndarray] | None) -> np.ndarray:
        """Codes of each level (B, T), noise of each decoder block (B, T) or None -> audio (B, samples) float32."""
        raise NotImplementedError

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights in our layout, as `snac_port.load.save` writes them."""
        raise NotImplementedError

    def identity(self) -> str:
        """Sixteen hex digits of the quantiser's weights, which say what codes mean.

        The same in any layout and in float32 and bfloat16; a copy in float16 counts as another.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.tensors().items()):
            if name.startswith("quantizer."):
                digest.update(name.encode() + np.ascontiguousarray(value.astype(ml_dtypes.bfloat16)).tobytes())
        return digest.hexdigest()[:16]

    @overload
    def encode(self, audio: list | tuple, *, chunk_s: float | None = None) -> list[Codes]: ...
    @overload
    def encode(self, audio: Any, *, chunk_s: float | None = None) -> Codes: ...
    def encode(self, audio: Any, *, chunk_s: float | None = None) -> Codes | list[Codes]:
        """Mono audio (samples,) at the codec's rate -> `Codes`; a list of such -> a list.

        Samples are floats from -1 to 1, or int16 or int32, which are scaled by their range. Raises InputError for audio
        of another type, empty, not mono, far beyond full scale, or with NaN or infinity.
        """
        if isinstance(audio, (list, tuple)):
            return self._encode([_mono(item) for item in audio], chunk_s)
        return self._encode([_mono(audio)], chunk_s)[0]

    @overload
    def decode(
        self, codes: Sequence[Codes], *, noise: Noise = None, seed: int = 0, chunk_s: float | None = None
    ) -> list[np.ndarray]: ...
    @overload
    def decode(
        self, codes: Codes, *, noise: Noise = None, seed: int = 0, chunk_s: float | None = None
    ) -> np.ndarray: ...
    def decode(
        self, codes: Codes | Sequence[Codes], *, noise: Noise = None, seed: int = 0, chunk_s: float | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """`Codes` -> audio (length,) float32, exactly as long as what was encoded; a list of them -> a list.

        The decoder's noise is a function of `seed`; `noise=0` is none, or an array for each decoder block. Raises
        InputError where the codes are not this codec's.
        """
        if isinstance(codes, Codes):
            return self._decode([codes], source(self.config, noise, seed), chunk_s)[0]
        return self._decode(list(codes), source(self.config, noise, seed), chunk_s)

    def encode_stream(
        self, pieces: Iterable[np.ndarray], *, chunk_s: float | None = None
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Codes of each level, chunk by chunk, of audio that comes in pieces of any length.

        Together they are the levels of `encode` of the whole, to the bit. What is held is a chunk and its context.
        """
        config = self.config
        chunk, context = grid.chunk_units(config, chunk_s), grid.encoder_context(config)
        for window, rows in grid.sliding(_audio_rows(pieces, config), chunk, context):
            yield tuple(level[0] for level in self._encoded([(window, rows)]))

    def decode_stream(
        self,
        pieces: Iterable[Sequence[np.ndarray]],
        *,
        length: int | None = None,
        noise: Noise = None,
        seed: int = 0,
        chunk_s: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Audio, chunk by chunk, of codes per level that come in pieces of any number of coarse frames.

        Together it is `decode` of the whole, to the bit; `length` cuts it. A chunk is there once the codes of the next
        `grid.decoder_context` units are: with chunk_s=0 (one unit) and 24 kHz after 4 x 85 ms.
        """
        config, noise_of = self.config, source(self.config, noise, seed)
        chunk, context = grid.chunk_units(config, chunk_s), grid.decoder_context(config)
        for window, rows in grid.sliding(layout.stream_rows(pieces, config), chunk, context):
            audio = self._decoded([(window, rows)], noise_of)[0]
            if length is not None:
                audio = audio[: max(0, length - window.start * config.unit_samples)]
            yield audio

    def _encode(self, items: list[np.ndarray], chunk_s: float | None) -> list[Codes]:
        config = self.config
        chunk, context = grid.chunk_units(config, chunk_s), grid.encoder_context(config)
        rows, sizes = [_units(item, config) for item in items], layout.unit_sizes(config)
        levels = [tuple(np.empty(len(part) * size, np.int32) for size in sizes) for part in rows]
        for members in _alike(rows, chunk, context):
            found = self._encoded([(window, rows[item][window.low : window.high]) for item, window in members])
            for index, (item, window) in enumerate(members):
                for whole, part, size in zip(levels[item], found, sizes, strict=True):
                    whole[window.start * size : window.stop * size] = part[index]
        return [Codes(own, item.size, config.sampling_rate) for own, item in zip(levels, items, strict=True)]

    def _decode(self, items: list[Codes], noise_of: Source, chunk_s: float | None) -> list[np.ndarray]:
        config = self.config
        for item in items:
            layout.check(item, config)
        chunk, context = grid.chunk_units(config, chunk_s), grid.decoder_context(config)
        rows = [layout.to_rows(item.levels, config) for item in items]
        audio = [np.empty(len(part) * config.unit_samples, np.float32) for part in rows]
        for members in _alike(rows, chunk, context):
            made = self._decoded([(window, rows[item][window.low : window.high]) for item, window in members], noise_of)
            for (item, window), samples in zip(members, made, strict=True):
                audio[item][window.start * config.unit_samples : window.stop * config.unit_samples] = samples
        return [part[: item.length] for part, item in zip(audio, items, strict=True)]

    def _encoded(self, batch: list[tuple[Window, np.ndarray]]) -> list[np.ndarray]:
        """Codes of each level (B, T) of windows of one shape, without their context."""
        window = batch[0][0]
        levels = self.encode_window(np.stack([rows.reshape(-1) for _, rows in batch]))
        sizes = layout.unit_sizes(self.config)
        first, last = window.start - window.low, window.stop - window.low
        return [level[:, first * size : last * size] for level, size in zip(levels, sizes, strict=True)]

    def _decoded(self, batch: list[tuple[Window, np.ndarray]], noise_of: Source) -> np.ndarray:
        """Audio (B, samples) of windows of one shape, without their context."""
        unit, samples = self.config.unit_frames, self.config.unit_samples
        drawn = [noise_of(window.low * unit, window.high * unit) for window, _ in batch]
        noise = None if drawn[0] is None else [np.stack(block) for block in zip(*drawn, strict=True)]  # type: ignore[arg-type]
        audio = self.decode_window(layout.to_levels(np.stack([rows for _, rows in batch]), self.config), noise)
        window = batch[0][0]
        return audio[:, (window.start - window.low) * samples : (window.stop - window.low) * samples]


def _alike(rows: list[np.ndarray], chunk: int, context: int) -> Iterator[list[tuple[int, Window]]]:
    """The windows of all items in batches of one shape, none with more units than a chunk with its context.

    They come in any order: a shape that is rare waits for the end.
    """
    groups: dict[Hashable, list[tuple[int, Window]]] = {}
    for item, part in enumerate(rows):
        for window in grid.windows(len(part), chunk, context):
            shape = (window.start - window.low, window.stop - window.low, window.high - window.low)
            members = groups.setdefault(shape, [])
            members.append((item, window))
            if (len(members) + 1) * shape[2] > chunk + 2 * context:
                yield groups.pop(shape)
    yield from groups.values()


def _mono(audio: Any) -> np.ndarray:
    """Audio as float32 (samples,). Raises InputError."""
    samples = floats(audio, "audio")
    if samples.ndim != 1:
        raise InputError(
            f"audio has shape {samples.shape}, expected mono (samples,): mix channels down, give a batch as a list"
        )
    return samples


def _units(audio: np.ndarray, config: SNACConfig) -> np.ndarray:
    """Audio (samples,) -> rows (units, unit_samples), the last one filled up with silence."""
    return np.pad(audio, (0, -audio.size % config.unit_samples)).reshape(-1, config.unit_samples)


def _audio_rows(pieces: Iterable[np.ndarray], config: SNACConfig) -> Iterator[np.ndarray]:
    """Rows of whole units of a stream of audio, as they fill; the last one filled up with silence."""
    waiting: list[np.ndarray] = []
    for piece in pieces:
        waiting.append(_mono(piece) if np.size(piece) else np.zeros(0, np.float32))
        samples = sum(part.size for part in waiting)
        if samples >= config.unit_samples:
            audio = np.concatenate(waiting)
            whole = samples - samples % config.unit_samples
            yield audio[:whole].reshape(-1, config.unit_samples)
            waiting = [audio[whole:]]
    rest = np.concatenate(waiting) if waiting else np.zeros(0, np.float32)
    if rest.size:
        yield _units(rest, config)
