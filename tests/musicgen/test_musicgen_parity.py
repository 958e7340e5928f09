"""MusicGen and T5 on MLX against transformers with shared random weights."""

import shutil

import mlx.core as mx
import musicgen_oracle as oracle
import numpy as np
import pytest
import torch
from gradients import assert_gradients_equal
from transformers.modeling_outputs import BaseModelOutput

from backends.layouts import musicgen as layouts
from backends.layouts.rules import to_ours
from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import MusicGen, condition, pattern
from musicgen_mlx.companions import load_text_encoder, text_encoder_of
from musicgen_mlx.forms import Columns, Rows
from musicgen_mlx.fused import gelu
from musicgen_mlx.generation import decode_audio, encode_audio, generate_codes
from musicgen_mlx.loss import codebook_sums
from musicgen_mlx.t5 import buckets
from musicgen_mlx.tiny import TOKENIZER

GREEDY = Sampler(temperature=0)
STEREO = {"codebooks": 8, "channels": 2}
LARGE_HEADS = {"hidden_size": 2048, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 256}
KINDS = {
    "text": (oracle.text, {}),
    "stereo": (oracle.text, STEREO),
    "bare": (oracle.bare, {}),
    "bare-head-1024": (oracle.bare, LARGE_HEADS),
    "bare-stereo": (oracle.bare, STEREO),
    "melody": (oracle.melody, {}),
}


class Pair:
    """The same weights upstream and here, with a batch of token ids whose second item is padded."""

    def __init__(self, kind: str, folder):
        make, settings = KINDS[kind]
        self.theirs = make(folder, **settings)
        shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
        self.ours = MusicGen.from_pretrained(folder)
        rng = np.random.default_rng(0)
        self.ids, self.mask = rng.integers(2, 300, (2, 6)), np.ones((2, 6), bool)
        self.mask[1, 4:] = False
        self.kind = kind

    @property
    def has_text(self) -> bool:
        return self.ours.config.condition != "none"

    def condition(self, rows=slice(None), length: int = 6):
        if not self.has_text:
            return None
        ids, mask = self.ids[rows, :length], self.mask[rows, :length]
        states = text_encoder_of(self.ours).model(mx.array(ids), mx.array(mask))
        return condition.from_states(self.ours, states, mask)

    def text(self, rows=slice(None), length: int = 6) -> dict[str, torch.Tensor]:
        if not self.has_text:
            return {}
        return {
            "input_ids": torch.from_numpy(self.ids[rows, :length]),
            "attention_mask": torch.from_numpy(self.mask[rows, :length]).long(),
        }

    def codes(self, steps: int, batch: int = 2) -> np.ndarray:
        shape = (batch, self.ours.config.codebooks, steps)
        return np.random.default_rng(1).integers(0, oracle.ENTRIES + 1, shape)

    def logits(self, codes: np.ndarray, **text) -> np.ndarray:
        B, K, T = codes.shape
        given = torch.from_numpy(codes.reshape(B * K, T))
        named = {"decoder_input_ids": given, **text} if self.has_text else {"input_ids": given}
        with torch.inference_mode():
            found = self.theirs(**named).logits.numpy()
        return found.reshape(B, K, -1, oracle.ENTRIES)[:, :, -T:]


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["text", "stereo"])
def text_pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_equal_transformers(pair):
    codes = pair.codes(9)
    expected = pair.logits(codes, **pair.text())
    got = np.array(pair.ours(mx.array(codes), pair.condition()))
    assert expected.std() > 0.5
    if pair.kind == "melody":  # upstream's layers see the padding of a prompt; test_padding holds for ours
        got, expected = got[:1], expected[:1]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_padding_changes_nothing(pair):
    """The second prompt, shorter by two tokens, gives in a batch what it gives alone."""
    codes = pair.codes(9)
    alone = slice(1, 2)
    got = np.array(pair.ours(mx.array(codes), pair.condition()))[alone]
    single = np.array(pair.ours(mx.array(codes[alone]), pair.condition(alone, 4)))
    np.testing.assert_allclose(got, single, atol=1e-5)
    np.testing.assert_allclose(single, pair.logits(codes[alone], **pair.text(alone, 4)), atol=1e-4)


def test_the_null_condition_is_exact(text_pair):
    """Zeros after the projection: logits are those of a model whose layers have no cross-attention at all."""
    ours, codes = text_pair.ours, mx.array(text_pair.codes(9))
    null = condition.null(ours, text_pair.condition())
    assert mx.array_equal(ours(codes, null), ours(codes, None))
    assert not mx.allclose(ours(codes, text_pair.condition()), ours(codes, None))
    with torch.inference_mode():
        zeros = BaseModelOutput(torch.zeros(2, 6, 48))
        given = torch.from_numpy(text_pair.codes(9)).reshape(-1, 9)
        none = torch.zeros(2, 6, dtype=torch.long)
        found = text_pair.theirs(encoder_outputs=zeros, attention_mask=none, decoder_input_ids=given).logits.numpy()
    np.testing.assert_allclose(np.array(ours(codes, null)).reshape(found.shape), found, atol=1e-4)


@pytest.mark.parametrize(("guidance", "prompt"), [(3.0, 0), (1.0, 5)], ids=["fresh", "continued"])
def test_greedy_codes_equal_transformers(pair, guidance, prompt):
    """50 steps. Of melody models only the unpadded prompt, as above."""
    rows, frames = slice(0, 1) if pair.kind == "melody" else slice(None), 47
    batch = 1 if pair.kind == "melody" else 2
    given = pair.codes(prompt, batch) % oracle.ENTRIES if prompt else None
    own = generate_codes(
        pair.ours, frames, pair.condition(rows), seeds=[0] * batch, prompt=given, sampler=GREEDY, guidance=guidance
    )
    assert own.shape == (batch, pair.ours.config.codebooks, frames)
    expected = their_codes(pair, rows, frames, given, guidance, batch)
    np.testing.assert_array_equal(np.array(own), expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", [Columns, Rows])
def test_rows_and_columns_choose_the_codes_of_the_modules(pair, form, compiled, monkeypatch):
    """Both forms of the CPU's step, whatever BLAS is here, with padded prompts and over a cache that grows; also as it
    is traced for compiling, where empty slots are masked."""
    monkeypatch.setattr("musicgen_mlx.decode.SLOTS", 8)
    monkeypatch.setattr("musicgen_mlx.decode.FEW_SLOTS", 8)
    options = {"condition": pair.condition(), "seeds": [0, 1], "sampler": GREEDY, "compile": compiled}
    with monkeypatch.context() as patched:
        patched.setattr("musicgen_mlx.decode.fused_path", lambda *_: None)
        expected = generate_codes(pair.ours, 14, **options)
    monkeypatch.setattr("musicgen_mlx.fused.form_for", lambda _rows: form)
    own = generate_codes(pair.ours, 14, **options)
    np.testing.assert_array_equal(np.array(own), np.array(expected))
    path = pair.ours._companions["fused"]
    other = Rows if form is Columns else Columns
    monkeypatch.setattr("musicgen_mlx.fused.form_for", lambda _rows: other)
    np.testing.assert_array_equal(np.array(generate_codes(pair.ours, 14, **options)), np.array(expected))
    assert pair.ours._companions["fused"] is path  # taking the other form fuses nothing again
    assert path.forms.keys() >= {Rows, Columns}


def their_codes(pair: Pair, rows, frames: int, prompt, guidance: float, batch: int) -> np.ndarray:
    """What transformers' generate gives its codec, or, without one, returns."""
    K, delays = pair.ours.config.codebooks, pair.ours.config.delays
    new = pattern.steps(frames, delays) - 1
    options = {"do_sample": False, "max_new_tokens": new - (prompt.shape[2] if prompt is not None else 0)}
    start = np.full((batch, K, 1), oracle.ENTRIES)
    begun = start if prompt is None else np.concatenate([start, prompt], axis=2)
    ids = torch.from_numpy(begun.reshape(batch * K, -1))
    if not pair.has_text:
        ones = torch.ones(batch, begun.shape[2], dtype=torch.long)  # else guessed from pad ids, which the first are
        return pair.theirs.generate(ids, attention_mask=ones, **options).reshape(batch, K, -1).numpy()
    seen = []
    decode = pair.theirs.audio_encoder.decode
    pair.theirs.audio_encoder.decode = lambda codes, **more: (seen.append(codes.numpy()), decode(codes, **more))[1]
    try:
        pair.theirs.generate(**pair.text(rows), **options, decoder_input_ids=ids, guidance_scale=guidance)
    finally:
        pair.theirs.audio_encoder.decode = decode
    if len(seen) == 1:
        return seen[0][0]
    return np.stack(seen, axis=3)[0].reshape(batch, K, -1)


def test_the_steps_gelu_is_exact():
    x = np.linspace(-12, 12, 20_001).astype(np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(np.array(gelu(mx.array(x))) - exact).max() <= 1e-6
    assert gelu(mx.array([-1e4, 1e4])).tolist() == [0, 1e4]


def test_loss_and_gradients_equal_transformers(pair):
    config, frames = pair.ours.config, (7, 4)
    codes = pair.codes(7) % oracle.ENTRIES
    steps = pattern.delayed(codes, config.delays, config.special)
    targets = np.stack([pattern.valid(count, config.delays) for count in (7, 7)])
    targets[1, :, frames[1] :] = False
    labels = np.where(targets, steps, -100)[:, :, 1:]
    rows = slice(0, 1) if pair.kind == "melody" else slice(None)
    steps, targets, labels = steps[rows], targets[rows], labels[rows]
    loss = their_loss(pair, steps, labels, rows)
    pair.theirs.zero_grad()
    loss.backward()
    counts = mx.array(targets[:, :, 1:].sum(axis=(0, 2)))
    states = text_states(pair, rows)

    def objective(parameters):
        pair.ours.update(parameters)
        sums = codebook_sums(pair.ours, mx.array(steps), mx.array(targets), states())
        return (sums / counts).mean()

    value, gradients = mx.value_and_grad(objective)(pair.ours.trainable_parameters())
    assert abs(value.item() - loss.item()) <= 1e-5
    assert_gradients_equal(gradients, their_gradients(pair))


def text_states(pair: Pair, rows):
    """The condition inside the objective, since its projection trains."""
    if not pair.has_text:
        return lambda: None
    mask = pair.mask[rows]
    states = text_encoder_of(pair.ours).model(mx.array(pair.ids[rows]), mx.array(mask))
    return lambda: condition.from_states(pair.ours, states, mask)


def their_loss(pair: Pair, steps: np.ndarray, labels: np.ndarray, rows) -> torch.Tensor:
    B, K, S = labels.shape
    given = torch.from_numpy(steps[:, :, :-1].reshape(B * K, S))
    wanted = torch.from_numpy(labels.swapaxes(1, 2))
    if not pair.has_text:
        return pair.theirs(input_ids=given, labels=wanted).loss
    for name, value in pair.theirs.named_parameters():
        value.requires_grad_(not name.startswith(("text_encoder.", "audio_encoder.")))
    return pair.theirs(**pair.text(rows), decoder_input_ids=given, labels=wanted).loss


def their_gradients(pair: Pair) -> dict[str, np.ndarray]:
    own = {name: value.grad.numpy() for name, value in pair.theirs.named_parameters() if value.grad is not None}
    return dict(to_ours(own, layouts.rules("musicgen", pair.ours.config.settings()), "gradients"))


def test_audio_equals_transformers(text_pair):
    """Codes of a batch become audio, stereo's through the codec side by side, and audio becomes codes."""
    codes = text_pair.codes(6) % oracle.ENTRIES
    codec = text_pair.theirs.audio_encoder
    sides = [codes] if text_pair.kind == "text" else [codes[:, 0::2], codes[:, 1::2]]
    with torch.inference_mode():
        expected = [codec.decode(torch.from_numpy(side)[None], [None]).audio_values[:, 0].numpy() for side in sides]
    sound = decode_audio(text_pair.ours, mx.array(codes))
    got = [np.array(sound)] if text_pair.kind == "text" else [np.array(sound[..., side]) for side in (0, 1)]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    again = encode_audio(text_pair.ours, sound)
    assert again.shape == codes.shape
    if text_pair.kind == "stereo":
        both = encode_audio(text_pair.ours, mx.broadcast_to(sound[..., :1], sound.shape))
        assert mx.array_equal(both, encode_audio(text_pair.ours, sound[..., 0]))


@pytest.mark.parametrize("settings", [{}, {"feed_forward_proj": "gated-gelu"}], ids=["t5", "t5-1.1"])
def test_t5_equals_transformers(tmp_path, settings):
    theirs = oracle.t5(tmp_path, **settings)
    shutil.copyfile(TOKENIZER, tmp_path / "tokenizer.json")
    ours = load_text_encoder(tmp_path)
    texts = ["drum and bass, 174 bpm, with a long reese bass and chopped breaks", "piano", ""]
    states, mask = ours.encode(texts)
    ids = np.zeros(mask.shape, np.int64)
    for row, text in enumerate(texts):
        ids[row, : mask[row].sum()] = ours.tokenizer.ids(text)
    with torch.inference_mode():
        expected = theirs(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long())
    np.testing.assert_allclose(np.array(states)[mask], expected.last_hidden_state.numpy()[mask], atol=1e-4)
    alone, _ = ours.encode(texts[1:2])
    np.testing.assert_allclose(np.array(states)[1, : alone.shape[1]], np.array(alone)[0], atol=1e-5)
    assert (mask.sum(axis=1) == [len(text) + 1 for text in texts]).all()


def test_t5s_buckets_equal_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    from musicgen_mlx import T5Config

    distance = torch.arange(400) - torch.arange(400)[:, None]
    expected = T5Attention._relative_position_bucket(distance, num_buckets=32, max_distance=128).numpy()
    np.testing.assert_array_equal(buckets(400, T5Config()), expected)
