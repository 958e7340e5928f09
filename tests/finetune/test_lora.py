"""finetune_lora: what trains, what is saved, and that it can be loaded, continued and merged."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from backends import get
from backends.adapters.files import read_info
from backends.errors import InputError
from backends.training.log import read
from csm_mlx import CSM, generate
from csm_mlx.finetune.lora import apply_lora_to_model, load_adapter, load_lora_weights, merge_lora_weights

TARGETS = ["attn", "codebook0_head", "projection"]


def weights(path) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in mx.load(str(path)).items()}


def parameters(model) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def test_default_targets_are_attention_and_two_heads():
    model = apply_lora_to_model(CSM.from_pretrained("tiny"))
    adapted = {name.rsplit(".", 1)[0] for name in get("mlx").trainable(model)}
    layers = [f"{stack}.layers.{n}" for stack, count in (("backbone", 4), ("decoder", 2)) for n in range(count)]
    expected = {f"{layer}.self_attn.{p}_proj" for layer in layers for p in "qkvo"} | {"codebook0_head", "projection"}
    assert adapted == expected


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["mlp"], 18), (["q_proj"], 6), (["text_embeddings", "audio_embeddings"], 2), (None, 44), (["backbone"], 28)],
)
def test_targets(targets, count):
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), target_modules=targets)
    assert len(get("mlx").trainable(model)) == 2 * count


def test_exclude_and_unknown_targets():
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), target_modules=["attn"], exclude_modules=["decoder"])
    assert not [name for name in get("mlx").trainable(model) if name.startswith("decoder")]
    with pytest.raises(InputError, match=r"--target-modules atn: no such module; expected some of attn mlp"):
        apply_lora_to_model(CSM.from_pretrained("tiny"), target_modules=["atn"])


@pytest.mark.parametrize("targets", [["attn"], ["codebook0_head"], None])
def test_a_second_adapter_is_refused_whatever_its_targets(targets, lora):
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), target_modules=["attn"])
    with pytest.raises(InputError, match="already carries an adapter: merge it first"):
        apply_lora_to_model(model, target_modules=targets)
    with pytest.raises(InputError, match="already carries an adapter: merge it first"):
        load_adapter(model, lora() / "lora_ckpt_epoch_1.safetensors")


def test_merging_without_an_adapter_is_refused():
    model = merge_lora_weights(apply_lora_to_model(CSM.from_pretrained("tiny")))
    with pytest.raises(InputError, match="this model carries no adapter to merge: load one first"):
        merge_lora_weights(model)


def test_a_rank_above_every_dimension_is_refused():
    with pytest.raises(InputError, match="--lora-rank 129: larger than any dimension .* expected at most 128"):
        apply_lora_to_model(CSM.from_pretrained("tiny"), rank=129, target_modules=["projection"])
    apply_lora_to_model(CSM.from_pretrained("tiny"), rank=128, target_modules=["projection"])


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"alpha": float("nan")}, "--lora-alpha nan: expected a number above 0"),
        ({"alpha": 0}, "--lora-alpha 0: expected a number above 0"),
        ({"alpha": "x"}, "--lora-alpha 'x': expected a number above 0"),
        ({"rank": 1.5}, "--lora-rank 1.5: expected a whole number from 1"),
    ],
)
def test_numbers_that_are_none_are_refused(numbers, said):
    with pytest.raises(InputError) as refusal:
        apply_lora_to_model(CSM.from_pretrained("tiny"), **numbers)
    assert str(refusal.value) == said


def test_a_file_made_with_the_command_s_defaults_loads_with_the_function_s(lora):
    path = lora() / "lora_ckpt_epoch_1.safetensors"
    model = load_lora_weights(apply_lora_to_model(CSM.from_pretrained("tiny")), path)
    assert (parameters(model)["projection.lora_B"] == weights(path)["projection.lora_B"]).all()


def test_only_the_adapter_trains_and_is_saved(lora):
    run = lora("--epochs", 2)
    saved = weights(run / "lora_ckpt_epoch_2.safetensors")
    assert all(".lora_" in name for name in saved)
    assert len(saved) == 2 * 26
    assert all(np.abs(saved[name]).max() > 0 for name in saved if name.endswith("lora_B"))

    model = CSM.from_pretrained("tiny")
    base = parameters(model)
    loaded = parameters(load_adapter(model, run / "lora_ckpt_epoch_2.safetensors"))
    for name, value in base.items():
        owner, _, leaf = name.rpartition(".")
        found = loaded[name] if name in loaded else loaded[f"{owner}.base.{leaf}"]
        np.testing.assert_array_equal(value, found, err_msg=name)


def test_the_seed_s_way_of_loading_and_merging(lora):
    run = lora("--train-embeddings", "--lora-rank", 4)
    path = str(run / "lora_ckpt_epoch_1.safetensors")
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), rank=4, alpha=16.0, target_modules=TARGETS)
    before = np.array(model.text_embeddings.weight)
    model = load_lora_weights(model, path)
    assert np.abs(np.array(model.text_embeddings.weight) - before).max() > 0
    adapted = np.array(generate(model, text="one", speaker=0, context=[], max_audio_length_ms=800, seed=1))
    model = merge_lora_weights(model)
    assert not [name for name in parameters(model) if "lora" in name or ".base." in name]
    merged = np.array(generate(model, text="one", speaker=0, context=[], max_audio_length_ms=800, seed=1))
    np.testing.assert_allclose(merged, adapted, atol=1e-4)


def test_the_file_says_what_it_is_and_other_settings_are_refused(lora):
    run = lora("--lora-rank", 4, "--lora-alpha", 8)
    path = run / "lora_ckpt_epoch_1.safetensors"
    with pytest.raises(InputError, match=f"{path}: is an adapter, not a whole CSM: .* to generate's --lora"):
        CSM.from_pretrained("tiny", weights=path)
    info = read_info(path)
    assert (info.spec.rank, info.spec.alpha, info.base, len(info.targets)) == (4, 8.0, "tiny", 26)
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), rank=8, alpha=8.0, target_modules=TARGETS)
    with pytest.raises(InputError, match=r"rank is 4 in the file, but 8 on the model"):
        load_lora_weights(model, path)
    model = apply_lora_to_model(CSM.from_pretrained("tiny"), rank=4, alpha=8.0, target_modules=["attn"])
    with pytest.raises(InputError, match="codebook0_head"):
        load_lora_weights(model, path)


def test_reloading_gives_the_same_validation_loss(lora, held_out):
    run = lora("--val-path", held_out)
    value = next(row["val_loss"] for row in read(run / "metrics.csv") if "val_loss" in row)
    again = lora("--val-path", held_out, "--resume-from", run / "lora_ckpt_epoch_1.safetensors",
                 "--learning-rate", 1e-30, output=run.parent / "again")  # fmt: skip
    repeated = next(row["val_loss"] for row in read(again / "metrics.csv") if "val_loss" in row)
    assert repeated == pytest.approx(value, abs=1e-6)


def test_trained_embeddings_are_not_lost_on_starting_from_a_file(lora, capsys, tmp_path):
    run = lora("--train-embeddings")
    with pytest.raises(SystemExit):
        lora("--resume-from", run / "lora_ckpt_epoch_1.safetensors", output=tmp_path / "again")
    assert "add --train-embeddings" in capsys.readouterr().err


def test_a_continued_run_equals_an_unbroken_one(lora, tmp_path):
    whole = lora(
        "--epochs", 3, "--dropout", 0.1, "--gradient-accumulation", 2, "--batch-size", 2, output=tmp_path / "whole"
    )
    lora("--epochs", 1, "--dropout", 0.1, "--gradient-accumulation", 2, "--batch-size", 2, output=tmp_path / "broken")
    broken = lora(
        "--epochs", 3, "--dropout", 0.1, "--gradient-accumulation", 2, "--batch-size", 2, output=tmp_path / "broken"
    )
    one, two = (weights(run / "lora_ckpt_epoch_3.safetensors") for run in (whole, broken))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_step_files_and_checkpoints(lora):
    run = lora("--batch-size", 1, "--save-every", 3, "--keep-last", 2)
    assert sorted(path.name for path in run.glob("lora_ckpt_*")) == [
        "lora_ckpt_epoch_1.safetensors", "lora_ckpt_step_3.safetensors", "lora_ckpt_step_6.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_6", "step_8"]
    assert (run / "report.html").stat().st_size > 1000
    assert (run / "config.json").exists()


@pytest.mark.parametrize("extra", [["--use-dora"], ["--use-rslora"], ["--target-modules", "mlp", "text_embeddings"]])
def test_other_adapters_train_load_and_merge(lora, extra):
    run = lora(*extra)
    model = load_adapter(
        CSM.from_pretrained("tiny"),
        run / "lora_ckpt_epoch_1.safetensors",
    )
    adapted = np.array(generate(model, "one", 0, [], 400, seed=1))
    merged = np.array(generate(merge_lora_weights(model), "one", 0, [], 400, seed=1))
    np.testing.assert_allclose(merged, adapted, atol=1e-4)


def test_training_learns(lora):
    run = lora("--epochs", 12, "--train-embeddings", "--learning-rate", 5e-3, "--log-every", 1)
    losses = [row["loss"] for row in read(run / "metrics.csv") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_embeddings_train_in_float32_over_a_bfloat16_base(lora):
    run = lora("--dtype", "bfloat16", "--train-embeddings", "--epochs", 2)
    saved = mx.load(str(run / "lora_ckpt_epoch_2.safetensors"))
    assert {str(value.dtype) for value in saved.values()} == {"mlx.core.float32"}
