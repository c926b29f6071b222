"""`regionsearch collections`, `reindex`, `edit`, `delete`, `doctor`, `evaluate`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from regionsearch.cli.options import COLLECTION, URL, ApiKey, CollectionName, Url, connect
from regionsearch.cli.output import console, tell
from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.models import PROFILES, models_dir, pocket_dir
from regionsearch.proxies import environment_proxy, through

POLL_S = 0.5
PROGRESS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
# What is wrong with one image; every other error would meet the next one too.
_OF_ONE = (Kind.INVALID_ARGUMENT, Kind.NOT_FOUND, Kind.TOO_LARGE, Kind.ABORTED, Kind.INTERNAL)

collections_app = typer.Typer(help="Collections: list, create, delete.", no_args_is_help=True)


@collections_app.command("list")
def list_collections(url: Url = URL, api_key: ApiKey = None) -> None:
    """Show all collections."""
    table = Table("collection", "images", "vectors", "model")
    with connect(url, api_key) as client:
        for one in client.collections():
            model = f"{one.model.variant} / {one.model.crop_policy}"
            table.add_row(one.name, str(one.image_count), str(one.record_count), model)
    console.print(table)


@collections_app.command("create")
def create_collection(
    name: str,
    crop_policy: Annotated[
        str, typer.Option(help="How regions are cropped before they are embedded.")
    ] = "default",
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Create a collection for the model that is served now."""
    with connect(url, api_key) as client:
        made = client.create_collection(name, crop_policy=crop_policy)
    tell(f"made {made.name}, for {made.model.variant}")


@collections_app.command("delete")
def delete_collection(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Delete a collection and everything in it."""
    if not yes:
        typer.confirm(f"delete {name} with all of its images?", abort=True)
    with connect(url, api_key) as client:
        client.delete_collection(name)
    tell(f"deleted {name}")


def reindex(
    collection: Annotated[str, typer.Argument(help="The collection to move to another model.")],
    embedder: Annotated[
        str, typer.Option(metavar="VARIANT", help="The model to move to, where several are possible.")
    ] = "",
    cancel: Annotated[bool, typer.Option("--cancel", help="Give a move that is under way up.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Move a collection to the model of the gateway's other embedder, while it is searched and written.

    Asked for again it shows how far it is. Ended by Ctrl-C it goes on in the gateway.
    """
    with connect(url, api_key) as client:
        if cancel:
            client.cancel_reindex(collection)
            tell(f"{collection} stays as it is")
            return
        move = client.start_reindex(collection, embedder=embedder)
        tell(f"{collection}: from {move.source_model.variant} to {move.target_model.variant}")
        if no_wait:
            return
        problem = ""
        with Progress(*PROGRESS, console=console) as progress:
            task = progress.add_task("embedding again", total=move.image_count)
            while move.state != "done":
                time.sleep(POLL_S)
                move = client.get_reindex(collection)
                progress.update(task, completed=move.done_image_count, total=move.image_count)
                if move.problem != problem:
                    problem = move.problem
                    tell(problem or "it goes on")
    tell(
        f"{collection} has the new model; to free the old one: regionsearch collections delete {move.kept_as}"
    )


def delete(
    image_ids: Annotated[list[str], typer.Argument(help="Ids of images.")],
    collection: CollectionName = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Delete images and their regions. The exit code is 1 if one of them could not be deleted."""
    with connect(url, api_key) as client:
        _each(image_ids, lambda one: client.delete_image(one, collection), "deleted")


def edit(
    image_ids: Annotated[list[str], typer.Argument(help="Ids of images.")],
    add_tag: Annotated[
        list[str] | None, typer.Option(help="A tag to add; all options but the name may be repeated.")
    ] = None,
    remove_tag: Annotated[list[str] | None, typer.Option(help="A tag to remove.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An attribute to set.")
    ] = None,
    remove_attribute: Annotated[list[str] | None, typer.Option(help="An attribute to remove.")] = None,
    name: Annotated[str | None, typer.Option(help="New name, for a single image.")] = None,
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
        raise invalid(
            "edit", "say what to change: --add-tag, --remove-tag, --attribute, --remove-attribute or --name"
        )
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
    """Runs an action on each image and prints its outcome; an error of one does not stop the others.

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


def doctor(url: Url = URL, api_key: ApiKey = None) -> None:
    """Check this machine and the running services, and say what is wrong and how to fix it."""
    table = Table("check", "found", "verdict")
    well = True

    def row(check: str, found: str, good: bool = True, advice: str = "") -> None:
        nonlocal well
        well &= good
        table.add_row(Text(check), Text(found), Text("ok", "green") if good else Text(advice, "red"))

    row("Python", platform.python_version(), sys.version_info >= (3, 11), "3.11 or newer is needed")
    row("processors", str(os.cpu_count()))
    free = shutil.disk_usage(Path.cwd()).free // 2**30
    row("free disk", f"{free} GiB", free >= 1, "less than 1 GiB: writes will fail soon")
    for module, extra in (
        ("torch", "segmenter,embedder"),
        ("segment_anything", "segmenter"),
        ("open_clip", "embedder"),
        ("faiss", "searcher"),
        ("fastapi", "gateway"),
    ):
        there = importlib.util.find_spec(module) is not None
        row(module, "installed" if there else "missing", there, f"pip install 'regionsearch[{extra}]'")
    bundled = sorted(path.name for path in pocket_dir().glob("*.safetensors"))
    row("pocket models", ", ".join(bundled) or "missing", len(bundled) == 2, "reinstall regionsearch")
    for profile in PROFILES.values():
        if profile.weights:
            here = [weights.model for weights in profile.weights if (models_dir() / weights.file).exists()]
            row(
                f"{profile.name} models",
                ", ".join(here) or f"not pulled (regionsearch models pull {profile.name})",
            )
    try:
        with connect(url, api_key, retries=0, timeout_s=5) as client:
            services = client.ready().services
    except RegionSearchError as error:
        found, advice = error.message, "see its log"
        if error.kind is Kind.UNAVAILABLE:
            proxy = environment_proxy(url)
            found = f"does not answer{through(proxy)}"
            advice = f"unset {proxy.variable}" if proxy else "start it with: regionsearch up"
        row(f"gateway at {url}", found, False, advice)
    else:
        for name, state in services.items():
            row(name, state.detail, state.ready, "see its log")
    console.print(table)
    raise typer.Exit(0 if well else 1)


def evaluate(context: typer.Context) -> None:
    """Measure how well the models find things; --help lists the options."""
    # Imported here: only this command needs the models' libraries.
    from evaluation.cli import app

    app(context.args, prog_name="regionsearch evaluate")
