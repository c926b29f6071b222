"""The milvus engine against plain pymilvus that does the same, on one server, in turns.

Usage: `python -m benchmarks.bench_milvus http://127.0.0.1:19530` (needs the `milvus` extra). Both write
images of 38 regions to tables of the same kind, and search for 20 hits with their images: right
after a write, which both wait to see, and a second later ("idle").
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from pymilvus import MilvusClient

from services.searcher.milvus import rows as milvus_rows
from services.searcher.milvus.engine import MilvusEngine
from services.searcher.queries import Query
from services.searcher.settings import MilvusSettings
from services.searcher.types import Collection, Level, ModelIdentity, Record, StoredImage, Upsert

REGIONS = 38
MODEL = ModelIdentity("bench", "random", "0" * 64, 512)


def main() -> None:
    """Measures and prints medians in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    engine = MilvusEngine(MilvusSettings(uri=asked.uri, prefix=f"bench{time.time_ns()}_"))
    plain = MilvusClient(uri=asked.uri, timeout=30)
    engine.create_collection(Collection("ours", MODEL))
    engine.create_collection(Collection("plain", MODEL))
    placement, _ = engine._registry.find("plain")

    def vectors(count: int) -> np.ndarray:
        made = rng.normal(size=(count, MODEL.dimension)).astype(np.float32)
        return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True))

    def image(number: int) -> tuple[StoredImage, list[Record], np.ndarray]:
        name = f"image{number}"
        records = [Record(f"{name}-{i}", name, Level.REGION, (0, 0, 9, 9), area=81) for i in range(REGIONS)]
        return StoredImage(name), records, vectors(REGIONS)

    def write_ours(number: int) -> None:
        one, records, rows = image(number)
        engine.upsert("ours", MODEL, Upsert([one], records, rows))

    def write_plain(number: int) -> None:
        one, records, rows = image(number)
        made = [milvus_rows.record_row(r, one, v, 0, placement) for r, v in zip(records, rows, strict=True)]
        plain.upsert(placement.records, made)
        plain.upsert(placement.images, [milvus_rows.image_row(one)])

    def search_ours() -> None:
        assert engine.search("ours", MODEL, [Query(vectors(1), vectors(0))])[0].hits

    def search_plain() -> None:
        fields = [*placement.payload, "vector"]
        options = {"consistency_level": "Session"}
        found = plain.search(
            placement.records,
            data=vectors(1).tolist(),
            limit=20,
            output_fields=fields,
            **options,
        )
        ids = list({hit["entity"]["image_id"] for hit in found[0]})
        assert plain.get(placement.images, ids, output_fields=["body"], **options)

    def measured(*actions: Callable[[], None]) -> list[float]:
        """Medians of the times of each, in turns."""
        taken: list[list[float]] = [[] for _ in actions]
        for _ in range(asked.rounds):
            for action, times in zip(actions, taken, strict=True):
                began = time.perf_counter()
                action()
                times.append(1000 * (time.perf_counter() - began))
        return [statistics.median(times) for times in taken]

    numbers = iter(range(10**9))
    rows = {"write": measured(lambda: write_ours(next(numbers)), lambda: write_plain(next(numbers)))}

    def after_write(write: Callable[[int], None], search: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            write(next(numbers))
            search()

        return both

    rows["write, then search"] = measured(
        after_write(write_ours, search_ours), after_write(write_plain, search_plain)
    )
    time.sleep(1)
    rows["search, idle"] = measured(search_ours, search_plain)
    print(f"{'median of ' + str(asked.rounds) + ', ms':24}{'engine':>10}{'pymilvus':>10}{'ratio':>8}")
    for name, (ours, theirs) in rows.items():
        print(f"{name:24}{ours:10.1f}{theirs:10.1f}{ours / theirs:8.2f}")
    for name in ("ours", "plain"):
        engine.delete_collection(name)
    engine.close()
    plain.close()


if __name__ == "__main__":
    main()
