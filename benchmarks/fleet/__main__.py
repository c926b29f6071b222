"""``python -m benchmarks.fleet``: simulated fleets as tables in Markdown; ``--write FILE`` renews them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.fleet.simulation import Device, Fleet, Load, Outcome, simulate
from benchmarks.fleet.storage import storage

LOADED = 0.8  # of what the segmenters can do
GATEWAY_BUSY = 0.6  # of a gateway's one core

Row = Sequence[object]


def image_s(fleet: Fleet) -> tuple[float, float]:
    """Seconds that an image takes of a segmenter and of an embedder, in full batches."""
    return fleet.prompts / fleet.segmenter.items_per_s, (1 + fleet.regions) / fleet.embedder.items_per_s


def sized(fleet: Fleet, segmenters: int) -> tuple[Fleet, float]:
    """Embedders and gateways to go with so many segmenters, and the images a second that load these."""
    on_segmenter, on_embedder = image_s(fleet)
    rate = LOADED * segmenters / on_segmenter
    embedders = math.ceil(rate * on_embedder / LOADED)
    gateways = math.ceil(rate * fleet.image_cpu_s / GATEWAY_BUSY)
    in_work = max(16, math.ceil(4 * (segmenters + embedders) / gateways))
    return replace(
        fleet, segmenters=segmenters, embedders=embedders, gateways=gateways, in_work=in_work
    ), rate


def number(value: float) -> str:
    """With three digits that count."""
    return f"{float(f'{value:.3g}'):,g}"


def percentile(seconds: Sequence[float], rank: int) -> str:
    """In the unit that suits it."""
    if not seconds:
        return "–"
    value = float(np.percentile(seconds, rank))
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def refused(outcome: Outcome) -> str:
    """Images that were not answered, as a part of all."""
    lost = sum(count for key, count in outcome.failed.items() if key.startswith("image"))
    return f"{100 * lost / max(1, lost + len(outcome.images)):.1f} %"


def sizes(fleet: Fleet) -> Iterator[Row]:
    """From one segmenter to five hundred."""
    yield ("segmenters", "embedders", "gateways", "images/s", "image p50", "p95", "query p95",
           "segmenters busy", "device-seconds for a million images")  # fmt: skip
    for count in (1, 4, 16, 64, 250, 500):
        large, rate = sized(fleet, count)
        seconds = 300 if count < 64 else 40
        outcome = simulate(large, Load(seconds, images_per_s=rate, queries_per_s=0.5 * count))
        held = sum(outcome.held_s.values()) / len(outcome.images) * 1e6
        busy = outcome.device_s["segmenter"] / outcome.held_s["segmenter"]
        yield (count, large.embedders, large.gateways, number(outcome.rate(seconds / 4)),
               percentile(outcome.images, 50), percentile(outcome.images, 95),
               percentile(outcome.queries, 95), f"{100 * busy:.0f} %", f"{held:,.0f}")  # fmt: skip


def events(fleet: Fleet) -> Iterator[Row]:
    """A burst, a loss, and how soon an autoscaler's workers are there."""
    yield ("16 segmenters, ten minutes", "image p50", "p95", "query p95", "refused", "segmenters in the end")
    large, rate = sized(fleet, 16)
    steady = Load(600, images_per_s=rate, queries_per_s=8)
    burst = replace(steady, burst=(120, 240, 2.0))
    for name, load in (
        ("steady", steady),
        ("a worker of each kind lost", replace(steady, lost_at=120)),
        ("twice the images for two minutes", burst),
        ("… new workers after 30 s", replace(burst, scale_every_s=15, start_s=30)),
        ("… after 120 s", replace(burst, scale_every_s=15, start_s=120)),
        ("… and `max_images_waiting` is 64", burst),
    ):
        limited = replace(large, waiting=64) if "waiting" in name else large
        outcome = simulate(limited, load)
        yield (name, percentile(outcome.images, 50), percentile(outcome.images, 95),
               percentile(outcome.queries, 95), refused(outcome), outcome.workers["segmenter"])  # fmt: skip


def settings(fleet: Fleet) -> Iterator[Row]:
    """Which settings keep the p95 of queries, and the speed, while importers send all they can."""
    yield "16 segmenters, as much as they can do", "images/s", "image p50", "p95", "query p95"
    large, _ = sized(fleet, 16)
    few = replace(large, embedders=1)
    for name, each in (
        ("`max_images_in_work` 4", replace(large, in_work=4, gateways=1)),
        ("16, the default", replace(large, in_work=16, gateways=1)),
        ("32: two for each segmenter", replace(large, in_work=32, gateways=1)),
        ("64: four", replace(large, in_work=64, gateways=1)),
        ("one embedder, too few; its `batching.max_batch` 16", _batch(few, 16)),
        ("64, the default", _batch(few, 64)),
        ("256", _batch(few, 256)),
    ):
        outcome = simulate(each, Load(300, clients=96, queries_per_s=8))
        yield (name, number(outcome.rate(60)), percentile(outcome.images, 50),
               percentile(outcome.images, 95), percentile(outcome.queries, 95))  # fmt: skip


def _batch(fleet: Fleet, most: int) -> Fleet:
    return replace(fleet, embedder=replace(fleet.embedder, max_batch=most))


def cost(fleet: Fleet) -> Iterator[Row]:
    """Device-seconds of work."""
    yield "device-seconds of work", "segmenter", "embedder"
    on_segmenter, on_embedder = image_s(fleet)
    yield "a million images", f"{on_segmenter * 1e6:,.0f}", f"{on_embedder * 1e6:,.0f}"
    for rate in (1, 100, 400):
        outcome = simulate(fleet, Load(60, queries_per_s=rate))
        seconds = outcome.device_s["embedder"] / len(outcome.queries) * 1000
        yield f"a thousand queries by words, {rate} a second", "0", number(seconds)


def table(rows: Iterator[Row]) -> str:
    """As Markdown."""
    head, *others = rows
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *others)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def device(text: str) -> Device:
    """``batch_s,item_s,max_batch``."""
    batch_s, item_s, most = text.split(",")
    return Device(float(batch_s), float(item_s), int(most))


def main() -> None:
    """Prints the tables."""
    usual = Fleet()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    for name in ("segmenter", "embedder"):
        parser.add_argument(
            f"--{name}", type=device, default=getattr(usual, name), metavar="BATCH_S,ITEM_S,MAX_BATCH",
            help="seconds of a batch, of each item in it, and batching.max_batch (%(default)s)",
        )  # fmt: skip
    parser.add_argument("--prompts", type=int, default=usual.prompts, help="of an image (%(default)s)")
    parser.add_argument("--regions", type=int, default=usual.regions, help="of an image (%(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="of the vectors (%(default)s)")
    parser.add_argument("--image-bytes", type=int, default=500_000, help="of a file (%(default)s)")
    parser.add_argument("--write", type=Path, help="a page whose tables are renewed")
    options = parser.parse_args()
    fleet = Fleet(
        segmenter=options.segmenter, embedder=options.embedder, prompts=options.prompts,
        regions=options.regions,
    )  # fmt: skip
    tables = {
        "sizes": sizes(fleet),
        "events": events(fleet),
        "settings": settings(fleet),
        "cost": cost(fleet),
        "storage": storage(options.dimension, options.regions, options.image_bytes),
    }
    for name, rows in tables.items():
        text = table(rows)
        print(f"{text}\n", flush=True)
        if options.write is not None:
            renew(options.write, name, text)


def renew(page: Path, name: str, text: str) -> None:
    """Replaces what stands between a table's two marks on a page."""
    begin, end = f"<!-- {name} -->\n\n", f"\n\n<!-- end of {name} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + end + rest.split(end, 1)[1])


if __name__ == "__main__":
    main()
