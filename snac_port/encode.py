"""Audio to codes.

    python -m snac_port.encode --checkpoint hubertsiuzdak/snac_24khz --input audio.wav --output codes.snac
    python -m snac_port.encode --checkpoint hubertsiuzdak/snac_24khz --input audio.wav --output tokens.txt

A .snac file holds 12 bits per code and says what made it (`snac_port.codefile`); a .txt holds the tokens that language
models use, a frame per line (`snac_port.tokens`). The importable functions are `snac_port.files.encode_file` and
`Codec.encode`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends import cli
from backends.atomic import write_text
from backends.data import audio
from backends.errors import InputError
from snac_port import files
from snac_port.codec import Codec
from snac_port.codefile import SUFFIX
from snac_port.options import CodecOptions
from snac_port.tokens import flatten


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(CodecOptions):
    """Encode audio files of any rate and channels."""

    input: Path
    """An audio file, or a folder of them."""
    output: Path
    """A .snac file of codes, a .txt file of tokens, or a folder of them."""
    format: Literal["snac", "txt"] | None = None
    """Default: by the output's name; .snac in a folder."""
    first_token: int = 0
    """Added to every token of a .txt; 128266 makes Orpheus' ids."""


def main(options: EncodeOptions) -> None:
    """Encode every file, one line each."""
    suffix = f".{options.format}" if options.format else options.output.suffix or SUFFIX
    if suffix not in (SUFFIX, ".txt"):
        raise InputError(f"--output {options.output}: expected a name that ends in {SUFFIX} or .txt, or --format")
    work = files.pairs(options.input, options.output, files.AUDIO_SUFFIXES, suffix)
    codec = options.codec()

    def encode(source: Path, target: Path) -> None:
        if suffix == SUFFIX:
            report = files.encode_file(codec, source, target, chunk_s=options.chunk_s)
            heard = f" ({report.changes})" if report.changes else ""
            size, factor = target.stat().st_size, report.real_time_factor
            said = f"{report.duration_s:.2f} s in {size:,} bytes, real-time factor {factor:.3f}"
            print(f"{source}{heard} -> {target}: {said}", flush=True)
        else:
            print(f"{source} -> {target}: {_write_tokens(codec, source, target, options)} tokens", flush=True)

    files.each(work, encode)


def _write_tokens(codec: Codec, source: Path, target: Path, options: EncodeOptions) -> int:
    codes = codec.encode(audio.read(source, codec.config.sampling_rate), chunk_s=options.chunk_s)
    frames = flatten(codes, codec.config, first=options.first_token)
    write_text(target, "".join(" ".join(map(str, frame)) + "\n" for frame in frames))
    return frames.size


if __name__ == "__main__":
    cli.run(main, EncodeOptions)
