"""`regionsearch search`, `within` and `export`: finding things, and taking them along."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from regionsearch.cli.options import COLLECTION, URL, ApiKey, CollectionName, Url, connect
from regionsearch.cli.output import check_target, console, tell, write_file
from regionsearch.coco import unique_file_name
from regionsearch.errors import invalid

if TYPE_CHECKING:
    from regionsearch.client import Box, SearchResult, WithinResult

IMAGE_ID = re.compile("[0-9a-f]{64}")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with the ids of images and regions.")]
MinScore = Annotated[float | None, typer.Option(help="Minimum score (cosine) of a hit.")]
Save = Annotated[Path | None, typer.Option(help="Write the image with the hit outlined to this PNG.")]
Open = Annotated[bool, typer.Option("--open", help="Show the image with the hit outlined.")]


def search(
    words: Annotated[list[str] | None, typer.Argument(help="What to look for.")] = None,
    like: Annotated[Path | None, typer.Option(help="An example image.")] = None,
    region: Annotated[str | None, typer.Option(help="A stored region as the example, by its id.")] = None,
    collection: CollectionName = COLLECTION,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of hits.")
    ] = 10,
    min_score: MinScore = None,
    without: Annotated[list[str] | None, typer.Option(help="Words to exclude; may be repeated.")] = None,
    unlike: Annotated[
        list[str] | None, typer.Option(help="A region to exclude, by its id; may be repeated.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only images with one of these tags; may be repeated.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JSON",
            help='A condition, such as \'{"attribute": "price", "number": {"lt": 20}}\'; may be repeated.',
        ),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="One hit per image.")] = False,
    save: Save = None,
    open_it: Open = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Find things by words, by an image, by a region, or by all of these together."""
    if not words and like is None and region is None:
        raise invalid("words", "say what to look for: words, --like IMAGE, or --region ID")
    check_target(save)
    from regionsearch.client import NegativeExample

    with connect(url, api_key) as client:
        result = client.search(
            " ".join(words) if words else None,
            collection,
            image=like,
            region_id=region,
            negatives=[*(without or ()), *(NegativeExample(region_id=one) for one in unlike or ())],
            level="region",
            group_by="image" if images else None,
            filter=_filter(tag, where),
            min_score=min_score,
            page_size=limit,
            include=["mask"] if save is not None or open_it else [],
        )
        _warn_of_cuts(result)
        if as_json:
            typer.echo(json.dumps([hit.model_dump() for hit in result], indent=1))
        else:
            console.print(_table(result) if result else "nothing was found")
            if result and result[0].region_id:
                tell(f"more like the first: regionsearch search --region {result[0].region_id}", style="dim")
        if result and (save is not None or open_it):
            from regionsearch.cli.drawing import outline

            best = result[0]
            _show(outline(client.content(best.image_id, collection), best), save, open_it)


def _filter(tags: list[str] | None, where: list[str] | None) -> dict[str, Any] | None:
    """The filter of a search, None for none.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a condition that is not a JSON object.
    """
    try:
        conditions = [json.loads(text) for text in where or ()]
    except ValueError as error:
        raise invalid("where", f"--where must be JSON: {error}") from error
    if not all(isinstance(condition, dict) for condition in conditions):
        raise invalid("where", '--where must be a JSON object, such as {"attribute": "price"}')
    chosen = {"tags": tags, "conditions": conditions}
    return {name: value for name, value in chosen.items() if value} or None


def within(
    image: Annotated[str, typer.Argument(help="The image: a file, or the id of a stored one.")],
    phrases: Annotated[
        list[str], typer.Argument(help="What to look for; each region goes to its best phrase.")
    ],
    collection: CollectionName = COLLECTION,
    min_score: MinScore = None,
    save: Save = None,
    open_it: Open = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Find things inside one image; a file is searched without being stored."""
    check_target(save)
    path = Path(image) if Path(image).is_file() else None
    if path is None and not IMAGE_ID.fullmatch(image):
        raise invalid("image", f"{image} is neither a file nor the id of an image, 64 hexadecimal digits")
    image_id = None if path else image
    with connect(url, api_key) as client:
        found = client.within(
            phrases, image=path, image_id=image_id, collection=collection, min_score=min_score
        )
        _warn_of_cuts(found)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
        else:
            table = Table("phrase", "score", "box", "area")
            for hit in found.hits:
                table.add_row(Text(hit.label), f"{hit.score:.3f}", _place(hit.box), str(hit.area))
            console.print(table if found.hits else "nothing was found")
        if save is not None or open_it:
            drawn = client.render(
                phrases, image=path, image_id=image_id, collection=collection, min_score=min_score
            )
            _show(drawn, save, open_it)


def export(
    words: Annotated[
        list[str] | None, typer.Argument(help="What to look for; all regions if absent.")
    ] = None,
    target: Annotated[Path, typer.Option("--out", "-o", help="Output file.")] = Path("regions.coco.json"),
    collection: CollectionName = COLLECTION,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of hits.")
    ] = 100,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Write the hits of a search, or all regions of a collection, as COCO annotations with masks."""
    check_target(target)
    with connect(url, api_key) as client:
        if words:
            document = client.export_hits(" ".join(words), collection, limit=limit)
        else:
            images = client.images(collection)
            document = merged(client.export_regions(image.image_id, collection) for image in images)
    write_file(target, json.dumps(document).encode())
    counts = f"{len(document['annotations'])} annotations of {len(document['images'])} images"
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


def _warn_of_cuts(result: SearchResult | WithinResult) -> None:
    if any(result.truncated):
        tell("the query is longer than the model reads: its end was ignored", style="yellow")


def _table(result: SearchResult) -> Table:
    table = Table("", "score", "image", "box")
    for hit in result:
        place = _place(hit.box) if hit.region_id else "whole image"
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Text(hit.image.name), place)
    return table


def _place(box: Box) -> str:
    return f"{box.x_min:.0f},{box.y_min:.0f} – {box.x_max:.0f},{box.y_max:.0f}"


def _show(image: bytes, save: Path | None, open_it: bool) -> None:
    target = save or Path("found.png")
    write_file(target, image)
    tell(f"wrote {target}")
    if open_it and typer.launch(str(target)):
        tell("no program here shows images; open the file yourself")
