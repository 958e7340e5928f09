"""The shipped configurations: the seed's table, keys that are refused, flags that override."""

import json

import pytest
from finetuning import CONFIGS

from backends import cli
from backends.training.curriculum import stages
from snac_port.finetune_options import FinetuneOptions

SEEDS = ("phase10_revolab_all", "phase10_curriculum", "phase10_combined")


def parsed(name: str, *extra: object) -> FinetuneOptions:
    return cli.parse(FinetuneOptions, ["--config", str(CONFIGS / f"{name}.json"), *(str(flag) for flag in extra)])


def made(options: FinetuneOptions):
    return stages(options.curriculum, options.num_epochs, options.batch_size, options.segment_length)


@pytest.mark.parametrize("name", [*SEEDS, "tiny", "tiny_from_scratch"])
def test_every_configuration_parses(name):
    assert made(parsed(name))[-1].last == parsed(name).num_epochs


def test_the_seeds_curriculum():
    """Epochs 1-2 of 1 s in batches of 96, 3-4 of 2 s of 48, 5-6 of 3 s of 28, 7-10 of 4 s of 21."""
    found = [(s.first, s.last, s.length_s, s.batch_size) for s in made(parsed("phase10_revolab_all"))]
    assert found == [(1, 2, 1.0, 96), (3, 4, 2.0, 48), (5, 6, 3.0, 28), (7, 10, 4.0, 21)]


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_loss_and_optimizer(name):
    options = parsed(name)
    assert (options.l1_weight, options.stft_weight, options.n_ffts) == (1.0, 1.0, (1024, 2048, 4096))
    assert options.pretrained_model == "hubertsiuzdak/snac_24khz"
    assert options.training().schedule == "cosine"


def test_flags_override_the_file():
    options = parsed("tiny", "--learning_rate", 1e-4, "--n-ffts", 64, "--freeze-vq", "--curriculum", "")
    assert (options.learning_rate, options.n_ffts, options.curriculum) == (1e-4, (64,), "")
    assert options.batch_size == 8


def test_unknown_keys_are_refused(tmp_path, capsys):
    content = json.loads((CONFIGS / "tiny.json").read_text()) | {"l1_wieght": 2.0}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _options: None, FinetuneOptions, ["--config", str(tmp_path / "c.json")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "l1_wieght" in error
    assert "l1_weight" in error
