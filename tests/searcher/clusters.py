"""Vectors with structure, as real ones have, and engines that hold them."""

from __future__ import annotations

import numpy as np

from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Query
from services.searcher.types import Level, ModelIdentity, Record, StoredImage, Upsert

DIMENSION = 48
ROWS = 6000
MODEL = ModelIdentity("open_clip", "test", "digest", DIMENSION)


def clustered(count: int, seed: int = 0, clusters: int = 60) -> np.ndarray:
    """Vectors with structure, as real ones have, stored precision."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((clusters, DIMENSION))
    vectors = centres[rng.integers(0, clusters, count)] + 0.5 * rng.standard_normal((count, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


def fill(
    engine: EmbeddedEngine, vectors: np.ndarray, name: str = "c", batch: int = 500, first: int = 0
) -> None:
    """Writes the vectors as regions, so many to an image; every other image has the tag `even`."""
    for start in range(first, first + len(vectors), batch):
        rows = vectors[start - first : start - first + batch]
        image = StoredImage(f"image{start}", tags=("even",) if start // batch % 2 == 0 else ("odd",))
        records = [
            Record(f"r{start + i}", image.image_id, Level.REGION, area=start + i) for i in range(len(rows))
        ]
        engine.upsert(name, MODEL, Upsert([image], records, rows))


def search(engine: EmbeddedEngine, query: np.ndarray, name: str = "c", **fields) -> list:
    """The hits of one vector."""
    asked = Query(query[np.newaxis], np.empty((0, DIMENSION), np.float32), **fields)
    return list(engine.search(name, MODEL, [asked])[0].hits)
