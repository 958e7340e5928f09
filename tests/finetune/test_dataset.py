"""create_dataset, manifests, the code cache and what becomes of conversations."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends import cli, get
from backends.data.manifest import read_manifest
from backends.errors import InputError
from csm_mlx import CSM, csm_tiny
from csm_mlx.finetune import dataset as datasets
from csm_mlx.finetune.create_dataset import CreateDatasetOptions, main

RECORDINGS = Path(__file__).parents[2] / "examples" / "fsdd_george" / "train"


@pytest.fixture
def folder(tmp_path):
    """Recordings with each kind of transcript, and some that cannot be used."""
    for index, (suffix, text) in enumerate(
        [("normalized.txt", '"one"'), ("original.txt", "two\n"), ("txt", "three  four"), ("txt", " "), (None, "")]
    ):
        shutil.copy(RECORDINGS / f"{index}_george_5.wav", tmp_path / f"{index}.wav")
        if suffix:
            (tmp_path / f"{index}.{suffix}").write_text(text, encoding="utf-8")
    (tmp_path / "0.txt").write_text("not this one", encoding="utf-8")
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    (tmp_path / "bad.txt").write_text("bad", encoding="utf-8")
    return tmp_path


def create(*flags) -> None:
    cli.run(main, CreateDatasetOptions, [str(flag) for flag in flags])


def test_transcripts_in_their_order_and_what_is_left_out(folder, capsys):
    create("--audio-dir", folder, "--output-json", folder / "dataset.json")
    rows = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert [row["text"] for row in rows] == ["one", "two", "three four"]
    assert [row["audio_path"] for row in rows] == ["0.wav", "1.wav", "2.wav"]
    assert {row["speaker_id"] for row in rows} == {0}
    printed = capsys.readouterr().out
    for reason in (
        "4.wav: no transcript",
        "3.wav: its transcript is empty",
        "bad.wav: not readable as audio",
        "left out 3",
    ):
        assert reason in printed


@pytest.mark.parametrize(
    ("name", "samples", "reason"),
    [
        ("empty", np.zeros(0), "holds no audio samples"),
        ("nan", np.array([0.1, np.nan, 0.1]), "holds NaN or infinite samples"),
        ("inf", np.array([0.1, np.inf, 0.1]), "holds NaN or infinite samples"),
        ("silent", np.zeros(8000), "is silent: no sample reaches 0.001 of full scale"),
        ("opposed", np.array([[0.5, -0.5]] * 8000), "is silent"),  # its channels cancel out, and are averaged
        ("long", np.full(8000, 0.1), "lasts 1.00 s, longer than --max-audio-length-ms 900"),
    ],
)
def test_recordings_that_cannot_be_trained_on_are_named_at_once(folder, capsys, name, samples, reason):
    import soundfile

    soundfile.write(folder / f"{name}.wav", samples, 8000, subtype="FLOAT")
    (folder / f"{name}.txt").write_text(name, encoding="utf-8")
    create("--audio-dir", folder, "--output-json", folder / "d.json", "--max-audio-length-ms", 900)
    rows = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    assert [row["audio_path"] for row in rows] == ["0.wav", "1.wav", "2.wav"]
    assert f"{folder / name}.wav: {reason}" in capsys.readouterr().out


def test_all_that_is_left_out_is_named(folder, capsys):
    for index in range(30):
        (folder / f"bad{index}.wav").write_bytes(b"no sound")
    create("--audio-dir", folder, "--output-json", folder / "d.json")
    printed = capsys.readouterr().out
    assert "left out 33:" in printed
    assert all(f"{folder}/bad{index}.wav: " in printed for index in range(30))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_that_was_cut_is_named_and_a_streamed_one_is_taken(tmp_path, capsys, subtype):
    import soundfile

    sound, rate_hz = soundfile.read(RECORDINGS / "1_george_5.wav")
    for name in ("whole", "cut", "streamed"):
        soundfile.write(tmp_path / f"{name}.wav", sound, rate_hz, subtype=subtype)
        (tmp_path / f"{name}.txt").write_text("one", encoding="utf-8")
    whole = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    at = whole.index(b"data") + 4
    (tmp_path / "streamed.wav").write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
    create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json")
    rows = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert [row["audio_path"] for row in rows] == ["streamed.wav", "whole.wav"]
    promised = len(sound) * (2 if subtype == "PCM_16" else 4)
    held = len(whole) // 2 - at - 4
    assert f"cut.wav: is cut: holds {held} of the {promised} bytes of sound" in capsys.readouterr().out


def test_one_suffix_a_speaker_and_a_limit(folder):
    create("--audio-dir", folder, "--output-json", folder / "d.json", "--transcript-suffix", "txt", "--default-speaker", 7,
           "--max-samples", 1)  # fmt: skip
    rows = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    assert rows == [{"text": "not this one", "audio_path": "0.wav", "speaker_id": 7}]


def test_speakers_by_folder(tmp_path):
    for name in ("bob", "amy", "\u00b2"):
        (tmp_path / name).mkdir()
        shutil.copy(RECORDINGS / "1_george_5.wav", tmp_path / name / "a.wav")
        (tmp_path / name / "a.txt").write_text(name, encoding="utf-8")
    create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json", "--recursive", "--speaker-per-folder")
    rows = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert {row["text"]: row["speaker_id"] for row in rows} == {"amy": 0, "bob": 1, "\u00b2": 2}


def _one_clip_each(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        shutil.copy(RECORDINGS / "1_george_5.wav", root / name / "a.wav")
        (root / name / "a.txt").write_text(name, encoding="utf-8")


def test_folders_named_by_numbers_keep_them(tmp_path):
    _one_clip_each(tmp_path, "7", "anna/03")
    create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json", "--recursive", "--speaker-per-folder")
    rows = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert {row["text"]: row["speaker_id"] for row in rows} == {"7": 7, "anna/03": 3}


@pytest.mark.parametrize("names", [("01", "1"), ("anna/1", "ben/1")])
def test_two_folders_of_one_number_are_named(names, tmp_path, capsys):
    _one_clip_each(tmp_path, "0", *names)
    with pytest.raises(SystemExit) as stop:
        create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json", "--recursive", "--speaker-per-folder")
    assert stop.value.code == 2
    first, second = (tmp_path / name for name in names)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --speaker-per-folder: {first} and {second} would both be speaker 1: rename one")
    assert not (tmp_path / "d.json").exists()


def test_ljspeech_metadata(tmp_path):
    (tmp_path / "wavs").mkdir()
    shutil.copy(RECORDINGS / "1_george_5.wav", tmp_path / "wavs" / "LJ001.wav")
    (tmp_path / "metadata.csv").write_text("LJ001|Dr. 1|Doctor one\nLJ002|gone|gone\n", encoding="utf-8")
    create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json")
    rows = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert rows == [{"text": "Doctor one", "audio_path": "wavs/LJ001.wav", "speaker_id": 0}]


def test_extensions_in_capitals_are_found(tmp_path):
    shutil.copy(RECORDINGS / "1_george_5.wav", tmp_path / "A.WAV")
    (tmp_path / "A.txt").write_text("one", encoding="utf-8")
    create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))[0]["audio_path"] == "A.WAV"


def test_a_metadata_csv_of_another_kind_is_named(tmp_path, capsys):
    (tmp_path / "metadata.csv").write_text("file_name,transcription\na.wav,hello\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json")
    assert stop.value.code == 2
    assert "metadata.csv: expected LJSpeech's rows id|text" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--recursive"], ["--transcript-suffix", "txt"]])
def test_flags_that_a_metadata_csv_would_ignore_are_an_error(flags, tmp_path, capsys):
    (tmp_path / "metadata.csv").write_text("a|hello\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json", *flags)
    assert stop.value.code == 2
    assert "leave out --recursive and --transcript-suffix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-samples", 0),
        ("--default-speaker", -1),
        ("--max-audio-length-ms", -1.0),
        ("--max-audio-length-ms", float("inf")),
    ],
)
def test_numbers_out_of_range_are_an_error(flag, value, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        create("--audio-dir", folder, "--output-json", folder / "d.json", flag, value)
    assert stop.value.code == 2
    assert f"{flag} {value}: expected" in capsys.readouterr().err


def test_numbering_speakers_excludes_giving_one(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        create("--audio-dir", folder, "--default-speaker", 3, "--speaker-per-folder")
    assert stop.value.code == 2
    assert "--speaker-per-folder and --default-speaker exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("0.wav", [], "0.wav: expected a name that ends in .json"),
        ("0.txt", [], "0.txt: expected a name that ends in .json"),
        ("0.json", ["--transcript-suffix", "json"], "0.json: is the transcript of a recording; give another name"),
        ("ids.json", ["--metadata", "ids.json"], "ids.json: is the list of recordings; give another name"),
    ],
)
def test_nothing_that_was_read_is_replaced(output, flags, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for name in ("0.json", "ids.json"):
        Path(name).write_text("0|one", encoding="utf-8")
    before = Path(output).read_bytes()
    with pytest.raises(SystemExit) as stop:
        create("--audio-dir", ".", "--output-json", output, *flags)
    assert stop.value.code == 2
    assert f"error: --output-json {message}" in capsys.readouterr().err
    assert Path(output).read_bytes() == before


def test_without_any_transcript_only_a_few_recordings_are_named(tmp_path, capsys):
    for index in range(12):
        (tmp_path / f"{index:02}.wav").write_bytes(b"")
    with pytest.raises(SystemExit):
        create("--audio-dir", tmp_path, "--output-json", tmp_path / "d.json")
    printed = capsys.readouterr()
    first, *named, more = printed.out.splitlines()
    assert (first, more) == ("left out 12:", "  and 7 more")
    assert named == [
        f"  {tmp_path / f'{i:02}.wav'}: no transcript (.normalized.txt, .original.txt, .txt)" for i in range(5)
    ]
    assert "no .wav recording with a transcript" in printed.err


@pytest.mark.parametrize("flags", [["--audio-dir", "gone"], ["--audio-dir", "."]])
def test_nothing_to_make_is_an_error(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        create(*flags)
    assert stop.value.code == 2
    assert "--audio-dir" in capsys.readouterr().err
    assert not (tmp_path / "dataset.json").exists()


def test_manifest_forms_and_paths(tmp_path, monkeypatch):
    beside, elsewhere = tmp_path / "data", tmp_path / "work"
    beside.mkdir()
    elsewhere.mkdir()
    (beside / "a.wav").touch()
    (elsewhere / "b.wav").touch()
    monkeypatch.chdir(elsewhere)
    path = beside / "d.json"
    turn = {"text": "x", "audio_path": "a.wav", "speaker": 2}
    path.write_text(json.dumps([turn, [turn, {"text": "y", "audio_path": "b.wav"}]]), encoding="utf-8")
    first, second = read_manifest(path)
    assert first[0].audio_path == beside / "a.wav"
    assert [clip.speaker for clip in second] == [2, 0]
    assert second[1].audio_path.resolve() == elsewhere / "b.wav"


@pytest.fixture(scope="module")
def model() -> CSM:
    return CSM.from_pretrained("tiny")


def conversation(*takes: tuple[int, int]):
    from backends.data.manifest import Clip

    return tuple(Clip(str(digit), RECORDINGS / f"{digit}_george_5.wav", speaker) for digit, speaker in takes)


def test_clips_are_encoded_once(model):
    cache = datasets.code_cache(model, get("mlx"))
    calls = []
    counted = datasets.CodeCache(lambda path: calls.append(path) or cache.encode(path), "counted", cache.directory)
    rows = [conversation((1, 0)), conversation((2, 0)), conversation((1, 1))]
    first = datasets.examples(rows, model, counted, datasets.Limits())
    again = datasets.examples(rows, model, counted, datasets.Limits())
    assert len(calls) == 2
    assert datasets.fingerprint(first) == datasets.fingerprint(again)


def test_a_damaged_cache_entry_is_made_again(model):
    cache = datasets.code_cache(model, get("mlx"))
    path = RECORDINGS / "1_george_5.wav"
    codes = cache(path)
    entry = next(cache.folder.glob("*.npy"))
    entry.write_bytes(entry.read_bytes()[:50])
    np.testing.assert_array_equal(cache(path), codes)


def test_rows_and_targets_of_a_conversation(model):
    cache = datasets.code_cache(model, get("mlx"))
    (example,) = datasets.examples([conversation((1, 0), (2, 1))], model, cache, datasets.Limits(mask_speakers=(0,)))
    text = [256, *(ord(c) for c in "x"), 257]
    assert len(text) == 3
    frames = [cache(RECORDINGS / f"{digit}_george_5.wav").shape[1] for digit in (1, 2)]
    lengths = [len("[0]1") + 2, frames[0] + 1, len("[1]2") + 2, frames[1] + 1]
    assert len(example) == sum(lengths)
    expected = np.repeat([False, True, False, True], lengths)
    np.testing.assert_array_equal(example.is_audio, expected)
    np.testing.assert_array_equal(example.targets, np.repeat([False, False, False, True], lengths))
    ends = np.flatnonzero(example.is_audio & (example.rows == 0).all(axis=1))
    assert {lengths[0] + lengths[1] - 1, sum(lengths) - 1} <= set(ends.tolist())


def test_the_oldest_turns_go_first_and_nothing_is_cut(model):
    cache = datasets.code_cache(model, get("mlx"))
    frames = cache(RECORDINGS / "2_george_5.wav").shape[1]
    rows = [conversation((1, 0), (2, 0)), conversation((9, 0), (2, 0))]
    kept = datasets.examples(rows, model, cache, datasets.Limits(max_audio_ms=80.0 * frames))
    assert [int(example.is_audio.sum()) for example in kept] == [frames + 1] * 2


@pytest.fixture
def said() -> list[str]:
    return []


def with_positions(most: int) -> CSM:
    return CSM(replace(csm_tiny(), max_positions=most))


def test_no_example_is_longer_than_the_models_positions(model, said):
    cache = datasets.code_cache(model, get("mlx"))
    whole, turn = (
        len(datasets.examples([row], model, cache, datasets.Limits())[0])
        for row in (conversation((1, 0), (9, 1), (2, 0)), conversation((2, 0)))
    )
    rows = [conversation((1, 0), (9, 1), (2, 0)), conversation((2, 0))]

    fits = datasets.examples(rows, with_positions(whole), cache, datasets.Limits(), said.append)
    assert ([len(example) for example in fits], said) == ([whole, turn], [])

    short = datasets.examples(rows, with_positions(whole - 1), cache, datasets.Limits(), said.append)
    expected = datasets.examples([conversation((9, 1), (2, 0))], model, cache, datasets.Limits())
    np.testing.assert_array_equal(short[0].rows, expected[0].rows)
    path = RECORDINGS / "2_george_5.wav"
    assert said == [
        f"left out the oldest turns of 1 conversations, the model has {whole - 1} positions: e.g. before {path}"
    ]


def test_a_clip_longer_than_the_models_positions_is_named(model, said):
    cache = datasets.code_cache(model, get("mlx"))
    rows = [conversation((digit, 0)) for digit in range(10)]
    lengths = [len(example) for example in datasets.examples(rows, model, cache, datasets.Limits())]
    most = max(lengths) - 1
    kept = datasets.examples(rows, with_positions(most), cache, datasets.Limits(), said.append)
    assert [len(example) for example in kept] == [length for length in lengths if length <= most]
    assert said == [
        f"left out {row[0].audio_path}: {length} text tokens and frames, the model has {most} positions: "
        "cut it where the text can be cut"
        for row, length in zip(rows, lengths, strict=True)
        if length > most
    ]
    with pytest.raises(InputError, match="--val-path: no row is left"):
        datasets.examples(rows, with_positions(5), cache, datasets.Limits(), said.append, option="--val-path")


def test_of_masked_speakers_alone_nothing_is_trained(model, said):
    cache = datasets.code_cache(model, get("mlx"))
    rows = [conversation((1, 0), (2, 1)), conversation((3, 0))]
    whole = len(datasets.examples(rows[:1], model, cache, datasets.Limits())[0])
    limits = datasets.Limits(mask_speakers=(1,))
    (example,) = datasets.examples(rows, with_positions(whole - 1), cache, limits, said.append)
    assert example.targets.any()
    (line,) = said
    assert line.startswith("left out 1 rows that are too long or have no target speaker, e.g. ")
