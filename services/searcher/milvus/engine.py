"""The engine for those who outgrow one machine: everything lives in Milvus, this process keeps nothing.

Any number of searchers can serve the same Milvus. A read sees what its own searcher has written, and with
`min_seq` what any of them has; the numbers of writes are stamps of Milvus' own clock. Sharding, replication
and durability are Milvus's: an answered write is in its log. Snapshots, restoring and binary codes are
UNIMPLEMENTED, and pages of one search do not show what was deleted since the first. Milvus has no transaction
over several rows, so a write that fails half-way leaves some of its records behind, without their image;
sending it again repairs that. Grouping, thresholds and the order of hits are made here,
by the same ranking as the embedded engine's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from pymilvus import MilvusClient

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.texts import MetadataLimits
from services.searcher.bounded_executor import NEVER_CANCELLED, CancellationToken
from services.searcher.diversity import rank_diverse, widened
from services.searcher.engine import Feed, SearchCall, attempt, never_acknowledged
from services.searcher.milvus import scrolling, tables
from services.searcher.milvus.access import Access, Freshness, TableGoneError, explained
from services.searcher.milvus.contents import Contents
from services.searcher.milvus.registry import Registry
from services.searcher.milvus.rows import record_of
from services.searcher.milvus.session import Clock
from services.searcher.milvus.source import MilvusSource, PageReader
from services.searcher.milvus.tables import Placement
from services.searcher.queries import NO_FILTER, Deletion, Filter, ImageUpdate, Page, Query, UpdateResult
from services.searcher.response_budget import UNLIMITED, ResponseBudget
from services.searcher.scrolling import NEWEST_FIRST, Counts, Facet, ImageOrder, RecordPage, Scroll
from services.searcher.settings import MilvusSettings
from services.searcher.types import (
    CodeSpec,
    Collection,
    CollectionStats,
    DeleteResult,
    ImagePage,
    ImagePlace,
    Level,
    ModelIdentity,
    Record,
    SegmentStats,
    SnapshotFile,
    SnapshotInfo,
    Stored,
    StorePosition,
    Upsert,
    UpsertResult,
    check_generation,
    check_model,
)

Result = TypeVar("Result")
_CALLS_AT_ONCE = 32  # to Milvus, in addition to those that requests make in their own threads


class MilvusEngine:
    """Collections in Milvus; what its methods do stands in `Engine`.

    Args:
        settings: Address and names.

    Raises:
        RegionSearchError: UNAVAILABLE when Milvus does not answer.
    """

    name = "milvus"
    together = 1

    def __init__(self, settings: MilvusSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="milvus")
        with explained():
            token = settings.token.get_secret_value() if settings.token else ""
            client = MilvusClient(uri=settings.uri, token=token, timeout=settings.timeout_s)
            self._access = Access(client, settings.timeout_s, self._pool)
            self._clock = Clock(self._access)
            self._registry = Registry(self._access, self._clock, settings.prefix)
        self._keyed = threading.Lock()  # writes whose idempotency key is looked up first, one after the other

    # Collections

    def create_collection(self, collection: Collection) -> Collection:
        if collection.codes is not None:
            raise _cannot("binary codes", "the embedded engine keeps them")
        if collection.replaces:
            raise _cannot("renaming of collections", "make a new collection and ingest the images again")
        made = replace(collection, created_ms=self._clock.before() // 1000, image_count=0, record_count=0)
        placement = self._registry.place(made)
        try:
            self._access.at_once(
                lambda: tables.create_records_table(
                    self._access, placement.records, made.model.dimension, self._settings
                ),
                lambda: tables.create_plain_table(self._access, placement.images, "image_id"),
            )
        except RegionSearchError:
            with contextlib.suppress(RegionSearchError):
                self._drop(placement)
            raise
        self._registry.add(made)
        return made

    def get_collection(self, name: str) -> Collection:
        return self._in_collection(name, self._counted)

    def list_collections(self) -> list[Collection]:
        return [self.get_collection(name) for name in self._registry.names()]

    def delete_collection(self, name: str) -> None:
        self._registry.forget(name)
        placement, _ = self._registry.find(name)
        self._registry.remove(name)
        self._drop(placement)

    def _drop(self, placement: Placement) -> None:
        for table in (placement.records, placement.images):
            self._access.call(self._access.client.drop_collection, table)

    def replace_collection(self, name: str, by: str, keep_as: str, hold_s: float = 0.0) -> Sequence[str]:
        """UNIMPLEMENTED: two names cannot be changed in one step."""
        raise _cannot("renaming of collections", "make a new collection and ingest the images again")

    def train_codes(self, name: str, spec: CodeSpec) -> Collection:
        """UNIMPLEMENTED."""
        raise _cannot("binary codes", "the embedded engine keeps them")

    # Writing

    def upsert(
        self, name: str, model: ModelIdentity, write: Upsert, generation: str | None = None
    ) -> UpsertResult:
        def done(placement: Placement, contents: Contents) -> UpsertResult:
            check_generation(name, placement.generation, generation)
            check_model(name, placement.collection.model, model)
            with self._keyed if write.check_key else contextlib.nullcontext():
                if write.check_key:
                    contents.check_keys(write)
                skipped, written = contents.upsert(write, self._clock, _now_ms())
                return UpsertResult(contents.session.written(), skipped, written, placement.generation)

        return self._write(name, done)

    def update_images(
        self, name: str, updates: Sequence[ImageUpdate], limits: MetadataLimits
    ) -> UpdateResult:
        """See `Engine`; each image by itself, its records before it."""

        def done(placement: Placement, contents: Contents) -> UpdateResult:
            images = contents.update_images(updates, limits, self._clock.now())
            return UpdateResult(contents.session.written(), images)

        return self._write(name, done)

    def delete(self, name: str, deletion: Deletion) -> DeleteResult:
        def done(placement: Placement, contents: Contents) -> DeleteResult:
            images, records = contents.delete(deletion, self._clock.now())
            return DeleteResult(contents.session.written(), images, records)

        return self._write(name, done)

    # Reading

    def search(
        self,
        name: str,
        model: ModelIdentity,
        queries: Sequence[Query],
        min_seq: int | None = None,
        cancellation: CancellationToken = NEVER_CANCELLED,
        budget: ResponseBudget = UNLIMITED,
    ) -> list[Page]:
        """See `Engine`. The first page sees all that Milvus has in memory, later ones what was written
        before it.
        """
        access = self._access.with_cancellation(cancellation)

        def found(placement: Placement, contents: Contents) -> list[Page]:
            for query in queries:
                check_generation(name, placement.generation, query.generation)
                if query.codes_only:
                    raise _cannot("binary codes", "search without codes_only")
            check_model(name, placement.collection.model, model)
            sources = [
                MilvusSource(
                    access,
                    placement,
                    widened(query),
                    contents.session.freshness(min_seq or 0),
                    self._settings,
                )
                for query in queries
            ]
            if min_seq is not None:
                self._check_acknowledged(min_seq, access)
            *ranked, now = access.at_once(
                *(
                    partial(rank_diverse, query, source)
                    for query, source in zip(queries, sources, strict=True)
                ),
                partial(self._clock.before, access),
            )
            return [
                PageReader(self._access, contents, placement, source, query, budget).page(
                    hits, more, now if query.seq is None else query.seq, may_end_early=len(queries) == 1
                )
                for query, source, (hits, more) in zip(queries, sources, ranked, strict=True)
            ]

        return self._in_collection(name, found, access)

    def search_together(self, name: str, calls: Sequence[SearchCall]) -> Iterator[list[Page] | Exception]:
        for call in calls:
            yield attempt(
                partial(
                    self.search, name, call.model, call.queries, call.min_seq, call.cancellation, call.budget
                )
            )

    def _check_acknowledged(self, min_seq: int, access: Access) -> None:
        last = self._clock.after(access)
        if min_seq > last + self._clock.skew_us:
            raise never_acknowledged(min_seq, last)
        if min_seq > last:
            raise RegionSearchError(Kind.UNAVAILABLE, f"write {min_seq} has not arrived", retry_after_s=0.1)

    def get_records(
        self,
        name: str,
        record_ids: Sequence[str],
        image_ids: Sequence[str],
        *,
        masks: bool,
        vectors: bool,
        images_only: bool = False,
        budget: ResponseBudget = UNLIMITED,
    ) -> Stored:
        def stored(placement: Placement, contents: Contents) -> Stored:
            asked = contents.images(image_ids, budget)
            if images_only:
                return Stored((), tuple(asked[i] for i in sorted(asked)), None, self._clock.before())
            fields = [*(placement.whole if masks else placement.payload), *(["vector"] if vectors else [])]
            found: list[tuple[int, Record, np.ndarray]] = []  # and the write that each is from
            for row in contents.records(record_ids, list(asked), fields):
                record = record_of(row, masks=masks)
                budget.take_record(record)
                vector = np.array(row["vector"] if vectors else [], np.float32)
                budget.take(vector.nbytes)
                found.append((row["seq"], record, vector))
            found.sort(key=lambda one: (one[1].image_id, one[1].level, one[0], one[1].record_id))
            images = asked | contents.images({record.image_id for _, record, _ in found} - set(asked), budget)
            width = placement.collection.model.dimension
            return Stored(
                tuple(record for _, record, _ in found),
                tuple(images[i] for i in sorted(images)),
                np.array([v for _, _, v in found], np.float32).reshape(-1, width) if vectors else None,
                self._clock.before(),
            )

        return self._in_collection(name, stored)

    def list_images(
        self,
        name: str,
        limit: int,
        after: ImagePlace | None,
        budget: ResponseBudget = UNLIMITED,
        generation: str | None = None,
        wanted: Filter = NO_FILTER,
        order: ImageOrder = NEWEST_FIRST,
    ) -> ImagePage:
        if order != NEWEST_FIRST:
            raise _cannot("other orders of lists", "leave order_by and ascending out")
        if wanted != NO_FILTER:
            raise _cannot("lists of images by filter", "Scroll at image level returns them, in another order")

        def page(placement: Placement, contents: Contents) -> ImagePage:
            check_generation(name, placement.generation, generation)
            behind = None if after is None else (int(after[0]), after[1])
            return replace(contents.newest_images(limit, behind, budget), generation=placement.generation)

        return self._in_collection(name, page)

    def scroll(
        self, name: str, asked: Scroll, min_seq: int | None = None, budget: ResponseBudget = UNLIMITED
    ) -> RecordPage:
        """See `Engine`; in the order of record ids."""

        def page(placement: Placement, contents: Contents) -> RecordPage:
            check_generation(name, placement.generation, asked.generation)
            freshness = self._freshness_of(contents, min_seq)
            stored, following = scrolling.scroll(self._access, placement, contents, asked, freshness, budget)
            return RecordPage(replace(stored, seq=self._clock.before()), following, placement.generation)

        return self._in_collection(name, page)

    def count(
        self,
        name: str,
        wanted: Filter,
        level: Level | None,
        facets: Sequence[Facet] = (),
        min_seq: int | None = None,
    ) -> Counts:
        """See `Engine`; Milvus does not count by groups, so all records that pass are read."""

        def counts(placement: Placement, contents: Contents) -> Counts:
            freshness = self._freshness_of(contents, min_seq)
            found = scrolling.count(self._access, placement, contents, wanted, level, facets, freshness)
            return replace(found, seq=self._clock.before())

        return self._in_collection(name, counts)

    def _freshness_of(self, contents: Contents, min_seq: int | None) -> Freshness:
        if min_seq is not None:
            self._check_acknowledged(min_seq, self._access)
        return contents.session.freshness(min_seq or 0)

    def token_key(self, *, fresh: bool = False) -> bytes:
        """See `Engine`. It lies in the registry, where all searchers find it."""
        return self._registry.token_key(fresh=fresh)

    # Operations

    def snapshot(self, name: str) -> SnapshotInfo:
        """UNIMPLEMENTED: Milvus has its own backup tool."""
        raise _cannot("snapshots", "use milvus-backup")

    def list_snapshots(self) -> list[SnapshotFile]:
        """UNIMPLEMENTED: Milvus has its own backup tool."""
        raise _cannot("snapshots", "use milvus-backup")

    def delete_snapshot(self, name: str) -> None:
        """UNIMPLEMENTED: Milvus has its own backup tool."""
        raise _cannot("snapshots", "use milvus-backup")

    def restore(self, name: str, collection: str = "") -> tuple[int, int]:
        """UNIMPLEMENTED: Milvus has its own backup tool."""
        raise _cannot("restoring", "use milvus-backup")

    def follow(self, position: StorePosition) -> Feed:
        """UNIMPLEMENTED: any number of searchers work on one Milvus."""
        raise _cannot("read replicas", "start more searchers on the same Milvus")

    def last_write(self) -> int:
        return self._clock.before()

    def stats(self, name: str | None) -> list[CollectionStats]:
        chosen = self.list_collections() if name is None else [self.get_collection(name)]
        return [
            CollectionStats(
                collection=found.name,
                seq=self._clock.before(),
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
        self._pool.shutdown()
        self._access.client.close()

    # Helpers

    def _write(self, name: str, work: Callable[[Placement, Contents], Result]) -> Result:
        """Writes to a collection. A write that fails half-way is seen by the next one, which repairs it."""

        def done(placement: Placement, contents: Contents) -> Result:
            try:
                return work(placement, contents)
            except RegionSearchError:
                contents.session.failed()
                raise

        return self._in_collection(name, done)

    def _in_collection(
        self, name: str, work: Callable[[Placement, Contents], Result], access: Access | None = None
    ) -> Result:
        """Works on a collection where it is remembered to lie, or else where the registry says now."""
        remembered = name in self._registry
        try:
            return work(*self._contents(name, access))
        except TableGoneError:
            self._registry.forget(name)
            if not remembered:
                raise
        return work(*self._contents(name, access))

    def _contents(self, name: str, access: Access | None) -> tuple[Placement, Contents]:
        placement, session = self._registry.find(name)
        return placement, Contents(access or self._access, placement, session, self._settings.batch_rows)

    def _counted(self, placement: Placement, contents: Contents) -> Collection:
        image_count, record_count = contents.counts()
        return replace(placement.collection, image_count=image_count, record_count=record_count)


def _cannot(what: str, instead: str) -> RegionSearchError:
    return RegionSearchError(Kind.UNIMPLEMENTED, f"the milvus engine has no {what}: {instead}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
