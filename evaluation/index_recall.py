"""How much a faster index loses on real vectors: the searcher's own indexes against exact search."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from evaluation import metrics
from evaluation.system import VectorArray
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
    Collection,
    Level,
    ModelIdentity,
    Record,
    StoredImage,
    Upsert,
)

ENOUGH = 1000  # vectors; with fewer an approximate index shows nothing
TOP = 10
CODES = {"ITQ": CodeMethod.ITQ, "PCA and rotation": CodeMethod.PCA_ROTATION}
_BUILD_TIMEOUT_S = 120.0


def index_recall(vectors: VectorArray, queries: VectorArray) -> dict[str, float]:
    """recall@10 of each of the searcher's approximate indexes.

    Args:
        vectors: What is indexed, unit vectors (records, dimension).
        queries: What is asked, unit vectors (queries, dimension).

    Returns:
        By kind of index; empty when there are fewer than `ENOUGH` vectors.

    Raises:
        TimeoutError: The searcher has not built its index in two minutes.
    """
    if len(vectors) < ENOUGH:
        return {}
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :TOP]
    bits = min(256, vectors.shape[1])  # codes are projections: there are no more of them than dimensions
    variants: dict[str, CodeSpec | None] = {"IVF, half precision": None}
    variants |= {
        f"{bits}-bit codes ({name}), re-ranked": CodeSpec(method, bits) for name, method in CODES.items()
    }
    recall = {}
    with TemporaryDirectory() as folder:
        for number, (name, codes) in enumerate(variants.items()):
            found = _ask(Path(folder) / str(number), codes, vectors, queries)
            recall[name] = float(metrics.index_recall(exact, found).mean())
    return recall


def _ask(folder: Path, codes: CodeSpec | None, vectors: VectorArray, queries: VectorArray) -> list[list[int]]:
    """The rows that one kind of index finds, at most `TOP` for each query."""
    rows, dimension = vectors.shape
    settings = EmbeddedSettings(
        folder=folder, device="cpu", chunk_rows=rows, ann_above=rows, ann_rows=rows, codes_rows=rows
    )
    model = ModelIdentity("evaluation", "", "", dimension)
    records = [Record(str(row), "all", Level.REGION) for row in range(rows)]
    engine = EmbeddedEngine(settings)
    try:
        engine.create_collection(Collection("regions", model, codes))
        engine.upsert("regions", model, Upsert([StoredImage("all")], records, vectors))
        deadline = time.monotonic() + _BUILD_TIMEOUT_S
        while any(segment.index == "flat" for segment in engine.stats("regions")[0].segments):
            if time.monotonic() > deadline:
                raise TimeoutError("the searcher has not built its index")
            time.sleep(0.05)
        nothing = np.empty((0, dimension), np.float32)
        asked = [Query(query[np.newaxis], nothing, limit=TOP) for query in queries]
        pages = engine.search("regions", model, asked)
        return [[int(hit.record.record_id) for hit in page.hits] for page in pages]
    finally:
        engine.close()
