"""`regionsearch up`: everything on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from regionsearch.cli.ingesting import find_pictures, summarise
from regionsearch.cli.options import COLLECTION, connect
from regionsearch.cli.output import console, errors
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.models import find
from regionsearch.models import profile as find_profile

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def up(
    profile: Annotated[str, typer.Option(help="pocket, base or large.")] = "pocket",
    port: Annotated[int, typer.Option(help="Of the page and the HTTP API.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Of the gRPC API.")] = 50050,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    data_dir: Annotated[Path, typer.Option(help="Pictures, vectors and logs.")] = Path("data"),
    workers: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE=N", help="Processes of segmenter or embedder; may be repeated."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Fill an empty collection with the bundled scenes.")
    ] = False,
) -> None:
    """Start segmenter, embedder, searcher and gateway, and keep them alive until Ctrl-C."""
    from regionsearch.supervisor import Plan, Supervisor

    plan = Plan(find_profile(profile), data_dir, port, grpc_port, host, count_workers(workers or ()))
    for weights in plan.profile.weights:
        find(weights)
    supervisor = Supervisor(plan, lambda line: errors.print(line, style="dim", highlight=False, markup=False))

    def ready() -> None:
        console.print(f"\n[bold]Region Search is ready:[/] {plan.url}\n", highlight=False)
        if demo:
            # Beside the supervisor's own loop, which must go on watching the processes.
            threading.Thread(target=fill_with_demo, args=(plan.url,), daemon=True).start()

    raise typer.Exit(supervisor.run(ready))


def count_workers(options: Iterable[str]) -> dict[str, int]:
    """Reads ``segmenter=2``.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for anything else.
    """
    counts = {}
    for option in options:
        service, _, count = option.partition("=")
        if not count.isdecimal():
            raise invalid("workers", f"{option!r} cannot be read; write --workers segmenter=2")
        counts[service] = int(count)
    return counts


def fill_with_demo(url: str) -> None:
    """Ingests the bundled scenes and prints what to try next; those that are there already cost nothing."""
    scenes = demo_scenes()
    if not scenes:
        errors.print("the demo pictures are not here: they come with a checkout, in examples/scenes")
        return
    try:
        with connect(url, None) as client:
            results = client.ingest(scenes, COLLECTION, tags=["demo"])
    except RegionSearchError as error:
        errors.print(f"the demo pictures could not be added: {error.message}", markup=False, highlight=False)
        return
    summarise(scenes, results)
    thing = json.loads((EXAMPLES / "scenes.json").read_text())[0]["names"][0]
    body = json.dumps({"query": {"text": thing}, "level": "region", "page_size": 3})
    console.print(
        f"Open the page and search for [bold]{thing}[/], or ask from a shell:\n\n"
        f"  curl -s {url}/v1/collections/default/search -H 'content-type: application/json' -d '{body}'\n",
        highlight=False,
        soft_wrap=True,
    )


def demo_scenes() -> list[Path]:
    """The bundled demo pictures; none when only the package is installed."""
    return find_pictures([EXAMPLES / "scenes"]) if EXAMPLES.is_dir() else []
