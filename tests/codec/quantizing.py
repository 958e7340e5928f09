"""A small residual quantiser in training, on either backend: `python quantizing.py mlx OUT.npz` is one of two ranks."""

import importlib
import sys

import numpy as np
from toy import Side

from backends.seeds import mix, rng
from backends.training.codebooks import quantizer_draws, revival_draw

K, V, D, FRAMES, SLOTS = 3, 16, 8, 7, 24
DRAWS = ("active", "bypass", "offered", "priority")


def rvq(side):
    return importlib.import_module(f"backends.{side.name}_backend.rvq")


def quantizer(side, slots=SLOTS, codebooks=K):
    """The same codebooks on both sides, collecting, in training mode."""
    made = rvq(side).ResidualQuantizer(codebooks, V, D)
    draw = rng(4, 601)
    arrays = {
        "embed_sum": draw.standard_normal((codebooks, V, D), dtype=np.float32),
        "cluster_usage": draw.uniform(0.5, 1.5, (codebooks, V)).astype(np.float32),
    }
    rvq(side).load_buffers(made, side.backend.from_host(arrays))
    made.collect(slots)
    made.train()
    return made


def native(side, batch):
    return importlib.import_module(f"backends.{side.name}_backend.step").native(batch, *_device(side))


def host(side, **arrays):
    return side.backend.to_host(arrays)


def items(update, count=6, dropout=0.5, bypass=0.5, slots=SLOTS):
    """An update's items: clustered latents (B, T, D) and their draws."""
    keys = [mix(update, item) for item in range(count)]
    draw = rng(update, 602)
    centres = rng(9, 603).standard_normal((10, D))
    x = centres[draw.integers(0, 10, (count, FRAMES))] + 0.1 * draw.standard_normal((count, FRAMES, D))
    draws = quantizer_draws(keys, codebooks=K, frames=FRAMES, dropout=dropout, bypass=bypass, slots=slots)
    return {"x": x.astype(np.float32), **draws}


def cut(batch, *sizes):
    """The batch in parts of so many items."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(batch["x"])
    return [{n: v[end - size : end] for n, v in batch.items()} for size, end in zip(sizes, ends, strict=True)]


def update(side, made, micro_batches, step, decay=0.7, revive=True):
    """Gather over micro-batches, apply; returns each micro-batch's codes."""
    codes = []
    for batch in micro_batches:
        inputs = native(side, batch)
        codes.append(host(side, codes=made.quantize(inputs["x"], *(inputs[name] for name in DRAWS))[1])["codes"])
    draw = revival_draw(0, step, codebooks=K, entries=V, slots=SLOTS) if revive else None
    rvq(side).apply_statistics(made, decay=decay, revive_below=0.2, draw=draw)
    return codes


def tables(side, made):
    return host(side, tables=made.tables)["tables"]


def learned(side, made):
    return side.backend.to_host(rvq(side).buffers(made))


def train(side, rank=0, size=1, updates=5):
    """k-means on the first rank, then updates of four micro-batches, every `size`-th of them; the last lacks some."""
    made = quantizer(side)
    made.kmeans(native(side, {"x": items(100 + rank)["x"]})["x"], seed=5)
    for step in range(updates):
        parts = cut(items(step), 2, 1, 3) if step == updates - 1 else cut(items(step), 1, 2, 1, 2)
        update(side, made, parts[rank::size] if step else parts[:1] * (rank == 0), step)
    return learned(side, made)


def _device(side):
    return () if side.name == "mlx" else (side.backend.device,)


def main():
    side = Side(sys.argv[1])
    world = side.backend.world
    assert world.size == 2
    np.savez(f"{sys.argv[2]}_{world.rank}.npz", **train(side, world.rank, world.size))


if __name__ == "__main__":
    main()
