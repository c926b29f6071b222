"""Candidates out of Milvus, scored again here so that every engine gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pymilvus import MilvusClient

from services.searcher.cancellation import CancellationToken
from services.searcher.milvus.access import rows_of
from services.searcher.milvus.tables import Row, expression
from services.searcher.ranking import Candidates, Numbers, cosines
from services.searcher.types import Query

EVERY_FIELD = [
    "record_id", "image_id", "level", "area", "predicted_iou", "stability_score", "created_ms", "seq", "body",
]  # fmt: skip
_SCORED = ["record_id", "image_id", "level", "vector"]


class MilvusSource:
    """What a ranking sees of one collection: the records written up to `seq`.

    Args:
        client: The connection.
        table: The Milvus collection of the records.
        query: What is looked for.
        seq: The write.
        max_candidates: Most rows that Milvus gives for one search.
        caller: Milvus is not asked again once it has left.
    """

    def __init__(
        self,
        client: MilvusClient,
        table: str,
        query: Query,
        seq: int,
        max_candidates: int,
        caller: CancellationToken,
    ) -> None:
        self.ahead = query.skipped
        self._caller = caller
        self._client = client
        self._table = table
        self._query = query
        self._max = max_candidates
        self._filter = expression(query.filter, query.level, seq)
        self._keys: dict[str, int] = {}
        self._images: dict[str, int] = {}
        self._ids: list[tuple[str, str]] = []
        self._names: list[str] = []

    def best(self, count: int) -> Candidates:
        """See `ranking.CandidateSource`; more than Milvus gives at once is all that there is."""
        asked = min(count, self._max)
        while True:
            self._caller.check()
            # One row more than asked for tells whether there are more, and whether the last one ties with it.
            found = self._client.search(
                self._table,
                data=self._query.vectors.tolist(),
                anns_field="vector",
                limit=min(asked + 1, self._max),
                filter=self._filter,
                output_fields=_SCORED,
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
            )
            exhausted = all(len(hits) <= asked for hits in found) or asked >= self._max
            tied = any(
                len(hits) > count and hits[-1]["distance"] >= hits[count - 1]["distance"] - 1e-6
                for hits in found
            )
            if exhausted or not tied:
                rows = {hit["entity"]["record_id"]: hit["entity"] for hits in found for hit in hits}
                return self._candidates(list(rows.values()), complete=exhausted)
            asked = min(asked * 2, self._max)

    def of_images(self, images: Numbers) -> Candidates:
        """See `ranking.CandidateSource`."""
        names = [self._names[number] for number in images.tolist()]
        rows = rows_of(self._client, self._table, "image_id", names, _SCORED, self._filter)
        return self._candidates(list(rows), complete=True)

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        """See `ranking.CandidateSource`."""
        return {key: self._ids[key] for key in keys}

    def _candidates(self, rows: Sequence[Row], *, complete: bool) -> Candidates:
        against = np.concatenate([self._query.vectors, self._query.negatives])
        vectors = np.array([row["vector"] for row in rows], np.float64).reshape(-1, against.shape[1])
        return Candidates(
            key=np.array([self._key(row) for row in rows], np.int64),
            image=np.array([self._image(row["image_id"]) for row in rows], np.int64),
            level=np.array([row["level"] for row in rows], np.uint8),
            scores=cosines(vectors, against),
            complete=complete,
        )

    def _key(self, row: Row) -> int:
        record_id: str = row["record_id"]
        if record_id not in self._keys:
            self._keys[record_id] = len(self._ids)
            self._ids.append((row["image_id"], record_id))
        return self._keys[record_id]

    def _image(self, image_id: str) -> int:
        if image_id not in self._images:
            self._images[image_id] = len(self._names)
            self._names.append(image_id)
        return self._images[image_id]
