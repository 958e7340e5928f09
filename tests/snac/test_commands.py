"""The commands on both backends: what they write and print, and that bad input is one line and exit code 2."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import snac_oracle as oracle
import soundfile

from backends import cli
from backends.data import audio
from backends.data.metrics import compare
from snac_port import decode, encode, from_pretrained, generate, inference, read_codes, stats, unflatten
from snac_port.codefile import CodeFile
from snac_port.decode import DecodeOptions
from snac_port.encode import EncodeOptions
from snac_port.generate import GenerateOptions
from snac_port.generate import main as generate_main
from snac_port.generation import draw_codes
from snac_port.inference import InferenceOptions
from snac_port.options import CodecOptions

COMMANDS = {
    "inference": (inference.main, InferenceOptions),
    "encode": (encode.main, EncodeOptions),
    "decode": (decode.main, DecodeOptions),
    "generate": (generate_main, GenerateOptions),
}


@pytest.fixture(params=["mlx", "torch"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A tree of files of different rates, channels and formats."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "deep").mkdir()
    for name, rate_hz, channels, seconds in (("a.wav", 44_100, 2, 1.3), ("deep/b.flac", 8000, 1, 1.0)):
        config = oracle.replace(oracle.NARROW["24khz"], sampling_rate=rate_hz)
        signal = oracle.sound(config, round(seconds * rate_hz), batch=channels)
        soundfile.write(folder / name, signal.T, rate_hz)
    (folder / "notes.txt").write_text("not audio")
    return folder


def run(command: str, *flags, backend: str = "mlx", checkpoint: str = "tiny") -> None:
    main, options = COMMANDS[command]
    cli.run(main, options, ["--checkpoint", str(checkpoint), "--backend", backend, *map(str, flags)])


def refused(capsys, command: str, *flags, **more) -> str:
    """Exit code 2 and one line on standard error; returns the line without "error: "."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(command, *flags, **more)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("error: ")


def test_a_file_is_reconstructed_and_compared(tmp_path, recordings, backend, capsys):
    source, target = recordings / "a.wav", tmp_path / "out" / "reconstructed.flac"
    run("inference", "--input", source, "--output", target, backend=backend)
    printed = capsys.readouterr().out
    found = re.fullmatch(
        rf"{source} \(44100 Hz resampled to 8000 Hz, 2 channels averaged\) -> {target}: 1.30 s, "
        r"SI-SDR (-?[\d.]+) dB, mel distance ([\d.]+), STFT distance ([\d.]+), 1.75 kbit/s, "
        r"real-time factor [\d.]+\n",
        printed,
    )
    assert found, printed
    heard, made = audio.read(source, 8000), audio.read(target, 8000)
    assert heard.shape == made.shape == (10_400,)
    codec = from_pretrained("tiny", backend)
    np.testing.assert_allclose(codec.decode(codec.encode(heard)), made, atol=1e-4)
    distances = compare(heard, codec.decode(codec.encode(heard)), 8000)
    expected = (distances.si_sdr_db, distances.mel_distance, distances.stft_distance)
    np.testing.assert_allclose([float(value) for value in found.groups()], expected, atol=0.02)


def test_a_tree_is_reconstructed(tmp_path, recordings, backend, capsys):
    run("inference", "--input", recordings, "--output", tmp_path, "--no-noise", "--chunk_s", 0.3, backend=backend)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == ["a.wav", "deep/b.wav"]
    assert soundfile.info(str(tmp_path / "deep" / "b.wav")).frames == 8000
    *lines, mean = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    found = [[float(value) for value in re.findall(r"(?:SI-SDR|distance) (-?[\d.]+)", line)] for line in [*lines, mean]]
    assert mean.startswith("mean of 2 files: ")
    np.testing.assert_allclose(np.mean(found[:2], axis=0), found[2], atol=0.006)


def test_codes_in_files_there_and_back(tmp_path, recordings, backend, capsys):
    run("encode", "--input", recordings, "--output", tmp_path / "codes", backend=backend)
    assert "a.wav (44100 Hz resampled to 8000 Hz, 2 channels averaged) -> " in capsys.readouterr().out
    codec = from_pretrained("tiny", backend)
    path = tmp_path / "codes" / "deep" / "b.snac"
    codes = read_codes(path, codec)
    expected = codec.encode(audio.read(recordings / "deep" / "b.flac", 8000))
    for level, other in zip(codes.levels, expected.levels, strict=True):
        np.testing.assert_array_equal(level, other)
    run("decode", "--input", tmp_path / "codes", "--output", tmp_path / "audio", "--seed", 4, backend=backend)
    heard = audio.read(tmp_path / "audio" / "deep" / "b.wav", 8000)
    np.testing.assert_allclose(heard, np.clip(codec.decode(expected, seed=4), -1, 1), atol=4e-5)
    assert (tmp_path / "audio" / "a.wav").is_file()


def test_tokens_there_and_back(tmp_path, recordings, backend, capsys):
    source, text = recordings / "deep" / "b.flac", tmp_path / "tokens.txt"
    run("encode", "--input", source, "--output", text, "--first-token", 128_266, "--chunk-s", 0.2, backend=backend)
    codec = from_pretrained("tiny", backend)
    rows = [[int(word) for word in line.split()] for line in text.read_text().splitlines()]
    assert {len(row) for row in rows} == {7}
    codes = unflatten(sum(rows, []), codec.config, first=128_266)
    expected = codec.encode(audio.read(source, 8000), chunk_s=0.2)
    for level, other in zip(codes.levels, expected.levels, strict=True):
        np.testing.assert_array_equal(level, other)
    assert f"{7 * len(rows)} tokens" in capsys.readouterr().out
    run("decode", "--input", text, "--output", tmp_path / "a.wav", "--first-token", 128_266, backend=backend)
    assert soundfile.info(str(tmp_path / "a.wav")).frames == len(rows) * 256


def test_generate_from_codes_tokens_and_nothing(tmp_path, recordings, backend, capsys):
    codec = from_pretrained("tiny", backend)
    run("generate", "--output", tmp_path / "drawn.wav", "--seconds", 0.7, "--seed", 3, backend=backend)
    drawn = generate(codec, seconds=0.7, seed=3)  # the module is callable, like the function of the package
    assert drawn.shape == (5600,)
    np.testing.assert_array_equal(drawn, codec.decode(draw_codes(codec.config, 0.7, 3), seed=3))
    np.testing.assert_allclose(audio.read(tmp_path / "drawn.wav", 8000), np.clip(drawn, -1, 1), atol=4e-5)
    assert "0.70 s of codes drawn with seed 3" in capsys.readouterr().out
    source = recordings / "deep" / "b.flac"
    for name, frames in (("codes.snac", 8000), ("tokens.txt", 8192)):
        run("encode", "--input", source, "--output", tmp_path / name, backend=backend)
        run("generate", "--codes", tmp_path / name, "--output", tmp_path / "given.wav", "--seed", 3, backend=backend)
        expected = codec.decode(codec.encode(audio.read(source, 8000)), seed=3)
        made = audio.read(tmp_path / "given.wav", 8000)
        assert made.size == frames
        np.testing.assert_allclose(made[:8000], np.clip(expected, -1, 1), atol=4e-5)


def test_another_seed_is_another_sound(tmp_path):
    made = []
    for seed in (0, 0, 1):
        run("generate", "--output", tmp_path / "a.wav", "--seconds", 0.3, "--seed", seed)
        made.append((tmp_path / "a.wav").read_bytes())
    assert made[0] == made[1] != made[2]


def test_bad_audio_is_named(tmp_path, capsys, backend):
    files = {
        "missing.wav": None,
        "empty.wav": b"",
        "corrupt.flac": np.random.default_rng(0).bytes(1000),
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "nothing.wav", np.zeros((0, 1)), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(9000, np.nan), 8000, subtype="FLOAT")
    said = {
        "missing.wav": "no such file or folder",
        "empty.wav": "not readable as audio",
        "corrupt.flac": "not readable as audio",
        "nothing.wav": "holds no audio samples",
        "nan.wav": "holds NaN or infinite samples",
    }
    for name, why in said.items():
        for command, output in (("inference", "out.wav"), ("encode", "out.snac"), ("encode", "out.txt")):
            line = refused(capsys, command, "--input", tmp_path / name, "--output", tmp_path / output, backend=backend)
            assert str(tmp_path / name) in line
            assert why in line
            assert not (tmp_path / output).exists()
    assert not list(tmp_path.glob(".*")), "nothing half written"


def test_a_bad_file_of_a_folder_does_not_stop_the_others(tmp_path, recordings, capsys):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.wav").write_bytes(b"no audio")
    (source / "b.flac").write_bytes((recordings / "deep" / "b.flac").read_bytes())
    line = refused(capsys, "encode", "--input", source, "--output", tmp_path / "out")
    assert line.startswith(f"1 of 2 files failed: {source / 'a.wav'}: not readable as audio")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.snac"]


def test_of_many_bad_files_only_some_are_named(tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.wav").write_bytes(b"no audio")
    line = refused(capsys, "encode", "--input", source, "--output", tmp_path / "out")
    assert line.startswith("8 of 8 files failed: ")
    assert re.findall(r"(\d)\.wav: not readable", line) == list("01234")
    assert line.endswith(" and 3 more")


@pytest.mark.parametrize(("command", "output"), [("inference", "a.wav"), ("encode", "a.snac"), ("encode", "a.txt")])
def test_a_cut_recording_is_named_and_does_not_stop_the_others(tmp_path, recordings, capsys, command, output):
    source = tmp_path / "in"
    shutil.copytree(recordings, source)
    content = (source / "a.wav").read_bytes()
    (source / "a.wav").write_bytes(content[: len(content) // 2])
    said = f"{source / 'a.wav'}: is cut: holds {len(content) // 2 - 44} of the {len(content) - 44} bytes of sound"
    assert refused(capsys, command, "--input", source / "a.wav", "--output", tmp_path / output).startswith(said)
    more = ["--format", output[2:]] if command == "encode" else []
    line = refused(capsys, command, "--input", source, "--output", tmp_path / "out", *more)
    assert line.startswith(f"1 of 2 files failed: {said}")
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == [f"b{Path(output).suffix}"]


@pytest.mark.parametrize("command", ["encode", "inference"])
@pytest.mark.parametrize("below", ["", "below"])
def test_an_output_folder_that_cannot_be_is_named_once(tmp_path, recordings, capsys, monkeypatch, command, below):
    monkeypatch.setattr(CodecOptions, "codec", None)  # which is not loaded
    (tmp_path / "afile").write_text("mine")
    line = refused(capsys, command, "--input", recordings, "--output", tmp_path / "afile" / below)
    assert line == (
        f"--output {tmp_path / 'afile' / below}: cannot be written, {tmp_path / 'afile'} is not a folder that you may "
        "write to"
    )


@pytest.mark.parametrize("below", ["", "deep/made"])
def test_reconstructions_are_not_put_among_the_recordings(tmp_path, recordings, capsys, below):
    source = tmp_path / "in"
    shutil.copytree(recordings, source)
    before = sorted(source.rglob("*"))
    line = refused(capsys, "inference", "--input", source, "--output", source / below)
    assert line == (
        f"--output {source / below}: is inside --input {source}, and what is written would be taken for recordings: "
        "give another folder"
    )
    assert sorted(source.rglob("*")) == before


def test_bad_codes_are_named(tmp_path, recordings, capsys, backend):
    codes, out = tmp_path / "codes.snac", tmp_path / "a.wav"
    run("encode", "--input", recordings / "deep" / "b.flac", "--output", codes)
    data = codes.read_bytes()
    other = oracle.save(oracle.upstream(oracle.NARROW["24khz"]), oracle.NARROW["24khz"], tmp_path / "other")
    line = refused(capsys, "decode", "--input", codes, "--output", out, backend=backend, checkpoint=other)
    assert line == f"{codes}: made with sampling_rate 8000, this checkpoint has 24000: give the other one"
    for name, content, said in (
        ("cut.snac", data[:-1], "truncated, holds"),
        ("audio.snac", (recordings / "a.wav").read_bytes(), "not a file of SNAC codes"),
        ("words.txt", b"1 2 three", "'three' is no token; expected whole numbers"),
        ("few.txt", b"1 257 513", "3 tokens are not whole frames of 7"),
        ("far.txt", b"1 2 3 4 5 6 7", "token 1 is 2, expected 256 to 511 at position 1 of frame 0"),
        ("none.txt", b"", "no tokens: expected whole frames of 7"),
        ("binary.txt", b"\xff\xfe\x00", "cannot be read as text"),
        ("signs.txt", b"1 --5", "'--5' is no token; expected whole numbers"),
        ("long.txt", b"1 -" + b"7" * 5000, f"'-{'7' * 19}'..., which has 5001 characters, is no token"),
        ("large.txt", b"1 " + b"9" * 19, f"'{'9' * 19}' is no token; expected whole numbers"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        for command, flag in (("decode", "--input"), ("generate", "--codes")):
            line = refused(capsys, command, flag, path, "--output", out, backend=backend)
            assert line.startswith(f"{path}: ")
            assert said in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("inference", ["--input", "IN", "--output", "out.txt"], "out.txt: expected a name that ends in .wav"),
        ("inference", ["--input", "IN", "--output", "IN"], "is the input; give another name"),
        ("inference", ["--input", "EMPTY", "--output", "out"], "holds no .wav, .flac, .ogg, .mp3 files"),
        ("inference", ["--input", "TWICE", "--output", "out"], "another file of that name would be written to one"),
        ("inference", ["--input", "IN", "--output", "a.wav", "--chunk-s", "-1"], "--chunk-s -1.0: expected seconds"),
        ("inference", ["--input", "IN", "--output", "a.wav", "--device", "cuda:0"], "cuda:0"),
        ("inference", ["--input", "IN", "--output", "a.wav", "--speed", "2"], "--speed"),
        ("inference", ["--input", "SHORT", "--output", "a.wav"], "short.wav: too short, holds no sample at 8000 Hz"),
        ("encode", ["--input", "IN", "--output", "IN", "--format", "txt"], "is the input; give another name"),
        ("encode", ["--input", "IN", "--output", "out.json"], "expected a name that ends in .snac or .txt"),
        ("encode", ["--input", "IN", "--output", "out.snac", "--first-token", "3"], ".snac files hold codes"),
        ("decode", ["--input", "nowhere", "--output", "a.wav"], "--input nowhere: no such file or folder"),
        ("generate", ["--codes", "nowhere.snac", "--output", "a.wav"], "nowhere.snac: cannot be read"),
        ("generate", ["--codes", "nowhere.txt", "--output", "a.wav"], "nowhere.txt: cannot be read as text"),
        ("generate", ["--seconds", "0", "--output", "a.wav"], "--seconds 0.0: expected at least one sample"),
        ("generate", ["--seconds", "1", "--codes", "x.snac"], "--seconds 1.0: is for codes that are drawn"),
        ("generate", ["--seconds", "inf", "--output", "a.wav"], "--seconds inf: expected a finite number"),
        ("generate", ["--codes", "x.snac", "--no-noise", "--seed", "3"], "--seed 3: does nothing with --no-noise"),
        ("decode", ["--input", "IN", "--output", "a.wav", "--no-noise", "--seed", "3"], "--seed 3: does nothing with"),
        ("generate", ["--seconds", "1e300", "--output", "a.wav"], "--seconds 1e+300: expected at most 86400, a day"),
        ("generate", ["--seconds", "nan", "--output", "a.wav"], "--seconds nan: expected a finite number"),
        ("generate", ["--seed", "-1", "--output", "a.wav"], "--seed -1: expected 0 to 4294967295"),
        ("inference", ["--input", "IN", "--output", "a.wav", "--seed", "4294967296"], "--seed 4294967296: expected 0 to"),
        ("encode", ["--input", "IN", "--output", "a.txt", "--first-token", "-1"], "--first-token -1: expected 0 to 1073"),
        ("encode", ["--input", "IN", "--output", "a.txt", "--first-token", "3000000000"], "--first-token 3000000000: exp"),
        ("decode", ["--input", "IN", "--output", "a.wav", "--first-token", "-1"], "--first-token -1: expected 0 to 1073"),
        ("generate", ["--codes", "x.txt", "--first-token", f"{10**30}"], "0: expected 0 to 1073741824"),
        ("generate", ["--first-token", "1"], "--first-token 1: expected --codes with a .txt file of tokens"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_named(tmp_path, monkeypatch, capsys, recordings, command, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / "twice" / name, np.zeros(10), 8000)
    soundfile.write(tmp_path / "short.wav", np.zeros(1), 48_000)
    places = {"IN": recordings / "deep" / "b.flac", "EMPTY": tmp_path / "empty", "TWICE": tmp_path / "twice"}
    places["SHORT"] = tmp_path / "short.wav"
    before = places["IN"].read_bytes()
    line = refused(capsys, command, *[places.get(flag, flag) for flag in flags])
    assert said in line
    assert places["IN"].read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_checkpoints_that_are_not_there_are_named(tmp_path, capsys, monkeypatch, recordings, backend, command):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    flags = [] if command == "generate" else ["--input", recordings / "a.wav"]
    flags += ["--output", tmp_path / ("a.snac" if command == "encode" else "a.wav")]
    if command == "decode":
        flags[1] = tmp_path / "a.snac"
        flags[1].write_bytes(b"")
    name = "hubertsiuzdak/snac_24khz"
    line = refused(capsys, command, *flags, backend=backend, checkpoint=name)
    assert line == (
        f"--checkpoint {name}: there is no such directory, the Hub cannot be reached and its files are not in the "
        f"local cache; fetch them where there is a network (hf download {name} --local-dir DIR) and give --checkpoint DIR"
    )
    (tmp_path / "empty").mkdir()
    line = refused(capsys, command, *flags, backend=backend, checkpoint=tmp_path / "empty")
    assert "holds none of model.safetensors, pytorch_model.bin, best_model.safetensors" in line
    line = refused(capsys, command, *flags, backend=backend, checkpoint="run/best_model.pt")
    assert "run/best_model.pt: no such file, and no best_model.safetensors or directory best_model either" in line


def test_options_are_the_same_everywhere():
    """`--backend`, `--device`, `--chunk-s` and `--checkpoint` mean the same in every command."""
    for _, options in COMMANDS.values():
        assert issubclass(options, CodecOptions)


def command(*words, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        check=False,
    )


def test_the_commands_run_as_commands(tmp_path, recordings):
    """Each once in a process of its own, with compiling on where it is by default."""
    tiny = ("--checkpoint", "tiny", "--backend")
    source, codes = recordings / "deep" / "b.flac", tmp_path / "codes.snac"
    for words in (
        ("snac_port.inference", *tiny, "mlx", "--input", source, "--output", tmp_path / "a.wav"),
        ("snac_port.encode", *tiny, "torch", "--input", source, "--output", codes),
        ("snac_port.decode", *tiny, "mlx", "--input", codes, "--output", tmp_path / "b.wav"),
        ("snac_port.generate", *tiny, "mlx", "--codes", codes, "--output", tmp_path / "c.wav"),
    ):
        done = command(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    assert CodeFile(codes).header.length == 8000
    failed = command("snac_port.decode", *tiny, "mlx", "--input", tmp_path / "a.wav", "--output", tmp_path / "d.wav")
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == [f"error: {tmp_path / 'a.wav'}: not a file of SNAC codes; expected one written by snac_port.encode"]  # fmt: skip


def test_mlx_does_not_import_torch(tmp_path, recordings):
    script = (
        "import sys; from backends import cli; from snac_port import inference\n"
        "cli.run(inference.main, inference.InferenceOptions)\n"
        "assert not {'torch', 'snac'} & set(sys.modules), 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--checkpoint", "tiny", "--backend", "mlx", "--input",
         str(recordings / "deep" / "b.flac"), "--output", str(tmp_path / "a.wav")],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_document_is_true(tmp_path, monkeypatch, recordings):
    """The commands and the Python of docs/snac.md run as printed."""
    text = (Path(__file__).parents[2] / "docs" / "snac.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recordings, tmp_path / "recordings")
    shutil.copy(recordings / "a.wav", tmp_path / "audio.wav")
    (lines,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in lines.splitlines():
        _, _, module, *flags = shlex.split(line)
        name = module.removeprefix("snac_port.")
        main, options = {**COMMANDS, "stats": (stats.main, stats.StatsOptions)}[name]
        cli.run(main, options, flags)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/snac.md", "exec"), {})
    made = {path.name for path in tmp_path.iterdir()}
    assert {"reconstructed.wav", "codes", "decoded", "generated.wav", "stats.json", "stats.png", "codes.snac"} <= made
