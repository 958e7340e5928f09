"""Sound from codes.

    python -m snac_port.generate --checkpoint hubertsiuzdak/snac_24khz --output generated.wav --codes codes.snac
    python -m snac_port.generate --checkpoint hubertsiuzdak/snac_24khz --output generated.wav --seconds 5 --seed 1

The importable function is `snac_port.generate`; its home is `snac_port.generation`. Importing this module puts the
module in the function's place in the package, so the module can be called like the function.
"""

from dataclasses import dataclass
from pathlib import Path

from backends import cli
from backends.data.stream import checked_target, write_stream
from backends.errors import InputError
from snac_port import files
from snac_port.decode import TOKENS, read_tokens
from snac_port.generation import draw_codes, generate
from snac_port.options import DecoderOptions
from snac_port.tokens import check_first


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DecoderOptions):
    """Make sound from a file of codes, or from codes drawn at random."""

    output: Path = Path("generated.wav")
    """The file to write (.wav, .flac, .ogg or .mp3)."""
    codes: Path | None = None
    """A .snac file of codes or a .txt file of tokens; default: codes are drawn, a function of --seed."""
    seconds: float | None = None
    """How much to draw; default: 5."""
    first_token: int = 0
    """What was added to every token of a .txt; 128266 reads Orpheus' ids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes is not None and self.seconds is not None:
            raise InputError(f"--seconds {self.seconds}: is for codes that are drawn; leave it or --codes out")
        check_first(self.first_token, "--first-token")
        if self.first_token and (self.codes is None or self.codes.suffix.lower() != TOKENS):
            raise InputError(f"--first-token {self.first_token}: expected --codes with a {TOKENS} file of tokens")

    @property
    def draws(self) -> bool:
        """Whether the seed draws codes."""
        return self.codes is None


def main(options: GenerateOptions) -> None:
    """Generate, write the file and say what it is."""
    codec = options.codec()
    config, noise, seed = codec.config, options.noise_source(), options.seed
    if options.codes is not None and options.codes.suffix.lower() != TOKENS:
        report = files.decode_file(
            codec, options.codes, options.output, noise=noise, seed=seed, chunk_s=options.chunk_s
        )
        print(f"{options.output}: {report.duration_s:.2f} s of the codes in {options.codes}")
        return
    target = checked_target(options.output)
    if options.codes is not None:
        codes, what = read_tokens(options.codes, config, options.first_token), f"the tokens in {options.codes}"
    else:
        codes, what = (
            draw_codes(config, 5.0 if options.seconds is None else options.seconds, seed),
            f"codes drawn with seed {seed}",
        )
    stream = codec.decode_stream([codes.levels], length=codes.length, noise=noise, seed=seed, chunk_s=options.chunk_s)
    write_stream(target, stream, config.sampling_rate)
    print(f"{target}: {codes.duration_s:.2f} s of {what}")


cli.callable_module(__name__, generate)

if __name__ == "__main__":
    cli.run(main, GenerateOptions)
