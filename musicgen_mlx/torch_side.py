"""What training needs of MusicGen on PyTorch besides its terms: the mirror of `musicgen_mlx.mlx_side`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from backends.base import Backend
from backends.layouts import musicgen
from backends.layouts.rules import to_ours
from backends.torch_backend import lora, memory
from musicgen_mlx import torch_model as door
from musicgen_mlx.sources import Found
from musicgen_mlx.torch_engine import Engine


def engine(found: Found, backend: Backend, *, float32: bool) -> Engine:
    """The model in float32, on the backend's device, with its codec and text encoder."""
    model: Any = door.of_checkpoint(found.model)
    device: torch.device = backend.device  # type: ignore[attr-defined]
    memory.reset_peak_memory(device)
    return Engine(model.to(device), found)


def recompute(model: door.AnyMusicGen) -> None:
    """Trade time for memory in the backward pass. transformers' own switch has another name from release to release."""
    for layer in model.decoder.model.decoder.layers:
        layer.forward = _recomputed(layer, layer.forward)


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        if not layer.training:
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    return run


def names(model: door.AnyMusicGen) -> dict[str, str]:
    """The modules that can carry an adapter: {name in our layout: name here}."""
    found = list(lora.linears(model))
    blank = {f"{name}.weight": np.empty(0) for name in found}
    ours = to_ours(blank, musicgen.rules("musicgen", model.shapes.settings()), "MusicGen")
    return {name.removesuffix(".weight"): native for name, native in zip(ours, found, strict=True)}


def tensors(model: door.AnyMusicGen) -> dict[str, np.ndarray]:
    """The weights in our layout."""
    return model.tensors()


def text_rows(engine: Any, text: str) -> np.ndarray:
    """The text encoder's rows (L, W) of a description."""
    states, mask = engine._rows([text])
    return states[mask].float().cpu().numpy()
