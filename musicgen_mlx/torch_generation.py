"""Codes and audio from a MusicGen on PyTorch: the mirror of `musicgen_mlx.generation`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from backends.torch_backend.sampling import Sampler
from musicgen_mlx import pattern
from musicgen_mlx.known import first_unknown, known_steps
from musicgen_mlx.torch_decode import Decoder
from musicgen_mlx.torch_model import AnyMusicGen, Condition

SAMPLER = Sampler(temperature=1.0, top_k=250)
GUIDANCE = 3.0


def generate_codes(
    model: AnyMusicGen, frames: int, condition: Condition | None = None, *, seeds: Sequence[int] = (0,),
    prompt: np.ndarray | None = None, sampler: Sampler = SAMPLER, guidance: float = GUIDANCE,
) -> torch.Tensor:  # fmt: skip
    """Codes (B, K, frames), of which `prompt` (B, K, P) are the first frames. One item for each of `seeds`."""
    laid = known_steps(model.shapes, len(seeds), frames, prompt)
    made = [step[:, :, None] for step in predicted_steps(model, laid, condition, seeds, sampler, guidance)]
    given = torch.from_numpy(laid[:, :, : first_unknown(laid)].astype(np.int64))
    steps = torch.cat([given, *made], dim=2).to(model.decoder.device)
    return pattern.reverted(steps, model.shapes.delays, lambda x, axis: torch.stack(x, axis))


def predicted_steps(
    model: AnyMusicGen, laid: np.ndarray, condition: Condition | None, seeds: Sequence[int],
    sampler: Sampler = SAMPLER, guidance: float = GUIDANCE,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yield the steps (B, K), on the host, from the first that is not wholly known; the next one is queued before."""
    first, S = first_unknown(laid), laid.shape[2]
    with generating(model):
        run = Decoder(model, sampler, seeds, condition, guidance, steps=S - first)
        current = run.start(laid[:, :, :first], laid[:, :, first])
        for step in range(first + 1, S + 1):
            on_host = _copied(current)
            following = run.advance(current, laid[:, :, step]) if step < S else current
            yield on_host()
            current = following


def _copied(step: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to copy a step to the host; what is returned waits for that, and for nothing that is queued later."""
    if not step.is_cuda:
        return step.cpu
    host, done = step.to("cpu", non_blocking=True), torch.cuda.Event()  # into pinned memory
    done.record()

    def arrived() -> torch.Tensor:
        done.synchronize()
        return host

    return arrived


@contextmanager
def generating(model: AnyMusicGen) -> Iterator[None]:
    """Evaluation while a generation is under way; when the last one ends, the mode from before the first is back."""
    before = model.__dict__.setdefault("_modes_before", [])  # one for each generation; the first one's is the model's
    before.append(model.training)
    model.eval()
    try:
        yield
    finally:
        mode = before.pop()
        if not before:
            model.train(mode)


@torch.inference_mode()
def decode_audio(codec: Any, codes: torch.Tensor, channels: int = 1) -> torch.Tensor:
    """Codes (B, K, T) -> audio (B, samples), or (B, samples, 2) for stereo, whose channels the codec takes apart."""
    return joined(codec.decode(sides(codes, channels)[None], [None]).audio_values[:, 0], channels)


def sides(codes: torch.Tensor, channels: int) -> torch.Tensor:
    """Codes (B, K, T) as the codec's own, (B channels, K / channels, T)."""
    B, K, T = codes.shape
    return codes.reshape(B, K // channels, channels, T).transpose(1, 2).reshape(B * channels, K // channels, T)


def joined(audio: torch.Tensor, channels: int) -> torch.Tensor:
    """Audio (B channels, samples) -> (B, samples), or (B, samples, 2)."""
    return audio if channels == 1 else audio.reshape(-1, channels, audio.shape[1]).transpose(1, 2)


@torch.inference_mode()
def encode_audio(codec: Any, audio: torch.Tensor, channels: int = 1) -> torch.Tensor:
    """Audio (B, samples) or (B, samples, 2) -> codes (B, K, T); stereo models take mono for both sides."""
    both = audio[:, None].expand(-1, channels, -1) if audio.ndim == 2 else audio.transpose(1, 2)
    B, _, samples = both.shape
    codes = codec.encode(both.reshape(B * channels, 1, samples)).audio_codes[0]
    return codes.reshape(B, channels, *codes.shape[1:]).transpose(1, 2).reshape(B, -1, codes.shape[2])
