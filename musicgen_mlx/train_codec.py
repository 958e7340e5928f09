"""Train EnCodec: fine-tune it from a checkpoint, or train one of any size from random weights.

python -m musicgen_mlx.train_codec --codec facebook/encodec_32khz --train-data T --val-data V --output-dir runs/encodec
python -m musicgen_mlx.train_codec --scale tiny --train-data T --val-data V --output-dir runs/tiny
"""

import sys
from dataclasses import dataclass

from backends import cli, get
from backends.errors import InputError
from backends.training import launch
from backends.training.codec_options import CodecOptions
from backends.training.codec_run import run
from backends.training.loop import Result
from musicgen_mlx.codec_task import codec


@dataclass(frozen=True, kw_only=True)
class TrainCodecOptions(CodecOptions):
    """Train EnCodec on a folder of recordings."""

    codec: str | None = None
    """Where to start: a weights file, a directory (transformers', audiocraft's, a MusicGen's) or a Hub id."""
    scale: str | None = None
    """Or start from random weights at this size: tiny, small, 32khz, or a JSON file with the configuration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.codec is None) == (self.scale is None):
            raise InputError("--codec or --scale: expected one of them, weights to start from or a size to start at")
        if self.decoder_only and self.codec is None:
            raise InputError("--decoder-only: the codes of random weights are not worth keeping; give --codec")


def main(options: TrainCodecOptions) -> None:
    """Start the ranks of --ddp, or train in this process."""
    if options.ddp and not launch.is_rank():
        name = get(options.backend, options.device).name
        nproc = options.nproc or launch.devices(name)
        launch.launch("musicgen_mlx.train_codec", sys.argv[1:], name, nproc)
        return
    with launch.noted():
        train_codec(options)


def train_codec(options: TrainCodecOptions) -> Result:
    """Train as the options say, or continue the run in their output_dir.

    Writes the best codec to best/ and the newest to last/, in transformers' layout.
    """
    backend = get(options.backend, options.device)
    return run(codec(backend, options.codec, options.scale, options.seed), options, backend)


if __name__ == "__main__":
    cli.run(main, TrainCodecOptions)
