"""What every command does with its command line and with what goes wrong."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from backends import cli
from backends.errors import InputError


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
