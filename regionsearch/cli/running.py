"""`regionsearch up`: everything on this machine."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import threading
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from regionsearch.bundled import bundled
from regionsearch.cli.ingesting import summarise
from regionsearch.cli.terminal import COLLECTION, connect, console, tell
from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.image_files import find_images
from regionsearch.models.catalog import WEIGHTS, Profile, Weights, open_clip_weights, split_open_clip
from regionsearch.models.catalog import profile as find_profile
from regionsearch.models.store import find_hub_file, look_up, models_dir

if TYPE_CHECKING:
    from regionsearch.client import IngestResult
    from regionsearch.supervisor import Supervisor

MODEL_VARIABLE = "REGIONSEARCH_{}_MODEL"
KEYS_VARIABLE = "REGIONSEARCH_GATEWAY_API_KEYS"
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
DEMO_STEP = 5  # images between two lines
EXAMPLES = bundled("examples")


def up(
    profile: Annotated[str, typer.Option(help="pocket, fast, base or large.")] = "pocket",
    segmenter: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Segmenter to use instead of the profile's.")
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(metavar="NAME[:TAG]|PATH", help="Embedder to use instead of the profile's.")
    ] = None,
    other_embedder: Annotated[
        str, typer.Option(metavar="NAME[:TAG]|PATH", help="Second model, to move collections to or from.")
    ] = "",
    proposer: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="FastSAM's .onnx file, whose boxes the segmenter looks at instead of a grid."
        ),
    ] = "",
    port: Annotated[int, typer.Option(help="Port of the page and the HTTP API.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC API.")] = 50050,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    data_dir: Annotated[Path, typer.Option(help="Folder for images, vectors and logs.")] = Path("data"),
    workers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE=N|DEVICES",
            help="Number of segmenter or embedder processes, or a device for each: segmenter=cuda:0,cuda:1; "
            "may be repeated.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Fill an empty collection with the bundled scenes.")
    ] = False,
) -> None:
    """Start segmenter, embedder, searcher and gateway, and keep them alive until Ctrl-C."""
    from regionsearch.supervisor import Plan, Supervisor

    missing = [name for name in ("torch", "faiss", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{', '.join(missing)}: not installed; get the services with: pip install 'regionsearch[all]'",
        )
    models = choose_models(find_profile(profile), segmenter, embedder)
    plan = Plan(
        models, data_dir, port, grpc_port, host, read_workers(workers or ()), other_embedder, proposer
    )
    check_weights(models, other_embedder)
    also = f", other embedder {other_embedder}" if other_embedder else ""
    note(f"segmenter {models.segmenter}, embedder {models.embedder}{also}")
    warn_if_open(host)
    supervisor = Supervisor(plan, note)

    def ready() -> None:
        if demo:
            # Concurrently with the supervisor's own loop, which must go on watching the processes.
            filling = threading.Thread(target=fill_with_demo, args=(supervisor.url, supervisor), daemon=True)
            filling.start()
        else:
            announce(supervisor)

    raise typer.Exit(supervisor.run(ready))


def choose_models(profile: Profile, segmenter: str | None, embedder: str | None) -> Profile:
    """The models to start: those of the options, else those that the operator has set, else the profile's."""
    models = {}
    for role, option in (("segmenter", segmenter), ("embedder", embedder)):
        wanted = option or os.environ.get(MODEL_VARIABLE.format(role.upper())) or _configured_model(role)
        if wanted and wanted != getattr(profile, role):
            models[role] = wanted
    return replace(profile, name="", **models) if models else profile


def _configured_model(role: str) -> str | None:
    """The model that the file of settings names for a service."""
    try:
        settings = tomllib.loads(Path(os.environ["REGIONSEARCH_CONFIG"]).read_text())
        model = settings[role]["model"]
    except (KeyError, TypeError, OSError, ValueError):  # the service says what is wrong with the file
        return None
    return model if isinstance(model, str) else None


def check_weights(models: Profile, other_embedder: str = "") -> None:
    """Looks for the files of the models; paths are left to the services.

    Raises:
        RegionSearchError: NOT_FOUND naming all that are missing, with one command that gets them.
    """
    needed = list(models.weights)
    if os.environ.get("REGIONSEARCH_EMBEDDER_WEIGHTS"):
        needed = [weights for weights in needed if weights.model != models.embedder]
    elif models.embedder not in WEIGHTS:
        needed += _open_clip_weights(models.embedder)
    needed += [WEIGHTS[other_embedder]] if other_embedder in WEIGHTS else _open_clip_weights(other_embedder)
    missing = {weights.model: _missing_files(weights) for weights in needed}
    missing = {model: files for model, files in missing.items() if files}
    if missing:
        files = list(itertools.chain.from_iterable(missing.values()))
        names = models.name if models.name and not other_embedder else " ".join(missing)
        raise not_found(
            "model",
            f"{' and '.join(files)} {'is' if len(files) == 1 else 'are'} not in {models_dir()}; get all that "
            f"is missing with: regionsearch models pull {names}",
        )


def _open_clip_weights(model: str) -> list[Weights]:
    """The published weights of NAME:TAG; none for paths and for what open_clip does not know."""
    name, tag = split_open_clip(model)
    if not tag or Path(model).exists():
        return []
    try:
        return [open_clip_weights(name, tag)]
    except RegionSearchError:  # the service says what is wrong with the name
        return []


def _missing_files(weights: Weights) -> list[str]:
    """What of a model is not on this machine: its file, or the files of a repository."""
    missing = [] if look_up(weights) is not None else [weights.file]
    return missing + [
        f"{weights.repository_file} of {name}"
        for name in weights.repositories
        if find_hub_file(name, weights.repository_file) is None
    ]


def warn_if_open(host: str) -> None:
    """Warns if other machines get in without a key; a settings file may hold keys."""
    local = host in ("127.0.0.1", "localhost", "::1")
    if not local and not any(os.environ.get(name) for name in (KEYS_VARIABLE, "REGIONSEARCH_CONFIG")):
        tell(f"whoever reaches {host} may read, add and delete everything: {KEYS_VARIABLE} sets keys")


def note(line: str) -> None:
    """Reports progress."""
    tell(line, style="dim")


def announce(supervisor: Supervisor) -> None:
    """Announces the page, and says where everything else is."""
    from regionsearch.supervisor.plan import reachable

    plan, url = supervisor.plan, supervisor.url
    console.print(
        f"\n[bold]Region Search is ready:[/] {url}\n\n"
        f"  API and its documentation  {url}/docs\n"
        f"  gRPC                       {reachable(plan.host)}:{plan.grpc_port}\n"
        f"  images, vectors, logs      {escape(str(plan.data_dir.resolve()))}\n\n"
        "Ctrl-C stops everything.\n",
        highlight=False,
        soft_wrap=True,
    )


def read_workers(options: Iterable[str]) -> dict[str, list[str]]:
    """Reads ``segmenter=2`` and ``segmenter=cuda:0,cuda:1``, as `Plan.workers` has it.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for anything else.
    """
    workers = {}
    for option in options:
        service, _, value = option.partition("=")
        devices = value.split(",")
        if value.isdecimal():
            devices = [""] * int(value)
        elif not all(DEVICE.fullmatch(device) for device in devices):
            raise invalid(
                "workers",
                f"{option!r} cannot be read; write --workers segmenter=2, or --workers "
                "segmenter=cuda:0,cuda:1",
            )
        workers[service] = devices
    return workers


def fill_with_demo(url: str, supervisor: Supervisor) -> None:
    """Ingests the bundled scenes, then announces the page and what to look for there.

    Scenes that are there already cost next to nothing. Once the processes are being stopped it does no more
    and says nothing more.
    """
    scenes = list(find_images([EXAMPLES / "scenes"]).files)
    note(f"adding {len(scenes)} demo images, so that there is something to find")
    done = itertools.count(1)

    def progress(result: IngestResult) -> None:
        number = next(done)
        if number % DEMO_STEP == 0 and number < len(scenes) and not supervisor.stopping:
            note(f"{number} of {len(scenes)} demo images are there")

    try:
        with connect(url, None) as client:
            wanted = itertools.takewhile(lambda scene: not supervisor.stopping, scenes)
            results = client.ingest(wanted, COLLECTION, tags=["demo"], on_result=progress)
    except RegionSearchError as error:
        if not supervisor.stopping:
            tell(f"the demo images could not be added: {error.message}")
            announce(supervisor)
        return
    if supervisor.stopping:
        return
    summarise(scenes, results)
    announce(supervisor)
    thing = json.loads((EXAMPLES / "scenes.json").read_text())[0]["names"][0]
    body = json.dumps({"query": {"text": thing}, "level": "region", "page_size": 3})
    console.print(
        f"Open the page and search for [bold]{thing}[/], or ask from a shell:\n\n"
        f"  curl -s {url}/v1/collections/default/search -H 'content-type: application/json' -d '{body}'\n",
        highlight=False,
        soft_wrap=True,
    )
