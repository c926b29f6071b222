"""The whole: from image files to found objects, five plain ways against ours over HTTP and gRPC."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.page import Column, Part
from benchmarks.compare.peer import Known, RunningPeer, disk_mib, empty
from benchmarks.compare.results import Case, Row

TEXTS = ["teapot", "dog", "a red apple", "chair", "pizza", "yellow ring", "bicycle", "parrot"]
AT_ONCE = 2


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        images: Added one at a time, after one that warms up.
        rounds: Turns of queries.
        seconds: Of one turn.
        killed_after: Images that are acknowledged before the kill.
    """

    images: int = 3
    rounds: int = 3
    seconds: float = 2.0
    killed_after: int = 1

    @property
    def size(self) -> str:
        """As rows name it."""
        return f"{1 + self.images + AT_ONCE} images"


QUICK = Plan(1, 1, 0.5, 1)


OURS = "ours, HTTP"
PEERS = {
    OURS: Known("ours_http", "", "four processes; the regions of an answered image are on disk."),
    "ours, gRPC": Known("ours_grpc", "", "the same over gRPC."),
    "search within, LanceDB": Known(
        "seed_within", "lancedb", "the generator, every region on white, one `encode_image` each, LanceDB."
    ),
    "boxes above a threshold": Known(
        "seed_threshold",
        "",
        "the same without a store: vectors in memory, a file at the end. It was written for FastSAM, whose "
        "weights cannot be had here.",
    ),
    "upload page, FAISS": Known(
        "seed_upload", "", "Flask; twelve regions an image; index and JSON are written after every upload."
    ),
    "union of masks": Known(
        "seed_union", "", "a file of masks and vectors an image, all read for each question."
    ),
    "segment, then select": Known(
        "seed_select", "", "the 25 largest regions; 256-bit codes and a second look; a file at the end."
    ),
}


def cases(quick: bool, folder: Path) -> list[Case]:
    """One row a way.

    Args:
        quick: Few images and short turns.
        folder: For inputs, environments and data.
    """
    plan = QUICK if quick else Plan()
    return [Case(Row("whole", title, plan.size), functools.partial(measure, plan, folder)) for title in PEERS]


def measure(plan: Plan, folder: Path, row: Row) -> None:
    """Adds images in turns with ours, asks in turns, starts again, and kills while images are added."""
    inputs = made_inputs(folder)

    def start(title: str, data: Path) -> RunningPeer:
        return PEERS[title].start(folder, inputs, data)

    data, ours_data = empty(folder / "data" / "whole"), empty(folder / "data" / "whole-ours")
    with start(row.peer, data) as peer:
        row.version = peer.version
        if row.peer == OURS:
            row.values |= in_turns(plan, [peer])[0]
        else:
            with start(OURS, ours_data) as ours:
                row.ours, row.values = in_turns(plan, [ours, peer])
        peer.ask("finish")
    row.values["disk_mib"] = disk_mib(data)
    begin = time.perf_counter()
    with start(row.peer, data) as peer:
        peer.ask("answers", count=1)
        row.values["start_s"] = time.perf_counter() - begin
    killed = start(row.peer, empty(data))
    killed.send("add", first=0, count=plan.killed_after + 2, batch=1)
    added = killed.killed_while_adding(plan.killed_after)
    with start(row.peer, data) as again:
        row.values |= {"acknowledged": added, "lost": max(0, added - again.ask("count")["count"])}


def in_turns(plan: Plan, peers: list[RunningPeer]) -> list[dict[str, Any]]:
    """Medians of seconds an image and of milliseconds a query, and the memory after them."""
    found: list[dict[str, Any]] = [{} for _ in peers]
    spent: list[list[float]] = [[] for _ in peers]
    for number, place in itertools.product(range(1 + plan.images), range(len(peers))):
        spent[place].append(peers[place].ask("add", first=number, count=1, batch=1)["seconds"])
    for place, peer in enumerate(peers):
        found[place]["image_s"] = statistics.median(spent[place][1:])
        added = peer.ask("add", first=1 + plan.images, count=AT_ONCE, batch=AT_ONCE)
        found[place]["together_s"] = added["seconds"] / AT_ONCE
        peer.ask("ask", callers=1, seconds=plan.seconds / 4)
    asked: list[list[float]] = [[] for _ in peers]
    for _, place in itertools.product(range(plan.rounds), range(len(peers))):
        asked[place].append(peers[place].ask("ask", callers=1, seconds=plan.seconds)["p50_ms"])
    for place, peer in enumerate(peers):
        found[place] |= {"query_ms": statistics.median(asked[place]), "memory_mib": peer.memory_mib()}
    return found


def made_inputs(folder: Path) -> Path:
    """The bundled scenes, and words to look for."""
    from benchmarks.bench_gateway import SCENES

    inputs = folder / "scenes"
    if not (inputs / "queries.json").exists():
        (inputs / "images").mkdir(parents=True, exist_ok=True)
        for scene in sorted(SCENES.glob("*.jpg")):
            (inputs / "images" / scene.name).write_bytes(scene.read_bytes())
        (inputs / "queries.json").write_text(json.dumps(TEXTS))
    return inputs


PART = Part(
    "whole",
    "The whole",
    "Five ways that others have published, each rebuilt in some 60 lines with the same bundled weights:\n"
    "SAM's own generator (with the options of the bundled model), one Pillow crop and one `encode_image`\n"
    "after the other. Lost: acknowledged images that are gone after a kill -9 while the next one is added.",
    (
        Column("image_s", "an image, s"),
        Column("together_s", f"of {AT_ONCE} at once, s"),
        Column("query_ms", "a query by words, p50 ms"),
        Column("start_s", "start to first answer, s"),
        Column("memory_mib", "memory, MiB"),
        Column("disk_mib", "disk, MiB"),
        Column("lost", "images lost", None, of="acknowledged"),
    ),
    {title: known.note for title, known in PEERS.items()},
)
COLUMNS = {column.key: column for column in PART.columns}
