"""`python -m loadtests.chaos`: faults under load, what they cost, and whether anything is lost.

Two gateways behind HAProxy, two segmenters, two embedders and a searcher. One fault after the other: a
process is killed or stands still, the network to a service is slow or gone, the disk is full. Afterwards
everything has to be as before: requests succeed again, what was acknowledged is there, and the processes
that lived through it have not grown.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from loadtests.__main__ import CLOSED_LOOP, HERE, Target
from loadtests.deployments import balancer
from loadtests.faults import Fleet, all_faults
from loadtests.keeper import Outcome
from loadtests.soak import (
    DISK,
    SAMPLE_S,
    SMALL_CACHE,
    Samples,
    disk_mib,
    print_kept,
    print_slopes,
    sample,
    traffic,
)

CALM_S = 20.0  # between the end of a fault and the next one
RECOVERY_S = 10.0  # of these, in which requests may still fail


@dataclass
class Round:
    """One fault and its times, `time.monotonic()`.

    Attributes:
        what: Its name.
        begin: When it began.
        end: When it was over, a killed process serving again.
    """

    what: str
    begin: float
    end: float


@dataclass
class Cost:
    """What all rounds of a fault cost the user who remembers.

    Attributes:
        what: The fault.
        times: Rounds.
        requests: That were answered, or failed, from their begins to the begin of the next fault.
        errors: How many of them failed, by status or exception.
        slowest_s: The longest request.
        last_error_s: The end of the last that failed, seconds after the fault was over.
    """

    what: str
    times: int = 0
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    last_error_s: float = 0.0


@dataclass
class Watch:
    """Samples every process of the fleet, from its start to its end.

    Attributes:
        fleet: Whose.
        folder: That of its data and logs.
        seen: Samples of those that run now, by member and figure.
    """

    fleet: Fleet
    folder: Path
    seen: Samples = field(default_factory=dict)
    _pids: dict[str, int] = field(default_factory=dict)

    def run(self, until: threading.Event) -> None:
        """Goes on until the event is set."""
        begin = time.monotonic()
        while not until.wait(SAMPLE_S):
            now = time.monotonic() - begin
            for member in self.fleet.members:
                if (pid := self.fleet.pid(member)) is None:
                    continue
                if self._pids.get(member) != pid:  # another process: its figures begin anew
                    self._pids[member] = pid
                    self.seen = {key: samples for key, samples in self.seen.items() if key[0] != member}
                with contextlib.suppress(psutil.NoSuchProcess):
                    for what, value in sample(psutil.Process(pid)).items():
                        self.seen.setdefault((member, what), []).append((now, value))
            self.seen.setdefault(("fleet", DISK), []).append((now, disk_mib(self.folder)))


def harm(fleet: Fleet, disk: Path | None, minutes: float, console: Console) -> list[Round]:
    """One fault after the other, all of them before any comes again, in an order that is always the same."""
    faults, draw = all_faults(fleet, disk), random.Random(26)
    rounds: list[Round] = []
    end = time.monotonic() + 60 * minutes
    while True:
        for what in draw.sample(sorted(faults), len(faults)):
            if time.monotonic() > end:
                return rounds
            begin = time.monotonic()
            faults[what]()
            rounds.append(Round(what, begin, time.monotonic()))
            console.print(f"{time.strftime('%X')} {what}: {rounds[-1].end - begin:.0f} s", highlight=False)
            time.sleep(CALM_S)


def judge(rounds: Sequence[Round], outcomes: Sequence[Outcome]) -> tuple[list[Cost], list[str]]:
    """What each fault cost the user who remembers, and a sentence for each request that failed without one.

    A request belongs to the last fault that had begun when it was answered.
    """
    costs: dict[str, Cost] = {}
    unexplained = []
    for number, one in enumerate(rounds):
        until = rounds[number + 1].begin if number + 1 < len(rounds) else float("inf")
        cost = costs.setdefault(one.what, Cost(one.what))
        cost.times += 1
        for outcome in outcomes:
            if not one.begin <= outcome.end < until:
                continue
            cost.requests += 1
            cost.slowest_s = max(cost.slowest_s, outcome.end - outcome.begin)
            if outcome.error:
                cost.errors[outcome.error] += 1
                cost.last_error_s = max(cost.last_error_s, outcome.end - one.end)
                if (late := outcome.begin - one.end) > RECOVERY_S:
                    unexplained.append(f"{outcome.error}: sent {late:.0f} s after the end of: {one.what}")
    return sorted(costs.values(), key=lambda cost: cost.what), unexplained


def main(
    minutes: Annotated[float, typer.Option(help="How long faults go on.")] = 10.0,
    users: Annotated[int, typer.Option(help="Ordinary users at once.")] = 3,
    disk: Annotated[
        Path | None,
        typer.Option(help="A file system of its own, 1 GiB or less, to be filled; without it no full disk."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for Locust's HTML and CSV.")] = HERE / "out" / "chaos",
) -> None:
    """Harms a fleet under load; exit code 1 when anything is lost, grows, or fails without a fault."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(*SMALL_CACHE)
    console = Console()
    enough = threading.Event()
    with tempfile.TemporaryDirectory(dir=disk) as folder, (fleet := Fleet(Path(folder))):
        watch = Watch(fleet, Path(folder))
        watching = threading.Thread(target=watch.run, args=(enough,))
        watching.start()
        with balancer(fleet.gateways) as (url, _):
            try:
                with traffic(Target(url, {}), users, out, CLOSED_LOOP[:1]) as (careless, keeper):
                    time.sleep(CALM_S)
                    rounds = harm(fleet, disk, minutes, console)
            finally:
                enough.set()
                watching.join()
            lost = keeper.lost()
    costs, unexplained = judge(rounds, keeper.outcomes)
    table = Table("fault", title=f"Chaos of {minutes:g} minutes")
    for column in ("times", "requests", "failed", "slowest s", "last failure s after", "errors"):
        table.add_column(column, justify="right")
    for cost in costs:
        numbers = (cost.times, cost.requests, cost.errors.total(), f"{cost.slowest_s:.1f}")
        table.add_row(cost.what, *map(str, numbers), f"{cost.last_error_s:.1f}", str(dict(cost.errors)))
    console.print(table)
    console.print(f"{careless.done} careless acts; {len(unexplained)} requests failed without a fault")
    for fault in unexplained[:20]:
        console.print(f"[red]{fault}[/red]")
    print_kept(console, keeper, lost)
    through = {key: samples for key, samples in watch.seen.items() if samples[0][0] < CALM_S}
    grows = print_slopes(console, "Those that were never killed, after a third for warm-up", through)
    raise typer.Exit(bool(lost or unexplained or grows))


if __name__ == "__main__":
    typer.run(main)
