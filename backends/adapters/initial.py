"""The values an adapter starts from, drawn on the host so that both backends start from the same ones."""

import numpy as np

from backends.base import Leaf, LoRASpec
from backends.drawing import stream


def initial(name: str, leaf: Leaf, spec: LoRASpec, seed: int) -> dict[str, np.ndarray]:
    """Return float32 `lora_A` (r, in) and `lora_B` (out, r) whose product is zero, keyed by (seed, module name).

    Linear: A uniform in +-1/sqrt(in), B zero. Embedding (in = entries, out = width): A zero, B standard normal.
    Both are PEFT's defaults (peft/tuners/lora/layer.py).
    """
    draw = stream(name, seed)
    if leaf.kind == "embedding":
        entries, width = leaf.shape
        b = draw.standard_normal((width, spec.rank), dtype=np.float32)
        return {"lora_A": np.zeros((spec.rank, entries), np.float32), "lora_B": b}
    out, fan_in = leaf.shape
    a = draw.uniform(-1.0, 1.0, (spec.rank, fan_in)) / fan_in**0.5
    return {"lora_A": a.astype(np.float32), "lora_B": np.zeros((out, spec.rank), np.float32)}
