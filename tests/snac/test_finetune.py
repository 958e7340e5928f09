"""The fine-tuning command on real recordings, on both backends, with a narrow codec."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import snac_oracle as oracle
import soundfile
import torch
from finetuning import NARROW, RECORDINGS, narrow, recordings, run, weights

from backends import get
from backends.data import audio
from backends.training import codec, log
from backends.training.adversary import AdversaryPlan, DiscriminatorSpec
from snac_port import from_pretrained, loss
from snac_port.export import write_upstream
from snac_port.finetune_options import FinetuneOptions
from snac_port.load import save
from snac_port.task import SNACFamily, count_codes
from snac_port.tiny import draw

BACKENDS = ("mlx", "torch")
CPU = {"mlx": (), "torch": ("--device", "cpu")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request, model, tmp_path_factory):
    """A run of two stages, and what it printed nowhere: its backend's name."""
    output = tmp_path_factory.mktemp(f"{request.param}_run")
    run(model, output, request.param, "--export_pt")
    return request.param, output


@pytest.fixture(params=BACKENDS)
def backend_name(request):
    return request.param


class CutError(Exception):
    """Stands for whatever ends a process."""


def cut_after(monkeypatch, updates: int) -> None:
    """The next run ends in the middle of its update number `updates`."""
    seconds, seen = codec.CodecTask.seconds, iter(range(1, 1000))

    def counted(task, micro_batches):
        if next(seen) == updates:
            raise CutError
        return seconds(task, micro_batches)

    monkeypatch.setattr(codec.CodecTask, "seconds", counted)


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_the_loss_falls_under_its_baseline_in_every_stage(trained):
    _, output = trained
    baselines = json.loads((output / "baseline_metrics.json").read_text())
    rows = [row for row in log.read(output / "metrics.csv") if "val_loss" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["val_loss"] < 0.8 * baselines["0.25s"]["val_loss"]
    assert rows[1]["val_loss"] < 0.6 * baselines["0.5s"]["val_loss"]


def test_decoder_only_training_leaves_tokens_as_they_were(trained, model):
    backend, output = trained
    sound = audio.read(RECORDINGS / "val" / "1_george_0.wav", NARROW.sampling_rate)
    before, after = (from_pretrained(source, backend).encode(sound) for source in (model, output / "best_model"))
    assert all((a == b).all() for a, b in zip(before.levels, after.levels, strict=True))
    start, end = weights(model), weights(output / "best_model")
    moved = {name for name in start if (start[name] != end[name]).any()}
    assert moved == {name for name in start if name.startswith("decoder.")}


def test_names_of_the_seed_find_the_exports(trained):
    backend, output = trained
    for name in ("checkpoint_epoch1", "checkpoint_epoch2"):  # written twice: see --export_pt
        assert same(weights(output / f"{name}.pt"), weights(output / name))
        (output / f"{name}.pt").unlink()
        assert from_pretrained(output / f"{name}.pt", backend).config.settings() == NARROW.settings()


def test_an_export_of_before_does_not_hide_newer_weights(tmp_path, backend_name):
    """best_model.pt is left where a run goes on without --export_pt; the later of it and best_model/ is meant."""
    folder, named = tmp_path / "best_model", tmp_path / "best_model.pt"
    codec = from_pretrained(narrow(folder), backend_name)
    write_upstream(named, codec)
    assert same(weights(named), weights(folder))
    changed = {name: value + 1 for name, value in codec.tensors().items()}
    save(folder / "model.safetensors", changed, NARROW)
    age(named, 10)
    assert same(weights(named), changed)
    age(folder / "model.safetensors", 20)
    assert not same(weights(named), changed)
    (folder / "model.safetensors").unlink()  # its config.json is still the .pt's
    assert not same(weights(named), changed)


def age(path, seconds):
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_export_pt_is_what_upstream_loads(trained):
    _, output = trained
    model = oracle.snac.SNAC(**{k: v for k, v in NARROW.settings().items() if k != "name"}).eval()
    model.load_state_dict(torch.load(output / "best_model.pt", weights_only=True))
    ours = from_pretrained(output / "best_model", "torch")
    codes = ours.encode(audio.read(RECORDINGS / "val" / "2_george_1.wav", NARROW.sampling_rate))
    native = [torch.from_numpy(level)[None].long() for level in codes.levels]
    silence = [np.zeros((1, codes.levels[-1].size * factor), np.float32) for factor in (8, 32, 64)]
    with torch.inference_mode(), oracle.injected(silence):
        theirs = model.decode(native)[0, 0].numpy()
    np.testing.assert_allclose(ours.decode(codes, noise=0), theirs[: codes.length], rtol=0, atol=1e-5)


def test_the_report_shows_stages_codebooks_and_sound(trained):
    _, output = trained
    report = (output / "report.html").read_text(encoding="utf-8")
    for part in ("Stages against the untouched model", "Codebook usage", "perplexity", "original_0", "reconstructed_0"):
        assert part in report
    assert report.count("<audio") >= 2
    assert report.count("data:image/png") >= 4  # curves, usage, two spectrograms


@pytest.mark.parametrize("updates", [4, 7], ids=["within a stage", "in the stage after"])
def test_a_run_that_was_cut_ends_bit_identical(updates, trained, model, tmp_path, monkeypatch):
    backend, whole = trained
    cut_after(monkeypatch, updates)
    with pytest.raises(CutError):
        run(model, tmp_path / "cut", backend, "--save_every_batches", 2)
    monkeypatch.undo()
    run(model, tmp_path / "cut", backend, "--save_every_batches", 3)
    assert same(weights(tmp_path / "cut" / "checkpoint_epoch2"), weights(whole / "checkpoint_epoch2"))
    assert same(weights(tmp_path / "cut" / "best_model"), weights(whole / "best_model"))
    found, expected = (
        [(row["step"], row.get("loss"), row.get("val_loss")) for row in log.read(folder / "metrics.csv")]
        for folder in (tmp_path / "cut", whole)
    )
    assert found == expected


def test_a_memory_budget_only_splits_batches(trained, model, tmp_path):
    backend, whole = trained
    run(model, tmp_path, backend, "--micro_batch_seconds", 0.6)
    one, two = weights(tmp_path / "checkpoint_epoch2"), weights(whole / "checkpoint_epoch2")
    for name, value in one.items():
        np.testing.assert_allclose(value, two[name], rtol=0, atol=2e-5, err_msg=name)


def test_exports_are_averaged_weights(trained, model, tmp_path):
    backend, whole = trained
    run(model, tmp_path, backend, "--ema_decay", 0.9)
    start, last, averaged = (
        weights(model),
        weights(whole / "checkpoint_epoch2"),
        weights(tmp_path / "checkpoint_epoch2"),
    )
    moved = [name for name in start if (start[name] != last[name]).any()]
    for name in moved:  # the average has gone a part of the way
        assert 0 < np.linalg.norm(averaged[name] - start[name]) < 1.2 * np.linalg.norm(last[name] - start[name]), name
    assert not same(averaged, last)


def test_training_everything_says_that_tokens_change(model, tmp_path, capsys):
    run(model, tmp_path, "mlx", "--no-freeze_encoder", "--no-freeze_vq", "--num_epochs", 1)
    assert "tokens will change" in capsys.readouterr().out
    start, end = weights(model), weights(tmp_path / "best_model")
    assert all((start[name] != end[name]).any() for name in start)
    terms = set(log.read(tmp_path / "metrics.csv")[0])
    assert {"l1", "stft_64", "stft_128", "commitment", "codebook"} <= terms
    baseline = json.loads((tmp_path / "baseline_metrics.json").read_text())["0.25s"]
    heard = baseline["val_l1"] + baseline["val_stft_64"] + baseline["val_stft_128"]
    assert baseline["val_loss"] == pytest.approx(heard)  # without the quantiser's terms
    assert baseline["val_commitment"] > 0


FROM_SCRATCH = ("--no-freeze_encoder", "--no-freeze_vq", "--quantize_after", 3)


def test_from_random_weights_codebooks_start_where_the_channels_are(backend_name, model, tmp_path, monkeypatch):
    """Before that an update leaves them alone; a run that is cut after it ends bit-identical."""
    whole = run(model, tmp_path / "whole", backend_name, *FROM_SCRATCH)
    rows = [row for row in log.read(whole / "metrics.csv") if "loss" in row]
    assert [row["codebook"] == 0 for row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    after = from_pretrained(whole / "best_model", backend_name)
    counts = count_codes(after, sorted((recordings() / "train").iterdir()), None)
    assert (np.count_nonzero(counts, axis=1) >= 6).all(), counts  # of 16
    cut_after(monkeypatch, 6)
    with pytest.raises(CutError):
        run(model, tmp_path / "cut", backend_name, *FROM_SCRATCH, "--save_every_batches", 2)
    monkeypatch.undo()
    run(model, tmp_path / "cut", backend_name, *FROM_SCRATCH)
    assert same(weights(tmp_path / "cut" / "checkpoint_epoch2"), weights(whole / "checkpoint_epoch2"))


SMALL = DiscriminatorSpec(periods=(2, 3), period_widths=(4, 8), windows=(128, 64), width=4)


def test_an_adversary_learns_beside_the_decoder(backend_name, model, tmp_path, monkeypatch):
    """Its terms are logged, it is kept in checkpoints, and validation is without it."""
    monkeypatch.setattr(
        FinetuneOptions, "adversary", lambda options: AdversaryPlan(spec=SMALL) if options.adversarial else None
    )
    whole = run(model, tmp_path / "whole", backend_name, "--adversarial")
    rows = log.read(whole / "metrics.csv")
    assert all(
        row["adversarial"] > 0 and row["feature"] > 0 and row["discriminator"] > 0 for row in rows if "loss" in row
    )
    last, baselines = rows[-1], json.loads((whole / "baseline_metrics.json").read_text())
    assert last["val_loss"] < 0.8 * baselines["0.5s"]["val_loss"]
    cut_after(monkeypatch, 6)
    with pytest.raises(CutError):
        run(model, tmp_path / "cut", backend_name, "--adversarial", "--save_every_batches", 2)
    monkeypatch.undo()
    monkeypatch.setattr(FinetuneOptions, "adversary", lambda _options: AdversaryPlan(spec=SMALL))
    run(model, tmp_path / "cut", backend_name, "--adversarial")
    assert same(weights(tmp_path / "cut" / "checkpoint_epoch2"), weights(whole / "checkpoint_epoch2"))


def test_both_backends_train_alike(model, tmp_path):
    """From one start, on the same crops and noise, over one epoch."""
    runs = [run(model, tmp_path / backend, backend, "--num_epochs", 1) for backend in BACKENDS]
    mlx, torch_ = ([row["loss"] for row in log.read(output / "metrics.csv") if "loss" in row] for output in runs)
    assert len(mlx) > 2
    assert mlx == pytest.approx(torch_, rel=1e-4)


@pytest.mark.parametrize(
    ("backend", "message"), [("mlx", "only for --backend torch"), ("torch", "use float32, or a GPU")]
)
def test_bfloat16_is_for_pytorch_on_a_gpu(backend, message, model, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(model, tmp_path, backend, "--precision", "bfloat16", *CPU[backend])
    assert stop.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: --precision bfloat16: ")
    assert message in error


def test_the_loss_in_bfloat16_is_near_that_in_float32(model):
    """Of a forward pass: the backward one is wrong on CPUs."""
    codec, config = from_pretrained(model, "torch", "cpu"), NARROW
    options = FinetuneOptions(train_data=RECORDINGS, val_data=RECORDINGS, n_ffts=(64, 128), freeze_encoder=False)
    family = SNACFamily(config, loss.spec(options, config), "torch")
    sound = audio.read(RECORDINGS / "val" / "1_george_0.wav", config.sampling_rate)[None, : 8 * config.unit_samples]
    evaluate = get("torch", "cpu").eval_step(codec, family.terms)
    batch = family.batch(sound, None, [3], training=False)
    whole = evaluate(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = evaluate(batch)
    for name in ("l1", "stft_64", "stft_128"):
        assert half[name] == pytest.approx(whole[name], rel=0.05), name
        assert half[name] != whole[name], name


@pytest.mark.cuda
def test_training_in_bfloat16_on_a_gpu(model, tmp_path):
    precisions = ("float32", "bfloat16")
    runs = [run(model, tmp_path / name, "torch", "--device", 0, "--precision", name) for name in precisions]
    whole, half = (log.read(folder / "metrics.csv")[-1]["val_loss"] for folder in runs)
    assert half == pytest.approx(whole, rel=0.05)
    assert half != whole


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--curriculum", '[{"epochs": [1, 1], "size": 1}]'], "unknown key 'size'"),
        (["--curriculum", '[{"epochs": [2, 2], "length": 1}]'], "expected one from 1 on"),
        (["--n_ffts", 8192], "needs segments longer than 0.51 s"),
        (["--train_data", "nowhere"], "--train-data nowhere: no such folder"),
        (["--pretrained_model", "nowhere/best_model.pt"], "nowhere/best_model.pt"),
        (["--l1_weight", -1], "--l1-weight -1"),
        (["--num_epochs", 0], "--num-epochs 0: expected more than 0"),
        (["--grad_clip", -1], "--grad-clip -1.0: expected 0 or more"),
        (["--save_every_batches", -1], "--save-every-batches -1: expected 0 or more"),
        (["--save_every_minutes", -1], "--save-every-minutes -1.0: expected 0 or more"),
        (["--random_seed", -1], "--random-seed -1: expected 0 to 4294967295"),
        (["--ddp", "--device", 0], "--device 0: with --ddp each process takes a device of its own"),
        (
            ["--adversarial", "--segment_length", 0.1, "--curriculum", "[]"],
            "largest window is 2048, needs segments longer",
        ),
        (["--ema_decay", 1.5], "--ema-decay 1.5"),
        (["--quantize_after", 5], "--quantize-after 5 is for training everything"),
        (["--segment_length", 3], "--segment-length 3.0: --curriculum has the lengths"),
        (["--adversarial_learning_rate", 5], "--adversarial-learning-rate 5.0: there is no adversary"),
        (["--commitment_weight", 9], "--commitment-weight 9.0: without --no-freeze-encoder"),
        (["--no-freeze_encoder", "--codebook_weight", 3], "--codebook-weight 3.0: the codebooks do not train"),
        (["--nproc", 2], "--nproc 2: only with --ddp"),
        (["--micro_batch_seconds", "inf"], "--micro-batch-seconds inf: expected 0 or more"),
        (["--stft_weight", "inf"], "--stft-weight inf: expected 0 or more"),
        (["--l1_weight", 0, "--stft_weight", 0], "--l1-weight, --stft-weight, --mel-weight: all are 0"),
        (["--n_ffts", 64, 64], "--n-ffts (64, 64): expected sizes of at least 16, each once"),
    ],
)
def test_bad_options_are_named(model, tmp_path, capsys, extra, message):
    with pytest.raises(SystemExit) as stop:
        run(model, tmp_path, "mlx", *extra)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_all_bad_recordings_are_named(model, tmp_path, capsys):
    """Those whose header is damaged, and those that only encoding finds out about."""
    folder = tmp_path / "recordings"
    shutil.copytree(recordings() / "val", folder)
    names = [path.name for path in sorted(folder.iterdir())][:3]
    for name in names[:2]:
        soundfile.write(folder / name, np.full(4000, np.nan, np.float32), 8000, subtype="FLOAT")
    with pytest.raises(SystemExit):
        run(model, tmp_path / "run", "mlx", "--train_data", folder)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{names[0]}: holds NaN" in error
    assert "2 files are bad" in error
    assert names[1] in error
    assert names[2] not in error
    for name in names:
        (folder / name).write_bytes(b"no audio")
    with pytest.raises(SystemExit):
        run(model, tmp_path / "run", "mlx", "--train_data", folder)
    assert "3 files are bad" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [(), ("--no-freeze_encoder",)], ids=["codes", "audio"])
def test_an_mp3_that_was_cut_trains_with_what_is_left(model, tmp_path, extra):
    """Its header says 4 s, 2.3 s can be decoded: crops of most of that stay inside."""
    folder = tmp_path / "cut"
    folder.mkdir()
    soundfile.write(folder / "a.mp3", np.random.default_rng(0).standard_normal(32_000) * 0.1, 8000)
    (folder / "a.mp3").write_bytes((folder / "a.mp3").read_bytes()[: (folder / "a.mp3").stat().st_size * 6 // 10])
    for name in "bc":
        shutil.copy(folder / "a.mp3", folder / f"{name}.mp3")
    curriculum = '[{"epochs": [1, 3], "length": 1.5}]'
    output = run(
        model, tmp_path / "run", "mlx", "--train_data", folder, "--curriculum", curriculum, "--num_epochs", 3, *extra
    )
    assert len([row for row in log.read(output / "metrics.csv") if "loss" in row]) == 3


def test_the_hub_s_absence_names_the_option_of_this_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit):
        run("hubertsiuzdak/snac_24khz", tmp_path, "mlx", "--device", 0)  # the seed's device, which MLX has too
    assert (
        "error: --pretrained-model hubertsiuzdak/snac_24khz: there is no such directory, the Hub"
        in capsys.readouterr().err
    )


def test_baselines_belong_to_stages_and_loss(model, tmp_path):
    def baselines(*extra: object) -> dict:
        run(model, tmp_path, "mlx", "--num_epochs", 1, "--no-resume", *extra)
        return json.loads((tmp_path / "baseline_metrics.json").read_text())

    first = baselines("--curriculum", "[]", "--segment_length", 0.25)
    second = baselines("--curriculum", "[]", "--segment_length", 0.2)  # not measured in the first run
    doubled = baselines("--curriculum", "[]", "--segment_length", 0.2, "--l1_weight", 2.0)
    assert [set(found) - {"of"} for found in (first, second, doubled)] == [{"0.25s"}, {"0.2s"}, {"0.2s"}]
    assert doubled["0.2s"]["val_l1"] == pytest.approx(2 * second["0.2s"]["val_l1"], rel=1e-6)
    (tmp_path / "baseline_metrics.json").write_text("{")
    assert baselines("--curriculum", "[]", "--segment_length", 0.2) == second


def test_cached_codes_are_of_one_configuration(tmp_path, monkeypatch):
    """The same tensors at another rate encode the same recordings otherwise."""
    monkeypatch.setenv("AUDIOSMITH_CACHE", str(tmp_path / "cache"))
    baselines = []
    for name, rate_hz in (("a", 8000), ("b", 16_000)):
        (tmp_path / name).mkdir()
        config = replace(NARROW, sampling_rate=rate_hz)
        save(tmp_path / name / "model.safetensors", draw(config), config)
        run(tmp_path / name, tmp_path / f"run {name}", "mlx", "--num_epochs", 1)
        baselines.append(json.loads((tmp_path / f"run {name}" / "baseline_metrics.json").read_text())["of"])
    folders = list((tmp_path / "cache" / "codes").iterdir())
    assert len(folders) == 2
    assert baselines[0] != baselines[1]


def test_options_may_not_change_between_a_run_and_its_continuation(trained, model, capsys, tmp_path):
    backend, output = trained
    shutil.copy(min((RECORDINGS / "val").glob("*.wav")), tmp_path)
    for extra, message in (
        (["--stft_weight", 2.0], "--stft-weight is 2.0"),
        (["--val_data", RECORDINGS / "train"], "is one of the recordings in --train-data"),
        (["--val_data", tmp_path], "the validation data has changed since"),
    ):
        with pytest.raises(SystemExit):
            run(model, output, backend, *extra)
        assert message in capsys.readouterr().err
