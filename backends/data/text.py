"""What a tokenizer takes."""

from backends.errors import InputError


def check_text(text: str) -> None:
    """Raise InputError for a text with halves of characters, as a broken byte or escape makes them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text {text!r}: holds what is no character; expected UTF-8") from error
