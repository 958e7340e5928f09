"""MusicGen's loss: the mean over codebooks of the cross-entropy on the cells that hold a code (arXiv:2306.05284).

Like audiocraft's, and with labels where the special code is none like transformers'. As sums, since the counts are the
host's (`backends.base.Task`). A model that knows nothing has ln(2048) = 7.62.
"""

import mlx.core as mx
import mlx.nn as nn

from musicgen_mlx.condition import Condition
from musicgen_mlx.model import MusicGen


def codebook_sums(model: MusicGen, steps: mx.array, targets: mx.array, condition: Condition | None = None) -> mx.array:
    """Cross-entropy summed over the `targets` (B, K, S) of `steps` (B, K, S), for each codebook (K,), in float32.

    Step s is predicted from those before it, so the first has no target. Cells that are no target may hold anything.
    """
    logits = model(steps[:, :, :-1], condition).astype(mx.float32)
    wanted = targets[:, :, 1:]
    codes = mx.where(wanted, steps[:, :, 1:], 0)
    return (nn.losses.cross_entropy(logits, codes) * wanted).sum(axis=(0, 2))
