"""Values that callers and commands give: one check of numbers, and errors that say a value's or an option's name."""

import math
import numbers
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backends.errors import InputError


def check_number(
    name: str, value: Any, least: float = 0, most: float = math.inf, *, what: str = "a number", above: bool = False
) -> None:
    """Raise InputError where `value` is no finite number from `least`, or `above` it, to `most`.

    `what` is what it counts, such as "seconds"; "a whole number" takes no other.
    """
    kind = numbers.Integral if what == "a whole number" else numbers.Real
    if isinstance(value, kind) and not isinstance(value, bool):
        number: Any = value
        if least <= number <= most and number < math.inf and not (above and number == least):  # NaN is not
            return
    shown = value if isinstance(value, numbers.Real) else repr(value)
    limit = "" if math.isinf(most) else f" to {most:g}"
    raise InputError(f"{name} {shown}: expected {what} {'above' if above else 'from'} {least:g}{limit}")


@contextmanager
def as_options(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors name options instead of values: {"top_p": "--top-p"}. What is quoted or part of a path stays."""
    try:
        yield
    except InputError as error:
        known = "|".join(map(re.escape, names))
        words = rf"""'[^']*'|"[^"]*"|(?<![\w./-])(?:{known})(?![\w./-])"""
        raise InputError(re.sub(words, lambda found: names.get(found[0], found[0]), str(error))) from error
