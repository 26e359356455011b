"""Reads option values, and refuses those that cannot be meant with a sentence."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

__all__ = ["count", "file", "folder", "nonempty", "seconds"]


def count(most: int = 1_000_000) -> Callable[[str], int]:
    """Return what reads a whole number from 1 to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most}")
        return number

    return read


def seconds(text: str) -> float:
    """Read a time in seconds, 0 or longer."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def nonempty(text: str) -> str:
    """Read text that is not empty: an empty value is mostly a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def file(text: str) -> Path:
    """Read the path of a file, or of what is to become one."""
    path = Path(nonempty(text))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, and not a file")
    return path


def folder(text: str) -> Path:
    """Read the path of a folder, or of what is to become one."""
    path = Path(nonempty(text))
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file, and not a folder")
    return path
