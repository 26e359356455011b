"""Makes text from outside safe to show on a terminal."""

import unicodedata
from typing import Final

__all__ = ["printable"]

# Control characters, formatting characters such as those that turn the direction of writing, half pairs that no
# encoding has, and the separators of lines and paragraphs.
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Return the text with an escape such as `\x1b` in place of each character that moves, colours or hides others.

    A file's name can hold any of them, and so can what a server answers.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape" if char.isascii() else "ascii", "backslashreplace").decode()
