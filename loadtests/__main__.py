"""`python -m loadtests`: a minute of load on a local stack, and whether it kept its promises."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadtests.callers import FLOOD_KEY, PEOPLE_KEYS
from loadtests.launch import Stack

HERE = Path(__file__).parent
CLOSED_LOOP = ("GatewayUser", "SegmentUser", "EmbedUser", "SearchUser")
OPEN_LOOP = ("GatewayArrivals",)
FLOOD = "FloodUser"


@dataclass(frozen=True)
class Target:
    """Where a stack answers.

    Attributes:
        url: Base URL of the gateway.
        services: Service -> host:port.
        supervisor: Process id of `regionsearch up`, where the stack is one of this machine.
    """

    url: str
    services: dict[str, str]
    supervisor: int | None = None


def target_of(stack: Stack) -> Target:
    """What is loaded where the stack is one of this machine."""
    return Target(stack.http, stack.services, stack.process.pid if stack.process else None)


def locust_command(
    target: Target,
    users: int,
    duration_s: int | None,
    rate: float | None,
    out: Path,
    ui: bool,
    kinds: Sequence[str] = CLOSED_LOOP,
    flood: int = 0,
) -> list[str]:
    """The Locust call for a run.

    Args:
        target: What is loaded.
        users: At once, of all kinds.
        duration_s: None runs until the process is told to stop.
        rate: Open loop with so many requests a second; None is a closed loop.
        out: Where HTML and CSV go.
        ui: With Locust's page instead.
        kinds: Names of the users of a closed loop.
        flood: Requests at once of one more caller.
    """
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--host", target.url]
    for name, address in target.services.items():
        command += [f"--{name}", address]
    if ui:
        return [*command, "--web-host", "127.0.0.1", "--class-picker"]
    command += ["--headless", "--only-summary", "--stop-timeout", "30"]
    if duration_s is not None:
        command += ["--run-time", f"{duration_s}s"]
    command += ["--html", str(out / "report.html"), "--csv", str(out / "load")]
    if flood:
        command += ["--flood", str(flood)]
        users, kinds = users + 1, [*kinds, FLOOD]
    if rate is None:
        command += ["--users", str(users), "--spawn-rate", str(users), *kinds]
    else:
        command += ["--users", "1", "--arrival-rate", str(rate), *OPEN_LOOP]
    return command


def main(
    users: Annotated[int, typer.Option(help="Closed loop: users at once, over all kinds.")] = 7,
    arrival_rate: Annotated[
        float | None, typer.Option(help="Open loop: requests a second on the gateway.")
    ] = None,
    duration: Annotated[int, typer.Option(help="Seconds, the warm-up included.")] = 70,
    out: Annotated[Path, typer.Option(help="Folder for HTML and CSV.")] = HERE / "out",
    flood: Annotated[
        int, typer.Option(help="Closed loop: requests at once of one more caller, who asks for clicks.")
    ] = 0,
    ui: Annotated[bool, typer.Option("--ui", help="Open Locust's page instead.")] = False,
) -> None:
    """Starts a local stack, loads it, judges it by slo.toml; exit code 1 when a promise was broken."""
    out.mkdir(parents=True, exist_ok=True)
    if flood:
        os.environ["REGIONSEARCH_GATEWAY_API_KEYS"] = ",".join((FLOOD_KEY, *PEOPLE_KEYS))
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        target = target_of(stack)
        typer.echo(f"stack: {target.url}")
        command = locust_command(target, users, duration, arrival_rate, out, ui, flood=flood)
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    typer.run(main)
