"""What every command does with its command line and with what goes wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backends import cli
from backends.errors import InputError
from backends.values import as_options, check_number


@dataclass
class Paths:
    """Options of each kind that holds paths."""

    output_dir: Path = Path("run")
    """One."""
    lora: Path | None = None
    """One or none."""
    context_audio: tuple[Path, ...] = ()
    """Several."""
    text: str = ""
    """Not a path."""
    config: Path | None = None
    """A file of options."""


@dataclass
class Bare:
    """No options."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MemoryError("Unable to allocate 116. GiB"),
            "error: not enough memory (Unable to allocate 116. GiB): ask for less",
        ),
        (
            RuntimeError("Could not load C++ shared library /tmp/a.so"),
            "error: MLX's compiler was interrupted, or cannot",
        ),
        (RuntimeError("filesystem error: temp_directory_path: none"), "error: TMPDIR names no folder"),
    ],
)
def test_what_the_machine_lacks_is_a_one_line_error(error, line, capsys):
    def main(_options: object) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main, Bare, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    "words",
    [["--output-dir", ""], ["--output_dir="], ["--text", "", "--lora", ""], ["--context-audio", "a.wav", ""]],
)
def test_an_empty_path_is_not_the_current_folder(words):
    flag = next(word for word in reversed(words) if word.startswith("--")).rstrip("=")
    with pytest.raises(InputError, match=f"^{flag} is empty: expected a path$"):
        cli.parse(Paths, words)
    assert cli.parse(Paths, ["--output-dir", ".", "--text", ""]) == Paths(Path())


def test_an_empty_path_of_a_config_file_is_named(tmp_path):
    (tmp_path / "options.json").write_text('{"output_dir": ""}', encoding="utf-8")
    with pytest.raises(InputError, match="^--output-dir is empty: expected a path$"):
        cli.parse(Paths, ["--config", str(tmp_path / "options.json")])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "text 'my text': top_p 2, not text/top_p or top_p.wav",
            "--prompt 'my text': --top-p 2, not text/top_p or top_p.wav",
        ),
        ("text: none", "--prompt: none"),
        ("/tmp/my text 2.wav: no such audio file", "/tmp/my text 2.wav: no such audio file"),
        ("it has tokens past the text encoder's vocabulary", "it has tokens past the text encoder's vocabulary"),
        ("top_p", "--top-p"),
    ],
)
def test_errors_name_options_for_values_but_not_in_quotes_paths_and_prose(error, said):
    with pytest.raises(InputError) as refusal, as_options({"top_p": "--top-p", "text": "--prompt"}):
        raise InputError(error)
    assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        (True, {}, "n True: expected a number from 0"),
        (None, {}, "n None: expected a number from 0"),
        ("2", {"what": "seconds", "above": True}, "n '2': expected seconds above 0"),
        (0, {"above": True}, "n 0: expected a number above 0"),
        (2.0, {"whole": True}, "n 2.0: expected a whole number from 0"),
        (1.5, {"most": 1}, "n 1.5: expected a number from 0 to 1"),
        (np.float32("nan"), {}, "n nan: expected a number from 0"),
    ],
)
def test_numbers_are_checked(value, options, said):
    with pytest.raises(InputError) as refusal:
        check_number("n", value, **options)
    assert str(refusal.value) == said
    for good in (1, np.int32(1), np.int64(1)):
        check_number("n", good, 1, 1, whole=True)
