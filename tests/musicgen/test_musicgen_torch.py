"""MusicGen through the PyTorch door: the same weights, logits, codes and audio as on MLX."""

import copy
import shutil

import mlx.core as mx
import musicgen_oracle as oracle
import numpy as np
import pytest
import torch

from backends.errors import InputError
from backends.mlx_backend.sampling import Sampler
from backends.torch_backend.sampling import Sampler as TorchSampler
from musicgen_mlx import MusicGen, condition, generation, torch_decode, torch_fused, torch_generation
from musicgen_mlx import torch_model as door
from musicgen_mlx.companions import codec_of, text_encoder_of
from musicgen_mlx.tiny import TOKENIZER

KINDS = {
    "text": (oracle.text, {}),
    "stereo": (oracle.text, {"codebooks": 8, "channels": 2}),
    "bare": (oracle.bare, {}),
    "melody": (oracle.melody, {}),
}
ROWS = np.random.default_rng(0).standard_normal((2, 5, 48)).astype(np.float32)


class Pair:
    """A model on both sides, and a condition of two items on both; the second is shorter, except for melody."""

    def __init__(self, kind: str, folder):
        make, settings = KINDS[kind]
        make(folder, **settings)
        shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
        self.ours = MusicGen.from_pretrained(folder)
        self.theirs, self.companions = door.from_pretrained(folder)
        mask = np.ones((2, 5), bool)
        mask[1, 3:] = kind == "melody"
        self.own = self.their = None
        if kind != "bare":
            self.own = condition.from_states(self.ours, mx.array(ROWS), mask)
            self.their = self.theirs.condition(torch.from_numpy(ROWS), torch.from_numpy(mask))


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_and_weights_are_the_same(pair):
    codes = np.random.default_rng(1).integers(0, oracle.ENTRIES + 1, (2, pair.ours.config.codebooks, 9))
    with torch.inference_mode():
        theirs = door.predicted(pair.theirs, torch.from_numpy(codes), pair.their).numpy()
    np.testing.assert_allclose(np.array(pair.ours(mx.array(codes), pair.own)), theirs, atol=1e-4)
    from backends.mlx_backend.parameters import parameters

    own, their = parameters(pair.ours), pair.theirs.tensors()
    assert own.keys() == their.keys()
    for name, value in their.items():
        np.testing.assert_array_equal(np.array(own[name]), value, err_msg=name)


@pytest.mark.parametrize("sampling", [(0,), (1.0, 20), (0.8, 0, 0.9)], ids=["greedy", "top-k", "top-p"])
@pytest.mark.parametrize(("guidance", "prompt"), [(3.0, 0), (1.0, 5)], ids=["fresh", "continued"])
def test_codes_are_the_same(pair, guidance, prompt, sampling):
    """Drawn ones too; over more steps than the first caches hold."""
    frames = 270
    given = np.random.default_rng(2).integers(0, oracle.ENTRIES, (2, pair.ours.config.codebooks, prompt))
    options = {"seeds": [0, 1], "guidance": guidance, "prompt": given if prompt else None}
    own = generation.generate_codes(pair.ours, frames, pair.own, sampler=Sampler(*sampling), **options)
    theirs = torch_generation.generate_codes(
        pair.theirs, frames, pair.their, sampler=TorchSampler(*sampling), **options
    )
    np.testing.assert_array_equal(np.array(own)[:, :, :50], theirs.numpy()[:, :, :50])
    assert (np.array(own) == theirs.numpy()).mean() > 0.9


@pytest.mark.cuda
def test_codes_on_cuda_are_those_of_the_cpu(pair):
    """Steps on their way to the host wait for nothing that is queued later, and for all that came before."""
    there, said = copy.deepcopy(pair.theirs).to("cuda"), pair.their
    moved = None if said is None else door.Condition(said.states.to("cuda"), said.mask.to("cuda"), said.empty)
    options = {"seeds": [0, 1], "sampler": TorchSampler(1.0, top_k=20)}
    expected = torch_generation.generate_codes(pair.theirs, 20, said, **options)
    found = torch_generation.generate_codes(there, 20, moved, **options)
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), expected)


def test_an_items_codes_do_not_depend_on_its_batch(pair):
    sampler = TorchSampler(1.0, top_k=20)
    both = torch_generation.generate_codes(pair.theirs, 12, pair.their, seeds=[7, 8], sampler=sampler)
    one = None if pair.their is None else door.Condition(pair.their.states[1:], pair.their.mask[1:], (False,))
    alone = torch_generation.generate_codes(pair.theirs, 12, one, seeds=[8], sampler=sampler)
    np.testing.assert_array_equal(both[1:].numpy(), alone.numpy())
    other = torch_generation.generate_codes(pair.theirs, 12, one, seeds=[9], sampler=sampler)
    assert (alone != other).any()


def test_fused_steps_are_the_modules_and_follow_the_weights(pair, monkeypatch):
    """Greedy codes over fused weights and through the modules; new values, in place or elsewhere, are seen."""
    model, options = pair.theirs, {"seeds": [0, 1], "sampler": TorchSampler(0)}

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        fused = torch_generation.generate_codes(model, 12, pair.their, **options)
        with monkeypatch.context() as patched:
            patched.setattr(torch_decode, "fused_path", lambda *_: None)
            return fused, torch_generation.generate_codes(model, 12, pair.their, **options)

    before = model.tensors()
    fused, plain = both()
    assert torch.equal(fused, plain)
    path = torch_fused.fused_path(model, 12)
    assert path is not None
    assert torch_fused.fused_path(model, 12) is path
    assert all((value == before[name]).all() for name, value in model.tensors().items())
    head = model.decoder.lm_heads[0].weight
    kept = head.detach().clone()
    for change in ("in place", "elsewhere"):
        flipped = -head.detach().clone()
        if change == "in place":
            with torch.no_grad():
                head.copy_(flipped)
        else:
            head.data = flipped
        fused, plain = both()
        assert torch.equal(fused, plain)
    assert torch.equal(head, kept)
    model.decoder.lm_heads[0].weight.sum().backward()  # what was fused still trains
    assert head.grad is not None
    model.zero_grad()


def test_adapted_layers_are_asked(tmp_path):
    oracle.bare(tmp_path)
    model, _ = door.from_pretrained(tmp_path)
    attention = model.decoder.model.decoder.layers[0].self_attn
    attention.q_proj = torch.nn.Sequential(attention.q_proj)
    assert torch_fused.fused_path(model, 12) is None


def test_audio_is_the_same(pair):
    if "encodec" not in pair.companions:
        with pytest.raises(InputError, match="--codec"):
            codec_of(pair.ours)
        return
    codec, channels = door.codec_of_checkpoint(pair.companions["encodec"]), pair.ours.config.channels
    codes = np.random.default_rng(3).integers(0, oracle.ENTRIES, (2, pair.ours.config.codebooks, 6))
    theirs = torch_generation.decode_audio(codec, torch.from_numpy(codes), channels)
    sound = generation.decode_audio(pair.ours, mx.array(codes))
    np.testing.assert_allclose(np.array(sound), theirs.numpy(), atol=1e-4)
    again = torch_generation.encode_audio(codec, theirs, channels)
    np.testing.assert_array_equal(np.array(generation.encode_audio(pair.ours, sound)), again.numpy())
    encoder = door.text_encoder_of_checkpoint(pair.companions["t5"])
    ids, mask = np.array([[5, 9, 12], [7, 1, 0]]), np.array([[True] * 3, [True, True, False]])
    states = encoder(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long()).last_hidden_state
    own = text_encoder_of(pair.ours).model(mx.array(ids), mx.array(mask))
    np.testing.assert_allclose(np.array(own)[mask], states.detach().numpy()[mask], atol=1e-4)


def test_melody_on_pytorch_says_that_prompts_must_be_of_one_length(pair):
    if pair.ours.config.condition != "prepend":
        return
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with pytest.raises(InputError, match="prompts of one length"):
        pair.theirs.condition(torch.from_numpy(ROWS), mask)


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 1.0])
def test_top_p_keeps_the_likeliest_of_that_probability(top_p):
    """0.5, 0.3, 0.15, 0.05: half is reached by one, 0.9 by three."""
    logits = np.log(np.array([[0.05, 0.5, 0.15, 0.3]], np.float32))
    allowed = {0.0: {0, 1, 2, 3}, 0.3: {1}, 0.9: {1, 2, 3}, 1.0: {0, 1, 2, 3}}[top_p]
    theirs, own = TorchSampler(1.0, 0, top_p), Sampler(1.0, 0, top_p)
    assert {int(theirs(torch.from_numpy(logits), theirs.noise((4,), [0], i))) for i in range(300)} == allowed
    assert {int(own(mx.array(logits), own.noise((4,), [0], i))) for i in range(300)} == allowed
    with pytest.raises(InputError, match="top_p 2.0: expected a number from 0 to 1"):
        TorchSampler(top_p=2.0)


@pytest.mark.parametrize(("min_p", "temperature"), [(0.0, 1.0), (0.29, 1.0), (0.5, 1.0), (0.5, 2.0), (1.0, 1.0)])
def test_min_p_keeps_what_has_that_share_of_the_likeliest(min_p, temperature):
    """0.5, 0.3, 0.15, 0.05; at temperature 2 their roots, of which the second and third have 0.77 and 0.55."""
    logits = np.log(np.array([[0.05, 0.5, 0.15, 0.3]], np.float32))
    allowed = {0.0: {0, 1, 2, 3}, 0.29: {1, 2, 3}, 0.5: {1, 3}, 1.0: {1}}[min_p] | ({2} if temperature == 2 else set())
    theirs, own = TorchSampler(temperature, 0, 0, min_p), Sampler(temperature, 0, 0, min_p)
    assert {int(theirs(torch.from_numpy(logits), theirs.noise((4,), [0], i))) for i in range(300)} == allowed
    assert {int(own(mx.array(logits), own.noise((4,), [0], i))) for i in range(300)} == allowed


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_settings_that_are_no_numbers_are_refused(name):
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"^{name} {value}: expected a (whole )?number from 0"):
            Sampler(**{name: value})
    with pytest.raises(InputError, match=f"^{name} '2': expected a (whole )?number from 0"):
        Sampler(**{name: "2"})
    with pytest.raises(InputError, match=r"^top_k 2.5: expected a whole number from 0"):
        Sampler(top_k=2.5)


@pytest.mark.parametrize("temperature", [1e-46, 1e-40, 1e-38, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.array([[1.0, 30.0, -2.0, 29.0]], np.float32)
    theirs, own = TorchSampler(temperature, 0, 0.9), Sampler(temperature, 0, 0.9)
    assert int(theirs(torch.from_numpy(logits), theirs.noise((4,), [0], 1))) == 1
    assert int(own(mx.array(logits), own.noise((4,), [0], 1))) == 1
