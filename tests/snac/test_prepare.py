"""prepare_dataset_folder: a split by hash that is stable when files are added."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from backends import cli
from snac_port.prepare_dataset_folder import PrepareOptions, main, side_of

RECORDINGS = Path(__file__).parents[2] / "examples" / "fsdd_george" / "train"


def prepare(source, target, *flags) -> dict[str, set[str]]:
    cli.run(main, PrepareOptions, ["--input_dir", str(source), "--output_dir", str(target), *map(str, flags)])
    return {
        side: {path.relative_to(target / side).as_posix() for path in (target / side).rglob("*.wav")}
        for side in ("train", "val")
    }


def test_the_split_is_stable_and_complete(tmp_path):
    source = tmp_path / "in"
    shutil.copytree(RECORDINGS, source)
    first = prepare(source, tmp_path / "out", "--train_ratio", 0.7)
    assert len(first["train"]) + len(first["val"]) == 60
    assert 30 <= len(first["train"]) <= 54
    assert (tmp_path / "out" / "train" / min(first["train"])).is_symlink()
    shutil.copy(source / "0_george_5.wav", source / "added.wav")
    again = prepare(source, tmp_path / "again", "--train_ratio", 0.7, "--mode", "copy")
    assert {side: names - {"added.wav"} for side, names in again.items()} == first
    assert not (tmp_path / "again" / "train" / min(again["train"])).is_symlink()


def test_no_side_is_empty(tmp_path):
    split = prepare(RECORDINGS, tmp_path / "out", "--train_ratio", 0.9999999)
    assert (len(split["train"]), len(split["val"])) == (59, 1)


def test_speakers_stay_together(tmp_path):
    for speaker in "abcdefgh":
        shutil.copytree(RECORDINGS, tmp_path / "in" / speaker)
    split = prepare(tmp_path / "in", tmp_path / "out", "--train_ratio", 0.5, "--by_speaker")
    speakers = {side: {name.split("/")[0] for name in names} for side, names in split.items()}
    assert not speakers["train"] & speakers["val"]
    assert speakers["train"] | speakers["val"] == set("abcdefgh")


def test_the_share_is_that_of_the_ratio():
    sides = [side_of(f"file{number}", 0.95) for number in range(4000)]
    assert 0.93 < sides.count("train") / 4000 < 0.97


def test_bad_files_are_listed(tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(RECORDINGS, source)
    (source / "broken.wav").write_bytes(b"no sound")
    soundfile.write(source / "silent.wav", np.zeros(8000), 8000)
    prepare(source, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "left out 2" in printed
    assert "silent.wav: is silent" in printed
    assert "broken.wav: not readable as audio" in printed


def test_a_cut_wav_is_left_out_and_an_mp3_shorter_than_its_header_says_is_kept(tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(RECORDINGS, source)
    for name in ("whole.mp3", "cut.mp3"):
        soundfile.write(source / name, np.random.default_rng(0).standard_normal(80_000) * 0.1, 8000)
    content = (source / "cut.mp3").read_bytes()
    (source / "cut.mp3").write_bytes(content[: len(content) * 6 // 10])
    whole = next(source.glob("*.wav")).read_bytes()
    (source / "cut.wav").write_bytes(whole[: len(whole) // 2])
    prepare(source, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "left out 1:" in printed
    assert f"cut.wav: is cut: holds {len(whole) // 2 - 44} of the {len(whole) - 44} bytes of sound" in printed
    assert not list((tmp_path / "out").rglob("cut.wav"))  # which training would refuse
    assert "cut.mp3: its header says 10.00 s, 5." in printed
    assert "whole.mp3" not in printed
    assert len(list((tmp_path / "out").rglob("cut.mp3"))) == 1


def test_all_bad_files_are_listed(tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(RECORDINGS, source)
    for number in range(13):
        (source / f"broken_{number}.wav").write_bytes(b"no sound")
    prepare(source, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "left out 13:" in printed
    assert [f"broken_{number}.wav: " in printed for number in range(13)] == [True] * 13


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_another_ratio_moves_recordings_from_side_to_side(tmp_path, mode):
    prepare(RECORDINGS, tmp_path / "out", "--train_ratio", 0.3, "--mode", mode)
    moved = prepare(RECORDINGS, tmp_path / "out", "--train_ratio", 0.8, "--mode", mode)
    assert not moved["train"] & moved["val"]
    assert moved == prepare(RECORDINGS, tmp_path / "fresh", "--train_ratio", 0.8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--train_ratio", 1.5], "--train_ratio 1.5"), (["--by_speaker"], "two sides need at least 2")],
)
def test_bad_ratios(tmp_path, capsys, flags, message):
    (tmp_path / "in").mkdir()
    shutil.copytree(RECORDINGS, tmp_path / "in" / "one")
    with pytest.raises(SystemExit) as stop:
        prepare(tmp_path / "in", tmp_path / "out", *flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_output_inside_input_is_refused(tmp_path, capsys):
    shutil.copytree(RECORDINGS, tmp_path / "in")
    with pytest.raises(SystemExit):
        prepare(tmp_path / "in", tmp_path / "in" / "out")
    assert "is inside --input_dir" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["link", "copy"])
@pytest.mark.parametrize("source", ["data/train", "data/train/fsdd", "linked"])
def test_an_output_over_the_input_is_refused_and_nothing_is_lost(tmp_path, capsys, source, mode):
    shutil.copytree(RECORDINGS, tmp_path / "data" / "train" / "fsdd")
    (tmp_path / "linked").symlink_to(tmp_path / "data" / "train" / "fsdd")
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.wav")}
    with pytest.raises(SystemExit) as stop:
        prepare(tmp_path / source, tmp_path / "data", "--mode", mode)
    assert stop.value.code == 2
    assert "its train/ would hold --input_dir" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.wav")} == before


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_what_no_split_made_is_not_replaced(tmp_path, capsys, mode):
    mine = tmp_path / "out" / "train" / "0_george_5.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(SystemExit) as stop:
        prepare(RECORDINGS, tmp_path / "out", "--train_ratio", 0.999, "--mode", mode)
    assert stop.value.code == 2
    assert f"{mine}: is in the way" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize("side", ["train", "val"])
def test_recordings_of_something_else_are_not_mixed_in(tmp_path, capsys, side):
    mine = tmp_path / "out" / side / "speech" / "mine.flac"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    (mine.parent / "notes.txt").write_text("no recording")
    with pytest.raises(SystemExit) as stop:
        prepare(RECORDINGS, tmp_path / "out")
    assert stop.value.code == 2
    said = f"{tmp_path / 'out' / side}: holds recordings that no earlier split put there, such as mine.flac: move them"
    assert said in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink() or path.name == "split.json"]
    mine.unlink()
    assert sum(map(len, prepare(RECORDINGS, tmp_path / "out").values())) == 60


def test_a_file_as_output_folder_is_named(tmp_path, capsys):
    (tmp_path / "afile").write_text("mine")
    for output in (tmp_path / "afile", tmp_path / "afile" / "below"):
        with pytest.raises(SystemExit) as stop:
            prepare(RECORDINGS, output)
        assert stop.value.code == 2
        said = f"error: --output_dir {output}: cannot be written, {tmp_path / 'afile'} is not a folder that you may"
        assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_links_of_a_split_without_a_list_move(tmp_path):
    first = prepare(RECORDINGS, tmp_path / "out", "--train_ratio", 0.3)
    (tmp_path / "out" / "split.json").unlink()
    moved = prepare(RECORDINGS, tmp_path / "out", "--train_ratio", 0.8)
    assert first["train"] < moved["train"]
    assert not moved["train"] & moved["val"]


def test_a_recording_that_filled_an_empty_side_stays_there(tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    wavs = sorted(RECORDINGS.glob("*.wav"))
    for path in wavs[:3]:
        shutil.copy(path, source)
    first = prepare(source, tmp_path / "out", "--train_ratio", 0.99)
    assert f"val/ would be empty: {min(first['val'])}" in capsys.readouterr().out
    for path in wavs[3:]:
        shutil.copy(path, source)
    again = prepare(source, tmp_path / "out", "--train_ratio", 0.99)
    assert first["val"] <= again["val"]
    assert first["train"] <= again["train"]
    assert sum(map(len, again.values())) == 60


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_what_is_gone_or_broken_leaves_the_folder(tmp_path, mode):
    source = tmp_path / "in"
    shutil.copytree(RECORDINGS, source)
    first = prepare(source, tmp_path / "out", "--mode", mode)
    broken, gone = sorted(first["train"])[:2]
    (source / broken).write_bytes(b"no sound")
    (source / gone).unlink()
    again = prepare(source, tmp_path / "out", "--mode", mode)
    assert again == {"train": first["train"] - {broken, gone}, "val": first["val"]}


def test_formats_that_are_not_read_are_listed(tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(RECORDINGS, source)
    (source / "talk.m4a").write_bytes(b"x")
    prepare(source, tmp_path / "out")
    assert "talk.m4a: .m4a is not read here; convert it to WAV or FLAC" in capsys.readouterr().out
