"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from regionsearch.errors import invalid

console = Console()
errors = Console(stderr=True)


def tell(text: str, style: str | None = None) -> None:
    """Prints a note to stderr, without markup or line breaks, so that it can be copied."""
    errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def never_fail() -> None:
    """Makes standard output and error escape what their encoding has no characters for, rather than raise.

    Names of files may be of any bytes, and a terminal may know ASCII only.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_target(path: Path | None) -> None:
    """Refuses a file that could not be written, before the work for it begins.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when its folder is not there, or it is a folder itself.
    """
    if path is None:
        return
    if path.is_dir():
        raise invalid("target", f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise invalid("target", f"there is no folder {path.parent}; make it first")


def write_file(path: Path, data: bytes) -> None:
    """Writes a result.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when it cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise invalid("target", f"{path} cannot be written: {error.strerror}") from error
