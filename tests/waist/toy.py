"""A small task for both backends: next-code prediction on random sequences of unequal length."""

import importlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import backends
from backends.base import Hooks, LoRASpec, Sample
from backends.data.batching import epoch_batches, in_order, pad_length, pad_stack
from backends.seeds import rng

CODES, PLACES, WIDTH, HIDDEN, LAYERS = 11, 8, 32, 64, 2


@dataclass(frozen=True)
class Side:
    """One backend with its small model. Models of both sides start from the same weights."""

    name: str

    @cached_property
    def backend(self):
        return backends.get(self.name, device=None if self.name == "mlx" else "cpu")

    @property
    def module(self):
        return importlib.import_module(f"net_{self.name}")

    def net(self, seed=0, dropout=0.0):
        model = self.module.Net(CODES, PLACES, WIDTH, HIDDEN, LAYERS, dropout)
        self.backend.load(model, self.backend.from_host(self.weights(seed)))
        return model

    def weights(self, seed=0):
        draw = rng(seed, 77)
        shapes = {"tokens.weight": (CODES, WIDTH), "places.weight": (PLACES, WIDTH)}
        for layer in range(LAYERS):
            block = {"q.weight": (WIDTH, WIDTH), "k.weight": (WIDTH, WIDTH), "up.weight": (HIDDEN, WIDTH),
                     "up.bias": (HIDDEN,), "down.weight": (WIDTH, HIDDEN), "down.bias": (WIDTH,)}  # fmt: skip
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        shapes["head.weight"] = (CODES, WIDTH)
        return {
            name: (draw.standard_normal(shape) * (0.5 if "tokens" in name else shape[-1] ** -0.5)).astype(np.float32)
            for name, shape in shapes.items()
        }

    def lora(self, spec=None, targets=("layers.0.q", "layers.1.up", "tokens"), seed=0, dropout=0.0):
        model = self.net(dropout=dropout)
        self.backend.adapt(model, targets, spec or LoRASpec(rank=4, alpha=6.0), seed=seed)
        return model

    def host(self, model):
        """Every parameter as NumPy."""
        return self.backend.to_host(self.backend.parameters(model))

    def trained(self, model):
        return self.backend.to_host(self.backend.trainable(model))

    def randomise(self, model, seed=1, scale=0.3):
        """Give everything that trains new random values, the same on both sides."""
        draw = rng(seed, 78)
        current = self.trained(model)
        drawn = {name: draw.standard_normal(current[name].shape, dtype=np.float32) for name in sorted(current)}
        new = {
            name: 1 + 0.2 * np.abs(value) if name.endswith("magnitude_vector") else scale * value
            for name, value in drawn.items()
        }
        self.backend.load(model, self.backend.from_host(new), strict=False)

    def forward(self, model, ids):
        model.eval()
        native = self.backend.from_host({"ids": np.asarray(ids, np.int64 if self.name == "torch" else np.int32)})
        return self.backend.to_host({"y": model(native["ids"])})["y"]


def examples(count, seed=3, longest=12):
    """Sequences of codes (T,) of unequal length."""
    draw = rng(seed, 79)
    return [draw.integers(0, CODES, int(draw.integers(3, longest + 1))).astype(np.int32) for _ in range(count)]


def collate(sequences, length=None):
    """A padded batch: ids, targets (B, T) and two masks with different counts."""
    length = length or pad_length(max(map(len, sequences)) - 1, 4)
    masks = [np.ones(len(sequence) - 1, np.float32) for sequence in sequences]
    sized = [(np.arange(len(sequence) - 1) % 3 == 0).astype(np.float32) for sequence in sequences]
    return {
        "ids": pad_stack([sequence[:-1] for sequence in sequences], length),
        "targets": pad_stack([sequence[1:] for sequence in sequences], length),
        "mask": pad_stack(masks, length),
        "sized": pad_stack(sized, length),
    }


COEFFICIENTS = {"next": 1.0, "size": 0.1}


def counts(micro_batches):
    return {
        term: float(sum(batch[name].sum() for batch in micro_batches))
        for term, name in (("next", "mask"), ("size", "sized"))
    }


def weights(micro_batches, world):
    summed = world.sum(list(counts(micro_batches).values()))
    return {name: value / max(count, 1) for (name, value), count in zip(COEFFICIENTS.items(), summed, strict=True)}


@dataclass
class ToyTask:
    """Satisfies `backends.base.Task`."""

    side: Side
    count: int = 20
    batch_size: int = 3
    accumulation: int = 2
    held_out: int = 4
    seed: int = 0
    poison_step: int | None = None  # its batch makes the loss NaN
    sound: bool = False
    exports: str = ""  # a folder of the run's

    coefficients = COEFFICIENTS
    hooks = Hooks()

    @cached_property
    def data(self):
        return examples(self.count)

    def _cuts(self, epoch):
        return epoch_batches([len(row) for row in self.data], self.batch_size, seed=self.seed, epoch=epoch)

    @property
    def _group(self):
        return self.accumulation * self.side.backend.world.size

    def updates(self, epoch):
        return math.ceil(len(self._cuts(epoch)) / self._group)

    def batches(self, epoch, start):
        cuts, world = self._cuts(epoch), self.side.backend.world
        for update in range(start, self.updates(epoch)):
            group = cuts[update * self._group : (update + 1) * self._group][world.rank :: world.size]
            micro = [collate([self.data[index] for index in cut]) for cut in group]
            if self.poison_step == (epoch - 1) * self.updates(epoch) + update:
                micro[0]["mask"][0, 0] = np.nan
            yield micro

    def terms(self, model, batch):
        return self.side.module.terms(model, batch)

    def counts(self, micro_batches):
        return counts(micro_batches)

    def seconds(self, micro_batches):
        return float(sum(batch["mask"].sum() for batch in micro_batches))

    def validation(self, _epoch):
        rows, world = examples(self.held_out, seed=5), self.side.backend.world
        cuts = in_order([len(row) for row in rows], 3)[world.rank :: world.size]
        return [collate([rows[i] for i in cut]) for cut in cuts]

    def sample(self, _model, step):
        if not self.sound:
            return []
        return [Sample("tone", f"at step {step}", np.sin(np.arange(1600) / 9).astype(np.float32), 16000)]

    def export(self, model, directory, label):
        path = Path(directory) / self.exports / f"net_{label}.safetensors"
        path.parent.mkdir(exist_ok=True)
        self.side.backend.write(path, self.side.backend.trainable(model), {})
        return path
