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
from backends.atomic import write_atomically
from backends.data.stream import AudioFile, open_audio
from backends.errors import InputError
from snac_port import files
from snac_port.codec import Codec
from snac_port.codefile import SUFFIX
from snac_port.codes import whole
from snac_port.options import CodecOptions
from snac_port.tokens import check_first, flatten


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_first(self.first_token, "--first-token")


def main(options: EncodeOptions) -> None:
    """Encode every file, one line each."""
    suffix = f".{options.format}" if options.format else options.output.suffix or SUFFIX
    if suffix == SUFFIX and options.first_token:
        raise InputError(f"--first-token {options.first_token}: {SUFFIX} files hold codes, expected --format txt")
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
            audio, target = open_audio(source), files.new_target(target, source)
            changes = audio.changes(codec.config.sampling_rate)
            heard = f" ({changes})" if changes else ""
            count = _write_tokens(codec, audio, target, options)
            print(f"{source}{heard} -> {target}: {audio.duration_s:.2f} s in {count:,} tokens", flush=True)

    files.do_all(work, encode)


def _write_tokens(codec: Codec, source: AudioFile, target: Path, options: EncodeOptions) -> int:
    """Write a frame per line as the audio is read; returns the number of tokens."""
    config, count = codec.config, 0
    pieces = codec.encode_stream(source.blocks(config.sampling_rate), chunk_s=options.chunk_s)

    def save(staging: Path) -> None:
        nonlocal count
        with staging.open("w", encoding="utf-8") as file:
            for levels in pieces:
                frames = flatten(whole(levels, config), config, first=options.first_token)
                file.writelines(" ".join(map(str, frame)) + "\n" for frame in frames)
                count += frames.size

    write_atomically(target, save)
    return count


if __name__ == "__main__":
    cli.run(main, EncodeOptions)
