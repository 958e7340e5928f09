"""Codebook usage over files, with its picture."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from backends import cli
from snac_port import from_pretrained, snac_tiny, write_codes
from snac_port.codes import Codes
from snac_port.stats import StatsOptions, main, usage

SOUND = 0.1 * np.random.default_rng(0).standard_normal(9000)


def run(source, output, *flags) -> None:
    cli.run(main, StatsOptions, ["--checkpoint", "tiny", "--input", str(source), "--output", str(output), *flags])


def test_perplexity_is_that_of_the_counts():
    config = snac_tiny()
    counts = np.zeros((3, 256), np.int64)
    counts[0, :4] = 10  # four equally likely entries
    counts[1, 7] = 99  # always the same
    levels = usage(counts, config)
    assert [(level.used, level.codes, level.entries, level.stride) for level in levels] == [
        (4, 40, 256, 4), (1, 99, 256, 2), (0, 0, 256, 1),
    ]  # fmt: skip
    assert [level.perplexity for level in levels] == pytest.approx([4, 1, 1])
    assert [level.entropy_bits for level in levels] == pytest.approx([2, 0, 0])


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_audio_and_codes_are_counted(tmp_path, backend, capsys):
    codec = from_pretrained("tiny", backend)
    source = tmp_path / "in"
    source.mkdir()
    soundfile.write(source / "a.wav", SOUND, 8000)
    codes = codec.encode(soundfile.read(source / "a.wav", dtype="float32")[0])
    write_codes(source / "b.snac", codes, codec)
    run(source, tmp_path / "out" / "stats.json", "--backend", backend)
    content = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (content["files"], content["seconds"]) == (2, 2.25)
    for level, values in zip(content["levels"], codes.levels, strict=True):
        counts = np.bincount(values, minlength=256)
        shares = counts[counts > 0] / counts.sum()
        assert level["codes"] == 2 * values.size
        assert level["used"] == shares.size
        assert level["perplexity"] == pytest.approx(2 ** -(shares * np.log2(shares)).sum())
    assert (tmp_path / "out" / "stats.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[0].startswith(f"level 0 (stride 4): {content['levels'][0]['used']} of 256 entries used in ")


def test_bad_files_are_named_after_the_others_are_counted(tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "good.wav", SOUND, 8000)
    codec = from_pretrained("tiny", "mlx")
    other = Codes(tuple(np.zeros(k, np.int32) for k in (1, 2, 4)), 256, 8000)
    path = write_codes(tmp_path / "other.snac", other, codec)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, tmp_path / "stats.json")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: 2 of 3 files failed: {tmp_path / 'bad.wav'}: ")
    assert "other.snac: truncated" in line
    assert json.loads((tmp_path / "stats.json").read_text())["files"] == 1


def test_bad_options_are_named(tmp_path, capsys):
    for source, output, said in (
        (tmp_path, tmp_path / "stats.json", "holds no .wav, .flac, .ogg, .mp3, .snac files"),
        (tmp_path / "none", tmp_path / "stats.json", "no such file or folder"),
        (tmp_path, tmp_path / "stats.png", "expected a name that ends in .json"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(source, output)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_only_statistics_are_replaced(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", SOUND, 8000)
    for content in ('[{"text": "a", "audio_path": "a.wav"}]', '{"files": 1}', "not JSON"):
        (tmp_path / "mine.json").write_text(content)
        with pytest.raises(SystemExit):
            run(tmp_path / "a.wav", tmp_path / "mine.json")
        said = f"error: --output {tmp_path / 'mine.json'}: is there and holds something else than these numbers"
        assert capsys.readouterr().err.startswith(said)
        assert (tmp_path / "mine.json").read_text() == content
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        run(tmp_path / "a.wav", tmp_path / "holiday.json")
    assert f"its picture would replace {tmp_path / 'holiday.png'}" in capsys.readouterr().err
    for _ in range(2):
        run(tmp_path / "a.wav", tmp_path / "stats.json")
    assert json.loads((tmp_path / "stats.json").read_text())["files"] == 1


def test_it_runs_as_a_command(tmp_path):
    soundfile.write(tmp_path / "a.wav", SOUND, 8000)
    done = subprocess.run(
        [sys.executable, "-m", "snac_port.stats", "--checkpoint", "tiny", "--backend", "mlx", "--input", str(tmp_path),
         "--output", str(tmp_path / "stats.json")],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "stats.png").is_file()
