"""The words of a command line, where nobody has to understand all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def value_of(words: Sequence[str], flag: str) -> str:
    """The value of a flag, given as `FLAG VALUE` or `FLAG=VALUE`; "" if it is not there."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word == flag:
            return after
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""


def with_value(words: Sequence[str], flag: str, value: str) -> tuple[str, ...]:
    """The words with this value of a flag that they have, in the form in which it is given; no other word changes."""
    replaced = []
    for before, word in zip(["", *words], words, strict=False):
        joined = f"{flag}={value}" if word.startswith(f"{flag}=") else word
        replaced.append(value if before == flag else joined)
    return tuple(replaced)
