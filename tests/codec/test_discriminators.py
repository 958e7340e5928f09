"""The discriminators: against DAC's written out with PyTorch's modules, and the two backends against each other."""

import importlib
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import assert_gradients_equal

from backends.errors import InputError
from backends.mlx_backend.discriminators import Conv2d
from backends.seeds import rng
from backends.training.adversary import DiscriminatorSpec, discriminators

SPEC = DiscriminatorSpec(periods=(2, 3, 7), period_widths=(4, 8, 16), windows=(128, 32), width=4)
B, SAMPLES = 3, 401


def audio(seed: int) -> np.ndarray:
    draw = rng(seed, 605)
    return (0.1 * seed + draw.standard_normal((B, SAMPLES)) * draw.uniform(0.1, 1.0, (B, 1))).astype(np.float32)


def native(side):
    return importlib.import_module(f"backends.{side.name}_backend.discriminators")


def array(side, value: np.ndarray):
    return side.backend.from_host({"x": value})["x"]


def host(side, value) -> np.ndarray:
    return side.backend.to_host({"x": value})["x"]


def filters(judge, name: str) -> torch.Tensor:
    """A filter as PyTorch's weight norm makes it, (out, in, height, width)."""
    part = judge.get_submodule(name)
    v = part.weight_v.permute(0, 3, 1, 2)
    return torch._weight_norm(v, part.weight_g.reshape(-1, 1, 1, 1), 0)


def dac(judges, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """What DAC's Discriminator computes, with torch.stft and whole convolutions."""
    x = x - x.mean(-1, keepdim=True)
    x = 0.8 * x / (x.abs().max(-1, keepdim=True)[0] + 1e-9)
    found = []
    for i, period in enumerate(SPEC.periods):
        y = F.pad(x[:, None], (0, period - SAMPLES % period), mode="reflect")
        y, maps = y.unflatten(-1, (-1, period)), []
        for j in range(3):
            bias = judges.periods[i].convs[j].bias
            y = F.conv2d(y, filters(judges, f"periods.{i}.convs.{j}"), bias, (3 if j < 2 else 1, 1), (2, 0))
            y = F.leaky_relu(y, 0.1)
            maps.append(y)
        score = F.conv2d(y, filters(judges, f"periods.{i}.score"), judges.periods[i].score.bias, 1, (1, 0))
        found.append([*maps, score])
    for i, window in enumerate(SPEC.windows):
        hop = window // 4
        right = -(-SAMPLES // hop) * hop - SAMPLES
        padded = F.pad(x[:, None], ((window - hop) // 2, (window - hop) // 2 + right), mode="reflect")[:, 0]
        z = torch.stft(padded, window, hop, window=torch.hann_window(window), center=True, return_complex=True)
        z = torch.view_as_real(z[..., 2:-2]).permute(0, 3, 2, 1)  # batch, part, frame, bin
        assert z.shape[2] == -(-SAMPLES // hop)
        maps, ends = [], []
        for b, (low, high) in enumerate(SPEC.bands):
            y = z[..., int(low * (window // 2 + 1)) : int(high * (window // 2 + 1))]
            for j in range(5):
                stride, padding = ((1, 2) if 0 < j < 4 else 1), ((1, 4) if j < 4 else (1, 1))
                bias = judges.resolutions[i].bands[b][j].bias
                y = F.conv2d(y, filters(judges, f"resolutions.{i}.bands.{b}.{j}"), bias, stride, padding)
                y = F.leaky_relu(y, 0.1)
                maps.append(y)
            ends.append(y)
        last = judges.resolutions[i].score
        score = F.conv2d(torch.cat(ends, -1), filters(judges, f"resolutions.{i}.score"), last.bias, 1, 1)
        found.append([*maps, score])
    return found


def test_both_backends_equal_dac(sides):
    mlx_side, torch_side = sides
    x = audio(1)
    judges = discriminators(torch_side.backend, SPEC, 3)
    with torch.no_grad():
        expected = dac(judges, torch.from_numpy(x))
        found = judges(torch.from_numpy(x))
    own = discriminators(mlx_side.backend, SPEC, 3)(mx.array(x))
    assert [len(maps) for maps in found] == [4, 4, 4, 26, 26]
    for theirs, twin, ours in zip(expected, found, own, strict=True):
        for a, b, c in zip(theirs, twin, ours, strict=True):
            allowed = 1e-5 * float(a.abs().max())
            assert (a - b).abs().max() <= allowed
            np.testing.assert_allclose(np.array(c.transpose(0, 3, 1, 2)), a.numpy(), atol=allowed)


@pytest.mark.parametrize(
    ("in_", "kernel", "stride"),
    [
        (1, (5, 1), (3, 1)),
        (24, (5, 1), (3, 1)),
        (24, (3, 1), (1, 1)),
        (2, (3, 9), (1, 1)),
        (24, (3, 9), (1, 2)),
        (24, (3, 3), (1, 1)),
    ],
)
@pytest.mark.parametrize("size", [(7, 6), (8, 13)])
def test_the_forms_on_the_cpu_are_convolutions(in_, kernel, stride, size):
    conv = Conv2d(in_, 20, kernel, stride)
    conv.bias = mx.random.normal((20,), key=mx.random.key(1))
    x = mx.random.normal((2, *size, in_), key=mx.random.key(2))
    weight = conv.weight_v / mx.sqrt(conv.weight_v.square().sum(axis=(1, 2, 3), keepdims=True))
    expected = mx.conv2d(x, weight, stride, (kernel[0] // 2, kernel[1] // 2)) + conv.bias
    np.testing.assert_allclose(np.array(conv(x)), np.array(expected), atol=1e-5)


def test_weights_have_the_same_names_shapes_and_start(sides):
    start, other = (
        side.backend.to_host(side.backend.parameters(discriminators(side.backend, SPEC, 3))) for side in sides
    )
    assert start.keys() == other.keys()
    for name, value in start.items():
        np.testing.assert_array_equal(value, other[name])
    name = "resolutions.1.bands.2.1.weight"
    bound = (4 * 27) ** -0.5
    assert start[f"{name}_v"].shape == (4, 3, 9, 4)
    assert 0.9 * bound < np.abs(start[f"{name}_v"]).max() <= bound
    np.testing.assert_allclose(
        start[f"{name}_g"][:, 0, 0, 0], np.sqrt((start[f"{name}_v"] ** 2).sum((1, 2, 3))), rtol=1e-6
    )


def test_dac_sizes(sides):
    """41.1 M parameters on periods and 1.41 M on spectra (research, counted on DAC's own), biases included."""
    spec = DiscriminatorSpec()
    with torch.device("meta"):
        made = native(sides[1]).Discriminators(spec)
    count = {n: v.numel() for n, v in made.named_parameters()}
    assert sum(v for n, v in count.items() if n.startswith("periods.")) / 1e6 == pytest.approx(41.1, abs=0.05)
    assert sum(v for n, v in count.items() if n.startswith("resolutions.")) / 1e6 == pytest.approx(1.41, abs=0.01)
    assert spec.least_samples == 1281


def terms(side, judges, kind: str, real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    found = getattr(native(side), f"{kind}_terms")(judges, array(side, real), array(side, made))
    return {name: float(host(side, value)) for name, value in found.items()}


def test_terms_are_sums_over_items_of_means(side):
    judges = discriminators(side.backend, SPEC, 3)
    real, made = audio(1), audio(2)
    maps = {name: judges(array(side, x)) for name, x in (("real", real), ("made", made))}
    scores = {name: [host(side, maps[-1]) for maps in found] for name, found in maps.items()}
    own = sum(
        (fake**2).mean() + ((1 - real) ** 2).mean() for fake, real in zip(scores["made"], scores["real"], strict=True)
    )
    assert terms(side, judges, "discriminator", real, made)["discriminator"] == pytest.approx(B * own, rel=1e-5)
    found = terms(side, judges, "generator", real, made)
    assert found["adversarial"] == pytest.approx(B * sum(((1 - fake) ** 2).mean() for fake in scores["made"]), rel=1e-5)
    features = sum(
        np.abs(host(side, fake) - host(side, real)).mean()
        for fakes, reals in zip(maps["made"], maps["real"], strict=True)
        for fake, real in zip(fakes[:-1], reals[:-1], strict=True)
    )
    assert found["feature"] == pytest.approx(B * features, rel=1e-5)
    assert terms(side, judges, "generator", real, real)["feature"] == 0


def test_gradients_are_equal_on_both_backends(sides):
    mlx_side, torch_side = sides
    real, made = audio(1), audio(2)
    ours, twin = (discriminators(side.backend, SPEC, 3) for side in sides)

    def own():
        return native(mlx_side).discriminator_terms(ours, mx.array(real), mx.array(made))["discriminator"]

    value, gradients = nn.value_and_grad(ours, own)()
    expected = native(torch_side).discriminator_terms(twin, torch.from_numpy(real), torch.from_numpy(made))[
        "discriminator"
    ]
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert_gradients_equal(gradients, {n: p.grad.numpy() for n, p in twin.named_parameters()})

    waves = torch.from_numpy(made).requires_grad_()
    twin.requires_grad_(False)
    found = native(torch_side).generator_terms(twin, torch.from_numpy(real), waves)
    (found["adversarial"] + 2 * found["feature"]).backward()

    def to_the_codec(x):
        found = native(mlx_side).generator_terms(ours, mx.array(real), x)
        return found["adversarial"] + 2 * found["feature"]

    assert_gradients_equal({"made": mx.grad(to_the_codec)(mx.array(made))}, {"made": waves.grad.numpy()})


def test_a_short_segment_is_refused(side):
    spec = replace(SPEC, windows=(1024,))
    judges = discriminators(side.backend, spec, 3)
    assert spec.least_samples == 641
    with pytest.raises(InputError, match="401 samples is too short"):
        judges(array(side, audio(1)))
