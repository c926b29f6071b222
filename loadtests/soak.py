"""`python -m loadtests.soak`: hours of ordinary and careless use, and whether any process grows.

The ordinary users are Locust's. A careless one leaves in the middle of uploads and answers, sends
damaged files and malformed bodies, and adds and deletes images. A third adds images and looks at the end
whether each is still there. Every few seconds the memory, the file descriptors and the threads of each
process and the disk that the stack occupies are read; the slope of each, after the warm-up, is printed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from loadtests.__main__ import CLOSED_LOOP, HERE, Target, locust_command, target_of
from loadtests.keeper import Keeper
from loadtests.launch import ROOT, Stack, processes
from loadtests.scenes import Scene
from regionsearch.supervisor.child import MODULES

MIB = 1 << 20
SAMPLE_S = 5.0
WARM_UP = 1 / 3  # of a run: caches fill, allocators find their size
NO_PROMISE = "error_budget = 1.0\ngenerator_cpu = 9.0\n[p95_ms]\n"

# A cache of embeddings of its usual size fills for longer than a short soak takes, and that is no leak.
SMALL_CACHE = ("REGIONSEARCH_SEGMENTER_CACHE_BYTES", str(32 * MIB))

# What counts as growth: a slope per minute and, so that noise is none, a rise over what is judged.
LIMITS = {"memory MiB": (2.0, 32.0), "descriptors": (0.5, 8.0), "threads": (0.2, 4.0)}
# What is stored and logged grows with what is added: its slope is printed and not judged.
DISK = "disk MiB"

# Seconds and value of each figure of each process, by the names of both.
Samples = dict[tuple[str, str], list[tuple[float, float]]]


@dataclass(frozen=True)
class Slope:
    """How one figure of one process developed.

    Attributes:
        process: Its name.
        what: Name of the figure.
        first: Median of the first tenth after the warm-up.
        last: Median of the last tenth.
        per_minute: Theil-Sen slope: the median over all pairs of samples, which a few peaks do not move.
    """

    process: str
    what: str
    first: float
    last: float
    per_minute: float

    @property
    def grows(self) -> bool:
        """Whether the figure rises by more than noise."""
        slope, rise = LIMITS.get(self.what, (math.inf, math.inf))
        return self.per_minute > slope and self.last - self.first > rise


def slope(process: str, what: str, samples: Sequence[tuple[float, float]]) -> Slope:
    """Judges samples of one figure.

    Args:
        process: Its name.
        what: A key of `LIMITS`, or `DISK`.
        samples: Seconds and value, in order, those of the warm-up included; at least two after it.
    """
    end = samples[-1][0]
    begin = samples[0][0] + WARM_UP * (end - samples[0][0])
    judged = [sample for sample in samples if sample[0] >= begin]
    pairs = itertools.combinations(judged[:: max(1, len(judged) // 300)], 2)
    slopes = [60 * (y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs]
    tenth = max(1, len(judged) // 10)
    first = statistics.median(value for _, value in judged[:tenth])
    last = statistics.median(value for _, value in judged[-tenth:])
    return Slope(process, what, first, last, statistics.median(slopes))


def sample(process: psutil.Process) -> dict[str, float]:
    """What a process holds now; memory is that which would be free if it ended (USS).

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    with process.oneshot():
        if process.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(process.pid)
        return {
            "memory MiB": process.memory_full_info().uss / MIB,
            "descriptors": float(process.num_fds()),
            "threads": float(process.num_threads()),
        }


def disk_mib(folder: Path) -> float:
    """What the files in a folder occupy, MiB."""
    used = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                used += (Path(path) / name).lstat().st_blocks * 512
    return used / MIB


class CarelessUser:
    """Does, in turn, what flaky networks and hasty people do; answers do not matter to it.

    Args:
        url: Base URL of the gateway.
    """

    def __init__(self, url: str) -> None:
        self._random = random.Random(7)
        self._address = urlsplit(url)
        self._client = httpx.Client(base_url=url, timeout=60)
        self._images = "/v1/collections/default/images"
        self.done = 0

    def run(self, until: threading.Event) -> None:
        """Goes on until the event is set."""
        acts: tuple[Callable[[], object], ...] = (
            self.leave_in_the_middle_of_an_upload,
            self.leave_before_the_answer,
            self.send_a_damaged_file,
            self.send_a_malformed_body,
            self.add_look_at_and_delete,
        )
        for act in itertools.cycle(acts):
            with contextlib.suppress(httpx.HTTPError, OSError, KeyError, IndexError):
                act()
            self.done += 1
            if until.wait(self._random.uniform(0.1, 0.6)):
                return

    def leave_in_the_middle_of_an_upload(self) -> None:
        """The connection is cut when half of the body is sent."""
        body = self._random.randbytes(300_000)
        head = (
            f"POST {self._images} HTTP/1.1\r\nHost: {self._address.netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {2 * len(body)}\r\n\r\n"
            '--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        )
        with socket.create_connection((self._address.hostname, self._address.port), 10) as connection:
            connection.sendall(head.encode() + body)

    def leave_before_the_answer(self) -> None:
        """The client waits for an upload's answer for less time than it takes."""
        self._client.post(self._images, files={"files": ("a.jpg", self._scene())}, timeout=0.2)

    def send_a_damaged_file(self) -> None:
        """A JPEG that ends in its middle."""
        whole = self._scene()
        self._client.post(self._images, files={"files": ("a.jpg", whole[: len(whole) // 2])})

    def send_a_malformed_body(self) -> None:
        """JSON of wrong types in every place."""
        body = {"query": {"text": ["a"]}, "filter": {"tags": [0] * 1000}, "page_size": "many"}
        self._client.post("/v1/collections/default/search", json=body)

    def add_look_at_and_delete(self) -> None:
        """An image comes, is shown, and goes."""
        answer = self._client.post(self._images, files={"files": ("a.jpg", self._scene())}).json()
        path = f"{self._images}/{answer['results'][0]['image_id']}"
        self._client.get(f"{path}/thumbnail")
        self._client.get(f"{path}/regions")
        self._client.delete(path)

    def _scene(self) -> bytes:
        return Scene(self._random.getrandbits(60)).jpeg


@contextlib.contextmanager
def traffic(
    target: Target, users: int, out: Path, kinds: Sequence[str] = CLOSED_LOOP
) -> Iterator[tuple[CarelessUser, Keeper]]:
    """Ordinary users, a careless one, and one who remembers, from before until after."""
    promise = out / "slo.toml"
    promise.write_text(NO_PROMISE)
    command = locust_command(target, users, None, None, out, ui=False, kinds=kinds)
    command += ["--slo", str(promise)]
    locust = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    careless, keeper, enough = CarelessUser(target.url), Keeper(target.url), threading.Event()
    threads = [threading.Thread(target=user.run, args=(enough,)) for user in (careless, keeper)]
    for thread in threads:
        thread.start()
    try:
        yield careless, keeper
    finally:
        enough.set()
        locust.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(90)
        locust.wait(120)


def watch(supervisor: int, duration_s: float, folder: Path, every_s: float = SAMPLE_S) -> Samples:
    """Samples of each figure of each process, and of the disk that the stack's folder occupies.

    Raises:
        RuntimeError: A process ended or was replaced by another one.
    """
    watched = processes(supervisor)
    missing = set(MODULES) - set(watched)
    if missing:
        raise RuntimeError(f"{', '.join(sorted(missing))}: not among the supervisor's processes")
    seen: Samples = {}
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < duration_s:
        for name, process in watched.items():
            try:
                figures = sample(process)
            except psutil.NoSuchProcess:
                raise RuntimeError(f"{name} ended after {now:.0f} s") from None
            for what, value in figures.items():
                seen.setdefault((name, what), []).append((now, value))
        seen.setdefault(("stack", DISK), []).append((now, disk_mib(folder)))
        time.sleep(every_s)
    return seen


def print_kept(console: Console, keeper: Keeper, lost: Sequence[str]) -> None:
    """Says what became of the requests of the user who remembers, and what is lost."""
    errors = Counter(outcome.error for outcome in keeper.outcomes if outcome.error)
    asked = f"{len(keeper.outcomes)} requests, {errors.total()} failed {dict(errors)}"
    console.print(f"{len(keeper.kept)} images kept, {len(lost)} lost; {asked}")
    for fault in lost[:20]:
        console.print(f"[red]{fault}[/red]")


def print_slopes(console: Console, title: str, seen: Samples) -> bool:
    """A table of how each figure developed; whether any grows."""
    slopes = [slope(*key, samples) for key, samples in seen.items()]
    table = Table("process", "figure", title=title)
    for column in ("first", "last", "per minute"):
        table.add_column(column, justify="right")
    for one in slopes:
        numbers = (f"{one.first:.0f}", f"{one.last:.0f}", f"{one.per_minute:+.2f}")
        table.add_row(one.process, one.what, *numbers, style="red" if one.grows else None)
    console.print(table)
    return any(one.grows for one in slopes)


def main(
    minutes: Annotated[float, typer.Option(help="How long; the first third is the warm-up.")] = 10.0,
    users: Annotated[int, typer.Option(help="Ordinary users at once, over all kinds.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for Locust's HTML and CSV.")] = HERE / "out" / "soak",
) -> None:
    """Uses a local stack for a while and prints what grows and what is lost; exit code 1 when anything is."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(*SMALL_CACHE)
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
            target = target_of(stack)
            assert target.supervisor is not None
            with traffic(target, users, out) as (careless, keeper):
                seen = watch(target.supervisor, 60 * minutes, Path(folder))
            lost = keeper.lost()
            console.print(f"{careless.done} careless acts")
            print_kept(console, keeper, lost)
    except RuntimeError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    grows = print_slopes(console, f"Soak of {minutes:g} minutes, after a third for warm-up", seen)
    raise typer.Exit(bool(lost) or grows)


if __name__ == "__main__":
    typer.run(main)
