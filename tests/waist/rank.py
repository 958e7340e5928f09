"""One of several ranks: `python rank.py mlx RUN_DIR`. Trains one epoch, then, as a new run would, continues to two."""

import sys
from pathlib import Path

import numpy as np
import torch
from child import without_pictures
from toy import Side, ToyTask

from backends.base import LoRASpec
from backends.training import loop
from backends.training.options import TrainOptions

SPEC = LoRASpec(rank=4, alpha=6.0)


def train(side, directory, epochs, accumulation):
    """Returns the model; an update takes `accumulation` batches on each rank."""
    model = side.lora(SPEC)
    options = TrainOptions(output_dir=directory, epochs=epochs, learning_rate=1e-2, max_norm=0.5, log_every=1)
    loop.train(side.backend, model, ToyTask(side, accumulation=accumulation), options, title="toy")
    return model


def main():
    side, directory = Side(sys.argv[1]), Path(sys.argv[2])
    without_pictures()
    if side.name == "torch":  # as on a Mac or a CUDA machine, where a group by default serves the accelerator alone
        torch._C._get_accelerator = lambda *_: torch.device("mps")
    train(side, directory, epochs=1, accumulation=1)
    model = train(side, directory, epochs=2, accumulation=1)
    world = side.backend.world
    assert world.size == 2
    np.savez(directory / f"rank_{world.rank}.npz", **side.trained(model))


if __name__ == "__main__":
    main()
