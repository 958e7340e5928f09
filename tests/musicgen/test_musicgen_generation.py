"""Music on MLX and PyTorch: batches, seeds, windows, streams, guidance, quantised weights, and the command."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tqdm import tqdm

from backends import cli, get
from backends.base import LoRASpec
from backends.data import audio
from backends.errors import InputError
from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import Request, condition, decode, load_engine, stream_generate
from musicgen_mlx.companions import text_encoder_of
from musicgen_mlx.generate import GenerateOptions, main
from musicgen_mlx.generation import generate_codes
from musicgen_mlx.known import Window, first_unknown, known_steps, windows
from musicgen_mlx.load import save_pretrained
from musicgen_mlx.mlx_engine import Engine
from musicgen_mlx.model import MusicGen
from musicgen_mlx.music import Sampling, frames, generate
from musicgen_mlx.tiny import model

ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(temperature=1.0, top_k=20)


@pytest.fixture(scope="module", params=["mlx", "torch"])
def engine(request):
    return load_engine("tiny", request.param, "cpu" if request.param == "torch" else None)


@pytest.fixture(scope="module")
def stereo():
    return Engine(model(channels=2))


def made(engine, **options) -> np.ndarray:
    request = {"prompts": [None], "seeds": [3], "duration_s": 0.4, "sampling": SAMPLING, **options}
    return generate(engine, Request(**request))


def codes(engine, **options) -> np.ndarray:
    request = {"prompts": [None], "seeds": [3], "duration_s": 0.4, "sampling": SAMPLING, **options}
    return np.concatenate(list(frames(engine, Request(**request))), axis=2)


def test_an_item_depends_on_its_prompt_and_seed_only(engine):
    prompts, seeds = ["jungle with a long bass line", None, "piano"], [1, 2, 3]
    together = codes(engine, prompts=prompts, seeds=seeds)
    assert together.shape == (3, 4, 20)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        np.testing.assert_array_equal(codes(engine, prompts=[prompt], seeds=[seed])[0], together[index])
    assert (codes(engine, prompts=["piano"], seeds=[4])[0] != together[2]).any()


def test_both_backends_make_the_same_music():
    """Greedily; noise is each framework's own."""
    greedy = Sampling(temperature=0)
    mlx, torch = (load_engine("tiny", name, "cpu" if name == "torch" else None) for name in ("mlx", "torch"))
    options = {"prompts": ["jungle", None], "seeds": [0, 0], "sampling": greedy}
    np.testing.assert_array_equal(codes(mlx, **options), codes(torch, **options))
    np.testing.assert_allclose(made(mlx, **options), made(torch, **options), atol=1e-4)


def test_streamed_music_is_the_whole_in_pieces(engine):
    request = Request(prompts=["jungle", None], seeds=[1, 2], duration_s=0.6, sampling=SAMPLING)
    pieces = list(stream_generate(engine, request, chunk_s=0.1))
    assert len(pieces) >= 5
    whole = generate(engine, request)
    joined = np.concatenate(pieces, axis=1)
    assert joined.shape == whole.shape == (2, round(0.6 * 32_000))
    assert np.abs(joined - whole).max() <= 1e-4


def test_stereo_streams_too(stereo):
    request = Request(prompts=["jungle"], seeds=[1], duration_s=0.3, sampling=SAMPLING)
    whole, pieces = generate(stereo, request), list(stream_generate(stereo, request, chunk_s=0.1))
    assert whole.shape == (1, 9600, 2)
    assert np.abs(np.concatenate(pieces, axis=1) - whole).max() <= 1e-4


def test_continuation_keeps_the_beginning(engine):
    given = 0.3 * np.random.default_rng(0).standard_normal(640 * 8).astype(np.float32)
    begun = engine.encode(given[None])
    continued = codes(engine, prompts=[None, "jungle"], seeds=[1, 2], continue_from=given)
    assert continued.shape == (2, 4, 20)
    np.testing.assert_array_equal(continued[:, :, :8], np.repeat(begun, 2, axis=0))
    with pytest.raises(InputError, match=r"continue_from alone lasts 0\.16 s"):
        made(engine, duration_s=0.1, continue_from=given)


def test_a_music_longer_than_a_window_goes_on(engine):
    """Windows of 10 frames that overlap by 4, each with noise of its own."""
    options = {"duration_s": 0.5, "window_s": 0.2, "stride_s": 0.12}
    long = codes(engine, **options)
    assert long.shape == (1, 4, 25)
    assert (long < engine.config.entries).all()
    np.testing.assert_array_equal(long[:, :, :10], codes(engine, duration_s=0.2))
    assert (long[:, :, 4:10] != long[:, :, 10:16]).any()


@pytest.mark.parametrize(
    ("total", "given", "expected"),
    [
        (10, 0, [Window(0, 10)]),
        (10, 7, [Window(7, 10)]),
        (25, 0, [Window(0, 10), Window(4, 10), Window(4, 10), Window(4, 7)]),
        (12, 9, [Window(4, 7)]),
        (12, 2, [Window(2, 10), Window(4, 6)]),
    ],
)
def test_windows(total, given, expected):
    assert list(windows(total, given, longest=10, stride=6)) == expected
    assert given + sum(window.frames - window.context for window in expected) == total


def test_what_is_known_before():
    config = model("none").config
    fresh = known_steps(config, 1, 5)
    assert first_unknown(fresh) == 1
    begun = known_steps(config, 1, 5, np.zeros((1, 4, 2), int))
    assert first_unknown(begun) == 3
    assert (begun[0, 3] == [64, 64, 64, 64, 0, 0, -1, -1, -1]).all()


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (np.zeros((1, 4, 5), int), "5 frames, of which 5 are given"),
        (np.zeros((1, 4, 7), int), "5 frames, of which 7 are given"),
        (np.zeros((1, 3, 2), int), r"a prompt of shape \(1, 3, 2\): expected \(1, 4, 2\)"),
        (np.full((1, 4, 2), 64), "codes 64 to 64: expected 0 to 63"),
        (np.full((1, 4, 2), -1), "codes -1 to -1"),
    ],
)
def test_prompts_that_are_none_are_refused(prompt, said):
    with pytest.raises(InputError, match=said):
        generate_codes(model("none"), 5, prompt=prompt)


def test_guidance_costs_nothing_where_it_changes_nothing():
    """No prompt, or a factor of 1: the batch is not doubled. Otherwise it is, and the codes change."""
    for said, guidance, doubled in ((None, 3.0, False), ("jungle", 1.0, False), ("jungle", 3.0, True)):
        ours = model()
        run = decode.Decoder(ours, Sampler(0), [0], condition.from_texts(ours, [said]), guidance)
        laid = known_steps(ours.config, 1, 5)
        run.start(laid[:, :, :1], laid[:, :, 1])
        assert run.guided is doubled
        assert run.caches[0][0].shape[0] == 1 + doubled
    engine = Engine(model())
    one, three = (codes(engine, prompts=["jungle"], guidance=factor) for factor in (1.0, 3.0))
    assert (one != three).any()


def test_melody_models_make_music_in_batches():
    ours = Engine(model("prepend"))
    prompts, seeds = ["jungle with a long bass line", None, "piano"], [1, 2, 3]
    together = codes(ours, prompts=prompts, seeds=seeds)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        np.testing.assert_array_equal(codes(ours, prompts=[prompt], seeds=[seed])[0], together[index])


def test_caches_grow():
    """Past 256 steps, as in one pass over all steps."""
    ours = model("none")
    got = generate_codes(ours, 300, sampler=Sampler(0), seeds=[0])
    from musicgen_mlx import pattern

    laid = pattern.delayed(np.array(got), ours.config.delays, 64)
    again = mx.argmax(ours(mx.array(laid[:, :, :-1])), axis=-1)
    valid = pattern.valid(300, ours.config.delays)[:, 1:]
    assert ((np.array(again)[0] == laid[0, :, 1:]) | ~valid).mean() > 0.999


@pytest.mark.compiles
@pytest.mark.parametrize("path", ["decode.fused_path", "decode.FEW_SLOTS"], ids=["modules", "fused"])
def test_the_compiled_step_is_the_same(path):
    """Through the modules, and over fused weights with caches that grow by 8 slots."""
    code = (
        "import backends, numpy as np, mlx.core as mx;"
        "from musicgen_mlx.tiny import model; from musicgen_mlx import condition, decode;"
        "from musicgen_mlx.generation import generate_codes;"
        "m = model(); c = condition.from_texts(m, ['jungle', None]);"
        f"{path} = {'lambda *_: None' if path.endswith('path') else 8};"
        "a, b = (generate_codes(m, 12, c, seeds=[1, 2], compile=on) for on in (True, False));"
        "assert mx.array_equal(a, b), (a, b)"
    )
    compiling = {name: value for name, value in os.environ.items() if name != "MLX_DISABLE_COMPILE"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=compiling)


@pytest.mark.compiles
def test_a_temporary_folder_that_is_none_is_said_in_one_line(tmp_path):
    inside = {name: value for name, value in os.environ.items() if name != "MLX_DISABLE_COMPILE"}
    argv = ["--model", "tiny", "--backend", "mlx", "--prompt", "jungle", "--duration", "0.1"]
    ended = subprocess.run(
        [sys.executable, "-m", "musicgen_mlx.generate", *argv, "--output", str(tmp_path / "out.wav")],
        cwd=ROOT, env={**inside, "TMPDIR": str(tmp_path / "none")}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: TMPDIR names no folder")


def test_quantised_weights_and_half_precision():
    for options in ({"bits": 8}, {"bits": 4}, {"dtype": "bfloat16"}, {"dtype": "float16"}):
        engine = load_engine("tiny", "mlx", **options)
        assert np.isfinite(made(engine, prompts=["jungle"])).all()
    for dtype in ("bfloat16", "float16"):
        engine = load_engine("tiny", "torch", "cpu", dtype=dtype)
        assert np.isfinite(made(engine, prompts=["jungle"])).all()
    with pytest.raises(InputError, match="--bits"):
        load_engine("tiny", "torch", "cpu", bits=4)
    with pytest.raises(InputError, match="--bits 5: expected 4 or 8"):
        load_engine("tiny", "mlx", bits=5)
    for backend, device in (("torch", "cpu"), ("mlx", None)):
        with pytest.raises(InputError, match="dtype 'half': expected one of float32, bfloat16, float16"):
            load_engine("tiny", backend, device, dtype="half")


def test_bits_that_quantise_nothing_are_refused(tmp_path):
    wide = model("none")
    narrow = MusicGen(replace(wide.config, width=48, heads=3, mlp_width=96))
    narrow._companions.update(wide._companions)
    save_pretrained(narrow, tmp_path)
    with pytest.raises(InputError, match="--bits 4: no matrix of this model has rows of whole groups of 64"):
        load_engine(tmp_path, "mlx", bits=4)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_the_command_writes_files_and_says_how_long_it_took(tmp_path, capsys, backend):
    where = ["--device", "cpu"] if backend == "torch" else []
    argv = ["--model", "tiny", "--prompt", "jungle", "--prompt", "piano", "--duration", "0.4", "--seed", "1",
            "--backend", backend, *where, "--output", str(tmp_path / "out.wav")]  # fmt: skip
    cli.run(main, GenerateOptions, argv)
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{tmp_path / 'out_0.wav'}, {tmp_path / 'out_1.wav'}: 2 x 0.40 s of audio in ")
    assert "real-time factor" in line
    assert "peak memory" in line
    for name in ("out_0.wav", "out_1.wav"):
        assert audio.read(tmp_path / name, 32_000).size == 12_800
    argv = ["--model", "tiny", "--duration", "0.5", "--seed", "1", "--backend", backend, *where, "--continue-from",
            str(tmp_path / "out_0.wav"), "--output", str(tmp_path / "more.wav")]  # fmt: skip
    cli.run(main, GenerateOptions, argv)
    assert audio.read(tmp_path / "more.wav", 32_000).size == 16_000


def test_a_cut_recording_is_not_continued(tmp_path, capsys):
    path = audio.write(tmp_path / "cut.wav", np.full(2400, 0.5), 32_000)
    path.write_bytes(path.read_bytes()[:1044])
    argv = ["--model", "tiny", "--backend", "mlx", "--continue-from", str(path), "--output", str(tmp_path / "out.wav")]
    with pytest.raises(SystemExit) as stop:
        cli.run(main, GenerateOptions, argv)
    assert stop.value.code == 2
    assert f"error: {path}: is cut: holds 1000 of the 4800 bytes" in capsys.readouterr().err


def test_a_model_without_a_condition_needs_no_prompt(tmp_path, capsys):
    save_pretrained(model("none"), tmp_path / "micro")
    argv = ["--model", str(tmp_path / "micro"), "--samples", "2", "--duration", "0.2", "--backend", "mlx", "--output",
            str(tmp_path / "out.wav")]  # fmt: skip
    cli.run(main, GenerateOptions, argv)
    assert (tmp_path / "out_1.wav").is_file()
    with pytest.raises(SystemExit) as stop:
        cli.run(main, GenerateOptions, [*argv, "--prompt", "jungle"])
    assert stop.value.code == 2
    said = (
        f"--prompt with --model {tmp_path / 'micro'}: this model was trained without a condition: leave the prompt out"
    )
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_prompt_with_half_a_character_is_refused():
    with pytest.raises(InputError, match=r"text 'caf\\udce9': holds what is no character; expected UTF-8"):
        load_engine("tiny", "mlx").said(["caf\udce9"])


def test_a_prompt_longer_than_its_encoder_was_trained_on_is_refused(engine):
    with pytest.raises(
        InputError, match=r"text 'long .{35}\.\.\.': has \d{4} tokens, expected at most 511: shorten it"
    ):
        engine.said(["short", "long " * 1200])


def test_requests_are_checked():
    with pytest.raises(InputError, match="one seed for each"):
        Request(prompts=["a", "b"], seeds=[1])
    for changed, said in (
        ({"prompts": "a"}, "prompts 'a': expected a list"),
        ({"seeds": 1}, "seeds 1: expected a list"),
        ({"sampling": None}, "sampling None: expected a Sampling"),
        ({"duration_s": "1"}, "duration_s '1': expected seconds above 0"),
        ({"duration_s": None}, "duration_s None: expected seconds above 0"),
    ):
        with pytest.raises(InputError, match=said):
            Request(**{"prompts": ["a"], "seeds": [1]} | changed)
    for prompts, seeds in (([3], [1]), (["a"], [1.5])):
        with pytest.raises(InputError, match="expected a text or None, and a whole number"):
            Request(prompts=prompts, seeds=seeds)
    for window in ({"stride_s": 0}, {"window_s": np.inf}, {"window_s": np.nan}):
        with pytest.raises(InputError, match="expected seconds above 0"):
            Request(prompts=["a"], seeds=[1], **window)


def test_prompts_and_seeds_may_be_arrays(engine):
    drawn = codes(engine, prompts=np.array(["jungle", "piano"]), seeds=np.array([3, 4], np.int32))
    np.testing.assert_array_equal(drawn, codes(engine, prompts=["jungle", "piano"], seeds=range(3, 5)))


def test_windows_without_a_frame_between_them_are_refused(engine):
    with pytest.raises(InputError, match=r"window_s 0.02, stride_s 0.01: at 50 frames a second no frame is between"):
        codes(engine, window_s=0.02, stride_s=0.01)
    with pytest.raises(InputError, match="chunk_s nan"):
        next(stream_generate(engine, Request([None], [0], 0.1), chunk_s=np.nan))


@pytest.mark.parametrize(
    ("recording", "said"),
    [
        (np.zeros(0), "holds no samples"),
        (np.full(700, np.nan), "holds NaN or infinite samples"),
        (np.zeros((2, 700)), r"found shape \(2, 700\)"),
        (np.zeros(700, np.int64), "found ndarray of int64"),
    ],
)
def test_recordings_that_cannot_be_continued_are_refused(engine, recording, said):
    with pytest.raises(InputError, match=f"continue_from: .*{said}"):
        made(engine, continue_from=recording)


def test_recordings_have_a_channel_or_two(engine, stereo):
    """A mono model hears the mean of two, a stereo model one on both sides."""
    sides = 0.3 * np.random.default_rng(0).standard_normal((1280, 2))
    folded, both = (codes(engine, continue_from=given) for given in (sides.mean(axis=1), sides))
    np.testing.assert_array_equal(folded, both)
    pcm = (sides * 2**13).astype(np.int16)
    scaled = codes(engine, continue_from=pcm / np.float32(2**15))
    np.testing.assert_array_equal(codes(engine, continue_from=pcm), scaled)
    one, twice = (codes(stereo, continue_from=given) for given in (sides[:, :1], np.repeat(sides[:, :1], 2, axis=1)))
    np.testing.assert_array_equal(one, twice)
    assert (codes(stereo, continue_from=sides)[:, :, :2] != twice[:, :, :2]).any()


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_codec_that_cannot_be_had_is_known_before_the_work(tmp_path, backend):
    save_pretrained(model("none"), tmp_path)
    (tmp_path / "codec.safetensors").unlink()
    engine, made = load_engine(tmp_path, backend, "cpu" if backend == "torch" else None), []
    with pytest.raises(InputError, match="--codec facebook/encodec_32khz"):
        generate(engine, Request([None], [0], 0.1), progress=made.append)
    assert made == []


def test_the_bar_ends_with_the_last_frame(tmp_path, monkeypatch):
    """The frames that --continue-from brings are not made."""
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**options, disable=True)
            bars.append(self)

        def update(self, n=1):
            self.n += n

    monkeypatch.setattr("musicgen_mlx.generate.tqdm", Bar)
    audio.write(tmp_path / "loop.wav", 0.3 * np.random.default_rng(0).standard_normal(3000), 32_000)
    argv = ["--model", "tiny", "--backend", "mlx", "--duration", "0.3", "--output", str(tmp_path / "out.wav")]
    for more in ([], ["--continue-from", str(tmp_path / "loop.wav")]):
        cli.run(main, GenerateOptions, [*argv, *more])
    assert [(bar.total, bar.n) for bar in bars] == [(15, 15), (10, 10)]


def test_all_files_are_looked_at_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out_1.wav").mkdir()
    audio.write("loop_0.wav", np.zeros(640), 32_000)
    for flags, said in (
        (["--output", "out.wav"], "out_1.wav: cannot be written, it is a directory"),
        (["--output", "loop.wav", "--continue-from", "loop_0.wav"], "--output loop_0.wav: is the recording of"),
    ):
        with pytest.raises(SystemExit):
            cli.run(main, GenerateOptions, ["--model", "no-such-model", "--samples", "2", *flags])
        assert said in capsys.readouterr().err
    assert audio.read("loop_0.wav", 32_000).size == 640


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "nan"], "error: --temperature nan: expected a number from 0"),
        (["--top-k", "-1"], "error: --top-k -1: expected a whole number from 0"),
        (["--top-p", "2"], "error: --top-p 2.0: expected a number from 0 to 1"),
        (["--guidance", "nan"], "error: --guidance nan: expected a number from 0"),
        (["--guidance", "-3"], "error: --guidance -3.0: expected a number from 0"),
        (["--duration", "nan"], "error: --duration nan: expected seconds above 0"),
        (["--duration", "0.001"], "error: --duration 0.001: expected at least 0.02, one frame"),
        (["--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        (["--seed", "4294967296"], "--seed 4294967296: expected 0 to 4294967295"),
        (["--model", "no-such-model", "--window", "0"], "error: --window 0.0: expected seconds above 0"),
        (["--output", "x.xyz"], "x.xyz: expected a name that ends in .wav"),
        (["--output", f"{__file__}/x.wav"], "is not a folder that you may write to"),
        (
            ["--model", "smal"],
            "--model smal: no such directory, and not a Hub id such as org/name; did you mean small?",
        ),
        (["--model", "no-such-model", "--continue-from", "none.wav"], "--continue-from none.wav: no such audio file"),
        (["--lora", "none.safetensors"], "none.safetensors: no such adapter file"),
    ],
)
def test_bad_flags_end_with_one_line_and_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.run(main, GenerateOptions, ["--model", "tiny", "--backend", "mlx", "--duration", "0.1", *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_guide_runs(tmp_path, monkeypatch):
    """The commands and the Python of docs/musicgen.md's first section, on small models and short."""
    monkeypatch.chdir(tmp_path)
    save_pretrained(model("none"), tmp_path / "unconditional")
    audio.write("loop.wav", 0.3 * np.random.default_rng(0).standard_normal(3200), 32_000)
    _random_adapter(tmp_path / "runs" / "lora" / "lora_ckpt_best.safetensors")
    text = (ROOT / "docs" / "musicgen.md").read_text(encoding="utf-8").partition("## The model")[0]
    swapped = {"small": "tiny", "micro-jungle": "unconditional", "cuda:0": "cpu"}
    commands = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", "")
    for line in commands.splitlines():
        if words := [swapped.get(word, word) for word in shlex.split(line, comments=True)]:
            assert words[:3] == ["python", "-m", "musicgen_mlx.generate"]
            cli.run(main, GenerateOptions, [*words[3:], "--duration", "0.2"])
    names = [
        "loop",
        "music",
        "jungle",
        "longer",
        "minute",
        "small",
        "half",
        "adapted",
        *(f"batch_{i}" for i in range(4)),
    ]
    assert {path.stem for path in tmp_path.glob("*.wav")} == set(names)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace('"small"', '"tiny"').replace("duration_s=10", "duration_s=0.4")
    exec(compile(code, "docs/musicgen.md", "exec"), {})
    whole, live = (audio.read(tmp_path / name, 32_000) for name in ("music.wav", "live.wav"))
    assert whole.shape == live.shape == (12_800,)
    np.testing.assert_allclose(whole, live, atol=2e-4)


def _random_adapter(path: Path) -> None:
    from musicgen_mlx.adapters import Adapters

    made = Engine(model())
    adapters = Adapters(get("mlx"), made.model, made.config)
    adapters.put([name for name in adapters.linears() if "attn" in name], LoRASpec(2, 4.0))
    path.parent.mkdir(parents=True)
    adapters.save(path, "tiny")


def test_half_precision_files_are_float32_on_the_cpu(tmp_path):
    ours = model("none")
    ours.set_dtype(mx.float16)
    save_pretrained(ours, tmp_path)
    dtypes = {asked: load_engine(tmp_path, "mlx", dtype=asked).model.dtype for asked in (None, "float16")}
    expected = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.float16
    assert dtypes == {None: expected, "float16": mx.float16}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_codec_and_text_encoder_are_float32_on_both_backends(tmp_path, dtype):
    """Whatever their files are: T5 leaves the range of float16, and half a codec is heard."""
    ours = model()
    for part in (ours, ours._companions["codec"], text_encoder_of(ours).model):
        part.set_dtype(dtype)
    save_pretrained(ours, tmp_path)
    mlx, torch = (load_engine(tmp_path, name, "cpu" if name == "torch" else None) for name in ("mlx", "torch"))
    mlx.model.set_dtype(mx.float32)
    options = {"prompts": ["jungle"], "seeds": [0], "sampling": Sampling(temperature=0)}
    np.testing.assert_allclose(made(mlx, **options), made(torch, **options), atol=1e-4)
    sound = 0.3 * np.random.default_rng(0).standard_normal((1, 32_000)).astype(np.float32)
    np.testing.assert_array_equal(mlx.encode(sound), torch.encode(sound))
    with pytest.raises(InputError, match="dtype 'half': expected one of float32"):
        load_engine(tmp_path, "mlx", dtype="half")


def test_importing_the_command_leaves_the_function_callable():
    code = (
        "import musicgen_mlx.generate, snac_port.generate, snac_port; from musicgen_mlx import Request, generate, load_engine;"
        "print(generate(load_engine('tiny', 'mlx'), Request([None], [0], 0.1)).shape, callable(snac_port.generate))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "(1, 3200) True"


def test_a_text_encoder_is_read_when_a_text_needs_it(tmp_path):
    save_pretrained(model(), tmp_path)
    engine = load_engine(tmp_path, "mlx")
    silent = codes(engine)
    assert "text_encoder" not in engine.model._companions
    said = codes(engine, prompts=["jungle"])
    assert engine.model._companions["text_encoder"].path == tmp_path / "tokenizer.json"
    assert (said != silent).any()
    np.testing.assert_array_equal(said, codes(Engine(model()), prompts=["jungle"]))
