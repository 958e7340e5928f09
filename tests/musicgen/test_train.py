"""python -m musicgen_mlx.train on synthetic loops, with a random codec, on both backends."""

import json
import shutil

import mlx.core as mx
import music_training as training
import numpy as np
import pytest
import soundfile
import torch
from music_training import fails
from transformers import MusicgenForConditionalGeneration

from backends import cli, get
from backends.adapters import files
from backends.errors import InputError
from backends.layouts import convert, musicgen
from backends.layouts.checkpoint import find, open_checkpoint
from backends.training import log, loop
from musicgen_mlx import MusicGen, adapters, condition, initial, music, tiny
from musicgen_mlx.companions import text_encoder_of
from musicgen_mlx.engines import load_engine
from musicgen_mlx.generate import GenerateOptions
from musicgen_mlx.generation import generate_codes
from musicgen_mlx.load import save_pretrained
from musicgen_mlx.task import MusicGenTask

BACKENDS = ("mlx", "torch")
TEXT = ("--scale", "xsmall", "--conditioner", "text", "--text-encoder", "tiny")
PLAIN = ("--scale", "xsmall")
LORA = ("--lora-rank", 4, "--lora-alpha", 8, "--target-modules", "q_proj", "mlp", "heads", "--epochs", 1)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request, loops, tmp_path_factory):
    """A run of two epochs from scratch, with text."""
    output = tmp_path_factory.mktemp(f"{request.param}_run")
    return request.param, training.run(loops, output, request.param, *TEXT)


def losses(run) -> list[float]:
    return [row["loss"] for row in log.read(run / "metrics.csv") if "loss" in row]


def weights(folder) -> dict[str, np.ndarray]:
    return dict(open_checkpoint(find(folder, musicgen.FAMILY, "--model"), musicgen.FAMILY).ours)


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)


class CutError(Exception):
    """Stands for whatever ends a process."""


def cut_after(monkeypatch, updates: int) -> None:
    """The next run ends in the middle of its update number `updates`."""
    seconds, seen = MusicGenTask.seconds, iter(range(1, 1000))

    def counted(task, micro_batches):
        if next(seen) == updates:
            raise CutError
        return seconds(task, micro_batches)

    monkeypatch.setattr(MusicGenTask, "seconds", counted)


def test_a_run_learns(backend, loops, tmp_path):
    """Half the surprise goes; with five loops of two seconds that is by heart."""
    run = training.run(loops, tmp_path, backend, *PLAIN, "--epochs", 5, "--segments-per-recording", 8)
    found = losses(run)
    assert found[0] == pytest.approx(np.log(64), abs=0.1)
    assert np.mean(found[-5:]) < 0.6 * found[0]


def test_the_trained_directory_generates(trained):
    _, run = trained
    for folder in (run / "best_model", run / "last_model"):
        model = MusicGen.from_pretrained(folder)
        codes = generate_codes(model, 10, condition.from_texts(model, ["a loop"]), seeds=[1])
        assert codes.shape == (1, 4, 10)
        assert set(np.array(codes).flat) <= set(range(64))
    assert model.config.width == 64
    assert model.config.condition == "cross"


def test_a_run_leaves_curves_and_sound(loops, tmp_path, backend):
    """The sample is what the exported model makes, of averaged weights too."""
    arguments = ("--sample-duration", 0.3, "--epochs", 1, "--ema-decay", 0.5)
    run = training.run(loops, tmp_path, backend, *TEXT, *arguments)
    made = music.generate(load_engine(run / "last_model", backend), music.Request(["loop at 120 Hz"], [0], 0.3))[0]
    heard, _ = soundfile.read(run / "samples" / "step_000002_generated.wav")
    np.testing.assert_allclose(heard, np.clip(made, -1, 1), atol=1e-4)
    assert np.abs(heard).max() > 1e-3
    report = (run / "report.html").read_text(encoding="utf-8")
    assert report.count("<audio") == 2  # before, and after the epoch
    assert "loop at 120 Hz" in report
    assert json.loads((run / "config.json").read_text())["scale"] == "xsmall"


def test_both_backends_read_an_export(trained):
    """And have the same logits."""
    _, run = trained
    codes = np.random.default_rng(0).integers(0, 65, (1, 4, 9))
    one, two = (load_engine(run / "best_model", name) for name in BACKENDS)
    logits = np.array(one.model(mx.array(codes), one.said(["a loop"])))
    with torch.inference_mode():
        theirs = two.model(torch.from_numpy(codes), two.said(["a loop"])).numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-4)


def test_a_run_goes_on_where_its_recordings_moved(loops, tmp_path, backend):
    shutil.copytree(loops, tmp_path / "here")
    training.run(tmp_path / "here", tmp_path / "run", backend, *PLAIN, "--epochs", 1)
    (tmp_path / "here").rename(tmp_path / "there")
    run = training.run(tmp_path / "there", tmp_path / "run", backend, *PLAIN)
    assert losses(run) == losses(training.run(loops, tmp_path / "whole", backend, *PLAIN))


def test_recordings_to_validate_on(loops, tmp_path, capsys):
    held = training.loops(tmp_path / "held", 1)
    arguments = ("mlx", *PLAIN, "--epochs", 1, "--val-split", 0)
    run = training.run(loops, tmp_path / "run", *arguments, "--val-data", held)
    assert "6 recordings of 12 s to train on, 1 to validate on" in capsys.readouterr().out
    assert "val_loss" in log.read(run / "metrics.csv")[-1]
    without = training.run(loops, tmp_path / "without", *arguments)
    assert sorted(path.name for path in without.glob("*_model")) == ["last_model"]


def test_bfloat16_is_pytorchs(loops, tmp_path):
    half, whole = (
        losses(training.run(loops, tmp_path / name, "torch", *TEXT, "--precision", name, "--epochs", 1))
        for name in ("bfloat16", "float32")
    )
    assert half == pytest.approx(whole, rel=0.02)
    assert half != whole


@pytest.mark.parametrize("updates", [2, 3], ids=["within an epoch", "in the epoch after"])
def test_a_run_that_was_cut_ends_bit_identical(updates, trained, loops, tmp_path, monkeypatch):
    backend, whole = trained
    cut_after(monkeypatch, updates)
    with pytest.raises(CutError):
        training.run(loops, tmp_path / "cut", backend, *TEXT, "--save-every", 1)
    monkeypatch.undo()
    training.run(loops, tmp_path / "cut", backend, *TEXT, "--save-every", 2)
    assert same(weights(tmp_path / "cut" / "last_model"), weights(whole / "last_model"))
    assert same(weights(tmp_path / "cut" / "best_model"), weights(whole / "best_model"))
    assert losses(tmp_path / "cut") == losses(whole)


def test_patience_within_an_epoch_leaves_the_last_model(loops, tmp_path, monkeypatch):
    values = iter((1.0, 2.0))
    monkeypatch.setattr(loop, "validate", lambda *_: next(values))
    arguments = ("--eval-every", 1, "--patience", 1, "--segments-per-recording", 4)
    run = training.run(loops, tmp_path, "mlx", *PLAIN, *arguments)
    assert len(losses(run)) == 2
    one, two = weights(run / "best_model"), weights(run / "last_model")
    assert not same(one, two)


def test_exports_are_averaged_weights(trained, loops, tmp_path):
    backend, whole = trained
    averaged = training.run(loops, tmp_path, backend, *TEXT, "--ema-decay", 0.5)
    assert losses(averaged) == losses(whole)
    one, two = weights(averaged / "last_model"), weights(whole / "last_model")
    start = initial.tensors(MusicGen.from_pretrained(whole / "last_model").config, 0)
    for name in ("emb.0.weight", "layers.1.linear2.weight", "linears.3.weight"):
        assert 0 < np.linalg.norm(one[name] - start[name]) < np.linalg.norm(two[name] - start[name]), name


def test_accumulation_is_one_larger_batch(loops, tmp_path, backend):
    few = ("--val-split", 0, "--condition-dropout", 0, "--epochs", 1)
    one = training.run(loops, tmp_path / "one", backend, *TEXT, *few, "--batch-size", 6)
    two = training.run(loops, tmp_path / "two", backend, *TEXT, *few, "--gradient-accumulation", 3)
    assert len(losses(one)) == len(losses(two)) == 1
    # Segments are drawn by recording, so that both see the same ones.
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_less_memory_is_the_same_run(trained, loops, tmp_path):
    backend, whole = trained
    run = training.run(loops, tmp_path, backend, *TEXT, "--gradient-checkpointing")
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)


def test_ones_own_size(loops, tmp_path, backend):
    run = training.run(loops, tmp_path, backend, "--dim", 48, "--heads", 3, "--layers", 1, "--epochs", 1)
    config = MusicGen.from_pretrained(run / "best_model").config
    assert (config.width, config.heads, config.layers, config.mlp_width) == (48, 3, 1, 192)
    assert config.condition == "none"


def test_a_whole_model_is_fine_tuned(base, loops, tmp_path, backend):
    shutil.copytree(base, tmp_path / "base")
    arguments = ("--model", tmp_path / "base", "--learning-rate", 1e-3, "--epochs", 1)
    run = training.run(loops, tmp_path / "run", backend, *arguments)
    start, end = weights(base), weights(run / "best_model")
    assert all((start[name] != end[name]).any() for name in start)
    one, two = (get("mlx").read(folder / "codec.safetensors")[0] for folder in (run / "best_model", base))
    assert same(*(get("mlx").to_host(arrays) for arrays in (one, two)))


DORA = ("--lora-rank", 2, "--use-dora", "--target-modules", "attn", "embeddings")


@pytest.mark.parametrize(
    "arguments",
    [PLAIN, TEXT, ("--model", "tiny", *LORA), ("--model", "tiny", *DORA)],
    ids=["bare", "text", "lora", "dora"],
)
def test_both_backends_train_alike(arguments, loops, tmp_path):
    """The same clips, segments, dropped conditions and start: the same losses."""
    mlx, torch_ = (losses(training.run(loops, tmp_path / name, name, *arguments)) for name in BACKENDS)
    assert len(mlx) > 1
    assert mlx == pytest.approx(torch_, rel=1e-4)


@pytest.fixture(scope="module", params=BACKENDS)
def adapted(request, base, loops, tmp_path_factory):
    """A run of LoRA on musicgen_tiny."""
    output = tmp_path_factory.mktemp(f"{request.param}_lora")
    return request.param, training.run(loops, output, request.param, "--model", base, *LORA)


def test_only_adapters_are_trained_and_saved(adapted):
    _, run = adapted
    path = run / "lora_ckpt_epoch_1.safetensors"
    info = files.read_info(path)
    assert (info.spec.rank, info.spec.alpha) == (4, 8.0)
    expected = [f"layers.{n}.{m}_attn.q_proj" for n in (0, 1) for m in ("cross", "self")]
    expected += [f"layers.{n}.{m}" for n in (0, 1) for m in ("linear1", "linear2")]
    assert sorted(info.targets) == sorted([*expected, *(f"linears.{k}" for k in range(4))])
    arrays, _ = get("mlx").read(path)
    assert set(arrays) == {f"{name}.lora_{part}" for name in info.targets for part in "AB"}
    assert all(mx.any(arrays[f"{name}.lora_B"] != 0) for name in info.targets)
    assert not (run / "best_model").exists()


def test_the_adapter_goes_on_its_base_and_off_again(adapted, base):
    _, run = adapted
    path = run / "lora_ckpt_best.safetensors"
    model, backend, info = MusicGen.from_pretrained(base), get("mlx"), files.read_info(path)
    codes = mx.array(np.random.default_rng(0).integers(0, 65, (1, 4, 9)))
    before = model(codes)
    backend.adapt(model, info.targets, info.spec)
    assert mx.array_equal(model(codes), before)
    files.load_adapter(backend, model, path)
    assert not mx.allclose(model(codes), before, atol=1e-3)
    bare = {
        name.replace(".base.", "."): value for name, value in backend.parameters(model).items() if "lora" not in name
    }
    assert same({n: np.array(v) for n, v in bare.items()}, weights(base))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_the_adapter_is_pefts(adapted, base, tmp_path):
    """Converted with our own command, on transformers' MusicGen: equal logits."""
    from peft import PeftModel

    _, run = adapted
    path = run / "lora_ckpt_best.safetensors"
    convert.main(convert.Options(src=str(base), dst=tmp_path / "theirs", to="musicgen"))
    convert.main(convert.Options(src=str(path), dst=tmp_path / "peft", to="peft"))
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    theirs = PeftModel.from_pretrained(theirs, str(tmp_path / "peft"))
    ours, info = MusicGen.from_pretrained(base), files.read_info(path)
    get("mlx").adapt(ours, info.targets, info.spec)
    files.load_adapter(get("mlx"), ours, path)
    codes = np.random.default_rng(0).integers(0, 65, (2, 4, 9))
    rows = text_encoder_of(ours).tokenizer.encode(["bass", "bass"])
    said = condition.from_texts(ours, ["bass", "bass"])
    got = np.array(ours(mx.array(codes), said))
    with torch.inference_mode():
        found = theirs(
            input_ids=torch.from_numpy(rows[0]).long(), attention_mask=torch.from_numpy(rows[1]).long(),
            decoder_input_ids=torch.from_numpy(codes.reshape(8, 9)),
        ).logits.numpy()  # fmt: skip
    np.testing.assert_allclose(got, found.reshape(got.shape), atol=1e-4)
    back = convert.main(
        convert.Options(src=str(tmp_path / "peft"), dst=tmp_path / "back.safetensors", to="mlx-musicgen-lora")
    )
    assert back is None
    one, two = (get("mlx").to_host(get("mlx").read(file)[0]) for file in (tmp_path / "back.safetensors", path))
    assert same(one, two)


def test_an_adapter_generates(adapted, base, tmp_path):
    """On both backends, from the command too."""
    _, run = adapted
    path = run / "lora_ckpt_best.safetensors"
    codes = np.random.default_rng(0).integers(0, 65, (1, 4, 9))
    one, two = (load_engine(base, name) for name in BACKENDS)
    before = np.array(one.model(mx.array(codes), one.said(["a loop"])))
    for engine in (one, two):
        adapters.put_on(engine, path)
    logits = np.array(one.model(mx.array(codes), one.said(["a loop"])))
    with torch.inference_mode():
        theirs = two.model(torch.from_numpy(codes), two.said(["a loop"])).numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-4)
    assert np.abs(logits - before).max() > 1e-3
    arrays, metadata = get("mlx").read(path)  # of a few updates: made strong enough to be heard in a moment
    get("mlx").write(tmp_path / "strong.safetensors", {name: 30 * value for name, value in arrays.items()}, metadata)
    for name in BACKENDS:
        flags = ["--model", base, "--backend", name, "--duration", 0.3, "--prompt", "bass", "--seed", 3]
        sounds = []
        for lora in ([], ["--lora", tmp_path / "strong.safetensors"]):
            options = cli.parse(GenerateOptions, [str(flag) for flag in [*flags, *lora]])
            sounds.append(music.generate(engine := options.engine(), options.request(engine)))
        assert not np.allclose(*sounds)
    save_pretrained(tiny.model("none"), tmp_path / "bare")
    bare = load_engine(tmp_path / "bare", "mlx")
    with pytest.raises(InputError, match=r"--lora .*: is for .*condition cross.*, not for this model.*condition none"):
        adapters.put_on(bare, path)


def test_an_adapter_may_go_on_from_a_file(adapted, base, loops, tmp_path):
    backend, run = adapted
    start = run / "lora_ckpt_best.safetensors"
    again = training.run(loops, tmp_path, backend, "--model", base, *LORA, "--resume-from", start)
    assert losses(again)[0] < losses(run)[0]


def test_continuing_on_another_base_is_refused(base, loops, tmp_path, capsys, backend):
    shutil.copytree(base, tmp_path / "base")
    arguments = (loops, tmp_path / "run", backend, "--model", tmp_path / "base", *LORA)
    training.run(*arguments)
    other = tiny.model()
    other.emb[0].weight = other.emb[0].weight + 1
    save_pretrained(other, tmp_path / "base")
    assert "the base model has changed" in fails(capsys, *arguments, "--epochs", 2)


def test_a_default_that_is_written_out_is_the_default(loops, tmp_path, capsys):
    plain = ("--dim", 32, "--heads", 2, "--layers", 1, "--epochs", 1)
    training.run(loops, tmp_path, "mlx", *plain, "--conditioner", "none", "--scale", "micro")
    training.run(loops, tmp_path, "mlx", *plain)
    assert "resuming from" in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["scale"], config["conditioner"], config["dim"]) == ("micro", "none", 32)


def test_what_cannot_be_computed_is_said_before_recordings_are_read(loops, tmp_path, capsys):
    for extra in (("--ema-decay", 1.0), ("--precision", "bfloat16")):
        assert f"{extra[0]} {extra[1]}: " in fails(capsys, tmp_path / "nowhere", tmp_path / "run", "mlx", *extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--val-split", 1], "--val-split 1.0: expected 0 to less than 1"),
        (["--val-split", 0, "--patience", 2], "--patience needs a validation set"),
        (["--val-data", "x"], "exclude each other"),
        (["--model", "tiny", "--layers", 2], "--layers is for a model from scratch"),
        (["--model", "tiny", "--conditioner", "none"], "--conditioner is for a model from scratch"),
        (["--model", "tiny", "--scale", "base"], "--scale is for a model from scratch"),
        (["--lora-rank", 4], "--lora-rank needs --model"),
        (["--dropout", 0.1], "--dropout is for adapters"),
        (["--text-encoder", "tiny"], "--text-encoder needs --conditioner text"),
        (["--condition-dropout", 0.5], "--condition-dropout needs --conditioner text"),
        (["--dim", 50, "--heads", 4], "--dim 50 --heads 4"),
        (["--dim", 10**9], "--dim 1000000000 --heads 2: expected an even width of 4 to 65536"),
        (["--sample-duration", 1e9], "--sample-duration 1000000000.0: expected 0 to 600"),
        (["--scale", "tiny"], "--scale"),
        (["--segments-per-recording", 0], "--segments-per-recording 0"),
        (["--condition-dropout", 1.5], "--condition-dropout 1.5"),
        (["--codec", "nowhere/codec"], "nowhere/codec"),
        ([*PLAIN, "--sample-prompt", "jungle", "--sample-duration", 1], "--sample-prompt: this model takes no prompt"),
        (["--model", "tiny", "--lora-rank", 4, "--target-modules", "nose"], "--target-modules nose"),
        ([*PLAIN, "--precision", "bfloat16"], "only for --backend torch"),
    ],
)
def test_bad_options_are_named(loops, tmp_path, capsys, extra, message):
    assert message in fails(capsys, loops, tmp_path, "mlx", *extra)


def test_bad_data_is_named(loops, tmp_path, capsys):
    bare = training.loops(tmp_path / "bare", described=False)
    assert "no recording has a description" in fails(capsys, bare, tmp_path / "run", "mlx", *TEXT)
    (bare / "loop0.json").write_text("{")
    assert "loop0.json: not readable as JSON" in fails(capsys, bare, tmp_path / "run", "mlx", *TEXT)
    (bare / "loop0.json").write_text('{"text": "x"}')
    assert 'loop0.json: expected {"description"' in fails(capsys, bare, tmp_path / "run", "mlx", *TEXT)
    soundfile.write(bare / "loop1.wav", np.full(8000, np.nan, np.float32), 8000, subtype="FLOAT")
    assert "loop1.wav: holds NaN" in fails(capsys, bare, tmp_path / "run", "mlx", *PLAIN)
    (tmp_path / "empty").mkdir()
    assert "holds no recordings" in fails(capsys, tmp_path / "empty", tmp_path / "mistyped", "mlx", *PLAIN)
    assert not (tmp_path / "mistyped").exists()


def test_melody_models_are_refused(loops, tmp_path, capsys):
    save_pretrained(tiny.model("prepend"), tmp_path / "melody")
    error = fails(capsys, loops, tmp_path / "run", "mlx", "--model", tmp_path / "melody")
    assert "melody models need chroma" in error


def test_stereo_models_hear_both_sides(loops, tmp_path, monkeypatch):
    """loop3 has different sides, the others the same."""
    seen = {}
    init = MusicGenTask.updates
    monkeypatch.setattr(
        MusicGenTask, "updates", lambda task, epoch: (seen.update(train=task.train), init(task, epoch))[1]
    )
    save_pretrained(tiny.model("none", channels=2), tmp_path / "stereo")
    run = training.run(loops, tmp_path / "run", "mlx", "--model", tmp_path / "stereo", "--val-split", 0, "--epochs", 1)
    for clip in seen["train"]:
        assert clip.codes.shape[0] == 8
        assert (clip.codes[0::2] == clip.codes[1::2]).all() == (clip.path.stem != "loop3")
    assert losses(run)
