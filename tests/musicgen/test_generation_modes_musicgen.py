"""What a MusicGen's generation leaves behind, on both backends: the model's mode, fused weights, compiled steps."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from backends import get
from backends.base import LoRASpec
from backends.mlx_backend.device import compiles_on_cpu
from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import MusicGen, Request, load_engine, stream_generate
from musicgen_mlx.adapters import Adapters
from musicgen_mlx.decode import Decoder
from musicgen_mlx.fused import FusedPath, fused_path
from musicgen_mlx.generation import generate_codes
from musicgen_mlx.known import known_steps
from musicgen_mlx.music import Sampling, frames
from musicgen_mlx.tiny import model as tiny

LAID = known_steps(tiny("none").config, 1, 5)


@pytest.fixture(params=["mlx", "torch"])
def engine(request):
    """An adapted model in training mode whose dropout is audible."""
    made: Any = load_engine("tiny", request.param, "cpu" if request.param == "torch" else None)
    backend = get(made.name, "cpu" if made.name == "torch" else None)
    adapters = Adapters(backend, made.model, made.config)
    attentions = [name for name in adapters.native if "attn" in name]
    adapters.put([*attentions, "text_conditioner.output_proj"], LoRASpec(dropout=0.5))
    rng = np.random.default_rng(3)
    drawn = {name: 0.3 * rng.standard_normal(tuple(value.shape)).astype(np.float32)
             for name, value in backend.trainable(made.model).items() if name.endswith("lora_B")}  # fmt: skip
    backend.load(made.model, backend.from_host(drawn), strict=False)
    made.model.train()
    return made


def request(seed: int, seconds: float = 0.4) -> Request:
    return Request(["jungle"], [seed], seconds, sampling=Sampling(top_k=20))


def chunks(engine, seed: int, seconds: float = 0.4) -> Iterator[np.ndarray]:
    return stream_generate(engine, request(seed, seconds), chunk_s=0.02)


def codes(engine, seed: int) -> np.ndarray:
    return np.concatenate(list(frames(engine, request(seed))), axis=2)


def new_weights(model: MusicGen) -> None:
    """Replace every array, as an optimizer's update does."""
    model.update(tree_map(lambda x: 1 * x, model.parameters()))


def started(model: MusicGen, **options) -> tuple[Decoder, mx.array]:
    run = Decoder(model, Sampler(0), [0], **options)
    return run, run.start(LAID[:, :, :1], LAID[:, :, 1])


def test_generations_share_the_fused_path_of_a_model_in_training_mode():
    model = tiny("none")
    model.train()
    generate_codes(model, 3)
    assert model.training
    kept = model._companions["fused"]
    generate_codes(model, 3)
    assert model._companions["fused"] is kept


@pytest.mark.parametrize("go_on", [MusicGen.train, new_weights])
def test_training_drops_the_fused_path(go_on):
    model = tiny("none")
    path = fused_path(model, 3)
    assert isinstance(path, FusedPath)
    dropped = weakref.ref(path)
    del path
    go_on(model)
    gc.collect()
    assert dropped() is None


@pytest.mark.parametrize("fused", [True, False])
def test_a_compiled_step_outlives_another_sampler_s(fused, monkeypatch):
    """`compile` is a wrapper without effect here, see conftest; what is kept is the same."""
    model = tiny("none")
    if not fused:
        monkeypatch.setattr("musicgen_mlx.decode.fused_path", lambda *_: None)
    run, step = started(model, compile=True)
    other, same = started(model, compile=False)
    Decoder(model, Sampler(1.0), [0], compile=True)
    made, expected = run.advance(step, LAID[:, :, 2]), other.advance(same, LAID[:, :, 2])
    np.testing.assert_array_equal(np.array(made), np.array(expected))


@pytest.mark.parametrize(("steps", "kernels", "compiled"), [(500, True, True), (499, True, False), (500, False, False)])
def test_many_steps_are_compiled_on_the_cpu_where_that_works(steps, kernels, compiled, monkeypatch):
    monkeypatch.setattr("musicgen_mlx.decode.compiles_on_cpu", lambda: kernels)
    model = tiny("none")
    assert Decoder(model, Sampler(0), [0], steps=steps).compile == compiled
    model.layers[0].self_attn.q_proj = nn.QuantizedLinear.from_linear(nn.Linear(64, 64))
    assert not Decoder(model, Sampler(0), [0], steps=steps).compile


def test_the_kernels_of_a_machine_that_compiles_nothing_are_not_asked_for(monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("filesystem error: temp_directory_path: No such file or directory")

    monkeypatch.setattr(mx, "eval", fails)
    assert not compiles_on_cpu.__wrapped__()
    monkeypatch.undo()
    assert compiles_on_cpu.__wrapped__()


@pytest.mark.parametrize("lengths_s", [(0.1, 0.4), (0.4, 0.1)])
def test_streams_of_unequal_length_do_not_disturb_each_other_s_mode(engine, lengths_s):
    def stream(which: int) -> Iterator[np.ndarray]:
        return frames(engine, request(4 + which, lengths_s[which]))

    alone = [np.concatenate(list(stream(which)), axis=2) for which in (0, 1)]
    running, made = {which: stream(which) for which in (0, 1)}, ([], [])
    while running:
        for which in list(running):
            part = next(running[which], None)
            if part is None:
                del running[which]
            else:
                made[which].append(part)
            assert engine.model.training == (not running)
    for which in (0, 1):
        np.testing.assert_array_equal(np.concatenate(made[which], axis=2), alone[which])


def test_generation_in_training_mode_is_evaluation_s(engine):
    """The condition's projection too, where it is adapted."""
    training = codes(engine, 1)
    assert engine.model.training
    engine.model.eval()
    np.testing.assert_array_equal(training, codes(engine, 1))
    assert not engine.model.training


def test_closing_a_stream_early_is_its_end(engine):
    first, second = chunks(engine, 1), chunks(engine, 2)
    assert [len(next(stream)) for stream in (first, second)] == [1, 1]
    first.close()  # type: ignore[attr-defined]
    assert not engine.model.training
    second.close()  # type: ignore[attr-defined]
    assert engine.model.training


def test_an_exception_is_a_generation_s_end(engine, monkeypatch):
    def fails(*_arguments):
        raise RuntimeError("full")

    first, second = chunks(engine, 1), chunks(engine, 2)
    assert [len(next(stream)) for stream in (first, second)] == [1, 1]
    kind = type(engine.stream())
    with monkeypatch.context() as patched:
        patched.setattr(kind, "push", fails)
        with pytest.raises(RuntimeError, match="full"):
            next(first)
    assert not engine.model.training
    next(second)
    with monkeypatch.context() as patched:
        patched.setattr(kind, "push", fails)
        with pytest.raises(RuntimeError, match="full") as kept:  # its traceback keeps the stream's frame alive
            next(second)
        assert engine.model.training
    assert kept.tb is not None


def test_an_exception_of_progress_is_the_generation_s_end():
    def fails(_count: int):
        raise RuntimeError("full")

    model = tiny("none")
    model.train()
    with pytest.raises(RuntimeError, match="full") as kept:
        generate_codes(model, 3, progress=fails)
    assert model.training
    assert kept.tb is not None
