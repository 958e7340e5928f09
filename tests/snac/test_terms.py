"""The training loss: the seed's formula, equal on both backends, with equal gradients."""

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import snac_oracle as oracle
import soundfile
import torch
from finetuning import NARROW
from gradients import assert_gradients_equal

from backends.data import segments
from backends.layouts.rules import to_ours
from backends.layouts.snac import rules
from backends.seeds import rng
from backends.training.codebooks import VECTORS_PER_ENTRY
from snac_port import codes, loss, mlx_terms, quantizer, start, torch_model, torch_terms
from snac_port.finetune_options import FinetuneOptions
from snac_port.task import SNACFamily

SAMPLES = 6 * NARROW.unit_samples - 50  # the last unit is partly padding
VARIANTS = {
    "seed": {},
    "hann and mel": {"stft_window": "hann", "mel_weight": 1.5},
    "encoder": {"freeze_encoder": False},
    "all": {"freeze_encoder": False, "freeze_vq": False, "commitment_weight": 0.4, "codebook_weight": 0.7},
}


@pytest.fixture(scope="module")
def twins():
    return oracle.twins(oracle.upstream(NARROW), NARROW)


def prepared(name, twins):
    """The loss and a batch of two segments."""
    options = FinetuneOptions(train_data=Path("a"), val_data=Path("b"), n_ffts=(64, 256), **VARIANTS[name])
    spec = loss.spec(options, NARROW)
    audio = (0.1 * rng(5).standard_normal((2, SAMPLES))).astype(np.float32)
    rows = None
    if options.decoder_only:
        found = twins["mlx"].encode(list(audio))
        rows = np.stack([codes.to_rows(item.levels, NARROW).T for item in found])
    batch = SNACFamily(NARROW, spec, "mlx").batch(audio, rows, [11, 12], training=True)
    return spec, batch


def weights(spec):
    counts = spec.counts(2, SAMPLES)
    return {name: coefficient / counts[name] for name, coefficient in spec.coefficients.items()}


def trained(name: str, options: dict) -> bool:
    """The parameters that take part, by the variant."""
    if name.startswith("encoder."):
        return not options.get("freeze_encoder", True)
    return not options.get("freeze_vq", True) if name.startswith("quantizer.") else True


def on_mlx(model, spec, batch, options):
    native = {name: mx.array(value) for name, value in batch.items()}
    model.unfreeze()
    for part, key in (("encoder", "freeze_encoder"), ("quantizer", "freeze_vq")):
        if options.get(key, True):
            model[part].freeze()

    def total():
        found = mlx_terms.terms(model, native, spec)
        weighted = {name: weights(spec)[name] * value for name, value in found.items()}
        return sum(weighted.values()), weighted

    (value, parts), gradients = nn.value_and_grad(model, total)()
    return value.item(), {name: part.item() for name, part in parts.items()}, gradients


def on_torch(model, spec, batch, options):
    native = {name: torch.from_numpy(value) for name, value in batch.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name, options))
        parameter.grad = None
    found = torch_terms.terms(model, native, spec)
    parts = {name: weights(spec)[name] * value for name, value in found.items()}
    value = torch.stack(list(parts.values())).sum()
    value.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return value.item(), {name: part.item() for name, part in parts.items()}, gradients


@pytest.mark.parametrize("name", VARIANTS)
def test_both_backends_have_one_loss_and_one_gradient(name, twins):
    spec, batch = prepared(name, twins)
    ours, our_parts, our_gradients = on_mlx(twins["mlx"], spec, batch, VARIANTS[name])
    theirs, their_parts, their_gradients = on_torch(twins["torch"], spec, batch, VARIANTS[name])
    assert our_parts.keys() == their_parts.keys() == spec.coefficients.keys()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_parts == pytest.approx(their_parts, rel=1e-5)
    named = dict(to_ours(their_gradients, rules("snac", NARROW.settings()), "gradients"))
    assert_gradients_equal(our_gradients, named)


def test_the_loss_is_the_seeds(twins):
    """Written out with torch.stft and its defaults, on what the codec makes of the batch."""
    spec, batch = prepared("seed", twins)
    value, _, _ = on_torch(twins["torch"], spec, batch, {})
    native = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        x, y, _ = torch_terms.rebuilt(twins["torch"], native, spec)
        distances = []
        for n_fft in (64, 256):
            window = torch.ones(n_fft)
            a, b = (torch.stft(part, n_fft, window=window, return_complex=True).abs() for part in (x, y))
            distances.append((a - b).abs().mean())
        expected = (x - y).abs().mean() + torch.stack(distances).mean()
    assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_autocast_does_not_reach_the_quantiser(twins, dtype):
    """Codes, latents, terms and gradients are those without autocast, from latents of either type."""
    door = twins["torch"]
    audio = torch.from_numpy(oracle.sound(NARROW, 60 * NARROW.unit_samples, batch=2))
    latents = door.encode_latents(audio).detach().to(dtype)
    bypass = torch.tensor([False, True])
    found = []
    for enabled in (False, True):
        given = (latents.clone() if enabled else latents.float()).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            made = door.quantize(given, bypass)
        assert made.latents.dtype == torch.float32
        (gradient,) = torch.autograd.grad(made.commitment, given)
        found.append((made, gradient))
    (plain, expected), (cast, gradient) = found
    for one, other in zip([*plain.codes, plain.latents], [*cast.codes, cast.latents], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.commitment, cast.commitment)
    assert torch.equal(expected.to(dtype), gradient)


def codebooks(model):
    return {name: value for name, value in model.tensors().items() if name.endswith("codebook.weight")}


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_codebooks_start_alike_from_crops_one_by_one_and_at_once(backend):
    upstream = oracle.upstream(NARROW)
    crops = oracle.sound(NARROW, 8 * NARROW.unit_samples, batch=6)
    found = []
    for parts in ([crops], np.split(crops, 6)):
        model = oracle.twins(upstream, NARROW)[backend]
        before = codebooks(model)
        model.start_codebooks(iter(parts), 3)
        found.append(codebooks(model))
        assert all(np.abs(found[-1][name] - value).max() > 0.1 for name, value in before.items())
    assert len(found[0]) == len(NARROW.vq_strides)
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_codebooks_start_on_the_first_rank_alone(backend, monkeypatch):
    """Another rank clusters nothing, and takes the tables that the first one gives."""
    crops = oracle.sound(NARROW, 8 * NARROW.unit_samples, batch=6)
    first, other = (oracle.twins(oracle.upstream(NARROW), NARROW)[backend] for _ in range(2))
    first.start_codebooks(iter([crops]), 3)
    expected, given = codebooks(first), []
    module, native = {"mlx": (quantizer, mx.array), "torch": (torch_model, torch.from_numpy)}[backend]

    def summed(arrays):
        assert not arrays["table"].any()
        given.append(list(expected.values())[len(given)])
        return {"table": native(given[-1])}

    monkeypatch.setattr(module, "world", lambda: SimpleNamespace(rank=1))
    monkeypatch.setattr(module, "start_codebook", lambda *_: pytest.fail("clusters what is thrown away"))
    monkeypatch.setattr(module, "sum_arrays", summed)
    other.start_codebooks(iter([crops]), 3)
    for name, value in codebooks(other).items():
        np.testing.assert_array_equal(value, expected[name])


def test_codebooks_start_from_one_crop_at_a_time(tmp_path):
    unit, crops = NARROW.unit_samples, []
    length = round(start.CROP_S * NARROW.sampling_rate / unit)
    for name in "abc":
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, oracle.sound(NARROW, length * unit), NARROW.sampling_rate)

    class Model:
        def start_codebooks(self, audio, _seed):
            assert iter(audio) is audio, "all crops are held at once"
            crops.extend(part.shape for part in audio)

    found = segments.source(segments.find(tmp_path, "--x"), NARROW.sampling_rate, unit)
    after_step = start.starter(found, NARROW.codebook_size, 5, 0)
    for step in (4, 5, 6):
        after_step(Model(), step)
    wanted = -(-VECTORS_PER_ENTRY * NARROW.codebook_size // length)
    assert crops == [(1, length * unit)] * min(3, wanted)


def test_quantiser_terms_take_part_only_where_something_of_it_trains(twins):
    terms = {name: set(prepared(name, twins)[0].quantiser_terms) for name in ("seed", "encoder", "all")}
    assert terms == {"seed": set(), "encoder": {"commitment"}, "all": {"commitment", "codebook"}}
