"""Train EnCodec: fine-tune it from a checkpoint, or train one of any size from random weights.

python -m musicgen_mlx.train_codec --codec facebook/encodec_32khz --train-data T --val-data V --output-dir runs/encodec
python -m musicgen_mlx.train_codec --scale tiny --train-data T --val-data V --output-dir runs/tiny
"""

from dataclasses import dataclass

from backends import cli
from backends.training import launch
from backends.training.codec_options import CodecOptions
from backends.training.codec_run import run
from backends.training.loop import Result
from musicgen_mlx.codec_task import KIND


@dataclass(frozen=True, kw_only=True)
class TrainCodecOptions(CodecOptions):
    """Train EnCodec on a folder of recordings."""

    codec: str | None = None
    """Where to start: a weights file, a directory (transformers', audiocraft's, a MusicGen's) or a Hub id."""
    scale: str | None = None
    """Or start from random weights at this size: tiny, small, 32khz, or a JSON file with the configuration."""


def main(options: TrainCodecOptions) -> None:
    """Start the ranks of --ddp, or train in this process."""
    launch.start("musicgen_mlx.train_codec", options, train_codec)


def train_codec(options: TrainCodecOptions) -> Result:
    """Train as the options say, or continue the run in their output_dir.

    Writes the best codec to best/ and the newest to last/, in transformers' layout.
    """
    return run(KIND, options)


if __name__ == "__main__":
    cli.run(main, TrainCodecOptions)
