"""`regionsearch up`: everything on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regionsearch.cli.output import console, errors
from regionsearch.models import profile as find_profile
from regionsearch.supervisor import Plan, Supervisor


def up(
    profile: Annotated[str, typer.Option(help="pocket, base or large.")] = "pocket",
    port: Annotated[int, typer.Option(help="Of the page and the HTTP API.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Of the gRPC API.")] = 50050,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    data_dir: Annotated[Path, typer.Option(help="Pictures, vectors and logs.")] = Path("data"),
    demo: Annotated[
        bool, typer.Option("--demo", help="Fill an empty collection with the bundled scenes.")
    ] = False,
) -> None:
    """Start segmenter, embedder, searcher and gateway, and keep them alive until Ctrl-C."""
    plan = Plan(find_profile(profile), data_dir, port, grpc_port, host)
    for weights in plan.profile.weights:
        from regionsearch.models import verify

        verify(weights)
    supervisor = Supervisor(plan, lambda line: errors.print(line, style="dim", highlight=False, markup=False))

    def ready() -> None:
        console.print(f"\n[bold]Region Search is ready:[/] {plan.url}\n", highlight=False)

    raise typer.Exit(supervisor.run(ready))
