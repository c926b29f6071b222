"""The engine for those who outgrow one machine: everything lives in Milvus, this process keeps nothing.

Any number of searchers can serve the same Milvus. Sharding, replication and durability are Milvus's: an
answered write is in its log. What Milvus cannot do is said in `capabilities`: it has no transaction over
several rows, so a write that fails half-way leaves some of its records behind, without their image;
sending it again repairs that. Grouping, thresholds and the order of hits are made here, by the same
ranking as the embedded engine's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from pymilvus import MilvusClient

from regionsearch.errors import Kind, RegionSearchError, not_found
from regionsearch.metadata import MetadataLimits
from services.searcher.cancellation import ANYBODY, CancellationToken
from services.searcher.engine import Capabilities, never_acknowledged
from services.searcher.milvus import tables
from services.searcher.milvus.access import (
    every_row,
    explained,
    some_rows,
)
from services.searcher.milvus.contents import Contents
from services.searcher.milvus.source import EVERY_FIELD, MilvusSource
from services.searcher.milvus.tables import (
    images_table,
    listed,
    records_table,
    registry_table,
)
from services.searcher.models import check_generation, check_model
from services.searcher.ranking import Ranked, rank
from services.searcher.reports import CollectionStats, SegmentStats, SnapshotInfo
from services.searcher.response_budget import ANY_SIZE, ResponseBudget
from services.searcher.settings import MilvusSettings
from services.searcher.types import (
    Collection,
    DeleteResult,
    Deletion,
    Hit,
    ImagePage,
    ModelIdentity,
    Page,
    Query,
    Record,
    Stored,
    StoredImage,
    Upsert,
    UpsertResult,
)
from services.searcher.updates import ImageUpdate, UpdateResult

_DESCRIBED_AT_ONCE = 100  # hits whose records and images are read together
_CLOCKS_DIFFER_US = 60_000_000  # of two searchers, at most


class MilvusEngine:
    """Collections in Milvus.

    Args:
        settings: Address and names.

    Raises:
        RegionSearchError: UNAVAILABLE when Milvus does not answer.
    """

    name = "milvus"
    capabilities = Capabilities(
        snapshots=False, binary_codes=False, pinned_deletions=False, atomic_upsert=False
    )

    def __init__(self, settings: MilvusSettings) -> None:
        self._settings = settings
        self._registry = registry_table(settings.prefix)
        self._token_key: bytes | None = None
        with explained():
            token = settings.token.get_secret_value() if settings.token else ""
            self._client = MilvusClient(uri=settings.uri, token=token, timeout=settings.timeout_s)
            if not self._client.has_collection(self._registry):
                tables.create_plain_table(self._client, self._registry, "name")

    # Collections

    def create_collection(self, collection: Collection) -> Collection:
        """See `Engine`."""
        if collection.codes is not None:
            raise _cannot("binary codes", "the embedded engine keeps them")
        made = replace(collection, created_ms=_now_ms(), image_count=0, record_count=0)
        with explained():
            if some_rows(self._client, self._registry, listed("name", [collection.name]), ["name"]):
                raise RegionSearchError(
                    Kind.ALREADY_EXISTS, f"there is a collection {collection.name!r} already", field="name"
                )
            records, images = self._tables(collection.name)
            for leftover in (records, images):
                if self._client.has_collection(leftover):
                    self._client.drop_collection(leftover)
            tables.create_records_table(
                self._client, records, collection.model.dimension, self._settings.index_type
            )
            tables.create_plain_table(self._client, images, "image_id")
            self._client.upsert(self._registry, [tables.collection_row(made)])  # last: now it exists
        return made

    def get_collection(self, name: str) -> Collection:
        """See `Engine`."""
        with explained():
            found = self._find(name)
            image_count, record_count = self._contents(name).counts()
            return replace(found, image_count=image_count, record_count=record_count)

    def list_collections(self) -> list[Collection]:
        """See `Engine`."""
        with explained():
            rows = every_row(self._client, self._registry, 'name != ""', ["name"])
            names = sorted(row["name"] for row in rows)
        return [self.get_collection(name) for name in names]

    def delete_collection(self, name: str) -> None:
        """See `Engine`."""
        with explained():
            self._find(name)
            self._client.delete(self._registry, ids=[name])
            for table in self._tables(name):
                self._client.drop_collection(table)

    # Writing

    def upsert(
        self, name: str, model: ModelIdentity, write: Upsert, generation: str | None = None
    ) -> UpsertResult:
        """See `Engine`."""
        with explained():
            found = self._find(name, generation)
            check_model(name, found.model, model)
            seq = _now_seq()
            skipped, written = self._contents(name).upsert(write, seq, _now_ms())
            return UpsertResult(seq, skipped, written, _generation(found))

    def update_images(
        self, name: str, updates: Sequence[ImageUpdate], limits: MetadataLimits
    ) -> UpdateResult:
        """See `Engine`; each image by itself, its records before it."""
        with explained():
            self._find(name)
            images = self._contents(name).update_images(updates, limits)
            return UpdateResult(_now_seq(), images)

    def delete(self, name: str, deletion: Deletion) -> DeleteResult:
        """See `Engine`."""
        with explained():
            self._find(name)
            images, records = self._contents(name).delete(deletion)
            return DeleteResult(_now_seq(), images, records)

    # Reading

    def search(
        self,
        name: str,
        model: ModelIdentity,
        queries: Sequence[Query],
        min_seq: int | None = None,
        caller: CancellationToken = ANYBODY,
        room: ResponseBudget = ANY_SIZE,
    ) -> list[Page]:
        """See `Engine`. Reads are strongly consistent, so every answered write is seen."""
        with explained():
            found = self._find(name)
            for query in queries:
                check_generation(name, _generation(found), query.generation)
            check_model(name, found.model, model)
            now = _now_seq()
            if min_seq is not None and min_seq > now + _CLOCKS_DIFFER_US:
                raise never_acknowledged(min_seq, now)
            if min_seq is not None and min_seq > now:
                raise RegionSearchError(
                    Kind.UNAVAILABLE, f"write {min_seq} has not arrived", retry_after_s=0.1
                )
            pages = [
                self._page(
                    name,
                    query,
                    now if query.seq is None else query.seq,
                    caller,
                    room,
                    may_end_early=len(queries) == 1,
                )
                for query in queries
            ]
            return [replace(page, generation=_generation(found)) for page in pages]

    def _page(
        self,
        name: str,
        query: Query,
        seq: int,
        caller: CancellationToken,
        room: ResponseBudget,
        *,
        may_end_early: bool,
    ) -> Page:
        """Ranked hits. A page that has a next one ends before the first hit for which there is no room."""
        records, _ = self._tables(name)
        ranked, more = rank(
            query, MilvusSource(self._client, records, query, seq, self._settings.max_candidates, caller)
        )
        hits: list[Hit] = []
        numbered = list(enumerate(ranked, start=query.skipped + 1))
        try:
            for start in range(0, len(numbered), _DESCRIBED_AT_ONCE):
                part = numbered[start : start + _DESCRIBED_AT_ONCE]
                for hit in self._describe(name, part, query, room):
                    hits.append(hit)  # noqa: PERF402  # those before the one that has no room count
        except RegionSearchError as error:
            if error.kind is not Kind.TOO_LARGE or not hits or not may_end_early:
                raise
            return Page(tuple(hits), seq, more=True)
        return Page(tuple(hits), seq, more)

    def _describe(
        self, name: str, numbered: Sequence[tuple[int, Ranked]], query: Query, room: ResponseBudget
    ) -> Iterator[Hit]:
        """Hits with their records and images; without those that were deleted since Milvus scored them."""
        places = [r.position for _, hit in numbered for r in (hit, hit.best_region) if r is not None]
        contents = self._contents(name)
        records = {
            row["record_id"]: tables.record_of(row, masks=query.include_masks)
            for row in contents.records([place.record_id for place in places], [], EVERY_FIELD)
        }
        images = contents.images({place.image_id for place in places})

        def hit(number: int, found: Ranked) -> Hit:
            place = found.position
            record = records[place.record_id]
            image = room.shown(images.get(place.image_id, StoredImage(place.image_id)))
            room.take_record(record)
            room.take_image(image)
            region = None
            if found.best_region is not None and found.best_region.position.record_id in records:
                region = hit(number, found.best_region)
            return Hit(number, place.score, found.relevancy, found.query_index, record, image, region)

        for number, found in numbered:
            if found.position.record_id in records:
                yield hit(number, found)

    def get_records(
        self,
        name: str,
        record_ids: Sequence[str],
        image_ids: Sequence[str],
        *,
        masks: bool,
        vectors: bool,
        images_only: bool = False,
        room: ResponseBudget = ANY_SIZE,
    ) -> Stored:
        """See `Engine`."""
        with explained():
            dimension = self._find(name).model.dimension
            contents = self._contents(name)
            asked = contents.images(image_ids, room)
            if images_only:
                return Stored((), tuple(asked[i] for i in sorted(asked)), None, _now_seq())
            fields = [*EVERY_FIELD, "vector"] if vectors else EVERY_FIELD
            found: list[tuple[int, Record, np.ndarray]] = []  # and the write that each is from
            for row in contents.records(record_ids, list(asked), fields):
                record = tables.record_of(row, masks=masks)
                room.take_record(record)
                vector = np.array(row["vector"] if vectors else [], np.float32)
                room.take(vector.nbytes)
                found.append((row["seq"], record, vector))
            found.sort(key=lambda one: (one[1].image_id, one[1].level, one[0], one[1].record_id))
            images = asked | contents.images({record.image_id for _, record, _ in found} - set(asked), room)
            return Stored(
                tuple(record for _, record, _ in found),
                tuple(images[i] for i in sorted(images)),
                np.array([v for _, _, v in found], np.float32).reshape(-1, dimension) if vectors else None,
                _now_seq(),
            )

    def list_images(
        self,
        name: str,
        limit: int,
        after: tuple[int, str] | None,
        room: ResponseBudget = ANY_SIZE,
        generation: str | None = None,
    ) -> ImagePage:
        """See `Engine`."""
        with explained():
            found = self._find(name, generation)
            page = self._contents(name).newest_images(limit, after, room)
            return replace(page, generation=_generation(found))

    def token_key(self, *, fresh: bool = False) -> bytes:
        """See `Engine`. It lies in the registry, where all searchers find it."""
        if fresh or self._token_key is None:
            with explained():
                self._token_key = tables.token_key(self._client, self._registry)
        return self._token_key

    # Upkeep

    def snapshot(self, name: str) -> SnapshotInfo:
        """UNIMPLEMENTED: Milvus has its own backup tool."""
        raise _cannot("snapshots", "use milvus-backup")

    def restore(self, name: str) -> tuple[int, int]:
        """UNIMPLEMENTED: Milvus has its own backup tool."""
        raise _cannot("restoring", "use milvus-backup")

    def stats(self, name: str | None) -> list[CollectionStats]:
        """See `Engine`."""
        chosen = self.list_collections() if name is None else [self.get_collection(name)]
        return [
            CollectionStats(
                collection=found.name,
                seq=_now_seq(),
                image_count=found.image_count,
                record_count=found.record_count,
                tombstone_count=0,
                memory_bytes=0,
                segments=(SegmentStats(found.record_count, 0, self._settings.index_type.lower()),),
            )
            for found in chosen
        ]

    def disk_bytes(self) -> int:
        """0: Milvus keeps the data."""
        return 0

    def close(self) -> None:
        """See `Engine`."""
        self._client.close()

    # Helpers

    def _tables(self, name: str) -> tuple[str, str]:
        prefix = self._settings.prefix
        return records_table(prefix, name), images_table(prefix, name)

    def _find(self, name: str, generation: str | None = None) -> Collection:
        rows = some_rows(self._client, self._registry, listed("name", [name]), ["name", "created_ms", "body"])
        if not rows:
            raise not_found("collection", f"there is no collection {name!r}: create it first")
        found = tables.collection_of(rows[0])
        check_generation(name, _generation(found), generation)
        return found

    def _contents(self, name: str) -> Contents:
        return Contents(self._client, *self._tables(name), self._settings.batch_rows)


def _cannot(what: str, instead: str) -> RegionSearchError:
    return RegionSearchError(Kind.UNIMPLEMENTED, f"the milvus engine has no {what}: {instead}")


def _generation(collection: Collection) -> str:
    return str(collection.created_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _now_seq() -> int:
    """Searchers share no counter, but clocks; microseconds are numbers that grow."""
    return time.time_ns() // 1000
