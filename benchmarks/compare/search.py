"""Search: the same vectors in other stores and indexes, each asked in turn with our searcher."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.page import Column, Part
from benchmarks.compare.peer import Known, RunningPeer, disk_mib, empty
from benchmarks.compare.results import Case, Row
from benchmarks.harness import SkipCase
from benchmarks.searcher_rig import REGIONS, clustered

PARTS = 1000
FILTERS = {"0.1 %": 1, "1 %": 10, "10 %": 100, "50 %": 500}
HITS, QUERIES, JUDGED = 10, 400, 50
RECALL = 0.98  # a peer searches as hard as it must to reach it
BATCH = 1000
OURS, INDEXED = "ours", "ours, indexed"
Start = Callable[[str, Path], RunningPeer]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rows: Vectors of 512 numbers.
        rounds: Turns of both sides.
        seconds: Of one turn.
        kills: How often a peer is killed while it writes.
    """

    rows: int = 100_000
    rounds: int = 3
    seconds: float = 2.0
    kills: int = 3

    @property
    def size(self) -> str:
        """As rows name it."""
        rows = f"{self.rows // 1000} k" if self.rows < 1_000_000 else f"{self.rows // 1_000_000} M"
        return f"{rows} × 512"


QUICK = Plan(20_000, 2, 0.5, 1)

PEERS = {
    OURS: Known(
        "ours_search",
        "",
        "a process of its own, over gRPC; searched exactly below a million rows, each write in images of "
        "50 regions on disk before it is answered.",
    ),
    INDEXED: Known("ours_indexed", "", "the same with `ann_above` 1: approximate at any size."),
    "FAISS flat": Known(
        "faiss_loop",
        "",
        "exact, in the caller's process: no network, no process, nothing on disk until "
        "a file is written, so that few passing rows cost almost nothing, and a kill everything.",
    ),
    "hnswlib": Known(
        "hnswlib",
        "hnswlib",
        "a graph in the caller's memory: approximate, no network; filters are "
        "a Python function called row by row; a kill takes all since the last file.",
    ),
    "usearch": Known(
        "usearch",
        "usearch",
        "a graph in the caller's memory, without filters from Python; a kill takes all since the last file.",
    ),
    "LanceDB": Known("lancedb", "lancedb", "exact, from files, in the caller's process."),
    "LanceDB, IVF_HNSW_SQ": Known(
        "lancedb_indexed", "lancedb", "the same files with its graph of 8-bit vectors."
    ),
    "qdrant-edge": Known(
        "qdrant_edge",
        "qdrant-edge",
        "Qdrant's engine in the caller's process: approximate, no network, "
        "filters by an index of the field; it keeps what it acknowledged.",
    ),
    "Chroma": Known("chroma", "chroma", "in the caller's process; an approximate graph, records in SQLite."),
    "PostgreSQL, pgvector": Known(
        "pgvector",
        "pgvector",
        "a server; an approximate graph, and the planner takes the field's index where few rows pass.",
    ),
    "milvus-lite": Known("milvus_lite", "milvus-lite", "a server in Python, exact."),
    "Milvus": Known(
        "milvus",
        "milvus",
        "a server of etcd, storage and nodes in one; an approximate graph. 2.3.5 is the newest that PyPI "
        "carries with its server.",
    ),
}


GRAPHS = {
    "hnswlib", "usearch", "LanceDB, IVF_HNSW_SQ", "qdrant-edge", "Chroma", "PostgreSQL, pgvector", "Milvus",
}  # fmt: skip


def cases(quick: bool, folder: Path) -> list[Case]:
    """One row a peer and size; ours stays filled, for the turns with others.

    Args:
        quick: 20 k rows and short turns.
        folder: For inputs, environments and data.
    """
    plans = [QUICK] if quick else [Plan(), Plan(1_000_000, kills=1)]
    return [
        Case(Row("search", title, plan.size), functools.partial(measure, plan, folder))
        for plan in plans
        for title in PEERS
        if title != INDEXED or plan.rows < 1_000_000  # where ours has an index by itself
    ]


def measure(plan: Plan, folder: Path, row: Row) -> None:
    """Fills a peer, alternates with ours, starts it again, and kills it while it writes."""
    if row.peer in GRAPHS and plan.rows >= 1_000_000:
        raise SkipCase("on two cores its graph of a million vectors takes more than half an hour to build")
    inputs = made_inputs(plan, folder)

    def start(title: str, data: Path) -> RunningPeer:
        return PEERS[title].start(folder, inputs, data)

    data, ours_data = (folder / "data" / f"{PEERS[title].module}-{plan.rows}" for title in (row.peer, OURS))
    if row.peer != OURS and not (ours_data / "filled").exists():
        _fill(OURS, plan, empty(ours_data), start)
    row.values |= _fill(row.peer, plan, empty(data), start)
    with start(row.peer, data) as peer:
        row.version = peer.version
        judge(peer, plan, inputs, row)
        if row.peer == OURS:
            row.values |= alternate(plan, [peer])[0]
        else:
            with start(OURS, ours_data) as ours:
                mine, theirs = alternate(plan, [ours, peer])
                row.values |= theirs
                row.ours |= mine
        row.values["memory_mib"] = peer.memory_mib()
    row.values["disk_mib"] = disk_mib(data)
    begin = time.perf_counter()
    with start(row.peer, data) as peer:
        peer.ask("answers", count=1)
        row.values["start_s"] = time.perf_counter() - begin
    row.values |= survive(row.peer, plan, folder, start)
    if row.peer != OURS:
        empty(data).rmdir()


def made_inputs(plan: Plan, folder: Path) -> Path:
    """Vectors around 2000 centres, a part for every image of 50, and queries that are no rows."""
    inputs = folder / f"vectors-{plan.rows}"
    if not (inputs / "queries.npy").exists():
        inputs.mkdir(parents=True, exist_ok=True)
        step = 100_000
        blocks = [clustered(min(step, plan.rows - start), start) for start in range(0, plan.rows, step)]
        np.save(inputs / "vectors.npy", np.concatenate(blocks))
        images = plan.rows // REGIONS
        parts = np.random.default_rng(0).permutation(images) * PARTS // images
        np.save(inputs / "parts.npy", np.repeat(parts, REGIONS))
        np.save(inputs / "queries.npy", clustered(QUERIES, seed=99))
    return inputs


def judge(peer: RunningPeer, plan: Plan, inputs: Path, row: Row) -> None:
    """Finds the least effort that reaches `RECALL`, and the recall under a filter of 1 %."""
    vectors, parts = np.load(inputs / "vectors.npy", mmap_mode="r"), np.load(inputs / "parts.npy")
    queries = np.load(inputs / "queries.npy")[:JUDGED]
    for effort in peer.efforts:
        peer.ask("effort", value=effort)
        row.values["recall"] = recall(peer, vectors, queries, np.arange(plan.rows), None)
        row.values["effort"] = effort
        if row.values["recall"] >= RECALL:
            break
    if peer.filters:
        passing = np.flatnonzero(parts < FILTERS["1 %"])
        row.values["recall_1"] = recall(peer, vectors, queries, passing, FILTERS["1 %"])


def recall(peer: RunningPeer, vectors: Any, queries: Any, passing: Any, below: int | None) -> float:
    """Part of the true ten nearest of the passing rows that was found."""
    best = np.argsort(-(queries @ vectors[passing].T), axis=1, kind="stable")[:, :HITS]
    answers = peer.ask("answers", count=len(queries), below=below)["answers"]
    hits = (len(set(passing[rows].tolist()) & set(a)) for rows, a in zip(best, answers, strict=True))
    return sum(hits) / best.size


def alternate(plan: Plan, peers: list[RunningPeer]) -> list[dict[str, float]]:
    """Medians of the peers' turns: one caller, 32 callers, and one caller with each filter.

    A figure is absent where a peer has no filters or where it made errors, which are counted.
    """
    asked: dict[str, dict[str, Any]] = {"p50_ms": {"callers": 1}, "rate_32": {"callers": 32}}
    asked |= {f"filter_{part}_ms": {"callers": 1, "below": below} for part, below in FILTERS.items()}
    found: list[dict[str, float]] = [{} for _ in peers]
    for name, fields in asked.items():
        able = [place for place, peer in enumerate(peers) if peer.filters or "below" not in fields]
        for place in able:
            peers[place].ask("ask", seconds=plan.seconds / 4, **fields)  # warms up
        turns: dict[int, list[dict[str, Any]]] = {place: [] for place in able}
        for _, place in itertools.product(range(plan.rounds), able):
            turns[place].append(peers[place].ask("ask", seconds=plan.seconds, **fields))
        for place, answers in turns.items():
            errors = sum(sum(answer["errors"].values()) for answer in answers)
            if errors:
                found[place]["errors"] = found[place].get("errors", 0) + errors
                continue
            key = "rate" if name == "rate_32" else "p50_ms"
            found[place][name] = statistics.median(answer[key] for answer in answers)
    return found


def survive(title: str, plan: Plan, folder: Path, start: Start) -> dict[str, float]:
    """Acknowledged rows, and how many of them are gone, after kills in the middle of writing images."""
    found = {"acknowledged": 0, "lost": 0}
    for turn in range(plan.kills):
        data = empty(folder / "data" / "killed")
        peer = start(title, data)
        peer.send("add", first=0, count=min(plan.rows, 20_000), batch=REGIONS)
        added = peer.killed_while_adding(REGIONS * (20 + 7 * turn))
        with start(title, data) as again:
            held = again.ask("count")["count"]
        found["acknowledged"] += added
        found["lost"] += max(0, added - held)
    empty(folder / "data" / "killed").rmdir()
    return dict(found)


def _fill(title: str, plan: Plan, data: Path, start: Start) -> dict[str, float]:
    with start(title, data) as peer:
        added = peer.ask("add", first=0, count=plan.rows, batch=BATCH)
        finished = peer.ask("finish")
    (data / "filled").touch()
    return {"add_rate": plan.rows / added["seconds"], "index_s": finished["seconds"]}


PART = Part(
    "search",
    "Search",
    "Unit vectors of 512 numbers around 2,000 centres, in images of 50 with one number each to filter by.\n"
    f"Approximate indexes search as hard as they must for a recall@10 of {RECALL}. Lost: acknowledged\n"
    "rows that are gone after a kill -9 in the middle of writing.",
    (
        Column("recall", "recall@10", None),
        Column("p50_ms", "1 caller, ms"),
        Column("rate_32", "32 callers, /s", "higher"),
        *(Column(f"filter_{part}_ms", f"filter {part}, ms") for part in FILTERS),
        Column("recall_1", "recall, filter 1 %", None),
        Column("add_rate", "rows added/s", "higher"),
        Column("index_s", "index, s", None),
        Column("start_s", "start, s"),
        Column("memory_mib", "memory, MiB"),
        Column("disk_mib", "disk, MiB"),
        Column("lost", "rows lost", None, of="acknowledged"),
    ),
    {title: known.note for title, known in PEERS.items()},
)
COLUMNS = {column.key: column for column in PART.columns}
