"""CSM on MLX against transformers' CsmForConditionalGeneration with shared random weights."""

import mlx.core as mx
import numpy as np
import oracles
import pytest
import torch
from gradients import assert_gradients_equal

from backends.layouts import csm as layouts
from backends.layouts.rules import to_ours
from backends.mlx_backend.sampling import Sampler
from csm_mlx import CSM, tokens
from csm_mlx.generation import FrameRun
from csm_mlx.task import Example, collate, terms

AUDIO, AUDIO_EOS = 290, 291
SHAPES = {
    "gqa-4-to-1": {"codebooks": 8, "heads": (4, 1), "depth_heads": (2, 1)},
    "mha": {"codebooks": 3, "heads": (4, 4), "depth_heads": (2, 2)},
    "32-codebooks": {"codebooks": 32, "heads": (4, 2), "depth_heads": (2, 1), "window": 20},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("csm")
    theirs = oracles.csm(folder, **request.param)
    return theirs, CSM.from_pretrained(folder)


def conversation(ours: CSM, frames: int, seed: int = 0):
    """Two text parts around `frames` of audio: (ids with placeholders, audio, rows, is_audio)."""
    rng = np.random.default_rng(seed)
    audio = (0.3 * rng.standard_normal(frames * 1920)).astype(np.float32)
    before, after = ([256, *rng.integers(0, 256, n), 257] for n in (7, 5))
    ids = [*before, *[AUDIO] * frames, AUDIO_EOS, *after]
    codes = tokens.encode_audio(ours._companions["codec"], audio)
    K = ours.config.codebooks
    parts = [
        (tokens.text_rows(before, K), False),
        (tokens.audio_rows(codes[:K]), True),
        (tokens.text_rows(after, K), False),
    ]
    return np.array(ids)[None], audio, *tokens.join(parts)


def inputs(ids: np.ndarray, audio: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.from_numpy(ids),
        "input_values": torch.from_numpy(audio)[None, None],
        "input_values_cutoffs": torch.tensor([[audio.size]]),
    }


@pytest.mark.parametrize("frames", [3, 24])
def test_logits_equal_transformers(pair, frames):
    theirs, ours = pair
    ids, audio, rows, is_audio = conversation(ours, frames)
    labels = np.where(ids == AUDIO, AUDIO, -100)
    with torch.inference_mode():
        expected = theirs(**inputs(ids, audio), labels=torch.from_numpy(labels))
    hidden = ours.backbone(ours.embed(mx.array(rows)[None], mx.array(is_audio)[None]))
    np.testing.assert_allclose(np.array(ours.codebook0_head(hidden)), expected.logits.numpy(), atol=1e-4)
    at = np.flatnonzero((ids[0] == AUDIO) | (ids[0] == AUDIO_EOS))
    logits = ours.depth_logits(hidden[0, mx.array(at - 1)], mx.array(rows[at, :-1]))
    np.testing.assert_allclose(np.array(logits), expected.depth_decoder_logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("frames", [0, 24])
def test_greedy_frames_equal_transformers(pair, frames):
    theirs, ours = pair
    ids, audio, rows, is_audio = conversation(ours, max(frames, 1))
    given = inputs(ids, audio)
    if not frames:
        rows, is_audio = rows[-7:], is_audio[-7:]
        given = {"input_ids": torch.from_numpy(ids[:, -7:])}
    given["attention_mask"] = torch.ones_like(given["input_ids"])  # else guessed from pad ids, which audio's are
    with torch.inference_mode():
        expected = theirs.generate(**given, do_sample=False, depth_decoder_do_sample=False, max_new_tokens=20)
    run = FrameRun(ours, Sampler(temperature=0), (), seed=0, compile=False)
    got = [run.start(rows, is_audio)]
    while len(got) < 20:
        got.append(run.advance(got[-1]))
    np.testing.assert_array_equal(np.concatenate([np.array(frame) for frame in got]), expected[0].numpy())


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_loss_and_gradients_equal_transformers(pair, fraction):
    theirs, ours = pair
    conversations = [conversation(ours, frames, seed=frames) for frames in (3, 9, 5)]
    longest = max(ids.shape[1] for ids, *_ in conversations)
    labels, drawn = np.full((3, longest), -100), []
    for row, (ids, *_) in enumerate(conversations):
        targets = np.flatnonzero((ids[0] == AUDIO) | (ids[0] == AUDIO_EOS))
        kept = targets[:: round(1 / fraction)]
        labels[row, : ids.shape[1]] = np.where(np.isin(np.arange(ids.shape[1]), targets), -101, -100)
        labels[row, kept] = ids[0, kept]
        drawn.append(kept)
    loss = _their_loss(theirs, conversations, labels, longest)
    theirs.zero_grad()
    loss.backward()

    examples = [Example(rows, is_audio, is_audio) for *_, rows, is_audio in conversations]
    batch = {name: mx.array(value) for name, value in collate(examples, drawn).items()}
    counts = [sum(x.targets.sum() for x in examples), sum(map(len, drawn)) * (ours.config.codebooks - 1)]

    def objective(parameters):
        ours.update(parameters)
        sums = terms(ours, batch)
        return sums["codebook0"] / counts[0] + sums["depth"] / counts[1]

    value, gradients = mx.value_and_grad(objective)(ours.trainable_parameters())
    assert abs(value.item() - loss.item()) <= 1e-5
    assert_gradients_equal(gradients, _their_gradients(theirs, ours))


def _their_loss(theirs, conversations, labels, longest):
    """transformers takes every frame and EOS as a target; label -101 keeps one from the depth decoder only."""
    ids = np.zeros((len(conversations), longest), np.int64)
    for row, (given, *_) in enumerate(conversations):
        ids[row, : given.shape[1]] = given
    sounds = [audio for _, audio, *_ in conversations]
    padded = np.stack([np.pad(audio, (0, max(map(len, sounds)) - len(audio))) for audio in sounds])
    return theirs(
        input_ids=torch.from_numpy(ids),
        input_values=torch.from_numpy(padded)[:, None],
        input_values_cutoffs=torch.tensor([[audio.size] for audio in sounds]),
        labels=torch.from_numpy(labels),
    ).loss


def _their_gradients(theirs, ours):
    named = {name: value.grad.numpy() for name, value in theirs.named_parameters() if value.grad is not None}
    tied = "backbone_model.embed_tokens.embed_audio_tokens.weight"
    if tied in named:
        named[layouts.TIED[0]] = named.pop(tied)
    own = {name: named[name] for name in named if not name.startswith("codec_model.")}
    return dict(to_ours(own, layouts.rules("transformers", ours.config.settings()), "gradients"))
