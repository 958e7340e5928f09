"""What generation leaves behind: the model's mode and its fused weights; and the dtypes it works in and returns."""

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from backends.mlx_backend.sampling import Sampler
from csm_mlx import CSM, Segment, generate, stream_generate
from csm_mlx.companions import codec_of
from csm_mlx.decode import FusedPath, frame_path
from csm_mlx.finetune.lora import apply_lora_to_model
from csm_mlx.generation import FrameRun, prompt_rows
from csm_mlx.load import from_pretrained, save_pretrained


def tiny(dtype: mx.Dtype = mx.float32) -> CSM:
    model = CSM.from_pretrained("tiny")
    model.set_dtype(dtype)
    return model


def with_dropout() -> CSM:
    """An adapted model in training mode whose dropout is audible."""
    model = apply_lora_to_model(tiny(), dropout=0.5)
    mx.random.seed(3)

    def drawn(name: str, x: mx.array) -> mx.array:
        return 0.2 * mx.random.normal(x.shape) if name.endswith("lora_B") else x

    model.update(tree_map_with_path(drawn, model.trainable_parameters()))
    model.train()
    return model


def with_float32_embeddings() -> CSM:
    """As a bfloat16 base is after `--train-embeddings`."""
    model = tiny(mx.bfloat16)
    model.text_embeddings.set_dtype(mx.float32)
    model.audio_embeddings.set_dtype(mx.float32)
    return model


def started(model: CSM, **options) -> tuple[FrameRun, mx.array]:
    run = FrameRun(model, Sampler(0), (), 0, **options)
    return run, run.start(*prompt_rows(model, "hello", 0, []))


def new_weights(model: CSM) -> None:
    """Replace every array, as an optimizer's update does."""
    model.update(tree_map(lambda x: 1 * x, model.parameters()))
    mx.eval(model.parameters())


def held() -> int:
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


def test_a_bfloat16_codec_s_audio_is_float32(tmp_path):
    model = tiny(mx.bfloat16)
    codec_of(model).set_dtype(mx.bfloat16)
    save_pretrained(model, tmp_path)
    model = from_pretrained(tmp_path)
    assert all(value.dtype == mx.bfloat16 for _, value in tree_flatten(codec_of(model).decoder.parameters()))
    context = [Segment(1, "hi", audio=np.zeros(4800, np.float32))]
    whole = np.asarray(generate(model, "hello", 0, context, 400, seed=0))
    chunks = [np.asarray(chunk) for chunk in stream_generate(model, "hello", 0, context, 400, seed=0)]
    assert whole.dtype == np.float32
    assert whole.shape == (5 * 1920,)
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=0.02 * np.abs(whole).max())


def test_the_recording_s_sample_of_a_bfloat16_codec_is_float32(tmp_path):
    from backends.data import audio
    from backends.data.manifest import Clip
    from csm_mlx.finetune.run import _Speech

    model = tiny()
    codec_of(model).set_dtype(mx.bfloat16)
    path = tmp_path / "clip.wav"
    audio.write(path, 0.1 * np.sin(np.arange(9600, dtype=np.float32)), 24000)
    samples = _Speech(Clip(text="hi", audio_path=path, speaker=0), "hello", 0, 160, 0)(model, 0)
    assert [sample.name for sample in samples] == ["recording", "codec", "before"]
    assert all(sample.audio.dtype == np.float32 for sample in samples)


def test_float32_embeddings_do_not_raise_the_activations_dtype(monkeypatch):
    model = with_float32_embeddings()
    run, frame = started(model)
    assert isinstance(run.path, FusedPath)
    seen = set()
    for name in ("linear", "plus_linear", "norm", "attend"):
        plain = getattr(type(run.path.backbone), name)

        def spied(*arguments, plain=plain):
            made = plain(*arguments)
            seen.update(array.dtype for array in [*arguments, made] if isinstance(array, mx.array))
            return made

        monkeypatch.setattr(type(run.path.backbone), name, spied)
    run.advance(frame)
    assert seen == {mx.bfloat16}


def test_generations_share_the_fused_path_of_a_model_in_training_mode():
    model = tiny()
    model.train()
    generate(model, "hello", 0, [], 160, seed=0)
    assert model.training
    kept = model._companions["fused"]
    generate(model, "hello", 0, [], 160, seed=0)
    assert model._companions["fused"] is kept


@pytest.mark.parametrize("go_on", [CSM.train, new_weights])
def test_training_drops_the_fused_path(go_on):
    model = tiny()
    path = weakref.ref(frame_path(model))
    go_on(model)
    gc.collect()
    assert path() is None


def test_a_compiled_step_holds_no_weights():
    """`compile` is a wrapper without effect here, see conftest; what it holds is the same."""
    model = tiny(mx.bfloat16)  # whose forms, unlike float32's on the CPU, hold no tables
    new_weights(model)
    before = held()
    run, frame = started(model, compile=True)
    mx.eval(run.advance(frame))
    del run, frame
    new_weights(model)
    assert held() - before < 0.1 * sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    (compiled, frame), (eager, _) = started(model, compile=True), started(model, compile=False)
    np.testing.assert_array_equal(np.array(compiled.advance(frame)), np.array(eager.advance(frame)))


def test_a_compiled_step_outlives_another_sampler_s():
    model = tiny()
    run, frame = started(model, compile=True)
    expected = np.array(started(model, compile=False)[0].advance(frame))
    FrameRun(model, Sampler(1.0), (), 0, compile=True)
    np.testing.assert_array_equal(np.array(run.advance(frame)), expected)


@pytest.mark.parametrize("lengths_ms", [(160, 800), (800, 160)])
def test_streams_of_unequal_length_do_not_disturb_each_other_s_mode(lengths_ms):
    def stream(which: int):
        return stream_generate(model, ("hello", "other")[which], which, [], lengths_ms[which], seed=4 + which)

    model = with_dropout()
    alone = [np.concatenate([np.array(chunk) for chunk in stream(which)]) for which in (0, 1)]
    running, made = {which: stream(which) for which in (0, 1)}, ([], [])
    while running:
        for which in list(running):
            chunk = next(running[which], None)
            if chunk is None:
                del running[which]
            else:
                made[which].append(np.array(chunk))
            assert model.training == (not running)
    for which in (0, 1):
        np.testing.assert_array_equal(np.concatenate(made[which]), alone[which])


def test_closing_a_stream_early_is_its_end():
    model = with_dropout()
    first, second = (stream_generate(model, "hello", 0, [], 800, seed=seed) for seed in (1, 2))
    next(first), next(second)
    first.close()  # type: ignore[attr-defined]
    assert not model.training
    second.close()  # type: ignore[attr-defined]
    assert model.training


def test_an_exception_is_a_generation_s_end(monkeypatch):
    model = with_dropout()
    first, second = (stream_generate(model, "hello", 0, [], 800, seed=seed) for seed in (1, 2))
    next(first), next(second)

    def fails(*_arguments):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        generate(model, "hello", 0, [], 800, progress=fails)
    with monkeypatch.context() as patched:
        patched.setattr(type(codec_of(model)), "decode_step", fails)
        with pytest.raises(RuntimeError, match="full"):
            next(first)
    assert not model.training
    next(second)
    with monkeypatch.context() as patched:
        patched.setattr(type(codec_of(model)), "decode_step", fails)
        with pytest.raises(RuntimeError, match="full") as kept:  # its traceback keeps the stream's frames alive
            next(second)
        assert model.training
    assert kept.tb is not None
