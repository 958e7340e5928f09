"""Models that one thread loaded are used by others, as web servers do: MLX evaluates nothing of another thread's."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from backends.mlx_backend.fusing import arrays, is_current
from backends.mlx_backend.sampling import Sampler
from csm_mlx import CSM
from csm_mlx import generate as speak
from csm_mlx.finetune.lora import apply_lora_to_model, merge_lora_weights
from csm_mlx.generation import FrameRun, prompt_rows
from musicgen_mlx import MusicGen, Request, companions, condition, load_engine, stream_generate
from musicgen_mlx import generate as play
from musicgen_mlx.generation import generate_codes
from musicgen_mlx.load import save_pretrained
from musicgen_mlx.tiny import model as tiny
from snac_port import from_pretrained


def in_a_thread(work: Callable[[], Any]) -> np.ndarray:
    """What a thread of its own makes of it."""
    made, failed = [], []

    def run() -> None:
        try:
            made.append(np.array(work()))
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed, failed
    return made[0]


def at_once(works: Sequence[Callable[[], Any]]) -> list[np.ndarray]:
    """What threads that start together make of these works, one each."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> np.ndarray:
        start.wait(60)
        return np.array(work())

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def everywhere(work: Callable[[], Any]) -> None:
    """Two threads, one after the other, and this one make the same."""
    first, second = in_a_thread(work), in_a_thread(work)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, np.array(work()))


def adapted(model: CSM) -> CSM:
    return apply_lora_to_model(model, rank=2, target_modules=["attn"])


def merged(model: CSM) -> CSM:
    model = adapted(model)
    for layer in model.backbone.layers:
        layer.self_attn.q_proj.lora_B = mx.full(layer.self_attn.q_proj.lora_B.shape, 0.1)
    return merge_lora_weights(model)


def in_half() -> MusicGen:
    model = tiny()
    model.set_dtype(mx.bfloat16)
    return model


def from_a_file(model: CSM, folder) -> CSM:
    model.save_weights(str(folder / "model.safetensors"))
    model.load_weights(str(folder / "model.safetensors"))
    return model


@pytest.mark.parametrize("change", ["plain", "adapted", "merged", "bfloat16", "loaded"])
def test_csm(change, tmp_path):
    model = CSM.from_pretrained("tiny", dtype="bfloat16" if change == "bfloat16" else None)
    if change in ("adapted", "merged"):
        model = {"adapted": adapted, "merged": merged}[change](model)
    if change == "loaded":
        from_a_file(model, tmp_path)
    everywhere(lambda: speak(model, text="hi", speaker=0, context=[], max_audio_length_ms=240, seed=0))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"bits": 4}], ids=str)
def test_musicgen(options):
    engine = load_engine("tiny", "mlx", **options)
    heard = 0.1 * np.random.default_rng(0).standard_normal(6400).astype(np.float32)
    everywhere(lambda: play(engine, Request(["jungle"], [0], 0.2)))
    everywhere(lambda: np.concatenate(list(stream_generate(engine, Request(["jungle", None], [0, 1], 0.3))), axis=1))
    everywhere(lambda: play(engine, Request([None], [0], 0.4, continue_from=heard)))


def test_a_codec_that_several_threads_need_at_once_is_read_once(monkeypatch, tmp_path):
    """The first codec is slow to come; nobody takes half of it, or another one."""
    save_pretrained(tiny(), tmp_path)
    read = companions._float32
    calls = []

    def slow(*arguments):
        calls.append(arguments)
        time.sleep(0.2)
        return read(*arguments)

    monkeypatch.setattr(companions, "_float32", slow)
    engine = load_engine(tmp_path, "mlx")
    sound = 0.1 * np.random.default_rng(0).standard_normal((1, 6400)).astype(np.float32)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(engine.encode(sound))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 2  # what decodes, and what encodes
    assert len(found) == 3
    expected = load_engine(tmp_path, "mlx").encode(sound)
    assert all((codes == expected).all() for codes in found)


@pytest.mark.parametrize("reads", [1, 2])
def test_a_codec_whose_reading_was_interrupted_is_read_again(reads, monkeypatch, tmp_path):
    save_pretrained(tiny(), tmp_path)
    read, calls = companions._float32, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == reads:
            raise KeyboardInterrupt
        return read(*arguments)

    sound = 0.1 * np.random.default_rng(0).standard_normal((1, 6400)).astype(np.float32)
    expected = load_engine(tmp_path, "mlx").encode(sound)
    engine = load_engine(tmp_path, "mlx")
    monkeypatch.setattr(companions, "_float32", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.encode(sound)
    np.testing.assert_array_equal(engine.encode(sound), expected)


def test_snac():
    codec = from_pretrained("tiny", "mlx")
    heard = 0.1 * np.random.default_rng(0).standard_normal(24_000).astype(np.float32)
    everywhere(lambda: codec.encode(heard).levels[-1])
    everywhere(lambda: codec.decode(codec.encode(heard), seed=0))


@pytest.fixture
def tracing(monkeypatch):
    """`mx.compile` as a function sees it, without g++: other arrays take the places of its arguments."""

    def placed(x: Any) -> Any:
        return mx.stop_gradient(x) if isinstance(x, mx.array) else x

    def compiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return lambda *arguments: function(*tree_map(placed, arguments))

    monkeypatch.setattr(mx, "compile", compiled)


def meeting(monkeypatch, model: Any, threads: int) -> None:
    """Let so many threads meet whenever they choose codes; the model must then be as it is now."""
    plain, weights, all_there = Sampler.__call__, arrays(model), threading.Barrier(threads)

    def call(self: Sampler, logits: mx.array, noise: mx.array) -> mx.array:
        all_there.wait(10)
        untouched = is_current(model, weights)
        assert untouched
        return plain(self, logits, noise)

    monkeypatch.setattr(Sampler, "__call__", call)


def spoken(model: CSM, temperature: float) -> np.ndarray:
    """Two frames of a compiled run."""
    run = FrameRun(model, Sampler(temperature), (), 0, compile=True)
    first = run.start(*prompt_rows(model, "hi", 0, []))
    return np.array(mx.stack([first, run.advance(first)]))


def played(model: MusicGen, guidance: float) -> np.ndarray:
    """Three frames of a compiled run."""
    said = condition.from_texts(model, ["jungle"])
    return np.array(generate_codes(model, 3, said, guidance=guidance, compile=True))


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize(("make", "work"), [(lambda: adapted(CSM.from_pretrained("tiny")), spoken), (in_half, played)])
def test_steps_of_other_settings_are_traced_at_once(make, work, monkeypatch):
    """Through the modules, whose weights are arguments of a compiled step: tracing leaves the model as it is."""
    settings = [0.5, 2.0, 2.0, 4.0]
    expected = [work(make(), setting) for setting in settings]
    model = make()
    meeting(monkeypatch, model, len(settings))
    made = at_once([partial(work, model, setting) for setting in settings])
    np.testing.assert_array_equal(made, expected)
    assert (made[0] != made[3]).any()


def test_a_compiled_step_is_a_run_s_own_whatever_others_keep():
    """Just when it has been found, another generation's takes its place."""
    model, overtook = tiny(), []

    class Key:
        def __eq__(self, _other: object) -> bool:
            overtook.append(True)
            model._companions["step"] = (Key(), None)
            return True

    kept = model.kept_step(Key(), lambda x: x + 1)
    assert model.kept_step(Key(), lambda x: x + 2) is kept
    assert overtook == [True]
    assert kept(mx.array(1)).item() == 2


@pytest.mark.parametrize(
    ("make", "module", "work"),
    [(lambda: CSM.from_pretrained("tiny"), "csm_mlx.decode", spoken), (tiny, "musicgen_mlx.fused", played)],
)
def test_weights_are_fused_once_for_threads_that_begin_together(make, module, work, monkeypatch):
    fuse, calls = import_module(module).fuse, []

    def slow(*arguments, **options):
        calls.append(arguments)
        time.sleep(0.05)
        return fuse(*arguments, **options)

    expected, model = work(make(), 2.0), make()
    monkeypatch.setattr(f"{module}.fuse", slow)
    made = at_once([partial(work, model, 2.0)] * 3)
    assert len(calls) == 1
    np.testing.assert_array_equal(made, [expected] * 3)
