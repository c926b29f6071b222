"""What commands share: options, and where they write: results to standard output, all else to stderr."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regionsearch import defaults
from regionsearch.errors import invalid

if TYPE_CHECKING:
    from regionsearch.client import Client


Url = Annotated[str, typer.Option("--url", envvar="REGIONSEARCH_URL", help="Address of the gateway.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="REGIONSEARCH_API_KEY", help="API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CollectionName = Annotated[str, typer.Option("--collection", "-c", help="Collection.")]

_IMAGE_FIELD = re.compile(r"[\w.\[\]]*\bimage(\.encoded)? (?=is |has |would )")

URL = defaults.URL
COLLECTION = defaults.COLLECTION


def connect(url: str, api_key: str | None, *, retries: int = 2, timeout_s: float = 300) -> Client:
    """A client; its libraries are imported only now, so that help is quick.

    Somebody waits in front of the screen: a server that is away is soon said to be.
    """
    from regionsearch.client import Client

    return Client(url, api_key=api_key, retries=retries, timeout_s=timeout_s)


console = Console()
errors = Console(stderr=True)


def tell(text: str, style: str | None = None) -> None:
    """Prints a note to stderr, without markup or line breaks, so that it can be copied."""
    errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def of_file(path: Path, message: str) -> str:
    """An error's message about a file that was sent: its path in place of the request's field."""
    found = _IMAGE_FIELD.match(message)
    return f"{path} {message[found.end() :]}" if found else f"{path}: {message}"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table: drawn on a terminal, elsewhere lines of tab-separated cells for other programs."""
    if not console.is_terminal:
        for cells in (head, *rows):
            typer.echo("\t".join(cell.replace("\t", " ") for cell in cells))
        return
    table = Table(*head)
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)


T = TypeVar("T")


def track(items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar on a terminal that shows how many are done."""
    return iter(progress.track(items, name, total=total, console=errors, disable=not errors.is_terminal))


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
