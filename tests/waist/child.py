"""A training command to kill: `python child.py mlx RUN_DIR [--slow-disk] [--full-disk-after N]`."""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

from toy import Side, ToyTask

from backends.base import LoRASpec
from backends.errors import InputError
from backends.training import loop
from backends.training.checkpoints import Checkpoints
from backends.training.options import TrainOptions

SPEC = LoRASpec(rank=4, alpha=6.0, dropout=0.2)


class Announced(ToyTask):
    """Says when the first update is done."""

    announce = False

    def seconds(self, micro_batches):
        if self.announce:
            print("training", flush=True)
        self.announce = False
        return super().seconds(micro_batches)


def run(side, directory, announce=False):
    """Dropout, accumulation, several epochs, warm-up, validation, a best file; a checkpoint at each update."""
    task = Announced(side)
    task.announce = announce
    options = TrainOptions(
        output_dir=directory,
        epochs=6,
        learning_rate=1e-2,
        warmup_steps=3,
        schedule="cosine",
        max_norm=0.7,
        log_every=2,
        save_every=1,
        seed=5,
    )
    model = side.lora(SPEC, dropout=0.1)
    return loop.train(side.backend, model, task, options, title="toy")


def without_pictures():
    """The report's figures take longer than the run."""
    loop.write_report = lambda directory, _title, _more=(): directory / "report.html"


def slow_disk():
    """Most of the time goes into saving, so most kills hit a save."""
    fsync = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.008), fsync(descriptor))[1]


def full_disk_after(count):
    """From the `count`-th checkpoint on, no file may grow beyond 2 kB."""
    save, saved = Checkpoints.save, []

    def limited(self, step, write):
        saved.append(step)
        if len(saved) > count:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        return save(self, step, write)

    Checkpoints.save = limited


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("side")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--slow-disk", action="store_true")
    parser.add_argument("--full-disk-after", type=int)
    arguments = parser.parse_args()
    if arguments.side == "torch":
        import torch

        torch.set_num_threads(1)
    if arguments.slow_disk:
        slow_disk()
    if arguments.full_disk_after is not None:
        full_disk_after(arguments.full_disk_after)
    without_pictures()
    try:
        run(Side(arguments.side), arguments.directory, announce=True)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
