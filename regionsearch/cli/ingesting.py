"""`regionsearch ingest`: folders of pictures, several at once, with progress and a summary of failures."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regionsearch.cli.options import COLLECTION, URL, ApiKey, CollectionName, Url
from regionsearch.cli.output import console, errors
from regionsearch.client import AsyncClient, IngestResult
from regionsearch.errors import RegionSearchError, invalid

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders that are searched for them.")],
    collection: CollectionName = COLLECTION,
    tag: Annotated[list[str] | None, typer.Option(help="Put on every picture; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Pictures at once.")] = 4,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Add pictures. Those that are there already are skipped: after an interruption just run it again."""
    files = find_pictures(paths)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("pictures", total=len(files))
        results = asyncio.run(
            send_all(files, collection, tag or [], jobs, url, api_key, lambda: progress.advance(task))
        )
    summary = summarise(results)
    raise typer.Exit(1 if summary["failed"] else 0)


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """The pictures that files and folders stand for, in order, each once.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a path that is not there, or when no picture is found.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES)
            found |= dict.fromkeys(file for file in inside if file.is_file())
        elif path.is_file():
            found[path] = None
        else:
            raise invalid("paths", f"{path} is neither a file nor a folder")
    if not found:
        raise invalid("paths", f"there are no pictures; looked for {', '.join(sorted(SUFFIXES))}")
    return list(found)


async def send_all(
    files: list[Path],
    collection: str,
    tags: list[str],
    jobs: int,
    url: str,
    api_key: str | None,
    advance: Callable[[], object],
) -> list[tuple[Path, IngestResult]]:
    """Sends each file in a request of its own, `jobs` at once; a failure is a result, not an exception."""
    places = asyncio.Semaphore(jobs)
    async with AsyncClient(url, api_key=api_key) as client:

        async def send(path: Path) -> tuple[Path, IngestResult]:
            async with places:
                try:
                    (result,) = await client.ingest([path], collection, tags=tags)
                except RegionSearchError as error:
                    problem = {"code": error.kind.value, "detail": error.message}
                    result = IngestResult(name=path.name, outcome="failed", error=problem)
                advance()
                return path, result

        return await asyncio.gather(*(send(path) for path in files))


def summarise(results: list[tuple[Path, IngestResult]]) -> Counter[str]:
    """Prints what became of the files, with the reason of every failure; returns the counts by outcome."""
    counts = Counter(result.outcome for _, result in results)
    regions = sum(result.regions or 0 for _, result in results if result.outcome == "created")
    console.print(
        f"{counts['created']} added with {regions} regions, {counts['duplicate']} there already, "
        f"{counts['failed']} failed",
        highlight=False,
    )
    for path, result in results:
        if result.outcome == "failed":
            reason = (result.error or {}).get("detail", "unknown")
            errors.print(f"[red]failed[/] {path}: {reason}", highlight=False)
    return Counter({str(name): count for name, count in counts.items()})
