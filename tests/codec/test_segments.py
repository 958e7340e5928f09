"""Segments, curriculum and the host side of codec training."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from backends.data import audio, segments
from backends.data.segments import Piece, Recording, Source
from backends.errors import InputError
from backends.seeds import rng
from backends.training.baselines import Baselines
from backends.training.curriculum import check_lengths, stage_of, stages

SEED_TABLE = json.dumps(
    [
        {"epochs": [1, 2], "length": 1.0, "batch_multiplier": 2.0},
        {"epochs": [3, 4], "length": 2.0, "batch_multiplier": 1.0},
        {"epochs": [5, 6], "length": 3.0, "batch_multiplier": 0.6},
        {"epochs": [7, 10], "length": 4.0, "batch_multiplier": 0.45},
    ]
)


def test_the_seed_s_table():
    made = stages(SEED_TABLE, 10, 48, 1.0)
    assert [(s.first, s.last, s.length_s, s.batch_size) for s in made] == [
        (1, 2, 1.0, 96), (3, 4, 2.0, 48), (5, 6, 3.0, 28), (7, 10, 4.0, 21),
    ]  # fmt: skip
    assert [stage_of(made, epoch).name for epoch in (1, 2, 3, 6, 7, 10)] == [
        "1.0s",
        "1.0s",
        "2.0s",
        "3.0s",
        "4.0s",
        "4.0s",
    ]


def test_without_a_curriculum_there_is_one_stage():
    assert [(s.first, s.last, s.length_s, s.batch_size) for s in stages("", 7, 5, 1.5)] == [(1, 7, 1.5, 5)]


def test_stages_end_with_the_run():
    made = stages(SEED_TABLE, 3, 48, 1.0)
    assert [(s.first, s.last, s.length_s) for s in made] == [(1, 2, 1.0), (3, 3, 2.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('[{"epochs": [1, 2]}]', "lacks epochs"),
        ('[{"epochs": [2, 3], "length": 1}]', "expected one from 1 on"),
        ('[{"epochs": [1, 2], "length": 1}]', "ends with epoch 2, but the run has 4 epochs: add a stage"),
        ('[{"epochs": [1, 4], "length": 1, "size": 3}]', "unknown key 'size'"),
        ('[{"epochs": [1, 4], "length": 1, "batch_multiplier": 0.01}]', "expected more than none"),
        ('[{"epochs": [1, 4], "length": 0}]', "expected more than none"),
        ('[{"epochs": [1, 4], "length": NaN}]', "segments of nan s; expected .* finite"),
        ('[{"epochs": [1, 4], "length": Infinity}]', "segments of inf s; expected .* finite"),
        ('[{"epochs": [1, 4], "length": 1e999}]', "segments of inf s; expected .* finite"),
        ('[{"epochs": [1, 4], "length": 1, "batch_multiplier": NaN}]', "batches of nan"),
        ('[{"epochs": [1, 4], "length": 1, "batch_multiplier": Infinity}]', "batches of inf"),
        ('[{"epochs": [1.9, 4.2], "length": 1}]', r"epochs \[1.9, 4.2\]: expected two whole numbers"),
        ('[{"epochs": [1, true], "length": 1}]', "expected two whole numbers"),
        ('[{"epochs": [1, 4], "length": 1' + "0" * 400 + "}]", "int too large"),
        ('[{"epochs": [1], "length": 1}]', "lacks epochs"),
    ],
)
def test_bad_curricula_are_named(text, message):
    with pytest.raises(InputError, match=message):
        stages(text, 4, 8, 1.0)


@pytest.mark.parametrize(
    ("text", "length_s", "shown"),
    [("", 1e300, "1e+300"), ("", 3601.0, "3601"), ('[{"epochs": [1, 4], "length": 1e9}]', 1.0, "1e+09")],
)
def test_segments_of_more_than_an_hour_are_refused(text, length_s, shown):
    """An epoch of them would be recordings joined again and again until one is full."""
    check_lengths(stages("", 4, 8, 3600.0), 24_000, {"--n-ffts 64": 64})
    message = f"--segment-length, --curriculum: segments of {shown} s; expected at most 3600 s".replace("+", r"\+")
    with pytest.raises(InputError, match=message):
        check_lengths(stages(text, 4, 8, length_s), 24_000, {})


def test_stages_of_one_length_improve_each_for_itself(tmp_path):
    text = (
        '[{"epochs": [1, 1], "length": 1}, {"epochs": [2, 2], "length": 2}, {"epochs": [3, 4], "length": 1}, '
        '{"epochs": [5, 5], "length": 3}]'
    )
    (tmp_path / "metrics.csv").write_text("step,epoch,val_loss\n1,1,8.0\n2,2,3.0\n3,3,6.0\n4,4,5.0\n")
    values = {name: {"val_loss": 10.0} for name in ("1.0s", "2.0s", "3.0s")}
    measured = Baselines(stages(text, 5, 8, 1.0), values)
    found = {name: round(share, 9) for name, share in measured.improvements(tmp_path)}
    assert found == {"1.0s, epochs 1-1": 0.2, "2.0s": 0.7, "1.0s, epochs 3-4": 0.5}  # the last was not reached
    cells = measured.section(tmp_path).html.split("<tr>")
    assert ["-20.0 %" in cells[2], "-50.0 %" in cells[4]] == [True, True]


def made_source(*units: int) -> Source:
    return Source([Recording(Path(f"{index}.wav"), count) for index, count in enumerate(units)], 8000, 100)


def test_long_files_give_one_crop_each_and_short_ones_are_joined():
    source = made_source(10, 3, 2, 20, 4, 1)
    planned = source.plan(5, seed=0, epoch=1)
    whole = [segment for segment in planned if segment[0].start is None]
    joined = [segment for segment in planned if segment[0].start is not None]
    assert all(sum(piece.units for piece in segment) == 5 for segment in planned)
    assert {segment[0].file for segment in whole} <= {0, 3}
    assert all(piece.start == 0 for segment in joined for piece in segment)
    assert len({piece.file for segment in planned for piece in segment}) >= 4
    assert planned == source.plan(5, seed=0, epoch=1)
    assert planned != source.plan(5, seed=0, epoch=2)


def test_few_short_files_repeat_until_one_segment_is_full():
    planned = made_source(2, 1).plan(7, seed=0, epoch=1)
    assert len(planned) == 1
    assert sum(piece.units for piece in planned[0]) == 7


@pytest.mark.parametrize("length", [1, 4, 9, 40])
def test_every_visit_is_planned_in_the_order_drawn(length):
    """As it was before planning took time in proportion to the recordings: these plans are those of older runs."""
    units = [1 + 7 * number % 13 for number in range(23)]
    for epoch in range(4):
        planned = made_source(*units).plan(length, seed=3, epoch=epoch)
        expected, pieces = [], []
        for file in rng(3, epoch).permutation(23).tolist():
            if not pieces and units[file] >= length:
                expected.append((Piece(file, None, length),))
                continue
            pieces.append(Piece(file, 0, min(units[file], length - sum(piece.units for piece in pieces))))
            if sum(piece.units for piece in pieces) == length:
                expected.append(tuple(pieces))
                pieces = []
        assert planned == expected
        assert len(planned) >= 2


def test_an_epoch_s_segments_are_counted_once(monkeypatch):
    source, planned, plan = made_source(10, 3, 2, 20, 4, 1), [], Source.plan
    monkeypatch.setattr(Source, "plan", lambda self, *args, **keys: planned.append(keys) or plan(self, *args, **keys))
    counts = [[source.count(length, seed=0, epoch=epoch) for length in (5, 7) for epoch in (1, 2)] for _ in range(3)]
    assert counts[0] == counts[1] == counts[2]
    assert len(planned) == 4
    assert counts[0] == [len(plan(source, length, seed=0, epoch=epoch)) for length in (5, 7) for epoch in (1, 2)]


@pytest.fixture
def folder(tmp_path):
    """A file with silence but for its last tenth, and a short one of 2.5 units."""
    loud = np.zeros(10_000, np.float32)
    loud[9_000:] = 0.5
    soundfile.write(tmp_path / "quiet.wav", loud, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", np.full(250, 0.25, np.float32), 8000, subtype="FLOAT")
    return tmp_path


def test_the_fingerprint_is_of_names_lengths_and_sound(folder):
    paths = [folder / "quiet.wav", folder / "short.wav"]
    source = segments.source(paths, 8000, 100)
    before = segments.fingerprint(source)
    assert before == segments.fingerprint(segments.source(paths, 8000, 100))
    soundfile.write(folder / "short.wav", np.full(250, -0.25, np.float32), 8000, subtype="FLOAT")
    assert segments.fingerprint(segments.source(paths, 8000, 100)) != before


def test_reading_pads_files_to_whole_units(folder):
    source = segments.source([folder / "short.wav"], 8000, 100)
    assert source.recordings[0].units == 3
    audio, pieces = source.read((Piece(0, 0, 3), Piece(0, 0, 2)), 0)
    assert audio.shape == (500,)
    np.testing.assert_array_equal(audio, np.repeat([0.25, 0.0, 0.25], [250, 50, 200]).astype(np.float32))
    assert pieces == (Piece(0, 0, 3), Piece(0, 0, 2))


@pytest.mark.parametrize(
    ("count", "named", "rest"),
    [(1, ["0.wav: not readable as audio"], "also"), (3, ["0.wav: not", "; 3 files are bad, also ", "1.wav, "], "more"),
     (7, ["0.wav: not", "4.wav and 2 more"], "5.wav")],
)  # fmt: skip
def test_recordings_that_cannot_be_read_are_named(folder, count, named, rest):
    for number in range(count):
        (folder / f"{number}.wav").write_bytes(b"no audio")
    with pytest.raises(InputError) as raised:
        segments.source(segments.find(folder, "--x"), 8000, 100)
    message = str(raised.value)
    assert all(part in message for part in named), message
    assert rest not in message
    assert "\n" not in message


@pytest.mark.parametrize("units", [None, lambda path: round(audio.duration_s(path) * 80)], ids=["sound", "codes"])
def test_wavs_that_were_cut_or_hold_nothing_are_named(folder, units):
    for name in ("cut.wav", "empty.wav"):
        soundfile.write(folder / name, np.zeros(8000 * (name == "cut.wav")), 8000)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:9044])
    with pytest.raises(InputError) as raised:
        segments.source(segments.find(folder, "--x"), 8000, 100, units)
    said = "cut.wav: is cut: holds 9000 of the 16000 bytes of sound that its header announces; copy it again"
    assert str(raised.value) == f"{folder / said}; 2 files are bad, also {folder / 'empty.wav'}"
    (folder / "cut.wav").unlink()
    with pytest.raises(InputError, match=r"empty\.wav: holds no audio samples at 8000 Hz$"):
        segments.source(segments.find(folder, "--x"), 8000, 100, units)


@pytest.fixture
def cut(tmp_path):
    """An MP3 of ten seconds by its header, cut to 60 %."""
    path = tmp_path / "cut.mp3"
    soundfile.write(path, np.random.default_rng(0).standard_normal(80_000) * 0.1, 8000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    return path


def test_a_file_is_as_long_as_what_can_be_decoded(cut):
    held = audio.read(cut, 8000)
    assert audio.duration_s(cut) == 10.0
    assert held.size < 60_000
    source = segments.source([cut], 8000, 100)
    assert source.recordings[0].units == -(-held.size // 100)
    crops = [source.read((Piece(0, None, 100),), 0, key)[0] for key in range(40)]
    assert min(np.abs(crop[-100:]).max() for crop in crops) > 0.01  # none ends in padding


def test_where_there_are_codes_they_say_how_long_files_are(folder):
    source = segments.source([folder / "short.wav"], 8000, 100, units=lambda _path: 7)
    assert source.recordings[0].units == 7


def test_crops_are_seeded_and_avoid_silence(folder):
    source = segments.source([folder / "quiet.wav"], 8000, 100)
    segment = (Piece(0, None, 20),)
    found = [source.read(segment, 0, key) for key in range(60)]
    again = [source.read(segment, 0, key) for key in range(60)]
    assert all((a[0] == b[0]).all() and a[1] == b[1] for a, b in zip(found, again, strict=True))
    assert len({pieces[0].start for _, pieces in found}) > 10
    sounding = np.mean([np.abs(audio).max() > 0 for audio, _ in found])
    assert sounding > 0.3  # a blind draw sounds in 10 of 81 places, four tries in 41 % of cases


def test_finding_recordings(tmp_path, folder):
    (folder / "below").mkdir()
    soundfile.write(folder / "below" / "b.flac", np.zeros(100), 8000)
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    (folder / "._quiet.wav").write_bytes(b"of macOS")
    assert [path.name for path in segments.find(folder, "--x")] == ["b.flac", "quiet.wav", "short.wav"]
    with pytest.raises(InputError, match=r"--x .*gone: no such folder"):
        segments.find(tmp_path / "gone", "--x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no recordings"):
        segments.find(tmp_path / "empty", "--x")


def test_links_to_nothing_are_named(tmp_path):
    whole = tmp_path / "a.wav"
    soundfile.write(whole, np.zeros(1000), 8000)
    (tmp_path / "b.wav").symlink_to(whole)
    assert segments.find(tmp_path, "--x") == [whole, tmp_path / "b.wav"]
    (tmp_path / "c.wav").symlink_to(tmp_path / "gone.wav")
    with pytest.raises(InputError, match=r"c\.wav: is a link to no file"):
        segments.find(tmp_path, "--x")
