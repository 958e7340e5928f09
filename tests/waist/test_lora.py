"""LoRA, rsLoRA and DoRA on both backends: equal to real PEFT, nothing at the start, foldable, also when quantised."""

import numpy as np
import peft_oracle
import pytest
import torch
from toy import Side, collate, examples, weights

from backends.adapters.files import adapter_info
from backends.adapters.peft import read_peft, write_peft
from backends.base import Leaf, LoRASpec, OptimSpec
from backends.errors import InputError

SPECS = {
    "lora": LoRASpec(rank=4, alpha=6.0),
    "rslora": LoRASpec(rank=4, alpha=6.0, use_rslora=True),
    "dora": LoRASpec(rank=3, alpha=5.0, use_dora=True),
}
TARGETS = ("layers.0.q", "layers.1.down", "layers.1.up", "tokens")  # with and without bias, wide, narrow, an embedding
IDS = np.random.default_rng(0).integers(0, 11, (3, 7))


def assert_equal(ours, theirs, name=""):
    """Within 1e-6 of the largest value, or of one."""
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-6 * max(1.0, np.abs(theirs).max()), name


def adapted(side, kind):
    model = side.lora(SPECS[kind], TARGETS)
    side.randomise(model)
    return model


@pytest.mark.parametrize("kind", SPECS)
def test_forward_and_merge_equal_peft(side, kind, tmp_path):
    model = adapted(side, kind)
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
    theirs = peft_oracle.loaded(tmp_path)
    assert np.abs(side.forward(model, IDS) - side.forward(side.net(), IDS)).max() > 0.1
    assert_equal(side.forward(model, IDS), peft_oracle.forward(theirs, IDS))
    side.backend.fuse(model)
    merged, expected = side.host(model), peft_oracle.merged(theirs)
    assert merged.keys() == expected.keys() == side.weights().keys()
    for name, value in expected.items():
        assert_equal(merged[name], value, name)


@pytest.mark.parametrize("kind", SPECS)
def test_adapter_made_by_peft_runs_here(side, kind, tmp_path):
    theirs = peft_oracle.fresh(SPECS[kind], TARGETS)
    theirs.save_pretrained(tmp_path)
    model = side.net()
    info = read_peft(side.backend, model, tmp_path)
    assert (info.spec, set(info.targets), info.trained) == (SPECS[kind], set(TARGETS), ())
    assert_equal(side.forward(model, IDS), peft_oracle.forward(theirs, IDS))
    side.backend.fuse(model)
    for name, value in peft_oracle.merged(theirs).items():
        assert_equal(side.host(model)[name], value, name)


@pytest.mark.parametrize("kind", SPECS)
def test_gradients_equal_peft(side, kind, tmp_path):
    """One step of plain SGD at rate 1 subtracts the gradient."""
    model = adapted(side, kind)
    before = side.trained(model)
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
    batch = collate(examples(4))
    side.backend.train_step(model, side.module.terms, OptimSpec("sgd"))([batch], {"next": 0.05, "size": 0.02}, 1.0)
    ours = {name: before[name] - value for name, value in side.trained(model).items()}

    theirs = peft_oracle.PeftModel.from_pretrained(
        peft_oracle.TORCH.net(), str(tmp_path), is_trainable=True
    ).get_base_model()
    native = {
        name: torch.from_numpy(v).long() if v.dtype == np.int32 else torch.from_numpy(v) for name, v in batch.items()
    }
    sums = peft_oracle.TORCH.module.terms(theirs, native)
    (0.05 * sums["next"] + 0.02 * sums["size"]).backward()
    for name, gradient in ours.items():
        module, _, part = name.rpartition(".")
        part = part.replace("lora_", "lora_embedding_") if module == "tokens" and "magnitude" not in part else part
        found = getattr(theirs.get_submodule(module), part)["default"]
        expected = (found if isinstance(found, torch.nn.Parameter) else found.weight).grad.numpy()
        assert_equal(gradient, expected, name)


@pytest.mark.parametrize("kind", SPECS)
def test_fresh_adapter_changes_nothing_and_is_the_same_on_both_sides(kind):
    starts = []
    for side in (Side("mlx"), Side("torch")):
        model = side.lora(SPECS[kind], TARGETS, seed=9)
        assert_equal(side.forward(model, IDS), side.forward(side.net(), IDS))
        starts.append(side.trained(model))
    assert starts[0].keys() == starts[1].keys()
    for name in starts[0]:
        exact = "magnitude" not in name  # a norm, computed by each framework
        np.testing.assert_allclose(starts[0][name], starts[1][name], rtol=0 if exact else 1e-6, atol=0)


def test_shapes_and_names(side):
    model = side.lora(SPECS["dora"], TARGETS)
    assert {name: value.shape for name, value in side.trained(model).items()} == {
        "layers.0.q.lora_A": (3, 32), "layers.0.q.lora_B": (32, 3), "layers.0.q.lora_magnitude_vector": (32,),
        "layers.1.down.lora_A": (3, 64), "layers.1.down.lora_B": (32, 3), "layers.1.down.lora_magnitude_vector": (32,),
        "layers.1.up.lora_A": (3, 32), "layers.1.up.lora_B": (64, 3), "layers.1.up.lora_magnitude_vector": (64,),
        "tokens.lora_A": (3, 11), "tokens.lora_B": (32, 3), "tokens.lora_magnitude_vector": (32,),
    }  # fmt: skip
    assert side.backend.adapters(model)["tokens"] == (Leaf("embedding", (11, 32)), SPECS["dora"])
    assert side.backend.adapters(model)["layers.1.up"] == (Leaf("linear", (64, 32)), SPECS["dora"])
    assert set(side.backend.linears(model)) == set(side.backend.linears(side.net())) - set(TARGETS)
    assert "tokens.base.weight" in side.host(model)


def test_adapting_twice_or_what_is_not_there_is_an_error(side):
    model = side.lora()
    with pytest.raises(InputError, match="already carries an adapter"):
        side.backend.adapt(model, ["head"], LoRASpec())
    with pytest.raises(InputError, match=r"modules to adapt: unexpected layers.9.q"):
        side.backend.adapt(side.net(), ["layers.9.q"], LoRASpec())


def test_dropout_acts_only_while_training(side):
    spec = LoRASpec(rank=4, alpha=6.0, dropout=0.5)
    model = side.net()
    model.eval()
    side.backend.adapt(model, ["layers.0.q"], spec)
    side.randomise(model)
    ids = side.backend.from_host({"ids": IDS})["ids"]
    quiet = [side.backend.to_host({"y": model(ids)})["y"] for _ in range(2)]
    assert np.array_equal(*quiet)  # an adapter put on a model in eval mode is in eval mode
    model.train()
    loud = [side.backend.to_host({"y": model(ids)})["y"] for _ in range(2)]
    assert not np.array_equal(*loud)


def test_base_weights_are_bit_identical_after_training(side):
    model = side.lora(SPECS["dora"], TARGETS)
    frozen = {name: value for name, value in side.host(model).items() if name not in side.trained(model)}
    before = side.trained(model)
    step = side.backend.train_step(model, side.module.terms, OptimSpec(weight_decay=0.1, max_norm=1.0))
    for _ in range(5):
        step([collate(examples(4))], {"next": 0.05, "size": 0.02}, 1e-2)
    for name, value in frozen.items():
        assert value.tobytes() == side.host(model)[name].tobytes(), name
    assert all(not np.array_equal(value, side.trained(model)[name]) for name, value in before.items())


def test_fusing_leaves_the_model_frozen(side):
    model = side.lora()
    side.backend.fuse(model)
    assert side.trained(model) == {}
    assert side.backend.adapters(model) == {}


def test_fusing_leaves_a_module_that_shares_the_weight_alone():
    side = Side("torch")
    model = side.net()
    model.head.weight = model.tokens.weight
    side.backend.adapt(model, ["head"], SPECS["lora"])
    side.randomise(model)
    before = side.forward(model, IDS)
    side.backend.fuse(model)
    assert_equal(side.forward(model, IDS), before)
    assert np.array_equal(side.host(model)["tokens.weight"], side.weights()["tokens.weight"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_quantised_base_is_adapted_trained_and_fused(bits, kind):
    import mlx.nn as nn

    side = Side("mlx")
    model = side.net()
    nn.quantize(model, group_size=32, bits=bits)
    assert side.backend.linears(model) == side.backend.linears(side.net())
    plain = side.forward(model, IDS)
    side.backend.adapt(model, TARGETS, SPECS[kind])
    assert_equal(side.forward(model, IDS), plain)
    frozen = {name: value for name, value in side.host(model).items() if name not in side.trained(model)}
    batch = collate(examples(6))
    step = side.backend.train_step(model, side.module.terms, OptimSpec())
    losses = [step([batch], weights([batch], side.backend.world), 2e-2)["loss"] for _ in range(8)]
    assert losses[-1] < 0.85 * losses[0]
    for name, value in frozen.items():
        assert np.array_equal(value, side.host(model)[name]), name
    before = side.forward(model, IDS)
    side.backend.fuse(model)
    assert isinstance(model.layers[0].q, nn.Linear)
    assert isinstance(model.tokens, nn.Embedding)
    np.testing.assert_allclose(side.forward(model, IDS), before, rtol=0, atol=1e-5)


def test_training_a_quantised_weight_whole_is_an_error():
    import mlx.nn as nn

    side = Side("mlx")
    model = side.net()
    nn.quantize(model, group_size=32, bits=4)
    with pytest.raises(InputError, match=r"tokens.weight is quantised and cannot be trained"):
        side.backend.train_only(model, lambda name: name == "tokens.weight")


@pytest.mark.parametrize("kind", SPECS)
def test_bfloat16_base_with_float32_adapter(side, kind):
    """Adapters stay float32; the output has the base's dtype."""
    model = side.net()
    if side.name == "mlx":
        import mlx.core as mx

        model.set_dtype(mx.bfloat16)
    else:
        model.to(torch.bfloat16)
    side.backend.adapt(model, TARGETS, SPECS[kind])
    side.randomise(model)
    assert {value.dtype.name for value in side.trained(model).values()} == {"float32"}
    out = side.forward(model, IDS)
    assert out.dtype.name == "bfloat16"
    reference = adapted(side, kind)
    assert np.abs(out.astype(np.float32) - side.forward(reference, IDS)).max() < 0.15
    side.backend.fuse(model)
    assert side.host(model)["layers.0.q.weight"].dtype.name == "bfloat16"
