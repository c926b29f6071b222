"""`regionsearch backfill`: bulk import on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regionsearch.cli.ingesting import INTERRUPTED
from regionsearch.cli.terminal import COLLECTION, CollectionName, errors, tell
from regionsearch.errors import Kind, RegionSearchError

if TYPE_CHECKING:
    from backfill.outcomes import Outcomes


def backfill(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, zip file, bucket or pattern (any URL of fsspec: s3://…, gs://…, hf://…) of "
            "images, WebDataset shards (.tar) or Parquet files; a .lance table; or hf:NAME@SPLIT."
        ),
    ],
    collection: CollectionName = COLLECTION,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Ray cluster. Default: Ray starts on this machine."),
    ] = None,
    segmenters: Annotated[
        int, typer.Option(min=0, help="Actors that segment; 0: by the number of GPUs.")
    ] = 0,
    embedders: Annotated[int, typer.Option(min=0, help="Actors that embed; 0: by the number of GPUs.")] = 0,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of each of these actors. Default: 1 if the cluster has any."),
    ] = None,
    cpus: Annotated[int, typer.Option(min=0, help="Without --ray: CPUs; 0: all.")] = 0,
    object_store_mib: Annotated[
        int,
        typer.Option(
            min=0, help="Without --ray: memory for images between stages, in MiB; 0: Ray's default."
        ),
    ] = 0,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for every image; may be repeated.")] = None,
    image_column: Annotated[
        str, typer.Option(help="Of a table: the images. Default: the column that holds bytes.")
    ] = "",
    name_column: Annotated[
        str, typer.Option(help="Of a table: the images' names. Default: name, file_name or path.")
    ] = "",
    tags_column: Annotated[str, typer.Option(help="Of a table: tags, a list or one string.")] = "tags",
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="Of a table: a column of attributes; may be repeated. Default: all others."),
    ] = None,
    outcomes: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL for Parquet files with every image's outcome. Default: backfill-COLLECTION."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="pocket, fast, base or large. Default: the models of the settings."),
    ] = None,
    searcher: Annotated[
        str | None, typer.Option(help="Address of the searcher. Default: the gateway's setting.")
    ] = None,
    image_store: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL of the image store, for every worker. Default: the gateway's setting."
        ),
    ] = None,
    wait_s: Annotated[
        float, typer.Option(min=0, help="Longest wait for a searcher that does not answer.")
    ] = 300.0,
) -> None:
    """Add images in bulk: Ray runs the models and writes directly to the searcher and the image store.

    Images already stored are neither segmented nor embedded, so an interrupted backfill is simply run again;
    they only get new tags and attributes.

    Settings are those of the processes (REGIONSEARCH_GATEWAY_…, REGIONSEARCH_SEGMENTER_…, or the file that
    REGIONSEARCH_CONFIG names). The exit code is 0 if all images are stored, 1 if one failed or the backfill
    stopped, 130 after Ctrl-C.
    """
    try:  # only this command needs the models' libraries and Ray
        from backfill.job import Job
        from backfill.outcomes import Outcomes
        from backfill.pipeline import Backfill, Workers, cluster
        from backfill.sources import Metadata
    except ModuleNotFoundError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION, f"{error.name} is not installed: pip install 'regionsearch[ray]'"
        ) from error

    metadata = Metadata(
        tuple(tag or ()),
        image_column,
        name_column,
        tags_column,
        None if attribute is None else tuple(attribute),
    )
    job = Job.read(profile=profile, searcher=searcher, image_store=image_store, wait_s=wait_s)
    workers = Workers(segmenters, embedders, gpus, cpus, object_store_mib)
    log = Outcomes(outcomes or f"backfill-{collection}")
    try:
        with cluster(ray, workers):
            run = Backfill(job, source, collection, metadata, workers)
            _follow(run.outcomes(), log, run.total)
    except (KeyboardInterrupt, RegionSearchError) as error:
        tell(f"stopped after {summary(log)}")
        tell("run the same command again to resume")
        if isinstance(error, RegionSearchError):
            raise
        raise typer.Exit(INTERRUPTED) from None
    tell(summary(log))
    if run.skipped:
        tell(f"skipped: {run.skipped}")
    raise typer.Exit(int(log.counts["failed"] > 0))


def _follow(tables: Iterable[Any], log: Outcomes, total: int | None) -> None:
    """Records outcomes, and shows their number, rate, ETA and the failures by reason."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    began = time.monotonic()

    def rate() -> float:
        return log.total / (time.monotonic() - began)

    def report() -> None:
        if not errors.is_terminal:
            left = f", {(total - log.total) / rate():.0f} s left" if total and log.total else ""
            tell(f"{summary(log)}; {rate():.1f}/s{left}")

    with Progress(*columns, console=errors) as progress, log.written(report):
        task = progress.add_task("starting", total=total)
        for table in tables:
            log.add(table)
            progress.update(task, completed=log.total, description=f"{rate():.1f}/s {_failures(log)}")


def _failures(log: Outcomes) -> str:
    if not log.reasons:
        return ""
    return f"({', '.join(f'{count} {reason}' for reason, count in log.reasons.most_common())})"


def summary(log: Outcomes) -> str:
    """Counts of added, stored and failed images, the last by reason."""
    return (
        f"{log.counts['created']} added ({log.regions} regions), "
        f"{log.counts['duplicate']} already stored, {log.counts['failed']} failed {_failures(log)}".rstrip()
    )
