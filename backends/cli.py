"""Commands from dataclasses: flags, --config files, and one-line errors with exit code 2."""

import atexit
import contextlib
import gc
import inspect
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import UseAppendAction

from backends import blas, config_file
from backends.errors import BAD_INPUT, InputError

Options = TypeVar("Options")


def run(main: Callable[[Options], object], options: type[Options], argv: Sequence[str] | None = None) -> None:
    """Parse the command line into `options` and call `main`.

    Bad input ends with one line on standard error and exit code 2. Hyphens and underscores in flags are the same.
    """
    atexit.register(gc.freeze)  # the end of a process would look through all that PyTorch left, for a second
    argv = sys.argv[1:] if argv is None else list(argv)
    with _one_line_errors():
        parsed = parse(options, argv)
        blas.advise(lambda note: print(note, file=sys.stderr))
        main(parsed)


def callable_module(name: str, function: Callable) -> None:
    """Let the module `name` be called like `function`, whose name it has.

    A command `package.generate` and a function `generate` of the package are one attribute of it, in which Python puts
    the module as soon as somebody imports that.
    """
    sys.modules[name].__class__ = type(name, (ModuleType,), {"__call__": staticmethod(function)})


def script(main: Callable[..., object]) -> None:
    """Call `main` with the words of the command line, read as the types of its parameters; errors as in `run`.

    With --help print what `main`'s file says of itself.
    """
    if "--help" in sys.argv:
        print(main.__globals__["__doc__"])
        return
    words, parameters = sys.argv[1:], list(inspect.signature(main).parameters.values())
    required = sum(parameter.default is parameter.empty for parameter in parameters)
    with _one_line_errors():
        if not required <= len(words) <= len(parameters):
            names = [parameter.name.upper() for parameter in parameters]
            usage = " ".join(names[:required] + [f"[{name}]" for name in names[required:]])
            raise InputError(f"expected {usage}, found {len(words)} words")
        main(*(_value(*pair) for pair in zip(parameters, words, strict=False)))


def _value(parameter: inspect.Parameter, word: str) -> object:
    try:
        return parameter.annotation(word)
    except ValueError as error:
        raise InputError(f"{parameter.name.upper()} {word!r}: expected {parameter.annotation.__name__}") from error


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except MemoryError as error:
        _fail(f"not enough memory{f' ({error})' if str(error) else ''}: ask for less at once")
    except RuntimeError as error:
        _fail(_of_mlx_compiler(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _of_mlx_compiler(error: RuntimeError) -> str:
    """What to say where MLX could not compile. Raises errors of anything else."""
    if "temp_directory_path" in str(error):
        return "TMPDIR names no folder, and MLX compiles in the temporary one: set it to a folder, or leave it unset"
    if "Could not load C++ shared library" in str(error):
        return f"MLX's compiler was interrupted, or cannot write to {tempfile.gettempdir()}: run the same command again"
    raise error


def parse(options: type[Options], argv: Sequence[str]) -> Options:
    """Parse flags, after those of a `--config` file if `options` has such a field. Raises InputError in one line."""
    argv = list(argv)
    _refuse_split_lists(options, argv)
    if "config" in {field.name for field in fields(options)}:  # type: ignore[arg-type]
        argv = config_file.flags(options, argv) + argv
    _refuse_empty_paths(options, argv)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(options, args=argv, description=options.__doc__, prog=_program())
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        if isinstance(stop.__context__, InputError):  # raised while making the options
            raise stop.__context__ from None
        raise InputError(_one_line(errors.getvalue())) from None


def _refuse_split_lists(options: type, argv: Sequence[str]) -> None:
    """A list given in two places would silently be its second part."""
    given = [word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")]
    for name, hint in get_type_hints(options, include_extras=True).items():
        appended = UseAppendAction in getattr(hint, "__metadata__", ())
        plain = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if get_origin(plain) in (tuple, list) and not appended and given.count(name) > 1:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is given {given.count(name)} times: give it once, with all its values behind it")


def _refuse_empty_paths(options: type, argv: Sequence[str]) -> None:
    """A variable that is not set would name the current folder, as `Path("")` does."""
    paths = {name for name, hint in get_type_hints(options).items() if hint is Path or Path in get_args(hint)}
    flag = ""
    for word in argv:
        value = word
        if word.startswith("--"):
            flag, given, value = word.partition("=")
            if not given:
                continue
        if not value and flag[2:].replace("-", "_") in paths:
            raise InputError(f"{flag} is empty: expected a path")


def _program() -> str | None:
    """What the user typed: "python -m package.module", or the script's name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _one_line(text: str) -> str:
    """tyro's framed message as one line: what is wrong, without its title where that only repeats it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [" ".join(re.sub(r"[╭╮╰╯│─]|-{3,}", " ", line).split()) for line in text.splitlines()]  # - without UTF-8
    title, *rest = [line for line in lines if line] or [""]
    body = re.sub(r"\s*For full helptext, .*|\s*Got errors: .*?(?= Argument helptext|$)", "", " ".join(rest))
    repeats = title == "Value error" or body.lower().startswith(title.lower().split(" ")[0])
    return f"{body if repeats else f'{title.lower()}: {body}'}; see --help"
