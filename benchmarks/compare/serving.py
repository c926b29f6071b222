"""Serving: the bundled CLIP behind other servers, one crop a call, each asked in turn with our embedder."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from benchmarks.compare.page import Column, Part
from benchmarks.compare.peer import Known, RunningPeer, empty
from benchmarks.compare.results import Case, Row
from benchmarks.harness import SkipCase

CROPS, SIDE = 64, 96
CALLERS = (1, 8, 64)
SLOW_S = 0.05  # a crop, of the model that is flooded: 20 a second
FLOOD = 20  # times its capacity
DYING_CALLERS = 8
OURS, ALONE = "ours", "no server"


@dataclass(frozen=True)
class Plan:
    """Turns of each number of callers; seconds of a turn, of the flood, and of the death of a replica."""

    rounds: int = 3
    seconds: float = 2.0
    flood_s: float = 3.0
    dying_s: float = 6.0


QUICK = Plan(1, 0.5, 1.0, 2.0)


PEERS = {
    OURS: Known(
        "serve_ours",
        "",
        "gRPC; refuses at once what it could not answer in time; callers go on with the other replica. Its "
        "image tower runs in ONNX Runtime, that of the others in torch.",
    ),
    ALONE: Known("serve_direct", "", "the model in its caller's process, one crop after the other."),
    "mosec": Known("serve_mosec", "mosec", "a front in Rust, models in processes."),
    "LitServe": Known("serve_litserve", "litserve", "FastAPI, models in processes."),
    "BentoML": Known("serve_bentoml", "bentoml", "models in workers, adaptive batches."),
    "Ray Serve": Known("serve_ray", "ray", "a proxy and actors; made for clusters."),
    "pytriton": Known("serve_pytriton", "pytriton", "Triton, and all replicas in one Python process."),
    "infinity": Known(
        "",
        "",
        "",
        "infinity-emb 0.0.78 serves models of transformers and sentence-transformers; the bundled CLIP is "
        "one of open_clip",
    ),
}


def cases(quick: bool, folder: Path) -> list[Case]:
    """One row a server.

    Args:
        quick: Short turns.
        folder: For inputs, environments and data.
    """
    plan = QUICK if quick else Plan()
    run = functools.partial(measure, plan, folder)
    return [Case(Row("serving", title, "crops of 96 px"), run) for title in PEERS]


def measure(plan: Plan, folder: Path, row: Row) -> None:
    """Asks in turns with ours; floods a slow model; kills one of two replicas."""
    if PEERS[row.peer].skipped:
        raise SkipCase(PEERS[row.peer].skipped)
    inputs = made_inputs(folder)

    def start(title: str, **variables: str) -> RunningPeer:
        known = PEERS[title]
        return known.start(folder, inputs, folder / "data" / known.module, **variables)

    titles = list(dict.fromkeys([row.peer, OURS, ALONE]))
    with contextlib.ExitStack() as stack:
        peers = {title: stack.enter_context(start(title)) for title in titles}
        row.version = peers[row.peer].version
        figures = in_turns(plan, peers)
        row.values |= figures[row.peer]
        row.values["memory_mib"] = peers[row.peer].memory_mib()
        if row.peer != OURS:
            row.ours = figures[OURS]
    if row.peer != ALONE:
        row.values |= flooded(plan, start(row.peer, COMPARE_SLEEP_S=str(SLOW_S)))
        row.values |= bereft(plan, start, row.peer, empty(folder / "data" / "pids"))


def in_turns(plan: Plan, peers: dict[str, RunningPeer]) -> dict[str, dict[str, float]]:
    """Medians: crops a second, and what serving adds to the calls of an only caller, in ms."""
    turns: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for callers in CALLERS:
        for peer in peers.values():
            peer.ask("ask", callers=callers, seconds=plan.seconds / 2)
        for _, (title, peer) in itertools.product(range(plan.rounds), peers.items()):
            answered = peer.ask("ask", callers=callers, seconds=plan.seconds)
            turns.setdefault((title, callers), []).append(answered)

    def median(title: str, callers: int, key: str) -> float:
        return float(statistics.median(turn.get(key, 0.0) for turn in turns[title, callers]))

    found = {
        title: {f"rate_{number}": median(title, number, "rate") for number in CALLERS} for title in peers
    }
    for title in peers:
        if title != ALONE:
            found[title]["added_ms"] = median(title, 1, "p50_ms") - median(ALONE, 1, "p50_ms")
    return found


def flooded(plan: Plan, slow: RunningPeer) -> dict[str, float]:
    """Parts of the calls that were answered, refused, and neither within `driver.PATIENCE_S`."""
    with slow as peer:
        ends = peer.ask("flood", rate=FLOOD / SLOW_S, seconds=plan.flood_s)
    calls = FLOOD / SLOW_S * plan.flood_s
    found = {f"flood_{end}": 100 * ends.get(end, 0) / calls for end in ("answered", "refused", "failed")}
    return found | ({"refusal_ms": ends["refusal_ms"]} if ends.get("refused") else {})


def bereft(plan: Plan, start: Callable[..., RunningPeer], title: str, pids: Path) -> dict[str, float]:
    """Errors of callers while one of two replicas is killed."""
    with start(title, COMPARE_REPLICAS="2", COMPARE_PIDS=str(pids)) as peer:
        peer.send("ask", callers=DYING_CALLERS, seconds=plan.dying_s)
        time.sleep(plan.dying_s / 3)
        psutil.Process(int(min(file.name for file in pids.iterdir()))).kill()
        answered = peer.answer()
    errors = sum(answered["errors"].values())
    return {"dying_errors": errors, "dying_calls": errors + answered["rate"] * plan.dying_s}


def made_inputs(folder: Path) -> Path:
    """Crops of the bundled scenes, as JPEG."""
    from benchmarks.bench_gateway import SCENES

    crops = folder / "crops" / "crops"
    if not crops.exists():
        crops.mkdir(parents=True)
        scenes = [Image.open(scene).convert("RGB") for scene in sorted(SCENES.glob("*.jpg"))]
        for number in range(CROPS):
            scene, out = scenes[number % len(scenes)], io.BytesIO()
            x, y = 37 * number % (scene.width - SIDE), 53 * number % (scene.height - SIDE)
            scene.crop((x, y, x + SIDE, y + SIDE)).save(out, "JPEG", quality=90)
            (crops / f"{number:03}.jpg").write_bytes(out.getvalue())
    return crops.parent


PART = Part(
    "serving",
    "Serving",
    "The bundled CLIP behind each server: one JPEG crop of 96 px a call, batches of at most 64, callers on\n"
    f"the same two cores. Flood: for {Plan().flood_s:g} s {FLOOD} times what a model of {SLOW_S:g} s a crop "
    "can do, from\ncallers that wait 5 s; failed: neither answered nor refused in that time. Dying: one of\n"
    "two replicas is killed under 8 callers.",
    (
        *(
            Column(f"rate_{number}", f"{number} {'callers' if number > 1 else 'caller'}, crops/s", "higher")
            for number in CALLERS
        ),
        Column("added_ms", "added when idle, ms", None),
        Column("flood_answered", "flood: answered, %", None),
        Column("flood_refused", "refused, %", None),
        Column("flood_failed", "failed, %", None),
        Column("refusal_ms", "a refusal, ms", None),
        Column("dying_errors", "dying: errors", None, of="dying_calls"),
        Column("memory_mib", "memory, MiB"),
    ),
    {title: known.note for title, known in PEERS.items() if known.note},
)
COLUMNS = {column.key: column for column in PART.columns}
