"""`regionsearch export`: hits of a search, or all regions, as COCO annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from regionsearch.cli.searching import All, Cutoff, MinScore, phrases_of
from regionsearch.cli.terminal import (
    COLLECTION,
    URL,
    ApiKey,
    CollectionName,
    Url,
    check_target,
    connect,
    console,
    tell,
    track,
    write_file,
)
from regionsearch.exports import unique_file_name


def export(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="What to look for, commas separate several phrases; all regions if absent."),
    ] = None,
    target: Annotated[Path, typer.Option("--out", "-o", help="Output file; - is standard output.")] = Path(
        "regions.coco.json"
    ),
    collection: CollectionName = COLLECTION,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of hits.")
    ] = 100,
    min_score: MinScore = None,
    cutoff: Cutoff = None,
    keep_weak: All = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Write the hits of a search, or all regions of a collection, as COCO annotations with masks."""
    to_stdout = target == Path("-")
    check_target(None if to_stdout else target)
    with connect(url, api_key) as client:
        if words:
            document = client.export_hits(
                phrases_of(words),
                collection,
                limit=limit,
                min_score=min_score,
                relative_cutoff=cutoff,
                include=["weak"] if keep_weak else [],
            )
        else:
            images = track(
                client.images(collection), "images", client.list_images(collection, page_size=1).total_count
            )
            document = merged(client.export_regions(image.image_id, collection) for image in images)
    counts = f"{len(document['annotations'])} annotations of {len(document['images'])} images"
    if to_stdout:
        typer.echo(json.dumps(document))
        tell(counts)
    else:
        write_file(target, json.dumps(document).encode())
        console.print(f"{counts} in {target}", highlight=False)


def merged(documents: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """COCO documents with the same categories as one; images and annotations are renumbered."""
    whole: dict[str, Any] = {"info": {}, "images": [], "categories": [], "annotations": []}
    names: set[str] = set()
    for document in documents:
        whole |= {"info": document["info"], "categories": document["categories"]}
        numbers = {}
        for image in document["images"]:
            numbers[image["id"]] = number = len(whole["images"]) + 1
            name = unique_file_name(image["file_name"], image["sha256"], names)
            whole["images"].append(image | {"id": number, "file_name": name})
        for one in document["annotations"]:
            number = len(whole["annotations"]) + 1
            whole["annotations"].append(one | {"id": number, "image_id": numbers[one["image_id"]]})
    return whole
