"""`regionsearch search`, `within` and `export`: finding things, and taking them along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from regionsearch.cli.options import COLLECTION, URL, ApiKey, CollectionName, Url
from regionsearch.cli.output import console, errors
from regionsearch.client import Client, Hit, SearchResult, calls
from regionsearch.errors import invalid

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MinScore = Annotated[float | None, typer.Option(help="Lowest cosine that counts.")]


def search(
    words: Annotated[list[str] | None, typer.Argument(help="What to look for.")] = None,
    like: Annotated[Path | None, typer.Option(help="A picture of it.")] = None,
    collection: CollectionName = COLLECTION,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most hits.")] = 10,
    min_score: MinScore = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Words that are not meant; may be repeated.")
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="One hit an image.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the best hit's picture, outlined, to this PNG.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show the best hit's picture, outlined.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Find things by words, by a picture, or by both."""
    text = " ".join(words or [])
    if not text and like is None:
        raise invalid("words", "say what to look for: words, or a picture with --like")
    with Client(url, api_key=api_key) as client:
        result = client.search(
            text or None,
            collection,
            image=like,
            negatives=without or (),
            group_by_image=images,
            min_score=min_score,
            page_size=limit,
        )
        if as_json:
            typer.echo(json.dumps([hit.model_dump() for hit in result], indent=1))
        else:
            console.print(_table(result) if result else "nothing was found")
        if result and (save or open_it):
            _save(client, result[0], text, collection, save or Path("found.png"), open_it)


def _table(result: SearchResult) -> Table:
    table = Table("", "score", "picture", "box", "region")
    for hit in result:
        box = f"{hit.box.x_min:.0f},{hit.box.y_min:.0f} – {hit.box.x_max:.0f},{hit.box.y_max:.0f}"
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.image.name, box, hit.region_id or "whole image")
    return table


def _save(client: Client, hit: Hit, text: str, collection: str, target: Path, open_it: bool) -> None:
    if text:
        picture = client.render(text, image_id=hit.image_id, collection=collection)
    else:
        picture = client.content(hit.image_id, collection)
    target.write_bytes(picture)
    errors.print(f"wrote {target}", highlight=False)
    if open_it:
        typer.launch(str(target))


def within(
    picture: Annotated[Path, typer.Argument(help="The picture to look into.")],
    phrases: Annotated[
        list[str], typer.Argument(help="What to look for; each region goes to its best phrase.")
    ],
    min_score: MinScore = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the picture with the finds outlined to this PNG.")
    ] = None,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Find things inside one picture, without storing it."""
    with Client(url, api_key=api_key) as client:
        found = client.within(phrases, image=picture, min_score=min_score)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
        else:
            table = Table("phrase", "score", "box", "area")
            for region in found.hits:
                box = region.box
                place = f"{box.x_min:.0f},{box.y_min:.0f} – {box.x_max:.0f},{box.y_max:.0f}"
                table.add_row(region.label, f"{region.score:.3f}", place, str(region.area))
            console.print(table if found.hits else "nothing was found")
        if save is not None:
            save.write_bytes(client.render(phrases, image=picture, min_score=min_score))
            errors.print(f"wrote {save}", highlight=False)


def export(
    words: Annotated[list[str], typer.Argument(help="What to look for.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="Where to write.")] = Path("hits.coco.json"),
    collection: CollectionName = COLLECTION,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most hits.")] = 100,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Write the hits of a search as COCO annotations with masks."""
    with Client(url, api_key=api_key) as client:
        found = client.send(calls.search_coco({"text": " ".join(words)}, collection, limit))
    target.write_text(json.dumps(found))
    console.print(f"{len(found['annotations'])} annotations in {target}", highlight=False)
