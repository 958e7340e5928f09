"""What the converter refuses, and that it leaves nothing half done."""

import json
import os

import numpy as np
import oracles
import pytest
import torch
from weights import assert_same, converted, load, refused, save

from backends.layouts import convert, files
from backends.layouts.csm_settings import FLAVOURS, PUBLISHED


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A folder in transformers' layout."""
    folder = tmp_path_factory.mktemp("upstream")
    oracles.csm(folder)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory, upstream):
    """The same in our layout: (folder, its tensors)."""
    folder = tmp_path_factory.mktemp("ours") / "csm"
    return folder, load(converted(upstream, folder, "csm-mlx"))


Q = "backbone.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(Q), f"missing {Q}"),
        (lambda t: t.update({"backbone.layers.7.w9": np.zeros(3, np.float32)}), "unexpected backbone.layers.7.w9"),
        (lambda t: t.update({Q: t[Q][:-2]}), f"{Q} has shape (62, 64), this model expects (64, 64)"),
        (lambda t: t.update({Q: t[Q].astype(np.int32)}), f"{Q} is int32, expected one of float32, bfloat16, float16"),
        (lambda t: t.update({Q.replace("weight", "scales"): np.zeros(3, np.float32)}), "these weights are quantised"),
        (lambda t: t.pop("backbone.norm.weight"), "these are not CSM's tensors"),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "quantised", "unknown"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, ours, capsys, change, said):
    folder, tensors = ours
    tensors = dict(tensors)
    change(tensors)
    path = save(tmp_path / "in" / "model.safetensors", tensors, folder)
    for target in ("transformers", "torchtune"):
        line = refused(capsys, path, tmp_path / "out", "--to", target)
        assert line.startswith(f"error: {path}: ")
        assert said in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]


def test_a_wrong_shape_in_the_codec_is_named(tmp_path, upstream, capsys):
    tensors = load(upstream / "model.safetensors")
    name = "codec_model.encoder_transformer.layers.0.self_attn.q_proj.weight"
    path = save(tmp_path / "in" / "model.safetensors", {**tensors, name: tensors[name][:-1]}, upstream)
    line = refused(capsys, path, tmp_path / "out", "--to", "csm-mlx")
    assert (
        "encoder_transformer.layers.0.self_attn.q_proj.weight has shape (63, 64), this model expects (64, 64)" in line
    )


def test_without_a_configuration_only_the_published_model_is_read(tmp_path, ours, capsys):
    path = save(tmp_path / "in" / "model.safetensors", ours[1])
    line = refused(capsys, path, tmp_path / "out", "--to", "torchtune")
    assert "put the model's config.json beside it" in line
    assert "missing backbone.layers.10." in line


def published(**changes: object) -> str:
    return json.dumps({"model_type": "audiosmith-csm", **PUBLISHED, **changes})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"model_type": "audiosmith-csm", "backbone": {}}), "not a complete CSM configuration"),
        (json.dumps({"depth_decoder_config": {}, "num_hidden_layers": 2}), "not a complete CSM configuration"),
        (json.dumps({"backbone_flavor": "llama-8B", "decoder_flavor": "llama-300M"}), "'llama-8B' is not one of"),
        (published(backbone=None), "backbone None: expected an object"),
        (published(mimi=None), "mimi None: expected an object"),
        (published(mimi={"heads": 0}), "heads 0: expected a whole number from 1"),
        (published(mimi={"heads": 3}), "width 512: expected an even multiple of heads 3"),
        (published(mimi={"semantic_codebooks": 32}), "codebooks 32: expected more than semantic_codebooks 32"),
        (published(codebooks="32"), "codebooks '32': expected a whole number from 1"),
        (published(decoder={**FLAVOURS["llama-100M"], "width": 1.5}), "width 1.5: expected a whole number from 1"),
        (published(decoder={**FLAVOURS["llama-100M"], "kv_heads": 3}), "8 heads cannot share 3 kv_heads"),
        (published(decoder={**FLAVOURS["llama-100M"], "rope_scaling": 2}), "rope_scaling 2: expected an object"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path, ours, capsys, content, said):
    path = save(tmp_path / "in" / "model.safetensors", ours[1])
    (tmp_path / "in" / "config.json").write_text(content)
    line = refused(capsys, path, tmp_path / "out", "--to", "torchtune")
    assert str(tmp_path / "in" / "config.json") in line
    assert said in line


def test_damaged_files_are_named(tmp_path, ours, upstream, capsys):
    whole = (ours[0] / "model.safetensors").read_bytes()
    garbage = np.random.default_rng(0).bytes(4096)
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    pickled = (tmp_path / "whole.pt").read_bytes()
    cases = {
        "truncated.safetensors": whole[:-100],
        "header.safetensors": whole[:50],
        "garbage.safetensors": garbage,
        "empty.safetensors": b"",
        "garbage.pt": garbage,
        "empty.pt": b"",
        "truncated.pt": pickled[:-200],
        "code.pt": b"cos\nsystem\n(S'true'\ntR.",
        "garbage.safetensors.index.json": garbage,
        "empty.safetensors.index.json": b"{}",
        "numbers.safetensors.index.json": b'{"weight_map": {"a": 1}}',
        "weights.gguf": garbage,
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        line = refused(capsys, path, tmp_path / "out", "--to", "torchtune")
        assert line.startswith(f"error: {path}: "), line


def test_a_pt_file_of_something_else_is_refused(tmp_path, capsys):
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "nested.pt")
    line = refused(capsys, tmp_path / "nested.pt", tmp_path / "out", "--to", "torchtune")
    assert line.endswith("expected a flat dictionary of tensors")


def test_an_index_must_tell_the_truth(tmp_path, ours, capsys):
    index = tmp_path / "model.safetensors.index.json"
    for where, said in (
        ("model-00001-of-00001.safetensors", "model-00001-of-00001.safetensors: no such file"),
        ("../model.safetensors", "expected a file of the same folder"),
    ):
        index.write_text(json.dumps({"weight_map": {Q: where}}))
        assert said in refused(capsys, index, tmp_path / "out", "--to", "torchtune")
    save(tmp_path / "part.safetensors", {"a": np.zeros(3, np.float32)})
    index.write_text(json.dumps({"weight_map": {Q: "part.safetensors"}}))
    assert f"{Q} is not in part.safetensors" in refused(capsys, index, tmp_path / "out", "--to", "torchtune")


def test_names_of_layouts_and_sources(tmp_path, ours, capsys):
    line = refused(capsys, ours[0], tmp_path / "out", "--to", "pytorch")
    assert "expected one of torchtune, transformers, csm-mlx, peft, csm-mlx-lora, mimi, kyutai-mimi, mlx-mimi" in line
    assert "no such directory" in refused(capsys, tmp_path / "none", tmp_path / "out", "--to", "csm-mlx")
    (tmp_path / "empty").mkdir()
    line = refused(capsys, tmp_path / "empty", tmp_path / "out", "--to", "csm-mlx")
    assert f"SRC {tmp_path / 'empty'}: holds none of transformers.safetensors.index.json" in line
    (tmp_path / "empty" / "last_model").mkdir()
    line = refused(capsys, tmp_path / "empty", tmp_path / "out", "--to", "csm-mlx")
    assert line.endswith(f"a training run left its model in {tmp_path / 'empty' / 'last_model'}: give that")
    line = refused(capsys, ours[0] / "codec.safetensors", tmp_path / "out", "--to", "csm-mlx")
    assert "these are not CSM's tensors" in line
    line = refused(capsys, ours[0], tmp_path / "a.pt", "--to", "csm-mlx")
    assert line == f"error: DST {tmp_path / 'a.pt'}: --to csm-mlx writes a directory"
    (tmp_path / "file").write_text("")
    assert "exists and is not a directory" in refused(
        capsys, ours[0], tmp_path / "file", "--to", "csm-mlx", "--overwrite"
    )
    assert "unrecognized" in refused(capsys, ours[0], tmp_path / "out", "--to", "csm-mlx", "--fast").lower()


def test_what_exists_is_kept_unless_told_otherwise(tmp_path, ours, upstream, capsys):
    out, file = tmp_path / "out", tmp_path / "out.safetensors"
    for target in (out, file):
        converted(upstream, target, "csm-mlx")
        assert "--overwrite" in refused(capsys, upstream, target, "--to", "csm-mlx")
        converted(upstream, target, "torchtune", "--overwrite")
    assert "backbone.norm.scale" in load(out / "model.safetensors")
    assert "backbone.norm.scale" in load(file)
    (out / "notes.txt").write_text("mine")
    line = refused(capsys, upstream, out, "--to", "csm-mlx", "--overwrite")
    assert "holds notes.txt, which is not replaced" in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.safetensors"]


def test_a_conversion_in_place_is_possible(tmp_path, ours, upstream):
    converted(upstream, tmp_path / "csm", "torchtune")
    converted(tmp_path / "csm", tmp_path / "csm", "csm-mlx", "--overwrite")
    assert_same(load(tmp_path / "csm" / "model.safetensors"), ours[1])


def test_a_link_to_a_directory_stays(tmp_path, ours, upstream):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    converted(upstream, tmp_path / "link", "csm-mlx", "--overwrite")
    assert (tmp_path / "link").is_symlink()
    assert_same(load(tmp_path / "real" / "model.safetensors"), ours[1])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "real"]


def test_what_a_cut_conversion_left_is_no_obstacle(tmp_path, upstream):
    converted(upstream, tmp_path / "csm", "torchtune")
    (tmp_path / ".csm.old").mkdir()
    (tmp_path / ".csm.old" / "model.safetensors").write_text("half")
    converted(upstream, tmp_path / "csm", "csm-mlx", "--overwrite")
    assert [entry.name for entry in tmp_path.iterdir()] == ["csm"]


def test_a_full_disk_leaves_nothing(tmp_path, ours, upstream, capsys, monkeypatch):
    converted(upstream, tmp_path / "old", "csm-mlx")
    before = load(tmp_path / "old" / "model.safetensors")

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "_header", full)
    for target in ("old", "new", "new.safetensors"):
        line = refused(capsys, ours[0], tmp_path / target, "--to", "torchtune", "--overwrite")
        assert "No space left on device" in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    assert_same(load(tmp_path / "old" / "model.safetensors"), before)


def test_one_tensor_at_a_time_is_held(tmp_path, upstream, monkeypatch):
    """While a tensor is written no other is: memory stays at the largest."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    original = files.TensorFile.__getitem__

    def read(self, name):
        nonlocal most
        value = original(self, name)
        alive.append(weakref.ref(value))
        most = max(most, sum(reference() is not None for reference in alive))
        return value

    monkeypatch.setattr(files.TensorFile, "__getitem__", read)
    converted(upstream, tmp_path / "out.safetensors", "csm-mlx")
    assert len(alive) > 40
    assert most <= 2


def test_files_equal_the_reference_librarys(tmp_path):
    """Any mix of dtypes and shapes; written sorted by width so that everything is aligned."""
    rng = np.random.default_rng(0)
    tensors = {
        "odd": rng.standard_normal((3, 1)).astype(np.float16),
        "scalar": np.float32(3.0).reshape(()),
        "none": np.zeros((0, 4), np.float32),
        "flipped": rng.standard_normal((4, 6)).astype(np.float32).T,
        "ids": np.arange(5),
        "marks": np.array([True, False, True]),
    }
    path = files.write(tmp_path / "a.safetensors", tensors, {"note": "x"})
    assert_same(load(path), tensors)
    assert files.TensorFile(path).metadata == {"format": "pt", "note": "x"}
    blanks = files.blanks(files.TensorFile(path))
    assert {name: (v.shape, v.dtype) for name, v in blanks.items()} == {
        n: (v.shape, v.dtype) for n, v in tensors.items()
    }
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(header))
    assert (8 + header) % 8 == 0
    for name, value in tensors.items():
        assert entries[name]["data_offsets"][0] % value.dtype.itemsize == 0


def test_needs_no_framework(tmp_path, upstream):
    import subprocess
    import sys

    code = (
        "import sys; from backends.cli import run; from backends.layouts import convert; "
        "run(convert.main, convert.Options); "
        "print(sorted({'torch', 'mlx', 'transformers', 'csm_mlx'} & set(sys.modules)))"
    )
    argv = [sys.executable, "-c", code, str(upstream), str(tmp_path / "out"), "--to", "csm-mlx"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert convert.main.__module__ == "backends.layouts.convert"
