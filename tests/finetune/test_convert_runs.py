"""What the commands write is converted by itself, whatever the base model's shape."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from backends import cli
from backends.errors import InputError
from backends.layouts import convert
from csm_mlx import CSM, csm_tiny, generate
from csm_mlx.companions import codec_of, tokenizer_of
from csm_mlx.config import LlamaConfig
from csm_mlx.finetune.lora import apply_lora_to_model, load_adapter, load_lora_weights
from csm_mlx.load import load_file, save_pretrained

ODD = replace(
    csm_tiny(),
    backbone=LlamaConfig(layers=3, width=48, heads=3, kv_heads=1, head_dim=12, mlp_width=56, rope_scaling=None),
    decoder=LlamaConfig(layers=1, width=40, heads=4, kv_heads=4, head_dim=8, mlp_width=24, rope_theta=10_000.0),
    codebooks=5,
    name="odd",
)


def converted(source, target, layout: str):
    cli.run(convert.main, convert.Options, [str(source), str(target), "--to", layout])
    return target


@pytest.fixture(params=["tiny", "odd"])
def base(request, tmp_path) -> str:
    """A base model that is none of the published ones."""
    if request.param == "tiny":
        return "tiny"
    model, tiny = CSM(ODD), CSM.from_pretrained("tiny")
    model._companions.update(codec=codec_of(tiny), tokenizer=tokenizer_of(tiny))
    save_pretrained(model, tmp_path / "base")
    return str(tmp_path / "base")


def test_a_whole_model_goes_to_every_layout_and_back(full, base, tmp_path):
    run = full("--model", base)
    file = run / "ckpt_epoch_1.safetensors"
    start = {name: np.array(value) for name, value in mx.load(str(file)).items()}
    for layout in ("transformers", "torchtune", "csm-mlx"):
        there = converted(file, tmp_path / f"{layout}.safetensors", layout)  # a file by itself
        folder = converted(there, tmp_path / layout, "csm-mlx")
        again = {name: np.array(value) for name, value in mx.load(str(folder / "model.safetensors")).items()}
        assert again.keys() == start.keys()
        assert all((again[name] == start[name]).all() for name in start)


def test_a_run_s_file_becomes_a_directory_that_generates(full, tmp_path):
    """The config.json beside the file is the run's options, not the model's."""
    run = full()
    folder = converted(run / "ckpt_epoch_1.safetensors", tmp_path / "ours", "csm-mlx")
    sound = generate(CSM.from_pretrained(folder), "one", 0, [], 160, seed=1)
    assert (sound == generate(CSM.from_pretrained(run / "ckpt_epoch_1.safetensors"), "one", 0, [], 160, seed=1)).all()


def test_an_adapter_goes_to_peft_and_back(lora, base, tmp_path):
    run = lora("--model", base, "--train-embeddings")
    file = run / "lora_ckpt_epoch_1.safetensors"
    moved = tmp_path / "elsewhere" / "a.safetensors"  # nothing lies beside it
    moved.parent.mkdir()
    moved.write_bytes(file.read_bytes())
    folder = converted(moved, tmp_path / "peft", "peft")
    assert (folder / "adapter_config.json").is_file()
    back = converted(folder, tmp_path / "back.safetensors", "csm-mlx-lora")
    one, two = mx.load(str(file)), mx.load(str(back))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)


def test_an_adapter_of_another_shape_is_refused_in_one_line_that_names_both(lora, tmp_path):
    file = lora() / "lora_ckpt_epoch_1.safetensors"
    other = CSM(replace(csm_tiny(), backbone=replace(csm_tiny().backbone, layers=2), codebooks=4, name="short"))
    said = (
        r"lora_ckpt_epoch_1\.safetensors: is for csm_tiny \(backbone\.layers 4, codebooks 8\), "
        r"not for this model, short \(backbone\.layers 2, codebooks 4\): give the model that it was trained on"
    )
    with pytest.raises(InputError, match=said):
        load_adapter(other, file)
    applied = apply_lora_to_model(other, 8, 16.0, ["attn", "codebook0_head", "projection"])
    with pytest.raises(InputError, match=said):
        load_lora_weights(applied, file)


def test_the_same_base_elsewhere_in_another_dtype_or_layout_takes_the_adapter(lora, tmp_path):
    file = lora() / "lora_ckpt_epoch_1.safetensors"
    folder = tmp_path / "hf"
    save_pretrained(CSM.from_pretrained("tiny"), tmp_path / "ours")
    converted(tmp_path / "ours", folder, "transformers")
    for model in (CSM.from_pretrained(folder), CSM.from_pretrained("tiny", dtype="bfloat16")):
        load_adapter(model, file)
        live = dict(tree_flatten(model.parameters()))
        for name, value in mx.load(str(file)).items():
            np.testing.assert_allclose(np.array(live[name].astype(mx.float32)), np.array(value), atol=1e-3)
    unnamed = CSM(replace(csm_tiny(), name="", max_positions=99))
    load_file(unnamed, tmp_path / "ours" / "model.safetensors")
    load_adapter(unnamed, file)
