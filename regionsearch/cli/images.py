"""`regionsearch images`: what a collection holds, and changing it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from regionsearch.cli.searching import Tags, Where, filter_of
from regionsearch.cli.terminal import (
    COLLECTION,
    URL,
    ApiKey,
    AsJson,
    CollectionName,
    Url,
    connect,
    print_table,
    tell,
)
from regionsearch.errors import Kind, RegionSearchError, invalid

# What is wrong with one image; every other error would meet the next one too.
_OF_ONE = (Kind.INVALID_ARGUMENT, Kind.NOT_FOUND, Kind.TOO_LARGE, Kind.ABORTED, Kind.INTERNAL)

app = typer.Typer(help="Images: list, show, find duplicates, tag, edit, delete.", no_args_is_help=True)

Ids = Annotated[list[str], typer.Argument(help="Ids of images.")]
AddTag = Annotated[list[str] | None, typer.Option(help="May be repeated, as all but the name.")]
RemoveTag = Annotated[list[str] | None, typer.Option(help="A tag to remove.")]


@app.command("list")
def list_images(
    collection: CollectionName = COLLECTION,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Maximum number; all if absent.")
    ] = None,
    tag: Tags = None,
    where: Where = None,
    sort: Annotated[
        str, typer.Option(help='"created_at" (when added), "name", or an attribute: "attributes.taken_at".')
    ] = "created_at",
    ascending: Annotated[bool, typer.Option("--ascending", help="Lowest or earliest first.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Show images, newest first, with their ids. With --json each is a line."""
    with connect(url, api_key) as client:
        wanted = filter_of(tag, where)
        found = client.images(collection, filter=wanted, order_by=sort, ascending=ascending)
        chosen = itertools.islice(found, limit)
        if as_json:
            for one in chosen:
                typer.echo(one.model_dump_json())
            return
        attribute = sort.partition("attributes.")[2]
        rows = [
            (
                one.image_id,
                one.name,
                f"{one.width} × {one.height}",
                str(one.region_count),
                ", ".join(one.tags),
                *([one.attributes.get(attribute, "")] if attribute else []),
            )
            for one in chosen
        ]
    print_table(("id", "name", "size", "regions", "tags", *([attribute] if attribute else [])), rows)


@app.command("duplicates")
def list_duplicates(
    collection: CollectionName = COLLECTION,
    similarity: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest similarity (cosine) to the first image of a group.")
    ] = 0.98,
    tag: Tags = None,
    where: Where = None,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Show groups of images that look nearly the same, the first added in front. With --json each is a line.

    It takes a search for each image. Copies of one file are never stored twice.
    """
    with connect(url, api_key) as client:
        groups = client.near_duplicates(collection, similarity=similarity, filter=filter_of(tag, where))
        rows = []
        for number, group in enumerate(groups, 1):
            if as_json:
                typer.echo(json.dumps([one.model_dump() for one in group]))
            rows += [(str(number), one.image_id, one.name, f"{one.width} × {one.height}") for one in group]
    if not as_json:
        print_table(("group", "id", "name", "size"), rows)


@app.command("show")
def show_image(
    image_id: Annotated[str, typer.Argument(help="Id of the image.")],
    collection: CollectionName = COLLECTION,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Show what is known of an image, and its regions."""
    with connect(url, api_key) as client:
        image, regions = client.image(image_id, collection), client.regions(image_id, collection)
    if as_json:
        shown = image.model_dump() | {"regions": [one.model_dump(exclude_none=True) for one in regions]}
        typer.echo(json.dumps(shown, indent=1))
        return
    facts = {name: value for name, value in image.model_dump().items() if name not in ("tags", "attributes")}
    facts |= {"tags": ", ".join(image.tags)} | {f"attribute {k}": v for k, v in image.attributes.items()}
    print_table(("", ""), [(name, str(value)) for name, value in facts.items()])
    corners = ("x_min", "y_min", "x_max", "y_max")
    rows = [
        (one.region_id or "", ",".join(f"{getattr(one.box, name):.0f}" for name in corners), str(one.area))
        for one in regions
    ]
    print_table(("region", "box", "area"), rows)


@app.command("tag")
def tag_images(
    image_ids: Ids,
    add: Annotated[list[str] | None, typer.Option(help="A tag to add; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to remove; may be repeated.")] = None,
    collection: CollectionName = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Add and remove tags of images."""
    edit(image_ids, add, remove, collection=collection, url=url, api_key=api_key)


@app.command("delete")
def delete(
    image_ids: Ids,
    collection: CollectionName = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Delete images with their regions. The exit code is 1 if one could not be deleted."""
    with connect(url, api_key) as client:
        _each(image_ids, lambda one: client.delete_image(one, collection), "deleted")


@app.command("edit")
def edit(
    image_ids: Ids,
    add_tag: AddTag = None,
    remove_tag: RemoveTag = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An attribute to set.")
    ] = None,
    remove_attribute: Annotated[list[str] | None, typer.Option(help="An attribute to remove.")] = None,
    name: Annotated[str | None, typer.Option(help="The name of the one image.")] = None,
    collection: CollectionName = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Change tags, attributes and names of images. The exit code is 1 if one could not be changed."""
    attributes: dict[str, str | None] = dict.fromkeys(remove_attribute or ())
    for pair in attribute or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise invalid("attribute", f"{pair!r} is not a valid attribute: expected --attribute NAME=VALUE")
        attributes[key] = value
    if name is not None and len(image_ids) > 1:
        raise invalid("name", "--name is for one image; leave it out to change several")
    if not (add_tag or remove_tag or attributes or name is not None):
        raise invalid("edit", "say what to change: a tag to add or remove, an attribute or a name")
    with connect(url, api_key) as client:

        def change(image_id: str) -> object:
            return client.update_image(
                image_id,
                collection,
                name=name,
                add_tags=add_tag or (),
                remove_tags=remove_tag or (),
                attributes=attributes,
            )

        _each(image_ids, change, "changed")


def _each(image_ids: Sequence[str], act: Callable[[str], object], done: str) -> None:
    """Does something to each image and tells its outcome; what is wrong with one does not stop the others.

    Raises:
        Exit: With code 1 at the end, when one failed.
        RegionSearchError: What every other image would meet too.
    """
    failed = False
    for image_id in dict.fromkeys(image_ids):
        try:
            act(image_id)
        except RegionSearchError as error:
            if error.kind not in _OF_ONE:
                raise
            failed = True
            tell(f"failed: {image_id}: {error.message}", style="red")
        else:
            tell(f"{done} {image_id}")
    raise typer.Exit(int(failed))
