"""SNAC on MLX and behind the PyTorch door against the `snac` package, with shared random weights and noise."""

from dataclasses import dataclass
from functools import cache, partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import snac_oracle as oracle
import torch
from gradients import assert_gradients_equal
from mlx.utils import tree_map

from backends.layouts.rules import to_ours
from backends.layouts.snac import rules
from backends.mlx_backend import convolution, snake
from backends.torch_backend import convolution as torch_convolution
from backends.torch_backend import snake as torch_snake
from backends.torch_backend import tiling
from snac_port import SNACConfig, torch_model
from snac_port.codes import whole
from snac_port.noise import source

STRUCTURES = [name for name in oracle.SMALL if name != "32khz"]  # which has that of 44khz
NEAR = 1e-5  # of signals whose size is 0.1 to 1


@dataclass(frozen=True)
class Upstream:
    """What the package makes of a sound, as arrays (B, ...)."""

    model: "oracle.snac.SNAC"
    config: SNACConfig

    def latents(self, audio: np.ndarray) -> np.ndarray:
        """(B, T, D)."""
        with torch.inference_mode():
            found = self.model.encoder(self.model.preprocess(torch.from_numpy(audio)[:, None]))
        return found.numpy().swapaxes(1, 2)

    def codes(self, audio: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [level.numpy() for level in self.model.encode(torch.from_numpy(audio)[:, None])]

    def decode(self, codes: list[np.ndarray], seed: int = 0) -> np.ndarray:
        """With the noise that ours has for this seed."""
        native = [torch.from_numpy(np.asarray(level, np.int64)) for level in codes]
        frames = codes[-1].shape[1] * self.config.vq_strides[-1]
        with torch.inference_mode(), oracle.injected(noise(self.config, frames, seed)):
            return self.model.decode(native)[:, 0].numpy()


def noise(config: SNACConfig, frames: int, seed: int = 0) -> list[np.ndarray]:
    """Ours for `frames` latent frames, an array (1, T) for each block."""
    return [array[None] for array in source(config, None, seed)(0, frames) or ()]


@cache
def made(name: str):
    config = {**oracle.SMALL, **{f"full {key}": value for key, value in oracle.FULL.items()}}[name]
    model = oracle.upstream(config)
    return Upstream(model, config), oracle.twins(model, config)


def compare(name: str, backend: str, units: int, batch: int = 2) -> None:
    """Latents, codes, audio and its length."""
    theirs, both = made(name)
    ours, config = both[backend], theirs.config
    samples = units * config.unit_samples - 7
    audio = oracle.sound(config, samples, batch=batch)
    own, codes = ours.encode(list(audio)), theirs.codes(audio)
    for index, levels in enumerate(zip(*codes, strict=True)):
        assert [level.shape for level in own[index].levels] == [level.shape for level in levels]
        assert all(level.dtype == np.int32 for level in own[index].levels)
        assert np.mean(np.concatenate(own[index].levels) == np.concatenate(levels)) >= 0.999
        assert (own[index].length, own[index].sample_rate_hz) == (samples, config.sampling_rate)
    assert np.abs(latents(ours, audio) - theirs.latents(audio)).max() <= NEAR
    expected = theirs.decode(codes)
    decoded = ours.decode([whole([level[index] for level in codes], config) for index in range(batch)])
    assert np.abs(np.stack(decoded) - expected).max() <= NEAR
    shorter = ours.decode([whole([level[index] for level in codes], config, samples) for index in range(batch)])
    np.testing.assert_array_equal(np.stack(shorter), np.stack(decoded)[:, :samples])
    assert 0.05 < expected.std() < 0.7, "a signal at which errors show"


def latents(ours, audio: np.ndarray) -> np.ndarray:
    """(B, T, D) of either backend, of audio filled up to whole units."""
    audio = np.pad(audio, [(0, 0), (0, -audio.shape[1] % ours.config.unit_samples)])
    if isinstance(ours, nn.Module):
        return np.array(ours.encoder(mx.array(audio)))
    with torch.inference_mode():
        return ours.encode_latents(torch.from_numpy(audio)).numpy().swapaxes(1, 2)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("name", oracle.SMALL)
def test_codes_latents_and_audio_equal_upstream(name, backend):
    compare(name, backend, units=3 if made(name)[0].config.unit_samples > 5000 else 9)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("name", [f"full {name}" for name in oracle.FULL])
def test_the_published_shapes_equal_upstream(name, backend):
    compare(name, backend, units=12 if "24" in name else 4, batch=1)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("name", ["24khz", "44khz", "window beside the codes"])
def test_lengths_equal_upstream(name, backend):
    """Whatever the number of samples: as many codes as upstream, and exactly the samples that went in."""
    theirs, both = made(name)
    unit = theirs.config.unit_samples
    for samples in (1, unit - 1, unit, unit + 1):
        audio = oracle.sound(theirs.config, samples, batch=1)
        codes = theirs.codes(audio)
        own = both[backend].encode(audio[0])
        for level, expected in zip(own.levels, codes, strict=True):
            np.testing.assert_array_equal(level, expected[0])
        assert both[backend].decode(own).shape == (samples,)


def test_a_pass_through_equals_upstreams_forward():
    """Upstream's forward rounds entries once more (straight-through), and trims."""
    theirs, both = made("44khz")
    audio = oracle.sound(theirs.config, 20_000, batch=1)
    frames = theirs.config.frames(20_000)
    with torch.inference_mode(), oracle.injected(noise(theirs.config, frames, seed=5)):
        expected, _ = theirs.model(torch.from_numpy(audio)[:, None])
    for ours in both.values():
        decoded = ours.decode(ours.encode(audio[0]), seed=5)
        assert decoded.shape == expected[0, 0].shape
        assert np.abs(decoded - expected[0, 0].numpy()).max() <= NEAR


def test_silence_from_no_noise_equals_gains_of_zero():
    theirs, both = made("24khz")
    model = oracle.upstream(theirs.config)
    codes = theirs.codes(oracle.sound(theirs.config, 9000, batch=1))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("linear.parametrizations.weight.original0"):
                value.zero_()
        expected = model.decode([torch.from_numpy(level) for level in codes])[0, 0].numpy()
    for ours in both.values():
        own = whole([level[0] for level in codes], theirs.config)
        assert np.abs(ours.decode(own, noise=0) - expected).max() <= NEAR
        assert np.abs(ours.decode(own) - expected).max() > 1e-2


def training_batch(config: SNACConfig) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Audio, the direction in which its reconstruction is pulled, and each block's noise, for two clips."""
    units = 2 if config.unit_samples > 5000 else 4
    audio = oracle.sound(config, units * config.unit_samples, batch=2)
    pull = np.random.default_rng(1).standard_normal(audio.shape).astype(np.float32)
    frames = units * config.unit_frames
    drawn = [source(config, None, seed)(0, frames) or () for seed in (0, 1)]
    return audio, pull, [np.stack(pair) for pair in zip(*drawn, strict=True)]


def in_our_names(gradients: dict[str, torch.Tensor], config: SNACConfig) -> dict[str, np.ndarray]:
    host = {name: value.numpy() for name, value in gradients.items()}
    return dict(to_ours(host, rules("snac", config.settings()), "gradients"))


def torch_gradients(ours, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    ours.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in ours.named_parameters() if value.grad is not None}


def compare_gradients(name: str) -> None:
    """Of the reconstruction and of the quantiser's two terms, for every parameter, MLX against the PyTorch door."""
    theirs, both = made(name)
    ours, door, config = both["mlx"], both["torch"], theirs.config
    audio, pull, drawn = training_batch(config)
    reconstructed, quantized = door(torch.from_numpy(audio), [torch.from_numpy(array)[:, None] for array in drawn])
    loss = (reconstructed * torch.from_numpy(pull)).sum() + 300 * quantized.commitment + 700 * quantized.codebook
    expected = torch_gradients(door, loss)
    assert expected.keys() == dict(door.named_parameters()).keys()

    def objective(model):
        reconstructed, found = model(mx.array(audio), [mx.array(array)[..., None] for array in drawn] or None)
        terms = 300 * found.commitment + 700 * found.codebook
        return (reconstructed * mx.array(pull)).sum() + terms, found.codes

    ours.train()
    (value, codes), gradients = nn.value_and_grad(ours, objective)(ours)
    ours.eval()
    for level, other in zip(codes, quantized.codes, strict=True):
        np.testing.assert_array_equal(np.array(level), other.numpy())
    np.testing.assert_allclose(value.item(), loss.item(), rtol=1e-4)
    assert_gradients_equal(gradients, in_our_names(expected, config))


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_of_both_backends_are_equal(name):
    compare_gradients(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"full {name}" for name in oracle.FULL])
def test_gradients_of_the_published_shapes_are_equal(name):
    compare_gradients(name)


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_of_the_door_are_upstreams(name):
    """Upstream gives its codebooks no gradient; the door's commitment and codebook terms do."""
    theirs, both = made(name)
    door, config = both["torch"], theirs.config
    audio, pull, drawn = training_batch(config)
    with oracle.injected(drawn):
        reconstructed, _ = theirs.model(torch.from_numpy(audio)[:, None])
    expected = torch_gradients(theirs.model, (reconstructed[:, 0] * torch.from_numpy(pull)).sum())
    own, _ = door(torch.from_numpy(audio), [torch.from_numpy(array)[:, None] for array in drawn])
    gradients = torch_gradients(door, (own * torch.from_numpy(pull)).sum())
    assert not any("codebook" in name for name in expected)
    assert_gradients_equal(in_our_names(gradients, config), in_our_names(expected, config))


@pytest.mark.parametrize("name", ["24khz", "odd strides", "dense"])
def test_the_doors_pieces_equal_one_pass(name, monkeypatch):
    """Latents, audio and every gradient, where layers run over a few frames of one clip at a time."""
    theirs, both = made(name)
    door, config = both["torch"], theirs.config
    audio, pull, drawn = training_batch(config)
    assert {array.shape[0] for array in drawn} <= {2}, "each clip has noise of its own"
    found = []
    for longest in (1 << 30, 1):
        monkeypatch.setattr(tiling, "PIECE", longest)
        monkeypatch.setattr(tiling, "FEWEST", 1)
        own, quantized = door(torch.from_numpy(audio), [torch.from_numpy(array)[:, None] for array in drawn])
        loss = (own * torch.from_numpy(pull)).sum() + 300 * quantized.commitment
        gradients = in_our_names(torch_gradients(door, loss), config)
        found.append((quantized.latents.detach().numpy(), own.detach().numpy(), latents(door, audio), gradients))
    (*signals, gradients), (*others, again) = found
    for one, other in zip(signals, others, strict=True):
        assert np.abs(one - other).max() <= NEAR
    assert_gradients_equal(again, gradients)


def test_the_door_keeps_one_tensor_per_layer_for_the_gradient():
    """Its input: nothing of what is in between, and nothing of a decoder's input that is not trained."""
    theirs, both = made("24khz")
    door, config = both["torch"], theirs.config
    frames = 16
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        door.decode_latents(torch.zeros(3, config.latent_dim, frames))
    weights = sum(2 * parameter.numel() for parameter in door.decoder.parameters())
    width, rate, elements = config.decoder_dim, 1, frames * (2 * config.latent_dim + config.decoder_dim)
    for stride in config.decoder_rates:
        width, rate = width // 2, rate * stride
        elements += 4 * width * rate * frames  # of three residual units, and the next block's activation
    assert sum(kept.values()) / 4 <= 3 * (elements + frames * rate) + weights


def test_training_and_evaluation_compute_the_same():
    """Folded weights in pieces, and weight norm over whole clips."""
    theirs, both = made("44khz")
    ours, config = both["mlx"], theirs.config
    audio, _, drawn = training_batch(config)
    given = [mx.array(array)[..., None] for array in drawn]
    folded = ours(mx.array(audio), given)[0]
    ours.train()
    unfolded = ours(mx.array(audio), given)[0]
    ours.eval()
    assert mx.abs(folded - unfolded).max() <= 2e-6


def test_folded_weights_follow_an_update():
    """An evaluation after a training step sees the new weights."""
    theirs, _ = made("24khz")
    ours = oracle.twins(theirs.model, theirs.config)["mlx"]
    audio = oracle.sound(theirs.config, 5000)
    before = ours.decode(ours.encode(audio))
    ours.update(tree_map(lambda value: value * 1.1, ours.parameters()))
    after = ours.decode(ours.encode(audio))
    assert np.abs(before - after).max() > 1e-2
    fresh = oracle.SNAC(theirs.config)
    fresh.update(ours.parameters())
    fresh.eval()
    np.testing.assert_array_equal(fresh.decode(fresh.encode(audio)), after)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_doors_folded_weights_follow_an_update(mode):
    """However the weights change: in place, by loading, or by moving to another type and back."""
    theirs, _ = made("24khz")
    door = oracle.twins(theirs.model, theirs.config)["torch"]
    assert isinstance(door, torch.nn.Module)
    audio = oracle.sound(theirs.config, 5000)
    codes = door.encode(audio)
    before, state = door.decode(codes), {name: value.clone() for name, value in door.state_dict().items()}
    with mode():
        for parameter in door.decoder.parameters():
            parameter.mul_(1.1)
    assert np.abs(before - door.decode(codes)).max() > 1e-2
    door.load_state_dict(state)
    np.testing.assert_array_equal(door.decode(codes), before)
    door.double()
    assert np.abs(door.decode(codes) - before).max() <= NEAR
    door.float()
    np.testing.assert_array_equal(door.decode(codes), before)
    assert door.state_dict().keys() == state.keys()


def test_a_door_made_in_inference_mode_decodes():
    theirs, both = made("24khz")
    door, audio = both["torch"], oracle.sound(theirs.config, 5000)
    with torch.inference_mode():
        again = oracle.twins(theirs.model, theirs.config)["torch"]
    codes = door.encode(audio)
    np.testing.assert_array_equal(again.decode(codes), door.decode(codes))


def test_sums_of_residual_units_stay_float32_under_autocast():
    """As upstream's: only products are in bfloat16."""
    theirs, both = made("24khz")
    unit = next(part for part in theirs.model.modules() if isinstance(part, torch_model.layers.ResidualUnit))
    x = torch.randn(1, unit.block[1].weight.shape[0], 40)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, own = unit(x), torch_model._residual_unit(unit, x)
    assert own.dtype == expected.dtype == torch.float32
    np.testing.assert_allclose(own, expected, atol=2e-2)


@pytest.mark.parametrize("name", ["24khz", "odd strides", "dense"])
def test_the_forms_for_gpus_compute_the_same(name, monkeypatch):
    """MLX's own convolutions, which a GPU gets, run on the CPU too."""
    theirs, both = made(name)
    ours, config = both["mlx"], theirs.config
    audio = oracle.sound(config, 4 * config.unit_samples)
    codes = ours.encode(audio)
    expected = latents(ours, audio[None]), ours.decode(codes)
    monkeypatch.setattr(convolution, "on_gpu", lambda: True)
    found = latents(ours, audio[None]), ours.decode(codes)
    for value, other in zip(found, expected, strict=True):
        assert np.abs(value - other).max() <= NEAR


@pytest.mark.parametrize("name", ["24khz", "odd strides", "dense"])
def test_the_doors_forms_for_gpus_compute_the_same(name, monkeypatch):
    """PyTorch's own convolutions."""
    theirs, both = made(name)
    door, config = both["torch"], theirs.config
    audio, pull, drawn = training_batch(config)
    found = []
    for native in (torch_convolution._native, lambda _: True):
        monkeypatch.setattr(torch_convolution, "_native", native)
        own, _ = door(torch.from_numpy(audio), [torch.from_numpy(array)[:, None] for array in drawn])
        gradients = torch_gradients(door, (own * torch.from_numpy(pull)).sum())
        found.append((own.detach().numpy(), in_our_names(gradients, config)))
    assert np.abs(found[0][0] - found[1][0]).max() <= NEAR
    assert_gradients_equal(found[0][1], found[1][1])


def pulled(form, pull: mx.array, x: mx.array, alpha: mx.array) -> mx.array:
    return (form(x, alpha) * pull).sum()


def test_snake_is_its_definition_in_all_forms():
    """Values and gradients, also where alpha x is hundreds of turns, and in bfloat16; the PyTorch twin too."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 300, 5)).astype(np.float32) * np.float32([1, 1, 3, 30, 100])
    alpha = np.float32([0.05, 1, 3, 7, 20])
    pull = rng.standard_normal(x.shape).astype(np.float32)
    tx, ta = torch.from_numpy(x).double().requires_grad_(), torch.from_numpy(alpha).double().requires_grad_()
    expected = tx + torch.sin(ta * tx) ** 2 / (ta + 1e-9)
    (expected * torch.from_numpy(pull)).sum().backward()
    for form in (snake._by_polynomial, snake._by_sine):
        value = np.array(form(mx.array(x), mx.array(alpha)))
        scale = 1e-6 + 3e-7 * np.abs(alpha * x)  # of the angle, which is float32
        assert (np.abs(value - expected.detach().numpy()) <= scale / alpha + 2e-7 * np.abs(x)).all()
        gradients = mx.grad(partial(pulled, form, mx.array(pull)), argnums=(0, 1))(mx.array(x), mx.array(alpha))
        np.testing.assert_allclose(np.array(gradients[0])[..., :3], tx.grad.numpy()[..., :3], atol=3e-5)
        np.testing.assert_allclose(np.array(gradients[1])[:3], ta.grad.numpy()[:3], rtol=1e-4)
    found = [torch.from_numpy(x.swapaxes(1, 2)).requires_grad_(), torch.from_numpy(alpha[:, None]).requires_grad_()]
    value = torch_snake.snake(*found)
    (value * torch.from_numpy(pull.swapaxes(1, 2))).sum().backward()
    np.testing.assert_allclose(value.detach().numpy().swapaxes(1, 2)[..., :3], expected.detach()[..., :3], atol=1e-5)
    np.testing.assert_allclose(found[0].grad.numpy().swapaxes(1, 2)[..., :3], tx.grad.numpy()[..., :3], atol=3e-5)
    np.testing.assert_allclose(found[1].grad.numpy()[:3, 0], ta.grad.numpy()[:3], rtol=1e-4)
    half = snake.snake(mx.array(x).astype(mx.bfloat16), mx.array(alpha).astype(mx.bfloat16))
    assert half.dtype == mx.bfloat16
    small = slice(0, 2)
    np.testing.assert_allclose(
        np.array(half.astype(mx.float32))[..., small], expected.detach().numpy()[..., small], atol=0.05
    )
