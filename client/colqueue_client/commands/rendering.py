"""The options of commands that render documents: resolution, passwords, and what the service takes as one image."""

import argparse
import os
from pathlib import Path
from typing import Final

from colqueue_client.commands.values import count

__all__ = ["PASSWORD_VARIABLE", "add_rendering_options", "limits_from", "passwords_from"]

PASSWORD_VARIABLE: Final = "COLQUEUE_PDF_PASSWORD"  # noqa: S105 - the name of a variable
_DPI: Final = 150
# Beyond it every page reaches the limit of pixels.
_MAX_DPI: Final = 9600
_MOST: Final = 2**31 - 1


def add_rendering_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    add = parser.add_argument
    add(
        "--dpi",
        type=count(_MAX_DPI),
        default=_DPI,
        metavar="N",
        help="resolution of PDF pages (default: %(default)s)",
    )
    add(
        "--password",
        action="append",
        default=[],
        metavar="TEXT",
        help="try this password on encrypted PDFs; may be given several times. Other users of this machine can see "
        f"options: prefer --password-file, or the variable {PASSWORD_VARIABLE}",
    )
    add(
        "--password-file",
        type=_lines,
        default=[],
        metavar="FILE",
        help="try each line of FILE as a password on encrypted PDFs",
    )
    add(
        "--max-input-bytes",
        type=count(_MOST),
        metavar="N",
        help="make images smaller that have more bytes; what the service has as COLQUEUE_MAX_INPUT_BYTES "
        "(default: 33554432, as the service's)",
    )
    add(
        "--max-image-pixels",
        type=count(_MOST),
        metavar="N",
        help="make images smaller that have more pixels; what the service has as COLQUEUE_MAX_IMAGE_PIXELS "
        "(default: 75000000, as the service's)",
    )


def passwords_from(options: argparse.Namespace) -> list[str]:
    """Return the passwords to try on encrypted PDFs, in order."""
    from_environment = os.environ.get(PASSWORD_VARIABLE)
    return [*options.password, *options.password_file, *([from_environment] if from_environment else [])]


def limits_from(options: argparse.Namespace) -> dict[str, int]:
    """Return the fields of `pages.Limits` that the options name."""
    given = {"max_bytes": options.max_input_bytes, "max_pixels": options.max_image_pixels}
    return {name: value for name, value in given.items() if value is not None}


def _lines(name: str) -> list[str]:
    try:
        return [line for line in Path(name).read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{name} is not UTF-8 text") from error
