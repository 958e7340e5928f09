"""Pass audio through the codec and say how close the result is.

    python -m snac_port.inference --checkpoint hubertsiuzdak/snac_24khz --input audio.wav --output reconstructed.wav
    python -m snac_port.inference --checkpoint checkpoints/run/best_model.pt --input recordings --output reconstructed

The importable function is `snac_port.files.reconstruct_file`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends import cli
from backends.data.segments import check_outside
from snac_port import files
from snac_port.codec import Codec
from snac_port.options import DecoderOptions


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(DecoderOptions):
    """Encode audio and decode it again; prints SI-SDR, mel and STFT distance, bitrate and real-time factor."""

    input: Path
    """An audio file, or a folder of them."""
    output: Path
    """The file to write (.wav, .flac, .ogg or .mp3), or the folder, where every file becomes a .wav."""


def main(options: InferenceOptions) -> None:
    """Reconstruct every file, one line each, and the mean of several."""
    if options.input.is_dir():
        check_outside(options.output, {"--input": options.input}, "--output", "what is written")
    work = files.pairs(options.input, options.output, files.AUDIO_SUFFIXES, ".wav")
    codec, qualities = options.codec(), []

    def reconstruct(source: Path, target: Path) -> None:
        noise, seed, chunk_s = options.noise_source(), options.seed, options.chunk_s
        report = files.reconstruct_file(codec, source, target, noise=noise, seed=seed, chunk_s=chunk_s)
        qualities.append(_quality(report))
        print(_line(report, codec), flush=True)

    def mean() -> None:
        if len(qualities) > 1:
            print(f"mean of {len(qualities)} files: {_said(np.mean(qualities, axis=0))}")

    files.do_all(work, reconstruct, mean)


def _line(report: files.Report, codec: Codec) -> str:
    heard = f" ({report.changes})" if report.changes else ""
    return (
        f"{report.source}{heard} -> {report.target}: {report.duration_s:.2f} s, {_said(_quality(report))}, "
        f"{codec.config.bits_per_second / 1000:.2f} kbit/s, real-time factor {report.real_time_factor:.3f}"
    )


def _quality(report: files.Report) -> tuple[float, float, float]:
    found = report.comparison
    assert found is not None
    return found.si_sdr_db, found.mel_distance, found.stft_distance


def _said(quality: Sequence[float]) -> str:
    si_sdr_db, mel, stft = quality
    return f"SI-SDR {si_sdr_db:.2f} dB, mel distance {mel:.3f}, STFT distance {stft:.3f}"


if __name__ == "__main__":
    cli.run(main, InferenceOptions)
