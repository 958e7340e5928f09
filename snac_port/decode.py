"""Codes to audio.

    python -m snac_port.decode --checkpoint hubertsiuzdak/snac_24khz --input codes.snac --output audio.wav
    python -m snac_port.decode --checkpoint hubertsiuzdak/snac_24khz --input tokens.txt --output audio.wav

Reads what `snac_port.encode` writes; a .txt of tokens may come from a language model. The importable functions are
`snac_port.files.decode_file` and `Codec.decode`.
"""

from dataclasses import dataclass
from pathlib import Path

from backends import cli
from backends.data.stream import checked_target, write_stream
from backends.errors import InputError
from snac_port import files
from snac_port.codec import Codec
from snac_port.codes import Codes
from snac_port.config import SNACConfig
from snac_port.options import DecoderOptions
from snac_port.tokens import check_first, unflatten

TOKENS = ".txt"
DIGITS = 18  # of a token: more than any has, and int64 holds them


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(DecoderOptions):
    """Decode files of codes or tokens."""

    input: Path
    """A .snac or .txt file, or a folder of them."""
    output: Path
    """The file to write (.wav, .flac, .ogg or .mp3), or the folder, where every file becomes a .wav."""
    first_token: int = 0
    """What was added to every token of a .txt; 128266 reads Orpheus' ids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_first(self.first_token, "--first-token")


def main(options: DecodeOptions) -> None:
    """Decode every file, one line each."""
    work = files.pairs(options.input, options.output, (*files.CODE_SUFFIXES, TOKENS), ".wav")
    codec = options.codec()

    def decode(source: Path, target: Path) -> None:
        if source.suffix.lower() == TOKENS:
            print(f"{source} -> {target}: {decode_tokens(codec, source, target, options):.2f} s", flush=True)
            return
        if options.first_token:
            raise InputError(f"--first-token {options.first_token}: {source} holds codes, expected a {TOKENS} file")
        noise, seed, chunk_s = options.noise_source(), options.seed, options.chunk_s
        report = files.decode_file(codec, source, target, noise=noise, seed=seed, chunk_s=chunk_s)
        said = f"{report.duration_s:.2f} s, real-time factor {report.real_time_factor:.3f}"
        print(f"{source} -> {target}: {said}", flush=True)

    files.do_all(work, decode)


def decode_tokens(codec: Codec, source: Path, target: Path, options: DecodeOptions) -> float:
    """Decode a text file of tokens; returns the seconds it stands for."""
    codes = read_tokens(source, codec.config, options.first_token)
    noise, chunk_s = options.noise_source(), options.chunk_s
    audio = codec.decode_stream([codes.levels], noise=noise, seed=options.seed, chunk_s=chunk_s)
    write_stream(checked_target(target), audio, codec.config.sampling_rate)
    return codes.duration_s


def read_tokens(path: Path, config: SNACConfig, first: int) -> Codes:
    """The codes in a text file of tokens, split by white space. Raises InputError that names the file and the token."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    bad = next((word for word in words if not _is_number(word)), None)
    if bad is not None:
        shown = repr(bad) if len(bad) <= 20 else f"{bad[:20]!r}..., which has {len(bad)} characters,"
        raise InputError(f"{path}: {shown} is no token; expected whole numbers")
    try:
        return unflatten([int(word) for word in words], config, first=first)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _is_number(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isdecimal() and len(digits) <= DIGITS


if __name__ == "__main__":
    cli.run(main, DecodeOptions)
