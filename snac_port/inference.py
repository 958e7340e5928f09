"""Pass audio through the codec and say how close the result is.

    python -m snac_port.inference --checkpoint hubertsiuzdak/snac_24khz --input audio.wav --output reconstructed.wav
    python -m snac_port.inference --checkpoint checkpoints/run/best_model.pt --input recordings --output reconstructed

The importable function is `snac_port.files.reconstruct_file`.
"""

from dataclasses import dataclass
from pathlib import Path

from backends import cli
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
    """Reconstruct every file, one line each."""
    work = files.pairs(options.input, options.output, files.AUDIO_SUFFIXES, ".wav")
    codec = options.codec()

    def reconstruct(source: Path, target: Path) -> None:
        noise, seed, chunk_s = options.noise_source(), options.seed, options.chunk_s
        report = files.reconstruct_file(codec, source, target, noise=noise, seed=seed, chunk_s=chunk_s)
        print(_line(report, codec), flush=True)

    files.each(work, reconstruct)


def _line(report: files.Report, codec: Codec) -> str:
    found = report.comparison
    assert found is not None
    heard = f" ({report.changes})" if report.changes else ""
    return (
        f"{report.source}{heard} -> {report.target}: {report.duration_s:.2f} s, SI-SDR {found.si_sdr_db:.2f} dB, "
        f"mel distance {found.mel_distance:.3f}, STFT distance {found.stft_distance:.3f}, "
        f"{codec.config.bits_per_second / 1000:.2f} kbit/s, real-time factor {report.real_time_factor:.3f}"
    )


if __name__ == "__main__":
    cli.run(main, InferenceOptions)
