"""SNAC in every layout: read, written, converted from any to any, and refused where it does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import snac_oracle as oracle
import torch
from weights import assert_same, converted, in_bfloat16, load, refused, save

from backends.errors import InputError
from backends.layouts import snac as layouts
from backends.layouts.checkpoint import expected_tensors
from snac_port import SNAC, snac_24khz, torch_model
from snac_port import load as loading
from snac_port.config import read_config

LAYOUTS = ("snac", "snac-legacy", "mlx-snac")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """(the package's model, its configuration, a folder with its config.json and pytorch_model.bin); it has everything."""
    config = oracle.NARROW["44khz"]
    model = oracle.upstream(config)
    return model, config, oracle.save(model, config, tmp_path_factory.mktemp("snac"))


def state(model) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def legacy(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The spelling of PyTorch before 2.0."""
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    return {_replaced(name, old): value for name, value in tensors.items()}


def _replaced(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trips_are_exact(tmp_path, upstream, dtype):
    model, config, _ = upstream
    tensors = state(model) if dtype == "float32" else in_bfloat16(state(model))
    at = save(tmp_path / "start" / "model.safetensors", tensors, config.settings())
    route = ("mlx-snac", "snac-legacy", "snac", "snac-legacy", "mlx-snac", "snac")
    for number, step in enumerate(route):
        at = converted(at, tmp_path / f"{number}-{step}", step)
        if step == "snac":
            assert_same(load(at), tensors)
        if step == "snac-legacy":
            assert_same(load(at), legacy(tensors))
        assert json.loads((at.parent / "config.json").read_text()) == config.settings()


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_any_layout_to_any_other_is_the_same_codec(tmp_path, upstream, source, target):
    model, config, folder = upstream
    converted(folder, tmp_path / "from", source)
    path = converted(tmp_path / "from", tmp_path / "to", target)
    assert layouts.detect(load(path)) == target
    ours = SNAC.from_pretrained(tmp_path / "to")
    assert ours.config == config
    assert_same(ours.tensors(), SNAC.of_checkpoint(oracle.checkpoint(model, config)).tensors())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "legacy.bin", "model.safetensors"])
def test_published_files_are_read(tmp_path, upstream, name):
    """Either spelling of weight norm, pickled or not, on both backends."""
    model, config, _ = upstream
    tensors = legacy(state(model)) if name == "legacy.bin" else state(model)
    if name.endswith("safetensors"):
        save(tmp_path / name, tensors)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(config.settings()))
    source = tmp_path / name if name == "legacy.bin" else tmp_path
    audio = oracle.sound(config, 3000)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(audio)[None, None])
    for ours in (SNAC.from_pretrained(source), torch_model.SNAC.from_pretrained(source)):
        for level, theirs in zip(ours.encode(audio).levels, expected, strict=True):
            np.testing.assert_array_equal(level, theirs[0].numpy())


def test_upstream_loads_what_is_written(tmp_path, upstream):
    """Both spellings, strictly, and sounds the same."""
    model, config, folder = upstream
    converted(folder, tmp_path / "ours", "mlx-snac")
    for layout in ("snac", "snac-legacy"):
        path = converted(tmp_path / "ours", tmp_path / layout, layout)
        again = oracle.snac.SNAC(**json.loads((tmp_path / layout / "config.json").read_text())).eval()
        again.load_state_dict({name: torch.from_numpy(value) for name, value in load(path).items()})
        assert_same(state(again), state(model))


def test_transposed_convolutions_normalise_over_their_first_axis():
    """As PyTorch does: g is one number per *input* channel, v (in, out, k)."""
    config = oracle.NARROW["24khz"]
    model = oracle.upstream(config)
    ours = SNAC.of_checkpoint(oracle.checkpoint(model, config))
    up, theirs = ours.decoder.model.layers[2].block.layers[1], model.decoder.model[2].block[1]
    assert up.weight_g.shape == (48, 1, 1)
    assert up.weight_v.shape == (48, 16, 24)
    np.testing.assert_allclose(np.array(up.weight), theirs.weight.detach().numpy().swapaxes(1, 2), atol=3e-7)


@pytest.mark.parametrize(
    ("name", "count", "parameters"),
    [("24khz", 269, 19_842_914), ("32khz", 286, 54_546_402), ("44khz", 286, 54_546_402)],
)
def test_names_and_shapes_of_the_published_models(name, count, parameters):
    """Against upstream's classes at full size, without memory; 64 of the parameters are rotary frequencies."""
    config = oracle.FULL[name]
    with torch.device("meta"):
        model = oracle.snac.SNAC(**config.settings())
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    ours = {key: value.shape for key, value in expected_tensors(layouts.FAMILY, "snac", config.settings()).items()}
    assert ours == theirs
    assert len(ours) == count
    assert sum(int(np.prod(shape)) for shape in ours.values()) == parameters
    own = expected_tensors(layouts.FAMILY, "mlx-snac", config.settings())
    assert len(own) == count
    assert own["decoder.model.layers.3.block.layers.1.weight_v"].shape[1] == 16
    assert config.name == f"snac_{name}"


def test_names_are_mlx_audios():
    """Spot checks of what mlx-audio's `SNAC` calls its parameters; its attention comes with frequencies."""
    own = expected_tensors(layouts.FAMILY, "mlx-snac", oracle.FULL["44khz"].settings())
    shapes = {
        "encoder.block.layers.0.weight_g": (64, 1, 1),
        "encoder.block.layers.0.weight_v": (64, 7, 1),
        "encoder.block.layers.1.block.layers.0.block.layers.0.alpha": (1, 64, 1),
        "encoder.block.layers.2.block.layers.4.weight_v": (256, 6, 128),
        "encoder.block.layers.5.to_qkv.weight": (3072, 1024),
        "encoder.block.layers.5.rel_pos.inv_freq": (32,),
        "quantizer.quantizers.3.in_proj.weight_v": (8, 1, 1024),
        "quantizer.quantizers.0.codebook.weight": (4096, 8),
        "decoder.model.layers.3.block.layers.1.weight_g": (1536, 1, 1),
        "decoder.model.layers.3.block.layers.1.weight_v": (1536, 16, 768),
        "decoder.model.layers.3.block.layers.2.linear.weight_v": (768, 1, 768),
    }
    assert {name: own[name].shape for name in shapes} == shapes


def test_a_file_without_configuration_is_the_24_khz_model(tmp_path):
    config = snac_24khz()
    shapes = expected_tensors(layouts.FAMILY, "snac", config.settings())
    path = save(
        tmp_path / "weights.safetensors", {name: np.zeros(value.shape, np.float32) for name, value in shapes.items()}
    )
    assert loading.checkpoint(path).settings == config.settings()
    small = save(tmp_path / "small.safetensors", state(oracle.upstream(oracle.NARROW["24khz"])))
    with pytest.raises(InputError, match=r"small.safetensors: its configuration is needed.*config.json beside it"):
        loading.checkpoint(small)


G = "encoder.block.1.block.4.parametrizations.weight.original0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(G), f"missing {G}"),
        (lambda t: t.update({"encoder.block.9.bias": np.zeros(3, np.float32)}), "unexpected encoder.block.9.bias"),
        (lambda t: t.update({G: t[G][:-1]}), f"{G} has shape (11, 1, 1), this model expects (12, 1, 1)"),
        (lambda t: t.update({G: t[G].astype(np.int32)}), f"{G} is int32, expected one of float32, bfloat16, float16"),
        (lambda t: t.pop("encoder.block.0.parametrizations.weight.original0"), "these are not SNAC's tensors"),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "unknown"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, capsys, change, said):
    config = oracle.NARROW["24khz"]
    tensors = state(oracle.upstream(config))
    change(tensors)
    path = save(tmp_path / "in" / "model.safetensors", tensors, config.settings())
    for target in LAYOUTS[1:]:
        line = refused(capsys, path, tmp_path / "out", "--to", target)
        assert line.startswith(f"error: {path}: ")
        assert said in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder_rates": [2, 4]}, "encoder_rates make frames of 8 samples, decoder_rates of 512"),
        ({"vq_strides": [4, 3, 1]}, "vq_strides [4, 3, 1]: each must be a multiple of the next"),
        ({"vq_strides": []}, "vq_strides is []"),
        ({"encoder_dim": "48"}, "encoder_dim is '48'"),
        ({"noise": 1}, "noise is 1"),
        ({"encoder_rates": [1, 512], "decoder_rates": [512, 1]}, "encoder_rates holds 1"),
        ({"attn_window_size": 32, "encoder_dim": 6}, "encoder's last width is 96, but local attention has heads of 64"),
        ({"latent_dim": 5}, "latent_dim 5 does not fit the encoder, whose last width is 768"),
        ({"decoder_dim": 8}, "decoder_dim 8 cannot be halved at every rate"),
        ({"codebook_sise": 4096}, "unknown key 'codebook_sise'"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_are_named(change, said):
    with pytest.raises(InputError) as caught:
        read_config({**snac_24khz().settings(), **change}, "config.json")
    assert str(caught.value).startswith("config.json: not a SNAC configuration (")
    assert said in str(caught.value)


def test_configurations_that_can_be():
    settings = snac_24khz().settings()
    assert read_config({**settings, "latent_dim": 768, "model_type": "snac"}, "x") == snac_24khz()
    assert read_config({**settings, "latent_dim": None}, "x") == snac_24khz()
    short = {"encoder_rates": [3, 3, 7, 7], "vq_strides": [8, 4, 2, 1]}
    assert read_config(short, "x").attn_window_size == 32, "upstream's defaults"
    with pytest.raises(InputError, match="not a SNAC configuration; expected encoder_rates"):
        read_config({"hidden_size": 3}, "x")


def test_derived_numbers_of_the_published_models():
    speech, mid, music = oracle.FULL.values()
    assert [(c.hop_samples, c.unit_samples) for c in (speech, mid, music)] == [
        (512, 2048),
        (384, 12_288),
        (384, 12_288),
    ]
    assert [round(c.bits_per_second, 1) for c in (speech, mid, music)] == [984.4, 1875.0, 2584.0]
    assert [c.frames(10 * c.sampling_rate) for c in (speech, mid, music)] == [472, 864, 1152]
    assert [c.latent_dim for c in (speech, mid, music)] == [768, 1024, 1024]
    assert replace(speech, encoder_dim=32).name == ""


def test_names_of_a_training_run_find_its_files(tmp_path):
    config = oracle.NARROW["24khz"]
    ours = SNAC.of_checkpoint(oracle.checkpoint(oracle.upstream(config), config))
    loading.save(tmp_path / "best_model.safetensors", ours.tensors(), config)
    loading.save(tmp_path / "checkpoint_epoch3" / "model.safetensors", ours.tensors(), config)
    for name in ("best_model.pt", "best_model.safetensors", "checkpoint_epoch3.pt", "checkpoint_epoch3", ""):
        for backend in ("mlx", "torch"):
            again = loading.from_pretrained(tmp_path / name, backend)
            assert_same(again.tensors(), ours.tensors())
            assert again.identity() == ours.identity()
    with pytest.raises(
        InputError, match=r"checkpoint_epoch4.pt: no such file, and no checkpoint_epoch4.safetensors or"
    ):
        loading.from_pretrained(tmp_path / "checkpoint_epoch4.pt", "mlx")


def test_identity_is_the_quantisers(tmp_path, upstream):
    """The same for any layout, type and decoder; another codebook is another quantiser."""
    model, config, folder = upstream
    tensors = state(model)
    ours = SNAC.from_pretrained(folder)
    decoder = {name: value * 2 if name.startswith("decoder") else value for name, value in tensors.items()}
    book = {name: value + ("codebook" in name) for name, value in tensors.items()}
    found = {
        key: SNAC.from_pretrained(save(tmp_path / key / "model.safetensors", given, config.settings())).identity()
        for key, given in {"decoder": decoder, "codebook": book, "bfloat16": in_bfloat16(tensors)}.items()
    }
    assert (
        found["decoder"] == found["bfloat16"] == ours.identity() == torch_model.SNAC.from_pretrained(folder).identity()
    )
    assert found["codebook"] != ours.identity()
