"""Values that callers and commands give: one check of numbers, and errors that say a value's or an option's name."""

import math
import numbers
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backends.errors import InputError


def check_number(
    name: str, value: Any, least: float = 0, most: float = math.inf, *, what: str = "a number", above: bool = False,
    whole: bool = False,
) -> None:  # fmt: skip
    """Raise InputError where `value` is no finite number, or no whole one, from `least`, or `above` it, to `most`.

    `what` is what it counts, such as "seconds".
    """
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, kind) and not isinstance(value, bool):
        number: Any = value
        if least <= number <= most and number < math.inf and not (above and number == least):  # NaN is not
            return
    shown = value if isinstance(value, numbers.Real) else repr(value)
    what = "a whole number" if whole else what
    limit = "" if math.isinf(most) else f" to {most:g}"
    raise InputError(f"{name} {shown}: expected {what} {'above' if above else 'from'} {least:g}{limit}")


@contextmanager
def as_options(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors name options instead of values: {"top_p": "--top-p"}.

    A name that is an ordinary word, such as text, counts only where an error begins with it; others not in quotes or
    paths.
    """
    try:
        yield
    except InputError as error:
        first, *rest = re.split(r"(?=[ :])", str(error), maxsplit=1)
        own = "|".join(re.escape(name) for name in names if "_" in name) or "(?!)"
        words = rf"""'[^']*'|"[^"]*"|(?<![\w./-])(?:{own})(?![\w./-])"""
        named = re.sub(words, lambda found: names.get(found[0], found[0]), "".join(rest))
        raise InputError(names.get(first, first) + named) from error
