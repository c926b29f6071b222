"""`regionsearch ingest`: folders of pictures, several at once, with progress and a summary of failures."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regionsearch.cli.options import COLLECTION, URL, ApiKey, CollectionName, Url, connect
from regionsearch.cli.output import console, errors, tell
from regionsearch.errors import RegionSearchError, invalid

if TYPE_CHECKING:
    from regionsearch.client import IngestResult

PATIENCE = 12  # tries after the first, for more than a minute: a service that has died is back by then
INTERRUPTED = 130  # what shells give a program that Ctrl-C has ended
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders of them, or patterns like 'a/**/*.jpg'."),
    ],
    collection: CollectionName = COLLECTION,
    tag: Annotated[list[str] | None, typer.Option(help="Put on every picture; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Pictures at once.")] = 4,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Add pictures. Those that are there already cost little: after an interruption just run it again."""
    files = find_pictures(paths)
    done: list[IngestResult] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with (
            connect(url, api_key, retries=PATIENCE) as client,
            Progress(*columns, console=errors) as progress,
        ):
            task = progress.add_task("pictures", total=len(files))

            def note(result: IngestResult) -> None:
                done.append(result)
                progress.advance(task)

            results = client.ingest(files, collection, tags=tag or (), at_once=jobs, on_result=note)
    except (KeyboardInterrupt, RegionSearchError) as error:
        tell(f"stopped after {len(done)} of {len(files)}: {counts_of(done)}")
        tell("the same command goes on from there")
        if isinstance(error, RegionSearchError):
            raise
        raise typer.Exit(INTERRUPTED) from None
    summarise(files, results)
    raise typer.Exit(int(any(result.outcome == "failed" for result in results)))


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """The pictures that files, folders and patterns stand for, in order, each once.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a path that is not there, or when no picture is found.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            inside = sorted(path.rglob("*"))
        else:
            inside = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            if not inside:
                raise invalid("paths", f"{path} is neither a file nor a folder, and no pattern of any")
        found |= {file: None for file in inside if file.suffix.lower() in SUFFIXES and file.is_file()}
    if not found:
        raise invalid("paths", f"there are no pictures; looked for {', '.join(sorted(SUFFIXES))}")
    return list(found)


def counts_of(results: Sequence[IngestResult]) -> str:
    """How many were added, known, or refused."""
    counts = Counter(result.outcome for result in results)
    regions = sum(result.regions or 0 for result in results if result.outcome == "created")
    known, failed = counts["duplicate"], counts["failed"]
    return f"{counts['created']} added with {regions} regions, {known} there already, {failed} failed"


def summarise(files: Sequence[Path], results: Sequence[IngestResult]) -> None:
    """Prints what became of the files, with the reason of every failure."""
    console.print(counts_of(results), highlight=False)
    for path, result in zip(files, results, strict=True):
        if result.error is not None:
            tell(f"failed: {path}: {result.error.detail}", style="red")
