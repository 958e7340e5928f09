"""How a codec uses its codebooks on a folder of audio.

    python -m snac_port.stats --checkpoint hubertsiuzdak/snac_24khz --input recordings --output stats.json

Writes the numbers, and a picture beside them. The importable function is `snac_port.stats.usage`.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from backends import cli
from backends.atomic import write_atomically, write_text
from backends.data.stream import open_audio
from backends.errors import InputError
from backends.training.report import figure
from backends.training.usage import draw
from snac_port import files
from snac_port.codec import Codec
from snac_port.codefile import SUFFIX, CodeFile
from snac_port.config import SNACConfig
from snac_port.options import CodecOptions

KEYS = {"files", "seconds", "levels"}


@dataclass(frozen=True, kw_only=True)
class StatsOptions(CodecOptions):
    """Count how often each code occurs at each level."""

    input: Path
    """An audio file, a .snac file of codes, or a folder of them."""
    output: Path = Path("stats.json")
    """Where the numbers go (.json); the picture has the same name with .png. Replaces only what it wrote itself."""


@dataclass(frozen=True)
class Usage:
    """One level: of `entries` in the codebook `used` occur in `codes` codes.

    `perplexity` is how many equally likely entries would be as surprising, 2 to the power of `entropy_bits`.
    """

    level: int
    stride: int
    codes: int
    entries: int
    used: int
    entropy_bits: float
    perplexity: float


def main(options: StatsOptions) -> None:
    """Count, print a line per level, write JSON and PNG."""
    if options.output.suffix != ".json":
        raise InputError(f"--output {options.output}: expected a name that ends in .json; the picture goes beside it")
    _check_own(options.output)
    work = files.pairs(options.input, options.output, (*files.AUDIO_SUFFIXES, SUFFIX), None)
    codec = options.codec()
    counts = np.zeros((len(codec.config.vq_strides), codec.config.codebook_size), np.int64)
    durations_s: list[float] = []

    def add(source: Path, _target: Path) -> None:
        levels, duration_s = count_file(codec, source, options.chunk_s)
        counts[...] += levels
        durations_s.append(duration_s)

    files.do_all(work, add, lambda: _write(options.output, counts, durations_s, codec.config))


def _check_own(output: Path) -> None:
    """Raise InputError where the numbers or their picture would replace what this command has not written."""
    picture = output.with_suffix(".png")
    if output.exists() and not _is_statistics(output):
        raise InputError(f"--output {output}: is there and holds something else than these numbers; give another name")
    if picture.exists() and not output.exists():
        raise InputError(f"--output {output}: its picture would replace {picture}; give another name")


def _is_statistics(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == KEYS


def _write(output: Path, counts: np.ndarray, durations_s: list[float], config: SNACConfig) -> None:
    found, seconds = usage(counts, config), sum(durations_s)
    for level in found:
        print(
            f"level {level.level} (stride {level.stride}): {level.used} of {level.entries} entries used in "
            f"{level.codes} codes, perplexity {level.perplexity:.1f}"
        )
    content = {"files": len(durations_s), "seconds": round(seconds, 3), "levels": [asdict(level) for level in found]}
    write_text(output, json.dumps(content, indent=1))
    picture = output.with_suffix(".png")
    write_atomically(picture, lambda staging: _draw(staging, counts))
    print(f"{output}, {picture}: {len(durations_s)} file(s), {seconds:.1f} s")


def count_file(codec: Codec, path: Path, chunk_s: float | None = None) -> tuple[np.ndarray, float]:
    """How often each entry occurs in a file, (levels, entries), and its seconds."""
    if path.suffix.lower() == SUFFIX:
        file = CodeFile(path)
        file.check(codec)
        pieces: Iterable = file.pieces(codec.config)
        seconds = file.header.length / codec.config.sampling_rate
    else:
        source = open_audio(path)
        pieces = codec.encode_stream(source.blocks(codec.config.sampling_rate), chunk_s=chunk_s)
        seconds = source.duration_s
    counts = np.zeros((len(codec.config.vq_strides), codec.config.codebook_size), np.int64)
    for levels in pieces:
        for row, level in zip(counts, levels, strict=True):
            row += np.bincount(level, minlength=row.size)
    return counts, seconds


def usage(counts: np.ndarray, config: SNACConfig) -> list[Usage]:
    """What counts (levels, entries) say about each level."""
    return [
        _usage(level, stride, row) for level, (stride, row) in enumerate(zip(config.vq_strides, counts, strict=True))
    ]


def _usage(level: int, stride: int, counts: np.ndarray) -> Usage:
    shares = counts[counts > 0] / max(1, counts.sum())
    entropy = float(-(shares * np.log2(shares)).sum()) if shares.size else 0.0
    return Usage(level, stride, int(counts.sum()), counts.size, shares.size, entropy, 2**entropy)


def _draw(path: Path, counts: np.ndarray) -> None:
    drawing = figure(8, 4)
    draw(drawing.add_subplot(), counts)
    drawing.savefig(path, format="png")


if __name__ == "__main__":
    cli.run(main, StatsOptions)
