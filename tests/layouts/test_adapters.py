"""CSM's adapters to PEFT's directory and back, as files: real peft gets the same model from them."""

import json
import shutil

import mlx.core as mx
import numpy as np
import oracles
import peft
import pytest
import torch
from mlx.utils import tree_unflatten
from transformers import CsmForConditionalGeneration
from weights import assert_same, converted, load, refused

from backends import get
from backends.adapters.files import adapter_info, read_info, save_adapter
from csm_mlx import CSM
from csm_mlx.finetune.lora import apply_lora_to_model, load_adapter, trains_with_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # both tables are adapted
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
KINDS = {
    "lora": {"rank": 4, "alpha": 8.0, "target_modules": ["attn", "codebook0_head", "projection"]},
    "mlp-rslora": {"rank": 3, "alpha": 7.5, "use_rslora": True, "target_modules": ["mlp"]},
    "dora": {"rank": 2, "alpha": 4.0, "use_dora": True, "target_modules": ["attn", "mlp", "projection"]},
    "embeddings": {"rank": 4, "alpha": 8.0, "target_modules": ["attn", "text_embeddings", "audio_embeddings"]},
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A base model's folder in transformers' layout."""
    folder = tmp_path_factory.mktemp("upstream")
    oracles.csm(folder)
    return folder


def adapted(upstream, *, train_embeddings: bool = False, **kind) -> CSM:
    """A model with a random adapter that changes a lot, and with a codec that it does not adapt."""
    model = apply_lora_to_model(CSM.from_pretrained(upstream), **kind)
    backend = get("mlx")
    assert not any("codec" in name for name in backend.adapters(model))
    backend.train_only(model, lambda name: trains_with_lora(name, train_embeddings=train_embeddings))
    rng = np.random.default_rng(0)
    drawn = {
        name: mx.array(1.0 + rng.random(value.shape) if "magnitude" in name else 0.2 * rng.standard_normal(value.shape))
        for name, value in backend.trainable(model).items()
    }
    model.update(tree_unflatten([(name, value.astype(mx.float32)) for name, value in drawn.items()]))
    return model


def saved(model: CSM, path, base: str = ""):
    save_adapter(get("mlx"), model, path, adapter_info(get("mlx"), model, base=base))
    return path


def their_logits(model) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        first = model(input_ids=torch.tensor([[256, 5, 7, 9, 257]])).logits
        hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
        depth = model.depth_decoder(input_ids=torch.tensor([[0, 3, 5]]), backbone_last_hidden_state=hidden).logits
    return first.numpy(), depth.numpy()


def our_logits(model: CSM) -> tuple[np.ndarray, np.ndarray]:
    hidden = model.backbone(model.text_embeddings(mx.array([[256, 5, 7, 9, 257]])))
    first = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).numpy()
    rows = model.audio_embeddings(mx.array([[3, 5 + model.config.audio_vocab]]))
    outputs = model.decoder(model.projection(mx.concatenate([mx.array(first)[:, None], rows], axis=1)))[:, 1:]
    depth = mx.stack([outputs[:, i] @ model.audio_head[i] for i in range(2)], axis=1)
    return np.array(model.codebook0_head(hidden)), np.array(depth)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_peft_gets_the_same_model_and_the_way_back_is_exact(tmp_path, upstream, kind):
    model = adapted(upstream, **kind)
    file = saved(model, tmp_path / "lora_ckpt_epoch_1.safetensors", base=str(upstream))
    converted(file, tmp_path / "peft", "peft")
    theirs = CsmForConditionalGeneration.from_pretrained(upstream)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    for got, expected in zip(our_logits(model), their_logits(theirs), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    back = converted(tmp_path / "peft", tmp_path / "back.safetensors", "csm-mlx-lora")
    assert_same(load(back), load(file))
    assert read_info(back).spec == read_info(file).spec
    assert set(read_info(back).targets) == set(read_info(file).targets)


def test_an_adapter_made_by_peft_is_read(tmp_path, upstream, capsys):
    """lm_head among the targets makes PEFT add a base weight, which is said to be left out."""
    parts = ["backbone_model.layers.0.self_attn.q_proj", "depth_decoder.model.layers.1.self_attn.k_proj", "lm_head"]
    theirs = CsmForConditionalGeneration.from_pretrained(upstream)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=parts)).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=noise))
    theirs.save_pretrained(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        upstream
    )
    file = converted(tmp_path / "peft", tmp_path / "lora.safetensors", "csm-mlx-lora")
    assert "without 1 base weight(s)" in capsys.readouterr().out
    model = load_adapter(CSM.from_pretrained(upstream), file)
    for got, expected in zip(our_logits(model), their_logits(theirs), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_embeddings_trained_whole_go_along(tmp_path, upstream):
    model = adapted(upstream, train_embeddings=True, rank=2, target_modules=["attn"])
    file = saved(model, tmp_path / "lora.safetensors", base=str(upstream))
    assert set(read_info(file).trained) == {"text_embeddings.weight", "audio_embeddings.weight"}
    converted(file, tmp_path / "peft", "peft")
    theirs = CsmForConditionalGeneration.from_pretrained(upstream)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    for got, expected in zip(our_logits(model), their_logits(theirs), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    assert_same(load(converted(tmp_path / "peft", tmp_path / "back.safetensors", "csm-mlx-lora")), load(file))


def test_where_the_base_is_unknown_its_configuration_is_asked_for(tmp_path, upstream, capsys):
    model = adapted(upstream, **KINDS["lora"])
    file = saved(model, tmp_path / "in" / "lora.safetensors", base="my own model")
    line = refused(capsys, file, tmp_path / "peft", "--to", "peft")
    assert "put that model's config.json beside it" in line
    assert not (tmp_path / "peft").exists()
    shutil.copyfile(upstream / "config.json", tmp_path / "in" / "config.json")
    converted(file, tmp_path / "peft", "peft")


def test_the_published_model_needs_no_configuration(tmp_path):
    """Full-size q and k of both stacks: their heads are 64 and 128 wide."""
    import published
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = {"backbone.layers.3": (2048, 2048, 512, 32, 8), "decoder.layers.1": (1024, 1024, 256, 8, 2)}
    tensors, rows = {}, {}
    for layer, (width, queries, keys, heads, kv_heads) in shapes.items():
        for part, out, count in (("q", queries, heads), ("k", keys, kv_heads)):
            module = f"{layer}.self_attn.{part}_proj"
            tensors[f"{module}.lora_A"] = rng.standard_normal((2, width), np.float32)
            halves = rng.standard_normal((out, 2), np.float32)
            tensors[f"{module}.lora_B"] = published.pairs_of_halves(halves, count)
            rows[module.replace("backbone.", "backbone_model.").replace("decoder.", "depth_decoder.model.")] = halves
    targets = sorted({name.rpartition(".")[0] for name in tensors})
    metadata = {
        "format": "audiosmith-lora", "rank": "2", "alpha": "4.0", "dropout": "0.0", "use_rslora": "false",
        "use_dora": "false", "targets": json.dumps(targets), "base": "1b", "trained": "[]",
    }  # fmt: skip
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    converted(tmp_path / "lora.safetensors", tmp_path / "peft", "peft")
    got = load(tmp_path / "peft" / "adapter_model.safetensors")
    for module, halves in rows.items():
        np.testing.assert_array_equal(got[f"base_model.model.{module}.lora_B.weight"], halves)
    back = converted(tmp_path / "peft", tmp_path / "back.safetensors", "csm-mlx-lora")
    assert_same(load(back), tensors)


def test_what_is_no_adapter_is_refused(tmp_path, upstream, capsys):
    line = refused(capsys, upstream / "model.safetensors", tmp_path / "out", "--to", "peft")
    assert "holds no adapter" in line
    line = refused(capsys, upstream, tmp_path / "out.safetensors", "--to", "csm-mlx-lora")
    assert "holds no adapter_config.json" in line
    file = saved(adapted(upstream, **KINDS["lora"]), tmp_path / "lora.safetensors")
    line = refused(capsys, file, tmp_path / "out", "--to", "transformers")
    assert "is an adapter, not a whole CSM" in line
    line = refused(capsys, file, tmp_path / "out.safetensors", "--to", "peft")
    assert "--to peft writes a directory" in line
    line = refused(capsys, tmp_path, tmp_path / "out", "--to", "csm-mlx-lora")
    assert "--to csm-mlx-lora writes a .safetensors file" in line
