"""The seed's commands as printed, every option, config files, and bad input."""

import ast
import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from backends import cli
from backends.data import audio
from backends.errors import InputError
from backends.training.log import read
from csm_mlx.finetune import finetune, finetune_lora
from csm_mlx.finetune.create_dataset import CreateDatasetOptions
from csm_mlx.finetune.options import FullOptions, LoRAOptions
from csm_mlx.generate import GenerateOptions

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "fsdd_george" / "train"

SEED = {
    "recommended": "--data-path dataset.json --output-dir ./lora_finetune_output --batch-size 4 --epochs 5"
    " --learning-rate 5e-4 --lora-rank 8 --optimizer adamw --target-modules attn codebook0_head projection --train-embeddings",
    "advanced": "--data-path dataset.json --output-dir ./lora_finetune_output --batch-size 4 --epochs 5"
    " --learning-rate 5e-4 --lora-rank 16 --lora-alpha 32.0 --optimizer adamw --weight-decay 1e-4 --save-every 100 --log-every 10"
    " --target-modules attn codebook0_head projection --train-embeddings",
    "lowest-memory": "--data-path dataset.json --target-modules attn codebook0_head projection",
}


@pytest.mark.parametrize("command", SEED.values(), ids=SEED)
def test_the_seed_s_lora_commands_parse(command):
    options = cli.parse(LoRAOptions, command.split())
    assert options.learning_rate == 5e-4
    assert options.target_modules == ("attn", "codebook0_head", "projection")
    assert options.epochs == 5
    assert options.batch_size == 4
    assert options.weight_decay == 1e-4
    assert options.output_dir == Path("lora_finetune_output")


def test_the_seed_s_full_command_parses():
    command = "--data-path dataset.json --output-dir ./finetune_output --batch-size 4 --epochs 5 --learning-rate 1e-5"
    options = cli.parse(FullOptions, command.split())
    assert (options.learning_rate, options.epochs, options.output_dir) == (1e-5, 5, Path("finetune_output"))
    assert (options.save_every, options.log_every, options.optimizer) == (100, 10, "adamw")


def test_the_seed_s_recommended_command_runs(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset.json").write_text(dataset.read_text(encoding="utf-8"), encoding="utf-8")
    cli.run(finetune_lora.main, LoRAOptions, [*SEED["recommended"].split(), "--model", "tiny", "--sample-ms", "400"])
    made = {path.name for path in (tmp_path / "lora_finetune_output").glob("lora_ckpt_*")}
    assert made == {f"lora_ckpt_epoch_{n}.safetensors" for n in range(1, 6)}
    samples = {path.name for path in (tmp_path / "lora_finetune_output" / "samples").glob("*.wav")}
    assert {"step_000000_recording.wav", "step_000000_before.wav", "step_000010_generated.wav"} <= samples


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--text  --model " + 90 * "m", "error: --text is empty: say something"),
        ("--speaker x --text a", "error: Error parsing --speaker: invalid literal for int() with base 10: 'x' Argument helptext"),
        ("--txt a", "error: required options: Missing from python -m csm_mlx.generate: --text STR What to say. (required) "
         "Unrecognized options: --txt a; see --help"),
    ],
)  # fmt: skip
def test_errors_in_flags_are_one_line_whatever_the_terminal(words, message, encoding):
    command = [sys.executable, "-m", "csm_mlx.generate", *words.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert "--- " not in done.stderr


def test_hyphens_and_underscores_are_the_same():
    options = cli.parse(LoRAOptions, ["--data_path", "d.json", "--lora_rank", "3", "--train_embeddings"])
    assert (options.lora_rank, options.train_embeddings) == (3, True)


def test_help_says_that_weights_files_stay(capsys):
    """--keep-last is about checkpoints/ alone, as test_step_files_and_checkpoints shows."""
    with pytest.raises(SystemExit) as stop:
        cli.run(finetune.main, FullOptions, ["--help"])
    assert stop.value.code == 0
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "exported adapters and weights do not count and are not deleted" in shown


def test_every_option_is_read_somewhere():
    """An option that is accepted does something: each field is used as an attribute outside its own definition."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("backends", "csm_mlx")
        for path in (ROOT / folder).rglob("*.py")
    ]
    used = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for options in (LoRAOptions, FullOptions, CreateDatasetOptions, GenerateOptions):
        names = {field.name for field in dataclasses.fields(options)} - {
            "config"
        }  # read by backends.config_file from the flags
        assert names <= used, names - used


def test_a_config_file_gives_options_and_flags_override_it(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"data_path": "d.json", "lora_rank": 4, "learning-rate": 1e-5, "train_embeddings": True,
                                "target_modules": ["attn"], "patience": 0}), encoding="utf-8")  # fmt: skip
    options = cli.parse(LoRAOptions, ["--config", str(file), "--lora-rank", "6"])
    assert (options.lora_rank, options.learning_rate, options.target_modules) == (6, 1e-5, ("attn",))
    assert options.train_embeddings
    file.write_text('{"data_path": "d.json", "lora_rnk": 4}', encoding="utf-8")
    with pytest.raises(InputError, match=r"unknown option 'lora_rnk', did you mean 'lora_rank'\?"):
        cli.parse(LoRAOptions, ["--config", str(file)])
    file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        cli.parse(LoRAOptions, ["--config", str(file)])


BAD_FLAGS = {
    "--learnin-rate 1": "Unrecognized options: --learnin-rate",
    "--epochs five": "--epochs",
    "--epochs 0": "--epochs 0: expected at least 1",
    "--lora-rank 0": "--lora-rank 0: expected a whole number from 1",
    "--depth-fraction 2": "--depth-fraction 2.0: expected 0 < fraction <= 1",
    "--learning-rate -1": "--learning-rate",
    "--optimizer lion": "--optimizer",
    "--patience 3": "--patience needs a validation set: give --val-path or --val-split",
    "--val-split 0.5 --val-path v.json": "--val-path and --val-split exclude each other",
    "--train-embeddings --target-modules attn text_embeddings": "the two exclude each other",
    "--train-embeddings --target-modules attn embed": "--target-modules embed puts LoRA on them: the two exclude each other",
    "--target-modules attn --target_modules mlp": "--target-modules is given 2 times: give it once, with all its values",
    "--target-modules attnn": "--target-modules attnn: no such module",
    "--dropout 1.5": "--dropout 1.5: expected 0 <= dropout < 1",
    "--mask-speakers 0 1": "--data-path: no row is left; see --max-audio-length-ms and --mask-speakers",
    "--mask-speakers 0 7": "--mask-speakers 7: no row has this speaker; those of the data are 0 1",
    "--lr-min-ratio 0.1": "--lr-min-ratio 0.1: does nothing with --schedule constant: give linear or cosine",
    "--sample-speaker 1": "--sample-speaker 1: does nothing, because --sample-text is empty",
    "--lora-rank 100000": "--lora-rank 100000: larger than any dimension of the adapted modules: expected at most 2",
    "--max-audio-length-ms 1": "--data-path: no row is left",
    "--val-split 0.01": "leaves one side empty",
    "--model nowhere/else/there": "--model nowhere/else/there: no such directory",
    "--pretrained-path none.safetensors": "none.safetensors",
    "--resume-from none": "--resume-from none: no such",
    "--resume-from .": "--resume-from .: is no checkpoint, expected one such as RUN/checkpoints/step_100",
    "--max-samples 0": "--max-samples 0: expected at least 1",
    "--max-samples -3": "--max-samples -3: expected at least 1",
    "--max-audio-length-ms -5": "--max-audio-length-ms -5.0: expected a positive number",
    "--max-audio-length-ms inf": "--max-audio-length-ms inf: expected a positive number",
    "--sample-ms 10": "--sample-ms 10.0: expected at least 80, one frame",
    "--sample-speaker -1": "--sample-speaker -1: expected a whole number from 0",
    "--lora-alpha -3": "--lora-alpha -3.0: expected a number above 0",
    "--learning-rate inf": "--learning-rate inf: expected a positive number",
    "--weight-decay nan": "--weight-decay nan: expected at least 0",
    "--max-norm nan": "--max-norm nan: expected at least 0",
    "--optimizer sgd --weight-decay 0.5": "--weight-decay 0.5: does nothing with --optimizer sgd: give adamw",
    "--seed 4294967296": "--seed 4294967296: expected 0 to 4294967295",
    "--seed -1": "--seed -1: expected 0 to 4294967295",
    "--lr-min-ratio 2": "--lr-min-ratio 2.0: expected a share of the peak, 0 to 1",
    "--first-codebook-weight nan": "--first-codebook-weight nan: expected 0 or more",
}


@pytest.mark.parametrize("extra", BAD_FLAGS, ids=str)
def test_bad_flags_end_with_one_line_and_code_2(lora, capsys, extra):
    with pytest.raises(SystemExit) as stop:
        lora(*extra.split())
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert BAD_FLAGS[extra] in errors[0]


def _row(**changes) -> list[dict]:
    return [{"text": "one", "audio_path": str(DEMO / "1_george_5.wav"), "speaker_id": 0, **changes}]


BAD_DATA = {
    "broken": ("[{", r"not valid JSON, line 1"),
    "empty": ("[]", "expected a non-empty JSON list"),
    "object": ("{}", "expected a non-empty JSON list"),
    "no text": (json.dumps(_row(text=" ")), "row 1: 'text' must be a non-empty string"),
    "unknown key": (json.dumps(_row(speakerid=1)), "row 1: unknown key 'speakerid', did you mean 'speaker_id'"),
    "no such key": (
        json.dumps(_row(extra=1)),
        "row 1: unknown key 'extra', known: text, audio_path, speaker_id, speaker",
    ),
    "speaker": (json.dumps(_row(speaker_id="a")), "row 1: 'speaker_id' must be a whole number"),
    "two speakers": (json.dumps(_row(speaker=3)), "give one of them"),
    "empty conversation": ("[[]]", "row 1: an empty conversation"),
    "several bad rows": (
        json.dumps(_row(audio_path="a.wav") + _row() + _row(audio_path="b.wav")),
        r"row 1: .*a\.wav: no such audio file; row 3: .*b\.wav: no such audio file",
    ),
    "missing audio": (json.dumps(_row(audio_path="gone.wav")), "gone.wav: no such audio file"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_datasets_end_with_one_line_and_code_2(lora, capsys, tmp_path, case):
    text, message = BAD_DATA[case]
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        lora(data=path)
    assert stop.value.code == 2
    assert re.search(re.escape(message) if "\\" not in message else message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "not readable as audio"),
        ("text.wav", b"hello", "not readable as audio"),
        ("no samples.wav", None, "holds no audio samples"),
        ("nan.wav", np.nan, "NaN or infinite"),
        ("half.wav", b"".join([b"RIFF\xff\xff\0\0WAVEfmt ", struct.pack("<IHHIIHH", 16, 1, 1, 24000, 48000, 2, 16),
                               b"data", struct.pack("<I", 200), b"\1\2" * 50]), "is cut: holds 100 of the 200 bytes"),
    ],
)  # fmt: skip
def test_bad_audio_is_named(lora, capsys, tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        import soundfile

        soundfile.write(path, np.full(0 if content is None else 100, np.nan), 24000, subtype="FLOAT")
    data = tmp_path / "data.json"
    data.write_text(json.dumps(_row(audio_path=str(path))), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        lora(data=data)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert name in error
    assert message in error


def test_all_bad_recordings_are_named_before_any_is_encoded(lora, capsys, tmp_path, monkeypatch):
    for name in ("b.wav", "c.wav", "d.wav"):
        (tmp_path / name).write_bytes(b"no sound")
    rows = _row() + [_row(audio_path=str(tmp_path / name))[0] for name in ("b.wav", "c.wav")]
    data, held_out = tmp_path / "data.json", tmp_path / "val.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    held_out.write_text(json.dumps(_row(audio_path=str(tmp_path / "d.wav"))), encoding="utf-8")
    encoded = []
    monkeypatch.setattr("csm_mlx.tokens.encode_audio", lambda *_: encoded.append(1))
    with pytest.raises(SystemExit) as stop:
        lora("--val-path", held_out, data=data)
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert stop.value.code == 2
    assert error.startswith(f"error: {tmp_path / 'b.wav'}: not readable as audio")
    assert error.endswith(f"; 3 files are bad, also {tmp_path / 'c.wav'}, {tmp_path / 'd.wav'}")
    assert not encoded


def test_recordings_that_are_trained_and_validated_on_are_noted(lora, dataset, capsys, tmp_path):
    rows = json.loads(dataset.read_text(encoding="utf-8"))
    held_out = tmp_path / "val.json"
    held_out.write_text(json.dumps([*rows[1:2], *_row(audio_path=str(DEMO / "9_george_5.wav"))]), encoding="utf-8")
    note = f"note: 1 of 2 recordings to validate on are trained on too, such as {Path(rows[1]['audio_path']).name}: "
    lora("--val-path", held_out)
    assert note in capsys.readouterr().out
    lora("--val-path", held_out, "--mask-speakers", rows[1]["speaker_id"], output=tmp_path / "context")  # not a target
    assert "note: " not in capsys.readouterr().out
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps(rows[:1] * 4), encoding="utf-8")
    lora("--val-split", 0.5, data=twice, output=tmp_path / "split")
    assert "note: 1 of 1 recordings to validate on are trained on too" in capsys.readouterr().out


def test_stereo_and_other_rates_are_taken(tmp_path):
    import soundfile

    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, tone], axis=1), 44100)
    read_back = audio.read(tmp_path / "stereo.wav", 24000)
    assert read_back.shape == (24000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    assert np.abs(read_back - expected)[500:-500].max() < 1e-3


def test_a_validation_set_that_becomes_empty_is_named(lora, capsys, tmp_path):
    held_out = tmp_path / "val.json"
    held_out.write_text(json.dumps(_row(speaker_id=1, audio_path=str(DEMO / "9_george_5.wav"))), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        lora("--val-path", held_out, "--mask-speakers", 1)
    assert stop.value.code == 2
    assert "error: --val-path: no row is left; see" in capsys.readouterr().err


def test_a_sample_too_long_for_the_model_is_refused_before_anything_is_encoded(lora, capsys, monkeypatch):
    encoded = []
    monkeypatch.setattr("csm_mlx.finetune.dataset.examples", lambda *_, **__: encoded.append(1))
    with pytest.raises(SystemExit) as stop:
        lora("--sample-text", "one", "--sample-ms", 200_000)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert (
        "error: --sample-ms 200000.0: the model's positions hold 163120 ms after the 8 tokens of the sample's" in error
    )
    assert not encoded


def test_what_trains_is_float32_whatever_the_file_to_start_from(lora, full, tmp_path):
    for run, name in ((full, "ckpt"), (lora, "lora_ckpt")):
        path = run(output=tmp_path / name) / f"{name}_epoch_1.safetensors"
        arrays, metadata = mx.load(str(path), return_metadata=True)
        half = {key: value.astype(mx.bfloat16) for key, value in arrays.items()}
        mx.save_safetensors(str(tmp_path / "half.safetensors"), half, metadata)
        again = run("--resume-from", tmp_path / "half.safetensors", output=tmp_path / f"{name}_again")
        saved = mx.load(str(again / f"{name}_epoch_1.safetensors"))
        assert {value.dtype for value in saved.values()} == {mx.float32}
    low = full("--resume-from", tmp_path / "ckpt" / "ckpt_epoch_1.safetensors", "--dtype", "bfloat16")
    assert {value.dtype for value in mx.load(str(low / "ckpt_epoch_1.safetensors")).values()} == {mx.bfloat16}


def test_a_changed_option_on_continuing_is_refused(lora, capsys):
    run = lora("--lora-rank", 4)
    with pytest.raises(SystemExit) as stop:
        lora("--lora-rank", 4, "--epochs", 2, "--learning-rate", 1e-3, output=run)
    assert stop.value.code == 2
    assert "--learning-rate is 0.001, but" in capsys.readouterr().err
    lora("--lora-rank", 4, "--learning-rate", 1e-3, "--no-resume", output=run)


def test_a_changed_dataset_on_continuing_is_refused(lora, capsys, dataset, tmp_path):
    run = lora()
    rows = json.loads(dataset.read_text(encoding="utf-8"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{**row, "text": row["text"].upper()} for row in rows]), encoding="utf-8")
    with pytest.raises(SystemExit):
        lora("--epochs", 2, output=run, data=other)
    assert re.search(r"--data-path is|the dataset has changed", capsys.readouterr().err)


def test_options_are_compared_before_what_follows_from_them(lora, capsys):
    """Without --train-embeddings other weights are frozen, but the base model has not changed."""
    run = lora("--train-embeddings")
    with pytest.raises(SystemExit):
        lora("--epochs", 2, output=run)
    assert "--train-embeddings is False, but" in capsys.readouterr().err


def test_a_run_directory_or_a_whole_model_is_no_adapter(lora, full, tmp_path, capsys):
    from csm_mlx.generate import main

    run, whole = lora(), full(output=tmp_path / "whole")
    capsys.readouterr()
    for given, said in (
        (run, "is a directory; give the adapter file "),
        (whole / "ckpt_epoch_1.safetensors", "holds no adapter; weights of a whole model are for --model or --pretra"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.run(main, GenerateOptions, ["--model", "tiny", "--text", "a", "--lora", str(given)])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert f"{given}: {said}" in error


def test_a_finished_run_says_where_its_weights_are(lora, capsys):
    run = lora()
    capsys.readouterr()
    lora(output=run)
    assert f"weights: {run / 'lora_ckpt_epoch_1.safetensors'}" in capsys.readouterr().out


def test_what_does_not_change_the_numbers_may_change_on_continuing(lora, dataset, tmp_path, capsys):
    run = lora("--learning-rate", 1e-3)
    moved = tmp_path / "moved.json"
    moved.write_text(dataset.read_text(encoding="utf-8"), encoding="utf-8")
    lora("--learning-rate", 1e-3, "--epochs", 2, "--sample-text", "new", "--sample-ms", 80, output=run, data=moved)
    assert "resuming from" in capsys.readouterr().out
    assert (run / "lora_ckpt_epoch_2.safetensors").exists()


def test_the_last_sample_is_of_the_model_as_it_is_in_the_end(lora):
    run = lora("--sample-text", "a", "--sample-ms", 80, "--batch-size", 3, "--eval-every", 2)
    made = {path.name for path in (run / "samples").glob("step_*_generated.wav")}
    assert made == {"step_000002_generated.wav", "step_000003_generated.wav"}


def test_config_values_that_look_like_flags_or_are_no_switches(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"data_path": "d.json", "sample_text": "--loud", "target_modules": "attn"}', encoding="utf-8")
    options = cli.parse(LoRAOptions, ["--config", str(file)])
    assert (options.sample_text, options.target_modules) == ("--loud", ("attn",))
    file.write_text('{"data_path": "d.json", "train_embeddings": "yes"}', encoding="utf-8")
    with pytest.raises(InputError, match="'train_embeddings' is \"yes\", expected true or false"):
        cli.parse(LoRAOptions, ["--config", str(file)])


BAD_FILES = {
    '{"learning_rate": true}': "'learning_rate' is true, expected a number",
    '{"learning_rate": "fast"}': "'learning_rate' is \"fast\", expected a number",
    '{"lora_rank": "4x"}': "'lora_rank' is \"4x\", expected a whole number",
    '{"lora_rank": 4.5}': "'lora_rank' is 4.5, expected a whole number",
    '{"lora_rank": null}': "'lora_rank' is null, expected a whole number",
    '{"max_samples": [3]}': "'max_samples' is [3], expected a whole number or null",
    '{"optimizer": "lion"}': '\'optimizer\' is "lion", expected one of "adamw", "adam", "sgd"',
    '{"dtype": "int8"}': '\'dtype\' is "int8", expected one of "float32", "bfloat16", "float16" or null',
    '{"data_path": 3}': "'data_path' is 3, expected a path",
    '{"model": false}': "'model' is false, expected a text",
    '{"mask_speakers": [1, "x"]}': "'mask_speakers' is [1, \"x\"], expected a list, each item a whole number",
    '{"config": "other.json"}': "'config' is no option of a file: give one file, with --config",
    '{"epochs": 3, "seed": 1, "epochs": 5}': "'epochs' is given 2 times: give it once",
    '{"learning-rate": 1, "learning_rate": 2}': "'learning_rate' is given 2 times: give it once",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_bad_config_file_is_one_line_with_file_and_key(tmp_path, content, capsys):
    file = tmp_path / "c.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _options: None, LoRAOptions, ["--config", str(file)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: --config {file}: {BAD_FILES[content]}\n"


def test_config_values_that_flags_would_take_are_taken(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(
        '{"data_path": "d.json", "lora_rank": "4", "learning_rate": 1, "sample_text": 7, "max_samples": null, '
        '"mask_speakers": 3, "dtype": "float32", "target_modules": []}',
        encoding="utf-8",
    )
    options = cli.parse(LoRAOptions, ["--config", str(file)])
    assert (options.lora_rank, options.learning_rate, options.sample_text) == (4, 1.0, "7")
    assert (options.max_samples, options.mask_speakers, options.dtype) == (None, (3,), "float32")
    assert options.target_modules == ()


def test_a_full_disk_leaves_no_half_written_sound(tmp_path, monkeypatch):
    def refuse(path: str, *_arguments) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("System error.")  # what libsndfile says

    monkeypatch.setattr(audio.audiofile, "write", refuse)
    with pytest.raises(
        InputError, match=r"a\.wav: cannot be written \(System error\.\): check the folder and its free"
    ):
        audio.write(tmp_path / "a.wav", np.zeros(10), 24000)
    assert list(tmp_path.iterdir()) == []


def test_effects_of_options(lora, tmp_path):
    def losses(*extra):
        run = lora("--log-every", 1, "--batch-size", 8, *extra, output=tmp_path / "_".join(map(str, extra)))
        return [row for row in read(run / "metrics.csv") if "loss" in row]

    plain = losses("--seed", 0)[0]
    assert plain["loss"] == pytest.approx(plain["codebook0"] + plain["depth"], abs=1e-4)
    weighted = losses("--first-codebook-weight", 2.0)[0]
    assert weighted["codebook0"] == pytest.approx(2 * plain["codebook0"], rel=1e-4)
    masked = losses("--mask-speakers", 1)[0]
    assert masked["loss"] != pytest.approx(plain["loss"], abs=1e-6)
    everything = losses("--depth-fraction", 1.0)[0]
    assert everything["codebook0"] == pytest.approx(plain["codebook0"], rel=1e-5)
    assert everything["depth"] != pytest.approx(plain["depth"], rel=1e-6)


def test_the_largest_seeds_are_seeds(lora, tmp_path):
    one, other = (lora("--seed", seed, output=tmp_path / str(seed)) for seed in (2**32 - 1, 2**32 - 2))
    losses = [read(run / "metrics.csv")[-1]["loss"] for run in (one, other)]
    assert losses[0] != losses[1]


def test_validation_split_and_patience(lora, capsys):
    run = lora("--val-split", 0.25, "--epochs", 6, "--patience", 1, "--learning-rate", 1e-30)
    values = [row["val_loss"] for row in read(run / "metrics.csv") if "val_loss" in row]
    assert len(values) == 2  # the second was no better
    assert (run / "lora_ckpt_best.safetensors").exists()
    assert f"best: {run / 'lora_ckpt_best.safetensors'}" in capsys.readouterr().out


def test_generate_command(lora, tmp_path, capsys):
    run = lora()
    output = tmp_path / "deep" / "out.wav"
    recording = DEMO / "1_george_5.wav"
    command = [sys.executable, "-m", "csm_mlx.generate", "--model", "tiny", "--text", "two", "--speaker", "0", "--output",
               str(output), "--lora", str(run / "lora_ckpt_epoch_1.safetensors"), "--context-audio", str(recording),
               "--context-text", "one", "--max-audio-length-ms", "800", "--seed", "1"]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert re.search(r"out\.wav: 0\.80 s of audio in .* s \(real-time factor .*\), peak memory .* GB", done.stdout)
    assert audio.read(output, 24000).shape == (19200,)
    assert "Warning" not in done.stderr


def test_a_recording_of_the_context_is_not_replaced(tmp_path, monkeypatch, capsys):
    from csm_mlx.generate import main

    monkeypatch.chdir(tmp_path)
    audio.write("mine.wav", np.full(2400, 0.5), 24000)
    (tmp_path / "link.wav").symlink_to("mine.wav")
    before = (tmp_path / "mine.wav").read_bytes()
    for output in ("mine.wav", "link.wav"):
        words = ["--model", "tiny", "--text", "a", "--context-text", "b", "--context-audio", str(tmp_path / "mine.wav")]
        with pytest.raises(SystemExit) as stop:
            cli.run(main, GenerateOptions, [*words, "--output", output])
        assert stop.value.code == 2
        said = f"error: --output {output}: is a recording of --context-audio; give another name\n"
        assert capsys.readouterr().err == said
    assert (tmp_path / "mine.wav").read_bytes() == before


def test_a_cut_recording_of_the_context_is_named(tmp_path, capsys):
    from csm_mlx.generate import main

    path = audio.write(tmp_path / "cut.wav", np.full(2400, 0.5), 24000)
    path.write_bytes(path.read_bytes()[:1044])
    words = ["--model", "tiny", "--text", "a", "--context-text", "b", "--context-audio", str(path), "--output"]
    with pytest.raises(SystemExit) as stop:
        cli.run(main, GenerateOptions, [*words, str(tmp_path / "out.wav")])
    assert stop.value.code == 2
    assert f"error: {path}: is cut: holds 1000 of the 4800 bytes" in capsys.readouterr().err


def test_importing_the_command_leaves_the_function_callable():
    code = "import csm_mlx.generate; from csm_mlx import CSM, generate; print(generate(CSM.from_pretrained('tiny'), 'a', 0, [], 80).shape)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(1920,)"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--text", " "], "--text is empty"),
        (["--text", "a", "--context-audio", "x.wav"], "belong together"),
        (["--text", "a", "--output", "x.xyz"], "expected a name that ends in .wav"),
        (["--text", "a", "--lora", "none.safetensors"], "none.safetensors"),
        (["--text", "a", "--temperature", "-1"], "--temperature -1.0: expected a number from 0"),
        (["--text", "a", "--temperature", "nan"], "--temperature nan: expected a number from 0"),
        (["--text", "a", "--top-k", "-1"], "--top-k -1: expected a whole number from 0"),
        (["--text", "a", "--top-p", "2"], "--top-p 2.0: expected a number from 0 to 1"),
        (["--text", "a", "--min-p", "2"], "--min-p 2.0: expected a number from 0 to 1"),
        (["--text", "a", "--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        (["--text", "a", "--speaker", "-2"], "--speaker -2: expected a whole number from 0"),
        (["--text", "a", "--max-audio-length-ms", "nan"], "--max-audio-length-ms nan: expected milliseconds from 0"),
        (
            ["--text", "a", "--max-audio-length-ms", "1e9"],
            "error: --max-audio-length-ms 1e+09: expected less than 163680",
        ),
        (["--text", "a", "--max-audio-length-ms", "10"], "--max-audio-length-ms 10: expected at least 80, one frame"),
        (["--text", "a", "--output", f"{__file__}/x.wav"], "test_commands.py is not a folder that you may write to"),
        (
            ["--text", "a", "--model", "tinny"],
            "--model tinny: no such directory, and not a Hub id such as org/name; did you mean tiny?",
        ),
        (["--text", "a", "--pretrained-path", "none.safetensors"], "none.safetensors: no such file"),
        (["--text", "a", "--context-speaker", "3"], "belong together, found 0, 0 and 1"),
    ],
)
def test_generate_refuses_bad_input(extra, message, capsys):
    from csm_mlx.generate import main

    with pytest.raises(SystemExit) as stop:
        cli.run(main, GenerateOptions, ["--model", "tiny", "--max-audio-length-ms", "160", *extra])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
