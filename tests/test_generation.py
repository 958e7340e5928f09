"""`generate` and `stream_generate` on the tiny model."""

import math
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from backends.errors import InputError
from backends.mlx_backend.sampling import Sampler
from backends.seeds import gumbel
from csm_mlx import CSM, Segment, generate, stream_generate
from csm_mlx.decode import FusedPath, ModulePath, frame_path
from csm_mlx.finetune.lora import apply_lora_to_model
from csm_mlx.generation import FrameRun, prompt_rows


@pytest.fixture(scope="module")
def model() -> CSM:
    return CSM.from_pretrained("tiny")


def sound(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(24000 * seconds))).astype(np.float32)


def frames(model: CSM, count: int, sampler=None, seed: int = 0) -> np.ndarray:
    run = FrameRun(model, sampler or Sampler(0), (), seed)
    made = [run.start(*prompt_rows(model, "hello", 0, []))]
    while len(made) < count:
        made.append(run.advance(made[-1]))
    return np.concatenate([np.array(frame) for frame in made])


def test_audio_has_the_asked_length_and_rate(model):
    audio = generate(model, "hello", 0, [], 1000, seed=0)
    assert audio.shape == (12 * 1920,)
    assert audio.dtype == mx.float32


def test_a_seed_repeats_and_another_differs(model):
    first, again, other = (np.array(generate(model, "hello", 0, [], 800, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_streaming_equals_generate(model, chunk_frames):
    context = [Segment(speaker=1, text="hi", audio=sound())]
    whole = np.array(generate(model, "hello", 0, context, 2000, seed=3))
    chunks = list(stream_generate(model, "hello", 0, context, 2000, seed=3, chunk_frames=chunk_frames))
    assert len(chunks) == math.ceil(25 / chunk_frames)
    np.testing.assert_allclose(np.concatenate([np.array(chunk) for chunk in chunks]), whole, atol=1e-4)


def test_two_streams_do_not_disturb_each_other(model):
    alone = [np.array(chunk) for chunk in stream_generate(model, "hello", 0, [], 800, seed=4)]
    pairs = zip(
        stream_generate(model, "hello", 0, [], 800, seed=4),
        stream_generate(model, "other", 1, [], 800, seed=5),
        strict=True,
    )
    np.testing.assert_array_equal(np.concatenate(alone), np.concatenate([np.array(first) for first, _ in pairs]))


def test_the_voice_prompt_changes_the_result(model):
    plain = np.array(generate(model, "hello", 0, [], 800, seed=1))
    prompted = np.array(generate(model, "hello", 0, [Segment(0, "one", audio=sound())], 800, seed=1))
    assert np.abs(plain - prompted).max() > 1e-3


def test_generation_stops_only_at_the_all_zero_frame(model):
    calls = 0

    def sampler(logprobs: mx.array) -> mx.array:
        """Zero in codebook 0 of frame 2 alone, and all zeros in frame 4."""
        nonlocal calls
        frame, codebook = divmod(calls, model.config.codebooks)
        calls += 1
        zero = frame == 4 or (frame == 2 and codebook == 0)
        return mx.zeros((1,), mx.uint32) if zero else mx.argmax(logprobs[:, 1:], axis=-1) + 1

    assert generate(model, "hello", 0, [], 4000, sampler=sampler).shape == (4 * 1920,)


def test_an_immediate_end_is_empty_audio(model):
    audio = generate(model, "hello", 0, [], 4000, sampler=lambda logprobs: mx.zeros((1,), mx.uint32))
    assert audio.shape == (0,)


def test_top_k_is_exact_and_keeps_ties():
    logits = mx.array([[0.0, 3.0, 2.0, 2.0, 1.0]])
    noises = [Sampler(1.0).noise((5,), [0], step) for step in range(300)]
    seen = {int(Sampler(1.0, 2)(logits, noise)) for noise in noises}
    assert seen == {1, 2, 3}
    assert {int(Sampler(1.0, 1)(logits, noise)) for noise in noises} == {1}


def test_sampling_follows_the_softmax():
    logits = mx.log(mx.array([[0.5, 0.3, 0.2]]))
    sampler = Sampler(0.5, 0)
    noise = sampler.noise((3,), range(20000), 0)
    drawn = np.bincount(np.array(sampler(mx.broadcast_to(logits, noise.shape), noise)), minlength=3) / 20000
    expected = np.array([0.25, 0.09, 0.04]) / 0.38
    np.testing.assert_allclose(drawn, expected, atol=0.015)


def test_noise_is_of_its_frame_and_codebook(model):
    """At a great temperature nothing else counts."""
    noisy = FrameRun(model, Sampler(1e6, 0), (), 7)
    with model.generating():
        made = [noisy.start(*prompt_rows(model, "hi", 0, ()))]
        while len(made) < 4:
            made.append(noisy.advance(made[-1]))
    shape = (model.config.codebooks, model.config.mimi.entries)
    for number, frame in enumerate(made, start=1):
        np.testing.assert_array_equal(np.array(frame)[0], gumbel(shape, 7, number).argmax(axis=-1))


def test_top_p_is_keyed_by_seed_and_greedy_where_it_is_small(model):
    """Whatever MLX's global generator is at."""

    def codes(top_p: float, seed: int) -> np.ndarray:
        mx.random.normal((3,))
        return frames(model, 6, Sampler(top_p=top_p), seed)

    np.testing.assert_array_equal(codes(0.9, 1), codes(0.9, 1))
    assert (codes(0.9, 1) != codes(0.9, 2)).any()
    assert (codes(0.9, 1) != frames(model, 6)).any()
    np.testing.assert_array_equal(codes(1e-6, 1), frames(model, 6))


def test_mlx_lm_samplers_and_processors_are_accepted(model):
    code = """
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from csm_mlx import CSM, generate
import numpy as np
model = CSM.from_pretrained("tiny")
one, two = (
    np.array(generate(model, "hello", 0, [], 800, sampler=make_sampler(temp=0.8, top_k=50),
                      logits_processors=make_logits_processors(logit_bias={7: 100.0}), seed=5))
    for _ in range(2)
)
assert (one == two).all() and one.shape == (19200,)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_negative_seed_is_a_seed_for_any_sampler(model):
    from mlx_lm.sample_utils import make_sampler

    for sampler in (None, make_sampler(1.0)):
        first, again = (np.array(generate(model, "a", 0, [], 160, sampler=sampler, seed=-3)) for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_chunks_have_at_least_one_frame(model):
    with pytest.raises(InputError, match="chunk_frames is 0: expected at least 1"):
        next(stream_generate(model, "a", 0, [], 160, chunk_frames=0))


def test_processors_see_codebook_0_and_its_history(model):
    lengths = []

    def only_seven(past: mx.array, logits: mx.array) -> mx.array:
        lengths.append((past.shape[0], logits.shape))
        return mx.where(mx.arange(logits.shape[-1]) == 7, logits + 1000, logits)

    run = FrameRun(model, Sampler(0), [only_seven], 0)
    frame = run.start(*prompt_rows(model, "hello", 0, []))
    following = run.advance(frame)
    assert frame[0, 0].item() == following[0, 0].item() == 7
    assert lengths == [(0, (1, 256)), (1, (1, 256))]


def test_fused_and_module_paths_choose_the_same_frames(model):
    assert isinstance(frame_path(model), FusedPath)
    fused = frames(model, 24)
    adapted = apply_lora_to_model(CSM.from_pretrained("tiny"), rank=2)
    assert isinstance(frame_path(adapted), ModulePath)
    np.testing.assert_array_equal(fused, frames(adapted, 24))


def test_kernels_and_cpu_forms_choose_the_same_frames(model, monkeypatch):
    expected = frames(model, 24)
    model.train()
    model.eval()
    kernels = FusedPath(model, kernels=True)
    monkeypatch.setattr("csm_mlx.generation.frame_path", lambda _model: kernels)
    np.testing.assert_array_equal(expected, frames(model, 24))


def test_the_cache_grows_without_changing_frames(model, monkeypatch):
    expected = frames(model, 30)
    monkeypatch.setattr("csm_mlx.generation.SLOTS", 16)
    np.testing.assert_array_equal(expected, frames(model, 30))


def test_fusing_keeps_the_weights_and_sees_new_ones():
    model = CSM.from_pretrained("tiny")
    before = {name: np.array(value) for name, value in nn.utils.tree_flatten(model.parameters())}
    first = frames(model, 6)
    after = {name: np.array(value) for name, value in nn.utils.tree_flatten(model.parameters())}
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    model.codebook0_head.weight = -model.codebook0_head.weight
    assert (frames(model, 6) != first).any()


def test_quantised_weights_generate():
    model = CSM.from_pretrained("tiny")
    nn.quantize(model, group_size=32, bits=8)
    assert isinstance(frame_path(model), ModulePath)
    assert frames(model, 3).shape == (3, 8)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_weights_and_activations_keep_their_dtype(dtype):
    model = CSM.from_pretrained("tiny")
    model.set_dtype(dtype)
    run = FrameRun(model, Sampler(0), (), 0)
    frame = run.start(*prompt_rows(model, "hello", 0, []))
    for _ in range(3):
        frame = run.advance(frame)
        assert all(array.dtype == dtype for array in run.caches)
    assert model.embed_frames(frame).dtype == dtype
    assert all(value.dtype == dtype for _, value in nn.utils.tree_flatten(model.parameters()))


def test_one_look_per_frame(model, monkeypatch):
    looks = 0
    item = mx.array.item

    def counted(self):
        nonlocal looks
        looks += 1
        return item(self)

    monkeypatch.setattr(mx.array, "item", counted)
    generate(model, "hello", 0, [], 1600, seed=0)
    assert looks == 20


@pytest.mark.compiles
def test_compiled_frames_equal_eager_ones():
    code = """
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from backends.base import LoRASpec
from backends.mlx_backend import lora
from backends.mlx_backend.sampling import Sampler
from csm_mlx import CSM
from csm_mlx.generation import FrameRun, prompt_rows
model = CSM.from_pretrained("tiny")
def frames(compile):
    run = FrameRun(model, Sampler(), (), 3, compile=compile)
    made = [run.start(*prompt_rows(model, "hello", 0, []))]
    while len(made) < 8:
        made.append(run.advance(made[-1]))
    return np.concatenate([np.array(frame) for frame in made])
assert (frames(False) == frames(True)).all()
# Through the modules, as quantised or adapted models go.
nn.quantize(model, 64, 8, class_predicate=lambda _, m: isinstance(m, nn.Linear) and m.weight.shape[-1] % 64 == 0)
assert (frames(False) == frames(True)).all()
# With one adapter after another of the same shapes.
model = CSM.from_pretrained("tiny")
for alpha in (2, 64):
    lora.adapt(model, ["backbone.layers.0.self_attn.q_proj"], LoRASpec(4, alpha), 0)
    adapted = model.backbone.layers[0].self_attn.q_proj
    adapted.lora_B = mx.random.normal(adapted.lora_B.shape, key=mx.random.key(1))
    assert (frames(False) == frames(True)).all(), alpha
    model.backbone.layers[0].self_attn.q_proj = adapted.base
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=_compiling())


def _compiling() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "MLX_DISABLE_COMPILE"}


def test_a_prompt_without_room_is_a_clear_error(model):
    with pytest.raises(
        InputError, match=r"the prompt has \d+ rows .* shorten the context or lower max_audio_length_ms"
    ):
        generate(model, "hello", 0, [Segment(0, "long", audio=sound(80))], 90_000)
    with pytest.raises(InputError, match=r"the prompt has \d+ rows .* shorten the text or lower max_audio_length_ms"):
        generate(model, 2000 * "hello ", 0, [], 90_000)
    with pytest.raises(InputError, match="max_audio_length_ms 10: expected at least 80, one frame"):
        generate(model, "hello", 0, [], 10)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0), "holds no samples"),
        (np.full(2000, np.nan), "NaN"),
        (np.full(2000, np.inf), "NaN or infinite"),
        (np.zeros((2, 3, 4)), r"expected \(samples,\) at 24000 Hz"),
        (np.zeros((2000, 2)), r"expected \(samples,\) .*, found shape \(2000, 2\)"),
        (np.zeros(2000, np.uint8), "floats from -1 to 1, int16 or int32, found ndarray of uint8"),
        (np.full(2000, 3e4), "reaches 30000"),
        (2000 * [1000], "found list of int64"),
        ("sound", "found str of <U5"),
    ],
)
def test_bad_context_audio_is_named(model, audio, message):
    with pytest.raises(InputError, match=message):
        generate(model, "hello", 0, [Segment(0, "x", audio=audio)], 800)


@pytest.mark.parametrize("context", [None, [None], "hello"])
def test_a_context_of_something_else_is_refused(model, context):
    with pytest.raises(InputError, match="context: expected a list of Segments"):
        generate(model, "hello", 0, context, 800)
    with pytest.raises(InputError, match="Segment text is None"):
        Segment(0, None, audio=np.zeros(2000))  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [16, 32])
def test_integer_context_audio_is_scaled_by_its_range(bits):
    floats = np.array([-1.0, -0.5, 0.0, 0.25, 0.5], np.float32)
    integers = (floats * 2.0 ** (bits - 1)).astype(f"int{bits}")
    np.testing.assert_array_equal(Segment(0, "x", audio=integers).samples(24000), floats)
    np.testing.assert_array_equal(Segment(0, "x", audio=mx.array(integers)).samples(24000), floats)
    np.testing.assert_array_equal(Segment(0, "x", audio=mx.array(floats).astype(mx.bfloat16)).samples(24000), floats)


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_text_without_words_is_refused(model, text):
    with pytest.raises(InputError, match=rf"text is {text!r}: expected something to say"):
        generate(model, text, 0)
    with pytest.raises(InputError, match="expected something to say"):
        next(stream_generate(model, text, 0))


def test_a_text_with_half_a_character_is_refused(model):
    with pytest.raises(InputError, match=r"text 'caf\\udce9': holds what is no character; expected UTF-8"):
        generate(model, "caf\udce9", 0)


@pytest.mark.parametrize("speaker", ["x", -1, 1.5, True, None])
def test_a_speaker_that_is_no_whole_number_is_refused(model, speaker):
    with pytest.raises(InputError, match=rf"^speaker is {speaker!r}: expected a whole number from 0"):
        generate(model, "hello", speaker)
    with pytest.raises(InputError, match=rf"^Segment speaker is {speaker!r}: expected a whole number from 0"):
        generate(model, "hello", 0, [Segment(speaker, "x", audio=sound())])


def test_numpy_s_whole_numbers_are_speakers(model):
    assert generate(model, "hello", np.int64(0), [], 80, seed=0).shape == (1920,)  # type: ignore[arg-type]


def test_the_model_keeps_its_mode(model):
    model.train()
    generate(model, "hello", 0, [], 160, seed=0)
    assert model.training
    model.eval()
    generate(model, "hello", 0, [], 160, seed=0)
    assert not model.training
