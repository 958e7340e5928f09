"""Adapter files: our single file, csm-mlx's, and PEFT directories, on both backends."""

import json

import numpy as np
import peft_oracle
import pytest
from safetensors.numpy import load_file, save_file
from toy import Side

from backends.adapters.files import adapter_info, load_adapter, read_info, save_adapter
from backends.adapters.peft import read_peft, write_peft
from backends.base import AdapterInfo, LoRASpec
from backends.errors import InputError
from backends.layouts.rules import Op, Rule, rope_rows

SPEC = LoRASpec(rank=4, alpha=6.0)
DORA = LoRASpec(rank=4, alpha=6.0, dropout=0.1, use_rslora=True, use_dora=True)
TARGETS = ("layers.0.q", "layers.1.up", "tokens")
IDS = np.random.default_rng(0).integers(0, 11, (2, 6))


def trained(side, spec=DORA, targets=TARGETS, whole=("places.weight",)):
    """A model with a random adapter and a table that trains whole."""
    model = side.lora(spec, targets)
    adapter = set(side.trained(model))
    side.backend.train_only(model, lambda name: name in adapter or name in whole)
    side.randomise(model)
    return model


def saved(side, path, **options):
    model = trained(side, **options)
    save_adapter(side.backend, model, path, adapter_info(side.backend, model, base="toy"))
    return model


# The single file


def test_file_round_trip(side, tmp_path):
    model = saved(side, tmp_path / "a.safetensors")
    assert read_info(tmp_path / "a.safetensors") == AdapterInfo(DORA, TARGETS, "toy", ("places.weight",))
    again = side.lora(DORA, TARGETS)
    load_adapter(side.backend, again, tmp_path / "a.safetensors")
    assert np.array_equal(side.forward(again, IDS), side.forward(model, IDS))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]  # nothing is left of the staging


def test_file_holds_exactly_what_trains_and_says_what_it_is(side, tmp_path):
    model = saved(side, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: value.tobytes() for name, value in tensors.items()} == {
        name: value.tobytes() for name, value in side.trained(model).items()
    }
    assert set(tensors) == {"places.weight"} | {
        f"{module}.{part}" for module in TARGETS for part in ("lora_A", "lora_B", "lora_magnitude_vector")
    }
    _, metadata = side.backend.read(tmp_path / "a.safetensors")
    assert {name: metadata[name] for name in ("format", "rank", "alpha", "use_dora", "base")} == {
        "format": "audiosmith-lora", "rank": "4", "alpha": "6.0", "use_dora": "true", "base": "toy"
    }  # fmt: skip
    assert json.loads(metadata["targets"]) == list(TARGETS)
    assert json.loads(metadata["trained"]) == ["places.weight"]


def test_a_file_of_one_backend_loads_on_the_other(tmp_path):
    mlx, torch = Side("mlx"), Side("torch")
    for one, other in ((mlx, torch), (torch, mlx)):
        model = saved(one, tmp_path / "a.safetensors")
        again = other.lora(DORA, TARGETS)
        load_adapter(other.backend, again, tmp_path / "a.safetensors")
        np.testing.assert_allclose(other.forward(again, IDS), one.forward(model, IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LoRASpec(rank=8, alpha=6.0), "rank is 4 in the file, but 8 on the model"),
        (LoRASpec(rank=4, alpha=16.0), "alpha is 6.0 in the file, but 16.0 on the model"),
        (LoRASpec(rank=4, alpha=6.0, use_dora=True), "use_dora is False in the file, but True on the model"),
        (LoRASpec(rank=4, alpha=6.0, use_rslora=True), "use_rslora is False in the file, but True on the model"),
    ],
)
def test_another_spec_is_an_error_with_both_values(side, tmp_path, spec, message):
    saved(side, tmp_path / "a.safetensors", spec=SPEC)
    with pytest.raises(InputError, match=message) as caught:
        load_adapter(side.backend, side.lora(spec, TARGETS), tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value)


def test_other_targets_are_an_error_that_names_both(side, tmp_path):
    saved(side, tmp_path / "a.safetensors", spec=SPEC)
    model = side.lora(SPEC, ["layers.0.q", "layers.0.k"])
    with pytest.raises(InputError) as caught:
        load_adapter(side.backend, model, tmp_path / "a.safetensors")
    assert "3 modules with layers.1.up, tokens in the file, but 2 modules with layers.0.k on the model" in str(
        caught.value
    )


def test_damaged_or_foreign_files_are_one_line_errors(side, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="no such adapter file"):
        read_info(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_info(path)
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match="holds no adapter; weights of a whole model are for"):
        read_info(path)
    save_file({"x.lora_a": np.zeros(3, np.float32)}, path)  # csm-mlx's trainer
    with pytest.raises(InputError, match="without rank, alpha and targets"):
        read_info(path)
    with pytest.raises(InputError, match="unexpected x"):
        load_adapter(side.backend, side.lora(), path)
    saved(side, path)
    tensors = load_file(path)
    _, metadata = side.backend.read(path)
    save_file({name: value for name, value in tensors.items() if name != "tokens.lora_B"}, path, metadata)
    with pytest.raises(InputError, match=r"missing tokens.lora_B"):
        load_adapter(side.backend, side.lora(DORA, TARGETS), path)
    save_file(tensors, path, {**metadata, "rank": "four"})
    with pytest.raises(InputError, match="metadata is damaged"):
        read_info(path)


def test_directory_of_the_seeds_trainer_loads(side, tmp_path):
    """csm-mlx wrote `lora_ckpt_epoch_1.safetensors/model.safetensors`, without metadata."""
    model = trained(side, spec=SPEC)
    directory = tmp_path / "lora_ckpt_epoch_1.safetensors"
    directory.mkdir()
    save_file(side.trained(model), directory / "model.safetensors")
    again = side.lora(SPEC, TARGETS)
    load_adapter(side.backend, again, directory)
    assert np.array_equal(side.forward(again, IDS), side.forward(model, IDS))
    with pytest.raises(InputError, match=r"model.safetensors: .* has shape \(.*4.*\), this model expects \(.*8.*\)"):
        load_adapter(side.backend, side.lora(LoRASpec(rank=8), TARGETS), directory)


def test_a_model_without_an_adapter_is_an_error(side):
    with pytest.raises(InputError, match="carries no adapter"):
        adapter_info(side.backend, side.net())


# PEFT directories


@pytest.mark.parametrize("spec", [SPEC, DORA])
def test_peft_writes_back_the_same_tensors(side, tmp_path, spec):
    """Ours -> real PEFT -> its save_pretrained: the same names and bits; and back here: the same model."""
    model = trained(side, spec=spec)
    write_peft(side.backend, model, tmp_path / "ours", adapter_info(side.backend, model, base="toy"))
    theirs = peft_oracle.loaded(tmp_path / "ours")
    np.testing.assert_allclose(side.forward(model, IDS), peft_oracle.forward(theirs, IDS), rtol=1e-5, atol=1e-5)
    theirs.peft_config["default"].base_model_name_or_path = None  # else it looks for the toy on the Hub
    theirs.save_pretrained(tmp_path / "theirs")
    ours, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert {name: value.tobytes() for name, value in ours.items()} == {name: v.tobytes() for name, v in again.items()}
    back = side.net()
    info = read_peft(side.backend, back, tmp_path / "theirs")
    assert info == AdapterInfo(spec, TARGETS, "", ("places.weight",))
    assert np.array_equal(side.forward(back, IDS), side.forward(model, IDS))
    assert set(side.trained(back)) == set(side.trained(model))


def test_peft_config_says_what_the_adapter_is(side, tmp_path):
    model = trained(side)
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model, base="toy"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True}
    assert {name: config[name] for name in expected} == expected
    assert config["target_modules"] == list(TARGETS)
    assert config["modules_to_save"] == ["places"]
    assert config["base_model_name_or_path"] == "toy"


def test_modules_to_save_come_in_as_parameters_trained_whole(side, tmp_path):
    theirs = peft_oracle.fresh(SPEC, ["layers.0.q"], modules_to_save=["head", "layers.1.up"])
    theirs.save_pretrained(tmp_path)
    model = side.net()
    info = read_peft(side.backend, model, tmp_path)
    assert set(info.trained) == {"head.weight", "layers.1.up.weight", "layers.1.up.bias"}
    np.testing.assert_allclose(side.forward(model, IDS), peft_oracle.forward(theirs, IDS), rtol=1e-5, atol=1e-5)


def test_a_target_that_ends_like_another_module_is_written_exactly(side, tmp_path):
    """PEFT takes each item of a list as an ending too: `q` would also adapt `layers.0.q`."""
    model = side.net()
    model.q = type(model.layers[0].q)(32, 32, bias=False)
    side.backend.adapt(model, ["q"], SPEC)
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "q"


def test_an_adapter_goes_onto_a_model_that_carries_the_same_one(side, tmp_path):
    model = trained(side, spec=SPEC, whole=())
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
    again = side.lora(SPEC, TARGETS)
    read_peft(side.backend, again, tmp_path)
    assert np.array_equal(side.forward(again, IDS), side.forward(model, IDS))
    with pytest.raises(InputError, match="rank is 4 in the file, but 8 on the model"):
        read_peft(side.backend, side.lora(LoRASpec(rank=8, alpha=6.0), TARGETS), tmp_path)


@pytest.mark.parametrize("spec", [SPEC, DORA])
def test_rules_rename_modules_and_move_rows(side, tmp_path, spec):
    """A layout whose q has its rows in another order: lora_B's rows, and the magnitudes, move as the weight's do."""
    swap = rope_rows(8)
    rules = [
        Rule("layers.{n}.q.weight", "model.blocks.{n}.query.weight", swap),
        Rule("tokens.weight", "model.embed.weight", Op(np.flipud, np.flipud)),
        Rule("places.weight", "model.positions.weight"),
        Rule("{any}", "model.{any}"),
    ]
    model = trained(side, spec=spec)
    base = side.weights()
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model), rules=rules)
    tensors = {
        n.removeprefix("base_model.model."): v for n, v in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    assert {name.split(".lora_")[0] for name in tensors} == {
        "model.blocks.0.query", "model.layers.1.up", "model.embed", "model.positions.weight"
    }  # fmt: skip
    a, b = (tensors[f"model.blocks.0.query.lora_{part}.weight"] for part in "AB")
    merged = swap.to_theirs(base["layers.0.q.weight"]) + spec.scale * b @ a
    if spec.use_dora:
        merged *= (tensors["model.blocks.0.query.lora_magnitude_vector"] / np.linalg.norm(merged, axis=1))[:, None]
    a_of_tokens = side.trained(model)["tokens.lora_A"]
    assert np.array_equal(tensors["model.embed.lora_embedding_A"], np.fliplr(a_of_tokens))
    again = side.net()
    read_peft(side.backend, again, tmp_path, rules=rules)
    assert np.array_equal(side.forward(again, IDS), side.forward(model, IDS))
    side.backend.fuse(model)
    np.testing.assert_allclose(swap.to_theirs(side.host(model)["layers.0.q.weight"]), merged, rtol=0, atol=1e-6)


def test_tied_modules_of_theirs_are_one_of_ours(side, tmp_path):
    tied = {"second.tokens": "tokens"}
    model = trained(side, spec=SPEC, whole=())
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model), tied=tied)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    for part in ("lora_embedding_A", "lora_embedding_B"):
        assert np.array_equal(
            tensors[f"base_model.model.tokens.{part}"], tensors[f"base_model.model.second.tokens.{part}"]
        )
    again = side.net()
    read_peft(side.backend, again, tmp_path, tied=tied)
    assert np.array_equal(side.forward(again, IDS), side.forward(model, IDS))
    save_file({**tensors, "base_model.model.tokens.lora_embedding_B": np.ones((32, 4), np.float32)}, file)
    with pytest.raises(InputError, match="trains second.tokens and tokens differently"):
        read_peft(side.backend, side.net(), tmp_path, tied=tied)


def test_base_weights_that_peft_adds_must_be_this_models(side, tmp_path):
    model = trained(side, spec=SPEC, whole=())
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
    file, name = tmp_path / "adapter_model.safetensors", "base_model.model.tokens.base_layer.weight"
    tensors = load_file(file)
    save_file({**tensors, name: side.weights()["tokens.weight"]}, file)
    read_peft(side.backend, side.net(), tmp_path)
    save_file({**tensors, name: side.weights(1)["tokens.weight"]}, file)
    with pytest.raises(InputError, match=r"holds another tokens.base_layer.weight than this model's"):
        read_peft(side.backend, side.net(), tmp_path)


REFUSED = {
    "peft_type": "IA3",
    "bias": "all",
    "init_lora_weights": "pissa",
    "rank_pattern": {"q": 8},
    "alpha_pattern": {"q": 8},
    "lora_bias": True,
    "fan_in_fan_out": True,
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1},
    "velora_config": {"scale": 1},
    "alora_invocation_tokens": [1],
    "layer_replication": [[0, 2]],
    "loftq_config": {"bits": 4},
    "trainable_token_indices": [3],
    "target_parameters": ["x"],
    "megatron_config": {"a": 1},
    "ensure_weight_tying": True,
    "an_option_of_tomorrow": True,
}


def test_options_that_would_have_to_be_ignored_are_refused(side, tmp_path):
    """Every option of PEFT's own config that is on must be honoured or refused."""
    peft_oracle.fresh(SPEC, TARGETS).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    read_peft(side.backend, side.net(), tmp_path)
    for name, value in REFUSED.items():
        path.write_text(json.dumps({**config, name: value}))
        with pytest.raises(InputError, match=name):
            read_peft(side.backend, side.net(), tmp_path)
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "r"}))
    with pytest.raises(InputError, match="expected the numbers r and lora_alpha"):
        read_peft(side.backend, side.net(), tmp_path)


def test_peft_directories_of_another_model_are_refused(side, tmp_path):
    model = trained(side, spec=SPEC, whole=())
    write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {name.replace("layers.0", "layers.7"): value for name, value in tensors.items()}
    save_file(renamed, file)
    with pytest.raises(InputError, match=r"unexpected layers.7.q"):
        read_peft(side.backend, side.net(), tmp_path)
    save_file({name: value for name, value in tensors.items() if not name.endswith("q.lora_B.weight")}, file)
    with pytest.raises(InputError, match=r"layers.0.q: missing lora_B"):
        read_peft(side.backend, side.net(), tmp_path)


def test_what_peft_cannot_hold_is_refused(side, tmp_path):
    model = side.lora(SPEC, TARGETS)
    side.backend.train_only(model, lambda name: "lora_" in name or name == "layers.1.up.base.bias")
    with pytest.raises(InputError, match="PEFT stores whole modules"):
        write_peft(side.backend, model, tmp_path, adapter_info(side.backend, model))
