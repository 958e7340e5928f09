"""How much music is made at once: what the model was trained on, as every layout keeps it, or what is asked for."""

import json
from dataclasses import replace

import music_training as training
import musicgen_published as published
import numpy as np
import pytest
from weights import converted

from backends import cli, get
from backends.base import LoRASpec
from backends.errors import InputError
from backends.layouts import musicgen_settings
from musicgen_mlx import Request, generate, load_engine, stream_generate
from musicgen_mlx.adapters import Adapters, put_on
from musicgen_mlx.config import musicgen_tiny, read_config
from musicgen_mlx.generate import GenerateOptions, main
from musicgen_mlx.known import first_unknown
from musicgen_mlx.load import save_pretrained
from musicgen_mlx.tiny import model

BACKENDS = ("mlx", "torch")
PLAIN = ("--scale", "xsmall", "--epochs", 1, "--segment-duration", 0.2)


@pytest.fixture(scope="module", params=BACKENDS)
def short(request, tmp_path_factory):
    """(backend, loops, a run from scratch on segments of 0.2 s, 10 frames, that plays samples of 0.5 s)."""
    loops = training.loops(tmp_path_factory.mktemp("loops") / "data", 3, 1.0)
    output = tmp_path_factory.mktemp("short")
    return request.param, loops, training.run(loops, output, request.param, *PLAIN, "--sample-duration", 0.5)


def tiny_in(folder, **settings):
    """A directory of ours with a random model and other settings."""
    save_pretrained(model("none"), folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **settings}))
    return folder


def watched(engine, monkeypatch) -> list[tuple[int, int]]:
    """(frames of context, frames in all) of each window that the engine makes from now on."""
    seen, steps = [], engine.steps

    def watching(laid, *rest):
        seen.append((first_unknown(laid) - 1, laid.shape[2] - 4))  # a first input, and three steps for the delays
        return steps(laid, *rest)

    monkeypatch.setattr(engine, "steps", watching)
    return seen


def test_longer_music_is_made_by_windows_of_what_was_trained(short, monkeypatch):
    backend, _, run = short
    assert json.loads((run / "last_model" / "config.json").read_text())["segment_s"] == 0.2
    engine = load_engine(run / "last_model", backend, "cpu" if backend == "torch" else None)
    seen, options = watched(engine, monkeypatch), {"prompts": [None, None], "seeds": [1, 2]}
    whole = generate(engine, Request(**options, duration_s=0.5))
    assert seen == [(0, 10), (4, 10), (4, 10), (4, 7)]
    seen.clear()
    pieces = np.concatenate(list(stream_generate(engine, Request(**options, duration_s=0.5), 0.1)), axis=1)
    assert seen == [(0, 10), (4, 10), (4, 10), (4, 7)]
    assert np.abs(pieces - whole).max() <= 1e-4
    seen.clear()
    generate(engine, Request(**options, duration_s=0.5, continue_from=whole[0, : 640 * 12]))
    assert seen == [(4, 10), (4, 10), (4, 5)]
    seen.clear()
    generate(engine, Request(**options, duration_s=0.2))
    assert seen == [(0, 10)]


def test_fine_tuning_keeps_what_the_model_was_trained_on(short, tmp_path):
    backend, loops, run = short
    more = ("--model", run / "last_model", "--codec", run / "last_model", "--epochs", 1)
    tuned = training.run(loops, tmp_path, backend, *more)
    assert json.loads((tuned / "last_model" / "config.json").read_text())["segment_s"] == 0.2


def test_recordings_shorter_than_a_segment_say_what_was_trained_on(tmp_path):
    loops = training.loops(tmp_path / "loops", 3, 0.6, described=False)
    run = training.run(loops, tmp_path / "run", "mlx", "--dim", 32, "--heads", 2, "--layers", 1, "--epochs", 1,
                       "--segment-duration", 30)  # fmt: skip
    assert json.loads((run / "last_model" / "config.json").read_text())["segment_s"] == 0.6


def test_a_window_may_be_asked_for(monkeypatch):
    engine = load_engine("tiny", "mlx")
    seen = watched(engine, monkeypatch)
    for asked, expected in (
        ({}, [(0, 20)]),
        ({"window_s": 0.3}, [(0, 15), (6, 11)]),
        ({"window_s": 0.3, "stride_s": 0.04}, [(0, 15), (13, 15), (13, 15), (13, 14)]),
        ({"stride_s": 10}, [(0, 20)]),
    ):
        generate(engine, Request([None], [1], 0.4, **asked))
        assert seen == expected
        seen.clear()


def test_published_models_make_30_seconds_at_once():
    config = musicgen_tiny()
    assert config.segment_s == 30
    assert Request([None], [1]).window_frames(config) == (1500, 900)
    assert Request([None], [1]).window_frames(replace(config, segment_s=5)) == (250, 150)
    assert Request([None], [1]).window_frames(replace(config, segment_s=0.01)) == (2, 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"window_s": 0}, "window_s 0: expected seconds above 0"),
        ({"stride_s": -1}, "stride_s -1: expected seconds above 0"),
        ({"stride_s": 30}, "stride_s 30: expected less than the window, 30 s"),
        ({"window_s": 5, "stride_s": 6}, "stride_s 6: expected less than the window, 5 s"),
        ({"window_s": 0.02}, "window_s 0.02, stride_s 0.012: at 50 frames a second no frame is between them"),
    ],
)
def test_windows_that_are_none_are_refused(asked, said):
    with pytest.raises(InputError) as refusal:
        Request([None], [1], **asked).window_frames(musicgen_tiny())
    assert str(refusal.value) == said


def test_the_command_takes_both(tmp_path, monkeypatch, capsys):
    asked, silence = [], np.zeros((1, 640), np.float32)
    made = "musicgen_mlx.generate.generate"
    monkeypatch.setattr(made, lambda _engine, request, progress: asked.append(request) or silence)
    argv = ["--model", "tiny", "--backend", "mlx", "--output", str(tmp_path / "out.wav")]
    for more in ([], ["--window", "5"], ["--window", "5", "--stride", "2"]):
        cli.run(main, GenerateOptions, [*argv, *more])
    assert [(request.window_s, request.stride_s) for request in asked] == [(None, None), (5, None), (5, 2)]
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stop:
        cli.run(main, GenerateOptions, [*argv, "--window", "5", "--stride", "6"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == "error: --stride 6: expected less than the window, 5 s"


def test_layouts_keep_it_where_they_have_a_place_for_it(tmp_path):
    """Ours and audiocraft's; transformers has none."""
    at = tiny_in(tmp_path / "start", segment_s=5.0)
    kept = {}
    for layout in ("audiocraft-musicgen", "mlx-musicgen", "musicgen"):
        at = converted(at, tmp_path / layout, layout)
        kept[layout] = read_config(json.loads((tmp_path / layout / "config.json").read_text()), "test").segment_s
    assert kept == {"audiocraft-musicgen": 5, "mlx-musicgen": 5, "musicgen": 30}


def test_a_config_of_before_means_30_seconds():
    content = musicgen_tiny().to_json()
    del content["segment_s"]
    assert read_config(content, "test").segment_s == 30
    with pytest.raises(InputError, match=r"test: .*segment_s 0: expected a number above 0"):
        read_config({**content, "segment_s": 0}, "test")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("dataset:\n  segment_duration: 10", 10),
        ("dataset:\n  segment_duration: ${length}\nlength: 7.5", 7.5),
        ("dataset:\n  segment_duration: null", 30),
        ("dataset: null", 30),
        ("", 30),
    ],
)
def test_audiocrafts_files_say_it(said, expected):
    cfg = published.xp_cfg(64, 2, 4)
    assert "dataset:\n  segment_duration: 30" in cfg
    told = {"xp.cfg": cfg.replace("dataset:\n  segment_duration: 30", said)}
    settings = musicgen_settings.read_inside(told, "test")
    assert settings is not None
    assert settings["segment_s"] == expected


def test_a_duration_of_audiocrafts_that_is_none_is_refused():
    told = {"xp.cfg": published.xp_cfg(64, 2, 4).replace("segment_duration: 30", "segment_duration: long")}
    with pytest.raises(InputError, match=r"test: its xp.cfg: .*segment_s 'long': expected a number above 0"):
        musicgen_settings.read_inside(told, "test")


def test_an_adapter_goes_on_its_base_whatever_that_says(tmp_path):
    """Transformers' copy of a base model says nothing, which is 30 s."""
    mine = load_engine(tiny_in(tmp_path / "mine", segment_s=5.0), "mlx")
    adapters = Adapters(get("mlx"), mine.model, mine.config)
    adapters.put(["layers.0.linear1"], LoRASpec(2, 4.0))
    adapters.save(tmp_path / "lora_ckpt_last.safetensors", "mine")
    put_on(load_engine(tiny_in(tmp_path / "other"), "mlx"), tmp_path / "lora_ckpt_last.safetensors")
