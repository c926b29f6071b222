"""`regionsearch ingest`: folders of images, several at once, with progress and a summary of failures."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regionsearch.cli.terminal import (
    COLLECTION,
    URL,
    ApiKey,
    CollectionName,
    Url,
    connect,
    console,
    errors,
    of_file,
    tell,
)
from regionsearch.errors import RegionSearchError
from regionsearch.image_files import find_images

if TYPE_CHECKING:
    from regionsearch.client import EverythingOptions, IngestResult

RETRIES = 12  # for more than a minute: a service that has died is back by then
INTERRUPTED = 130  # what shells give a program that Ctrl-C has ended


class SearchMode(enum.StrEnum):
    """Where everything mode looks."""

    GRID = "grid"
    PROPOSALS = "proposals"


class Ranking(enum.StrEnum):
    """By what regions are ranked."""

    QUALITY = "quality"
    AREA = "area"


Mode = Annotated[SearchMode | None, typer.Option(help="Where to look for regions. Default: the model's own.")]
PointsPerSide = Annotated[
    int | None, typer.Option(min=1, max=128, help="Points per side of the grid; time grows with the square.")
]
CropLayers = Annotated[
    int | None,
    typer.Option(min=0, max=4, help="Look at enlarged parts too, for small things in large images."),
]
MinArea = Annotated[int | None, typer.Option(min=0, help="Remove holes and islands below this many pixels.")]
MaxRegions = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Keep at most this many regions of an image.")
]
RankBy = Annotated[
    Ranking | None, typer.Option(help="Which regions are kept: the best masks, or the largest.")
]


def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(help="Images, folders of them, or patterns like 'a/**/*.jpg'."),
    ],
    collection: CollectionName = COLLECTION,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Tag for every image, including those already stored; may be repeated."),
    ] = None,
    resend: Annotated[
        bool,
        typer.Option(
            "--resend", help="Send images that are already stored too, which replaces damaged files."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the outcome of each image as a line of JSON."),
    ] = False,
    mode: Mode = None,
    points_per_side: PointsPerSide = None,
    crop_layers: CropLayers = None,
    min_area: MinArea = None,
    max_regions: MaxRegions = None,
    rank_by: RankBy = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Images sent at a time.")] = 4,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Add images. Images already stored are not sent, so an interrupted import is simply run again.

    In folders, hidden files, files of other programs and linked folders are skipped; the summary counts them
    by reason. An image is named by its path below the given folder.

    The exit code is 0 if all images are stored, 1 if one failed or the import stopped, 130 after Ctrl-C.
    """
    everything = read_everything(
        mode=mode,
        points_per_side=points_per_side,
        crop_n_layers=crop_layers,
        min_mask_region_area=min_area,
        max_regions=max_regions,
        rank_by=rank_by,
    )
    selection = find_images(paths)
    sources = selection.named()
    done: list[IngestResult] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with (
            connect(url, api_key, retries=RETRIES) as client,
            Progress(*columns, console=errors) as progress,
        ):
            task = progress.add_task("images", total=len(sources))

            def note(result: IngestResult) -> None:
                done.append(result)
                progress.advance(task)

            results = client.ingest(
                sources,
                collection,
                tags=tag or (),
                everything=everything,
                at_once=jobs,
                resend=resend,
                on_result=note,
            )
    except (KeyboardInterrupt, RegionSearchError) as error:
        tell(f"stopped after {len(done)} of {len(sources)}: {counts_of(done)}")
        tell("the same command goes on from there")
        if isinstance(error, RegionSearchError):
            raise
        raise typer.Exit(INTERRUPTED) from None
    paths_sent = [path for _, path in sources]
    if as_json:
        for path, result in zip(paths_sent, results, strict=True):
            typer.echo(json.dumps({"path": str(path), **result.model_dump(exclude_none=True)}))
        tell(counts_of(results))
    else:
        summarise(paths_sent, results)
    if left_out := selection.summary():
        tell(left_out)
    for path, reason in selection.unreadable.items():
        tell(f"failed: {path}: {reason}", style="red")
    failed = any(result.outcome == "failed" for result in results)
    raise typer.Exit(int(failed or bool(selection.unreadable)))


def read_everything(**given: str | int | None) -> EverythingOptions | None:
    """Options of everything mode, None where none is given.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for options that cannot be combined.
    """
    if all(value is None for value in given.values()):
        return None
    from regionsearch.client import EverythingOptions

    return EverythingOptions.read({name: value for name, value in given.items() if value is not None})


def counts_of(results: Sequence[IngestResult]) -> str:
    """Counts of added, known and failed images, by reason, and of known ones that got tags."""
    counts = Counter(result.outcome for result in results)
    regions = sum(result.regions or 0 for result in results if result.outcome == "created")
    line = (
        f"{counts['created']} added ({regions} regions), {counts['duplicate']} already stored, "
        f"{counts['failed']} failed"
    )
    reasons = Counter(result.error.code for result in results if result.error is not None)
    if reasons:
        line += f" ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})"
    if tagged := sum(bool(result.added_tags) for result in results):
        line += f", tags added to {tagged} known {'image' if tagged == 1 else 'images'}"
    return line


def summarise(files: Sequence[Path], results: Sequence[IngestResult]) -> None:
    """Prints the outcome of the files, with the reason for every failure."""
    console.print(counts_of(results), highlight=False, soft_wrap=True)
    for path, result in zip(files, results, strict=True):
        if result.error is not None:
            tell(f"failed: {of_file(path, result.error.detail)}", style="red")
