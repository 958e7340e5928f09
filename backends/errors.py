"""The one exception that means "the user can mend this"."""

BAD_INPUT = 2  # a command's exit code for it


class InputError(ValueError):
    """Bad input. The message is one line that names the file or option, what was expected and the remedy.

    Commands print it without a traceback and exit with code `BAD_INPUT` (`backends.cli.run`).
    """


def missing_extra(module: str, extra: str) -> InputError:
    """The error for an import that needs an optional extra, naming the command that brings it."""
    return InputError(f'{module} is not installed: pip install "audiosmith[{extra}]"')
