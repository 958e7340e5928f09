"""CSM in every layout, read and written: exact, and understood by transformers."""

import json
import shutil

import mlx.core as mx
import numpy as np
import oracles
import published
import pytest
import torch
from mlx.utils import tree_flatten
from transformers import CsmForConditionalGeneration
from weights import HEADS, assert_same, converted, in_bfloat16, load, refused, save

from backends.errors import InputError
from backends.layouts import csm, files
from csm_mlx import CSM, csm_tiny
from csm_mlx.load import save_pretrained

LAYOUTS = ("torchtune", "transformers", "csm-mlx")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """(transformers' model, its folder)."""
    folder = tmp_path_factory.mktemp("upstream")
    return oracles.csm(folder), folder


@pytest.fixture(scope="module")
def theirs(upstream):
    """The tensors of a file as transformers writes it."""
    return load(upstream[1] / "model.safetensors")


@pytest.fixture(scope="module")
def own(theirs):
    """The same without the codec."""
    return {name: value for name, value in theirs.items() if not name.startswith("codec_model.")}


def parameters(model: CSM) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("route", [("torchtune", "csm-mlx"), ("csm-mlx", "torchtune")], ids="-".join)
def test_round_trips_are_exact(tmp_path, upstream, theirs, dtype, route):
    tensors = theirs if dtype == "float32" else in_bfloat16(theirs)
    at = save(tmp_path / "start" / "model.safetensors", tensors, upstream[1])
    for step in (*route, "transformers", *reversed(route), "transformers"):
        at = converted(at, tmp_path / f"{step}-{len(list(tmp_path.iterdir()))}", step)
        if step == "transformers":
            assert_same(load(at), tensors)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_any_layout_to_any_other(tmp_path, upstream, own, source, target):
    converted(upstream[1], tmp_path / "from", source)
    got = load(converted(tmp_path / "from", tmp_path / "to", target))
    model = CSM.from_pretrained(tmp_path / "to")
    assert_same(parameters(model), parameters(CSM.from_pretrained(upstream[1])))
    if target == "torchtune":
        assert_same(got, published.torchtune_of(own, HEADS))


def test_a_file_with_torchtunes_names_is_read(tmp_path, upstream, own):
    save(tmp_path / "model.safetensors", published.torchtune_of(own, HEADS), upstream[1])
    assert_same(parameters(CSM.from_pretrained(tmp_path)), parameters(CSM.from_pretrained(upstream[1])))


@pytest.mark.parametrize("source", LAYOUTS)
def test_bfloat16_stays_bfloat16(tmp_path, upstream, theirs, source):
    save(tmp_path / "in" / "model.safetensors", in_bfloat16(theirs), upstream[1])
    converted(tmp_path / "in", tmp_path / "out", source)
    model, reference = CSM.from_pretrained(tmp_path / "out"), CSM.from_pretrained(upstream[1])
    exact = dict(tree_flatten(reference.parameters()))
    for name, value in tree_flatten(model.parameters()):
        assert value.dtype == mx.bfloat16, name
        assert mx.array_equal(value, exact[name].astype(mx.bfloat16)), name


@pytest.mark.parametrize("source", ["tiny", "1b"])
def test_a_weights_file_goes_over_the_source_s_own_and_beside_it_1b_is_not_fetched(tmp_path, monkeypatch, source):
    monkeypatch.setattr("csm_mlx.load.csm_1b", csm_tiny)
    model = CSM.from_pretrained("tiny")
    model.projection.weight = model.projection.weight + 1
    save_pretrained(model, tmp_path)
    again = CSM.from_pretrained(source, weights=tmp_path / "model.safetensors")
    assert_same(parameters(again), parameters(model))
    half = CSM.from_pretrained(source, weights=tmp_path / "model.safetensors", dtype="bfloat16")
    assert {value.dtype for _, value in tree_flatten(half.parameters())} == {mx.bfloat16}


def test_a_model_saves_over_itself(tmp_path):
    save_pretrained(CSM.from_pretrained("tiny"), tmp_path)
    model = CSM.from_pretrained(tmp_path)
    model.projection.weight = model.projection.weight + 1
    save_pretrained(model, tmp_path)
    again = CSM.from_pretrained(tmp_path)
    assert_same(parameters(again), parameters(model))


def test_weights_that_the_disk_refuses_are_one_line(tmp_path):
    (tmp_path / ".model.tmp.safetensors").mkdir()  # where the file is made before it is put in place
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be written .*: check the folder"):
        save_pretrained(CSM.from_pretrained("tiny"), tmp_path)


def test_ckpt_pt_is_read_and_converted(tmp_path, upstream, own):
    named = published.torchtune_of(own, HEADS)
    as_bfloat16 = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in named.items()}
    torch.save(as_bfloat16, tmp_path / "ckpt.pt")
    shutil.copyfile(upstream[1] / "config.json", tmp_path / "config.json")
    got = load(converted(tmp_path / "ckpt.pt", tmp_path / "out.safetensors", "torchtune"))
    assert_same(got, in_bfloat16(named))


def test_mlx_audios_names_are_read(tmp_path, upstream):
    reference = CSM.from_pretrained(upstream[1])
    named = {f"model.{name}": value for name, value in parameters(reference).items()}
    save(tmp_path / "model.safetensors", named, reference.config.to_json())
    assert_same(parameters(CSM.from_pretrained(tmp_path)), parameters(reference))


@pytest.mark.parametrize("route", [("csm-mlx",), ("torchtune", "csm-mlx")], ids="-".join)
def test_transformers_loads_what_is_written_and_says_the_same(tmp_path, upstream, route):
    model, at = upstream
    for step in (*route, "transformers"):
        converted(at, tmp_path / step, step)
        at = tmp_path / step
    again, info = CsmForConditionalGeneration.from_pretrained(at, output_loading_info=True, attn_implementation="eager")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    expected = model.state_dict()
    assert expected.keys() == again.state_dict().keys()
    for name, value in again.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name
    with torch.inference_mode():
        for got, wanted in zip(_outputs(again), _outputs(model), strict=True):
            assert torch.equal(got, wanted)


def _outputs(model: CsmForConditionalGeneration) -> list[torch.Tensor]:
    """Logits of both stacks, and codes."""
    noise = torch.Generator().manual_seed(0)
    hidden, audio = torch.randn(1, 64, generator=noise), torch.randn(1, 1, 1920 * 3, generator=noise)
    return [
        model(input_ids=torch.tensor([[256, 5, 7, 9, 257]])).logits,
        model.depth_decoder(input_ids=torch.tensor([[0, 3, 5]]), backbone_last_hidden_state=hidden).logits,
        model.codec_model.encode(audio).audio_codes,
    ]


def test_ours_from_the_library_loads_in_transformers(tmp_path):
    model = CSM.from_pretrained("tiny")
    save_pretrained(model, tmp_path / "ours")
    converted(tmp_path / "ours", tmp_path / "hf", "transformers")
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (tmp_path / "ours" / "tokenizer.json").read_bytes()
    again, info = CsmForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ids = [[1, 2, 3, 4]]
    hidden = model.backbone(model.text_embeddings(mx.array(ids)))
    with torch.inference_mode():
        logits = again(input_ids=torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.array(model.codebook0_head(hidden)), logits, atol=1e-4)
    converted(tmp_path / "hf", tmp_path / "back", "csm-mlx")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {**config, "name": "csm_tiny"} == csm_tiny().to_json()
    for name in ("model.safetensors", "codec.safetensors"):
        assert_same(load(tmp_path / "back" / name), load(tmp_path / "ours" / name))


def test_without_a_codec_transformers_layout_says_so(tmp_path, upstream, own, capsys):
    save(tmp_path / "bare" / "model.safetensors", own, upstream[1])
    assert_same(load(converted(tmp_path / "bare", tmp_path / "hf", "transformers")), own)
    said = capsys.readouterr().out
    assert "without codec_model.* (no Mimi lies inside or beside" in said
    assert "put codec.safetensors or tokenizer-e351c8d8-checkpoint125.safetensors there" in said


@pytest.mark.parametrize("kept", ["depth", "backbone", "both"])
def test_the_tied_table_may_have_either_name(tmp_path, upstream, theirs, kept):
    tensors = dict(theirs)
    assert csm.TIED[1] not in tensors, "transformers 5 writes one copy"
    if kept != "depth":
        tensors[csm.TIED[1]] = tensors[csm.TIED[0]]
    if kept == "backbone":
        del tensors[csm.TIED[0]]
    save(tmp_path / "model.safetensors", tensors, upstream[1])
    got = CSM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(np.array(got.audio_embeddings.weight), theirs[csm.TIED[0]])


def test_two_different_tied_tables_are_refused(tmp_path, upstream, theirs, capsys):
    path = save(tmp_path / "model.safetensors", {**theirs, csm.TIED[1]: theirs[csm.TIED[0]] + 1}, upstream[1])
    with pytest.raises(InputError, match="differ, but CSM ties them"):
        CSM.from_pretrained(tmp_path)
    line = refused(capsys, path, tmp_path / "out", "--to", "csm-mlx")
    assert str(path) in line
    assert csm.TIED[0] in line
    assert not (tmp_path / "out").exists()


def sharded(folder, tensors, prefix: str) -> None:
    """Two shards and their index."""
    names = sorted(tensors)
    where = {name: f"{prefix}-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save(folder / shard, {name: tensors[name] for name in names if where[name] == shard})
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / f"{prefix}.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_read_by_their_index(tmp_path, upstream, theirs):
    sharded(tmp_path, theirs, "model")
    shutil.copyfile(upstream[1] / "config.json", tmp_path / "config.json")
    index = tmp_path / "model.safetensors.index.json"
    assert_same(load(converted(index, tmp_path / "one.safetensors", "transformers")), theirs)
    assert CSM.from_pretrained(tmp_path)._companions["codec"].config.codebooks == 8


@pytest.fixture
def sesame(tmp_path, upstream, theirs, own):
    """A repository like sesame/csm-1b: three copies, of which only transformers' is right here."""
    wrong = {name: value + 1 for name, value in published.torchtune_of(own, HEADS).items()}
    save(tmp_path / "model.safetensors", wrong)
    torch.save({name: torch.from_numpy(value) for name, value in wrong.items()}, tmp_path / "ckpt.pt")
    sharded(tmp_path, theirs, "transformers")
    config = json.loads((upstream[1] / "config.json").read_text())
    config |= {"backbone_flavor": "llama-1B", "transformers_weights": "transformers.safetensors.index.json"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "prompts").mkdir()
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    """Names of the weights files that are opened."""
    names: list[str] = []
    original = files._open

    def record(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(files, "_open", record)
    return names


def test_one_of_sesames_three_copies_is_read(sesame, upstream, opened, tmp_path):
    model = CSM.from_pretrained(sesame)
    assert set(opened) == {"transformers-00001-of-00002.safetensors", "transformers-00002-of-00002.safetensors"}
    assert_same(parameters(model), parameters(CSM.from_pretrained(upstream[1])))
    opened.clear()
    converted(sesame, tmp_path / "out", "transformers")
    assert set(opened) == {"transformers-00001-of-00002.safetensors", "transformers-00002-of-00002.safetensors"}
    assert "transformers_weights" not in json.loads((tmp_path / "out" / "config.json").read_text())
    CsmForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_one_of_sesames_three_copies_is_downloaded():
    listed = [
        ".gitattributes", "README.md", "ckpt.pt", "config.json", "chat_template.jinja", "model.safetensors",
        "prompts/conversational_a.wav", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "preprocessor_config.json", "generation_config.json", "transformers-00001-of-00002.safetensors",
        "transformers-00002-of-00002.safetensors", "transformers.safetensors.index.json",
    ]  # fmt: skip
    chosen = csm.choose_files(listed, "test")
    assert chosen[0] == "transformers.safetensors.index.json"
    assert not {"ckpt.pt", "model.safetensors"} & set(chosen)
    assert {"transformers-00001-of-00002.safetensors", "config.json", "tokenizer.json"} <= set(chosen)
    without = [name for name in listed if not name.startswith("transformers")]
    assert csm.choose_files(without, "test")[0] == "model.safetensors"
    assert "ckpt.pt" not in csm.choose_files(without, "test")
