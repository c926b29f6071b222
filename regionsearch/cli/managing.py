"""`regionsearch collections`, `codes`, `reindex`, `doctor`, `evaluate`, `mcp`."""

from __future__ import annotations

import enum
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regionsearch import defaults
from regionsearch.cli.ingesting import (
    CropLayers,
    MaxRegions,
    MinArea,
    Mode,
    PointsPerSide,
    RankBy,
    read_everything,
)
from regionsearch.cli.terminal import URL, ApiKey, AsJson, Url, connect, console, print_table, tell
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import PROFILES
from regionsearch.models.store import models_dir, pocket_dir
from regionsearch.proxies import environment_proxy, through

POLL_S = 0.5
PROGRESS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
_LIBRARIES = {
    "torch": "segmenter,embedder",
    "segment_anything": "segmenter",
    "open_clip": "embedder",
    "faiss": "searcher",
    "fastapi": "gateway",
}
"""What each service needs, with the extra that installs it."""

collections_app = typer.Typer(help="Collections: list, create, delete.", no_args_is_help=True)
codes_app = typer.Typer(help="Binary codes of a collection's vectors: train.", no_args_is_help=True)


class CodeMethod(enum.StrEnum):
    """How binary codes are learned."""

    ITQ = "itq"
    LEARNED = "learned"
    PCA_ROTATION = "pca_rotation"


@collections_app.command("list")
def list_collections(as_json: AsJson = False, url: Url = URL, api_key: ApiKey = None) -> None:
    """Show all collections."""
    with connect(url, api_key) as client:
        found = client.collections()
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=1))
        return
    rows = [
        (
            one.name,
            str(one.image_count),
            str(one.record_count),
            f"{one.model.variant} / {one.model.crop_policy}",
        )
        for one in found
    ]
    print_table(("collection", "images", "vectors", "model"), rows)


@collections_app.command("create")
def create_collection(
    name: str,
    crop_policy: Annotated[
        str, typer.Option(help="How regions are cropped before they are embedded.")
    ] = "default",
    mode: Mode = None,
    points_per_side: PointsPerSide = None,
    crop_layers: CropLayers = None,
    min_area: MinArea = None,
    max_regions: MaxRegions = None,
    rank_by: RankBy = None,
    features_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Add the segmenter's features to each vector: of this feature map, where 0 is the coarsest.",
        ),
    ] = None,
    features_weight: Annotated[
        float, typer.Option(help="Their weight, where that of the embedding is 1.")
    ] = defaults.FEATURES_WEIGHT,
    recall_target: Annotated[
        float | None,
        typer.Option(help="Share of the best 10 that a search of very many regions finds at least."),
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Create a collection for the model that is served now.

    The options of how regions are looked for are the collection's defaults: an ingest may name others.
    """
    everything = read_everything(
        mode=mode,
        points_per_side=points_per_side,
        crop_n_layers=crop_layers,
        min_mask_region_area=min_area,
        max_regions=max_regions,
        rank_by=rank_by,
    )
    features = None if features_level is None else {"level": features_level, "weight": features_weight}
    with connect(url, api_key) as client:
        made = client.create_collection(
            name,
            crop_policy=crop_policy,
            everything=everything,
            segment_features=features,
            recall_target=recall_target,
        )
    tell(f"created collection {made.name} (model {made.model.variant})")


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
        try:
            client.delete_collection(name)
        except RegionSearchError as error:
            if error.kind is Kind.NOT_FOUND:  # what does not exist needs no advice to create it
                error.message = f"there is no collection {name!r}"
            raise
    tell(f"deleted {name}")


@codes_app.command("train")
def train_codes(
    collection: str,
    bits: Annotated[int, typer.Option(min=8, max=4096, help="Of each code, a multiple of 8.")] = 256,
    method: Annotated[
        CodeMethod, typer.Option(help="How bits are made of a vector; learned: by a hashing head.")
    ] = CodeMethod.LEARNED,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Learn binary codes from the vectors of a collection, in place of those that it has.

    Searches and writes go on meanwhile; then `search --codes-only` compares codes and nothing else.
    """
    with connect(url, api_key) as client:
        trained = client.train_codes(collection, method=method, bits=bits)
    tell(f"{trained.name} has {bits}-bit codes, learned from its {trained.record_count} vectors")


def reindex(
    collection: Annotated[str, typer.Argument(help="The collection to move to another model.")],
    embedder: Annotated[
        str, typer.Option(metavar="VARIANT", help="The model to move to, where several are possible.")
    ] = "",
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel a move that is running.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Move a collection to the model of the gateway's other embedder, while it is searched and written.

    Run again, it shows the progress. After Ctrl-C the move continues in the gateway.
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


def doctor(as_json: AsJson = False, url: Url = URL, api_key: ApiKey = None) -> None:
    """Check this machine and the running services, and say what is wrong and how to fix it."""
    checks: list[dict[str, object]] = []

    def row(check: str, found: str, good: bool = True, advice: str = "") -> None:
        checks.append({"check": check, "found": found, "well": good, "advice": "" if good else advice})

    row("Python", platform.python_version(), sys.version_info >= (3, 11), "3.11 or newer is needed")
    row("processors", str(os.cpu_count()))
    free = shutil.disk_usage(Path.cwd()).free // 2**30
    row("free disk", f"{free} GiB", free >= 1, "less than 1 GiB: writes will fail soon")
    installed = {module: importlib.util.find_spec(module) is not None for module in _LIBRARIES}
    client_only = not any(installed.values())  # which is all that a client needs
    if client_only:
        row("services", "not installed: a client only (pip install 'regionsearch[all]' adds them)")
    else:
        for module, extra in _LIBRARIES.items():
            found = "installed" if installed[module] else "missing"
            row(module, found, installed[module], f"pip install 'regionsearch[{extra}]'")
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
    if as_json:
        typer.echo(json.dumps(checks, indent=1))
    else:
        rows = [(str(one["check"]), str(one["found"]), str(one["advice"] or "ok")) for one in checks]
        print_table(("check", "found", "verdict"), rows)
    raise typer.Exit(0 if all(one["well"] for one in checks) else 1)


def evaluate(context: typer.Context) -> None:
    """Measure how well the models find things; --help lists the options."""
    # Imported here: only this command needs the models' libraries.
    try:
        from evaluation.cli import app
    except ModuleNotFoundError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{error.name} is missing; get what measuring needs: pip install 'regionsearch[evaluation]'",
        ) from error

    app(context.args, prog_name="regionsearch evaluate")


def mcp(url: Url = URL, api_key: ApiKey = None) -> None:
    """Serve the collections to an assistant, over the Model Context Protocol on standard input and output."""
    try:
        from regionsearch.mcp_server import make_server
    except ModuleNotFoundError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION, f"{error.name} is missing; get it: pip install 'regionsearch[mcp]'"
        ) from error
    with connect(url, api_key) as client:
        make_server(client).run()
