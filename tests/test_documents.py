"""The Python blocks of README and docs run, and their shell commands parse, on the tiny model."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends import cli
from backends.layouts import convert
from backends.layouts.files import CONFIG_KEY
from backends.mlx_backend.saving import save
from csm_mlx import tiny
from csm_mlx.finetune.create_dataset import CreateDatasetOptions
from csm_mlx.finetune.lora import apply_lora_to_model
from csm_mlx.finetune.options import FullOptions, LoRAOptions
from csm_mlx.finetune.train_codec import TrainCodecOptions
from csm_mlx.generate import GenerateOptions
from musicgen_mlx.generate import GenerateOptions as MusicOptions
from musicgen_mlx.train_codec import TrainCodecOptions as TrainEncodecOptions
from musicgen_mlx.train_options import MusicGenOptions
from snac_port.decode import DecodeOptions
from snac_port.encode import EncodeOptions
from snac_port.finetune_options import FinetuneOptions
from snac_port.generate import GenerateOptions as CodesOptions
from snac_port.inference import InferenceOptions
from snac_port.prepare_dataset_folder import PrepareOptions
from snac_port.stats import StatsOptions

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "docs/finetuning.md", "docs/codec-training.md", "docs/snac.md", "docs/musicgen.md"]
COMMANDS = {
    "snac_port.prepare_dataset_folder": PrepareOptions,
    "snac_port.finetune": FinetuneOptions,
    "snac_port.inference": InferenceOptions,
    "snac_port.encode": EncodeOptions,
    "snac_port.decode": DecodeOptions,
    "snac_port.generate": CodesOptions,
    "snac_port.stats": StatsOptions,
    "csm_mlx.finetune.train_codec": TrainCodecOptions,
    "csm_mlx.finetune.create_dataset": CreateDatasetOptions,
    "csm_mlx.finetune.finetune_lora": LoRAOptions,
    "csm_mlx.finetune.finetune": FullOptions,
    "csm_mlx.generate": GenerateOptions,
    "backends.layouts.convert": convert.Options,
    "musicgen_mlx.generate": MusicOptions,
    "musicgen_mlx.train": MusicGenOptions,
    "musicgen_mlx.train_codec": TrainEncodecOptions,
}


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the blocks name; the 1B model and its download stand for the tiny one."""
    import mlx.core as mx

    from backends import get
    from backends.adapters.files import adapter_info, save_adapter

    model, backend = tiny.model(), get("mlx")
    mx.save_safetensors(str(tmp_path / "ckpt.safetensors"), backend.parameters(model))
    (tmp_path / "finetune_output").mkdir()
    held = {CONFIG_KEY: json.dumps(model.config.to_json())}
    save(tmp_path / "finetune_output" / "ckpt_epoch_5.safetensors", model, held)
    (tmp_path / "recordings").mkdir()
    shutil.copy(ROOT / "examples/fsdd_george/train/1_george_5.wav", tmp_path / "recordings" / "1.wav")
    apply_lora_to_model(model, rank=8, alpha=16.0, target_modules=["attn", "codebook0_head", "projection"])
    path = tmp_path / "lora_finetune_output" / "lora_ckpt_epoch_5.safetensors"
    save_adapter(backend, model, path, adapter_info(backend, model, base="tiny"))
    monkeypatch.setattr("csm_mlx.csm_1b", __import__("csm_mlx").csm_tiny, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: str(tmp_path / "ckpt.safetensors"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS[:2])
def test_python_blocks_run(document, workplace):
    names: dict = {}
    for block in blocks(document, "python"):
        exec(compile(block.replace("=5000", "=240"), document, "exec"), names)
    assert names["audio"].shape == (3 * 1920,)
    assert list(workplace.glob("*.wav"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_commands_parse(document):
    found = 0
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                inside = [str(ROOT / word) if word.startswith("configs/") else word for word in words[3:]]
                cli.parse(COMMANDS[words[2]], inside)
                found += 1
    assert found >= 3


EXAMPLES = {
    "example_finetuned_lora.py": ["lora_finetune_output/lora_ckpt_epoch_5.safetensors", "Your custom text here", "0"],
    "example_finetuned_full.py": ["finetune_output/ckpt_epoch_5.safetensors", "Hello", "0"],
    "example_context.py": ["recordings/1.wav", "one", "recordings/1.wav", "one", "output.wav", "tiny"],
    "example_stream.py": ["Hello", "output.wav", "tiny"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, workplace):
    import soundfile

    subprocess.run([sys.executable, ROOT / "examples" / name, *EXAMPLES[name]], check=True, cwd=workplace)
    sound, rate_hz = soundfile.read(workplace / "output.wav")
    assert rate_hz == 24000
    assert 1920 <= sound.size <= 62 * 1920


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_say_how_they_are_used(name, workplace):
    command = [sys.executable, ROOT / "examples" / name, "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=workplace)
    assert f"python examples/{name} " in done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_on_a_full_disk_end_in_one_line_and_leave_nothing(name, workplace):
    import resource

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    command = [sys.executable, ROOT / "examples" / name, *EXAMPLES[name]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=workplace, preexec_fn=fill)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: output.wav: cannot be written (")
    assert not list(workplace.glob("*.wav*"))


def test_the_full_example_takes_a_base_for_a_file_without_a_configuration(workplace):
    command = [
        sys.executable,
        ROOT / "examples" / "example_finetuned_full.py",
        "ckpt.safetensors",
        "Hello",
        "0",
        "a.wav",
    ]
    subprocess.run([*command, "tiny"], check=True, cwd=workplace)
    assert (workplace / "a.wav").is_file()
    done = subprocess.run(command, capture_output=True, text=True, cwd=workplace)
    assert done.returncode == 2
    assert "ckpt.safetensors: its configuration is needed" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: expected PATH [TEXT] [SPEAKER] [OUTPUT], found 0 words"),
        (["none.safetensors", "a", "x"], "error: SPEAKER 'x': expected int"),
        (["none.safetensors", "a", "0"], "error: none.safetensors: no such adapter file"),
    ],
)
def test_examples_refuse_bad_input_in_one_line(words, message, workplace):
    script = ROOT / "examples" / "example_finetuned_lora.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, cwd=workplace)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, message)


def test_every_example_is_tested():
    scripts = {path.name for path in (ROOT / "examples").glob("example_*.py")}
    assert scripts == set(EXAMPLES)


@pytest.mark.parametrize("options", [LoRAOptions, FullOptions, CreateDatasetOptions])
def test_the_guide_names_every_option(options):
    guide = (ROOT / "docs/finetuning.md").read_text(encoding="utf-8")
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)} - {"--resume"}
    assert "--no-resume" in guide
    assert {flag for flag in flags if not re.search(rf"{flag}\b(?!-)", guide)} == set()


@pytest.mark.parametrize("options", [MusicGenOptions, MusicOptions])
def test_musicgens_guide_names_every_option(options):
    guide = (ROOT / "docs/musicgen.md").read_text(encoding="utf-8")
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)} - {"--resume"}
    assert {flag for flag in flags if not re.search(rf"{flag}\b(?!-)", guide)} == set()


def test_files_named_in_the_documents_exist():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / document).parent.joinpath(target).exists(), (document, target)
