"""`python -m loadtests.rolling`: every process of a stack is restarted, one after the other, under load.

Two gateways behind HAProxy, two segmenters, two embedders, and the one searcher there can be. People use it
all the while, and no request may fail: the searcher's restart is waited for, of all others a twin takes over.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from loadtests.__main__ import CLOSED_LOOP, HERE, Target, locust_command
from loadtests.deployments import Containers, Fleet, Processes, balancer
from loadtests.launch import ROOT

WARM_UP_S = 10
SETTLE_S = 3.0  # between two restarts: clients connect to the new process again
NO_FAILURE = "error_budget = 0.0\ngenerator_cpu = 9.0\n[p95_ms]\n"


@dataclass(frozen=True)
class Restart:
    """One member's.

    Attributes:
        member: Its name.
        stop_s: From the signal to its end: what was in flight.
        start_s: From there to being ready again.
        answered: HTTP requests that were answered meanwhile, over the balancer.
        failed: Those of them with a status of 500 or above.
    """

    member: str
    stop_s: float
    start_s: float
    answered: int
    failed: int


def counted(stats: str) -> tuple[int, int]:
    """What HAProxy has answered so far, and how much of it with a status of 500 or above."""
    rows = csv.DictReader(io.StringIO(httpx.get(f"{stats}/;csv", trust_env=False).text))
    (row,) = (row for row in rows if row["# pxname"] == "http" and row["svname"] == "FRONTEND")
    return sum(int(row[f"hrsp_{c}xx"]) for c in "2345"), int(row["hrsp_5xx"])


@contextlib.contextmanager
def load(fleet: Fleet, url: str, users: int, out: Path) -> Iterator[None]:
    """Locust, from before until after; one failed request is too many.

    Raises:
        RuntimeError: Requests failed; Locust's own table has said which.
    """
    promise = out / "slo.toml"
    promise.write_text(NO_FAILURE)
    kinds = CLOSED_LOOP if fleet.services else CLOSED_LOOP[:1]
    command = locust_command(Target(url, dict(fleet.services)), users, None, None, out, ui=False, kinds=kinds)
    command += ["--warm-up", "0", "--slo", str(promise)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        time.sleep(WARM_UP_S)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    if code != 0:
        raise RuntimeError("requests failed under the restarts: see above")


def roll(fleet: Fleet, users: int, out: Path, only: Sequence[str] = ()) -> list[Restart]:
    """Restarts all members under load, or those of some roles.

    Raises:
        RuntimeError: A request failed, a member did not stop in order, or nothing was asked during a restart.
    """
    restarts = []
    with balancer(fleet.gateways) as (url, stats), load(fleet, url, users, out):
        for member in fleet.members:
            if only and member.partition("-")[0] not in only:
                continue
            before, begin = counted(stats), time.monotonic()
            fleet.stop(member)
            stopped = time.monotonic()
            fleet.start(member)
            started = time.monotonic()
            time.sleep(SETTLE_S)
            after = counted(stats)
            times = (stopped - begin, started - stopped)
            restarts.append(Restart(member, *times, after[0] - before[0], after[1] - before[1]))
            typer.echo(f"{restarts[-1]}")
    failed = [one.member for one in restarts if one.failed or not one.answered]
    if failed:
        raise RuntimeError(f"answers with an error, or none at all, in the restart of {', '.join(failed)}")
    return restarts


def main(
    compose_project: Annotated[
        str | None, typer.Option(help="Containers of this project, rather than processes.")
    ] = None,
    users: Annotated[int, typer.Option(help="At once, over all kinds.")] = 7,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Restart nothing but this: segmenter, embedder, searcher, gateway."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for HTML and CSV.")] = HERE / "out" / "rolling",
) -> None:
    """Restarts every process of a stack under load; exit code 1 when a request failed."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        if compose_project:
            restarts = roll(Containers(compose_project), users, out, only or ())
        else:
            with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as fleet:
                restarts = roll(fleet, users, out, only or ())
    except RuntimeError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    table = Table("restarted", "stop s", "start s", "answered meanwhile", "failed", title="Rolling restart")
    for one in restarts:
        table.add_row(
            one.member, f"{one.stop_s:.1f}", f"{one.start_s:.1f}", str(one.answered), str(one.failed)
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
