"""What every command does with its command line and with what goes wrong."""

from dataclasses import dataclass

import pytest

from backends import cli


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
