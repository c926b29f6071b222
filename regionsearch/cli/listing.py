"""`regionsearch scroll`, `count` and `map`: what a collection holds, by filter."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import typer

from regionsearch.cli.searching import Level, Tags, Where, filter_of
from regionsearch.cli.terminal import (
    COLLECTION,
    URL,
    ApiKey,
    AsJson,
    CollectionName,
    Url,
    connect,
    print_table,
)

OfLevel = Annotated[
    Level | None, typer.Option(help="Regions, whole images, or both; both if absent.", show_default=False)
]


def scroll(
    collection: CollectionName = COLLECTION,
    level: OfLevel = None,
    tag: Tags = None,
    where: Where = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Maximum number; all if absent.")
    ] = None,
    masks: Annotated[bool, typer.Option(help="With --json: the regions' masks, too.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Show all regions and whole images that pass a filter. With --json each is a line."""
    with connect(url, api_key) as client:
        found = client.records(
            collection,
            level=None if level is None else level.value,
            filter=filter_of(tag, where),
            include=["mask"] if masks and as_json else [],
        )
        chosen = itertools.islice(found, limit)
        if as_json:
            for one in chosen:
                typer.echo(one.model_dump_json(exclude_none=True))
            return
        rows = [
            (one.region_id or "whole image", one.image_id, one.image.name, str(one.area)) for one in chosen
        ]
    print_table(("region", "image", "name", "area"), rows)


def count(
    collection: CollectionName = COLLECTION,
    level: OfLevel = None,
    tag: Tags = None,
    where: Where = None,
    by_tag: Annotated[bool, typer.Option("--by-tag", help="Count by tag.")] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="ATTRIBUTE", help="Count by the values of an attribute; may be repeated."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Number of values, the most frequent first.")
    ] = 20,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Count images and regions, in all and by tag or attribute."""
    facets: list[dict[str, Any]] = [{"tags": True}] if by_tag else []
    facets += [{"attribute": name} for name in by or ()]
    with connect(url, api_key) as client:
        found = client.count(
            collection,
            level=None if level is None else level.value,
            filter=filter_of(tag, where),
            facets=[facet | {"limit": limit} for facet in facets],
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    rows = [("", "all", found.image_count, found.record_count)]
    for facet, counts in zip(facets, found.facets, strict=True):
        name = facet.get("attribute", "tag")
        rows += [(name, one.value, one.image_count, one.record_count) for one in counts.values]
    print_table(("", "value", "images", "records"), [(*row[:2], str(row[2]), str(row[3])) for row in rows])


def map_(
    collection: CollectionName = COLLECTION,
    whole: Annotated[bool, typer.Option("--whole", help="Whole images instead of regions.")] = False,
    tag: Tags = None,
    where: Where = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=4000, help="Maximum number of points.")
    ] = 2000,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Place regions on a plane so that what is alike lies together."""
    with connect(url, api_key) as client:
        level: Literal["region", "image"] = "image" if whole else "region"
        found = client.map(collection, level=level, filter=filter_of(tag, where), max_points=limit)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    names = {image.image_id: image.name for image in found.images}
    print_table(
        ("x", "y", "region", "name"),
        (
            (f"{one.x:.4f}", f"{one.y:.4f}", one.region_id or one.image_id, names[one.image_id])
            for one in found.points
        ),
    )
