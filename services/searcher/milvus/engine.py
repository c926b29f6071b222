"""The engine for those who outgrow one machine: everything lives in Milvus, this process keeps nothing.

Any number of searchers can serve the same Milvus. Sharding, replication and durability are Milvus's: an
answered write is in its log. What Milvus cannot do is said in `capabilities`: it has no transaction over
several rows, so a write that fails half-way leaves some of its records behind, without their image;
sending it again repairs that. Grouping, thresholds and the order of hits are made here, by the same
ranking as the embedded engine's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from pymilvus import MilvusClient

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from services.searcher.callers import ANYBODY, Caller
from services.searcher.engine import Capabilities
from services.searcher.milvus import tables
from services.searcher.milvus.access import (
    count_rows,
    every_row,
    explained,
    record_counts,
    some_rows,
    stored_images,
)
from services.searcher.milvus.source import EVERY_FIELD, MilvusSource
from services.searcher.milvus.tables import (
    Row,
    expression,
    images_table,
    listed,
    records_table,
    registry_table,
)
from services.searcher.models import check_model
from services.searcher.ranking import Ranked, rank
from services.searcher.settings import MilvusSettings
from services.searcher.types import (
    Collection,
    CollectionStats,
    DeleteResult,
    Deletion,
    Hit,
    ImagePage,
    Level,
    ModelIdentity,
    Page,
    Query,
    Record,
    SegmentStats,
    SnapshotInfo,
    Stored,
    StoredImage,
    Upsert,
    UpsertResult,
)


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
            records, images = self._tables(name)
            return replace(
                found,
                image_count=count_rows(self._client, images),
                record_count=count_rows(self._client, records),
            )

    def list_collections(self) -> list[Collection]:
        """See `Engine`."""
        with explained():
            rows = every_row(self._client, self._registry, 'name != ""', EVERY_FIELD)
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

    def upsert(self, name: str, model: ModelIdentity, write: Upsert) -> UpsertResult:
        """See `Engine`; records first, then images, so that an image that is there is complete."""
        with explained():
            check_model(name, self._find(name).model, model)
            existing = self._images(name, [image.image_id for image in write.images])
            skipped = tuple(
                i.image_id for i in write.images if write.skip_existing and i.image_id in existing
            )
            seq = _now_seq()
            sent = {
                image.image_id: replace(image, created_ms=self._created_ms(image, existing))
                for image in write.images
                if image.image_id not in skipped
            }
            kept = [i for i, record in enumerate(write.records) if record.image_id not in skipped]
            homes = {**self._homes(name, write.records, sent, set(skipped)), **sent}
            self._replace(name, write, kept, sent, homes, seq)
            return UpsertResult(seq, skipped, len(kept))

    def _replace(
        self,
        name: str,
        write: Upsert,
        kept: Sequence[int],
        sent: dict[str, StoredImage],
        homes: dict[str, StoredImage],
        seq: int,
    ) -> None:
        records, images = self._tables(name)
        stored = write.vectors.astype(np.float16).astype(np.float32)
        rows = [
            tables.record_row(write.records[i], homes[write.records[i].image_id], stored[i], seq)
            for i in kept
        ]
        ids = [row["record_id"] for row in rows]
        moved = (
            {
                row["image_id"]
                for row in some_rows(self._client, records, listed("record_id", ids), ["image_id"])
            }
            if ids
            else set()
        )
        for start in range(0, len(rows), self._settings.batch_rows):
            self._client.upsert(records, rows[start : start + self._settings.batch_rows])
        if sent:
            self._client.delete(records, filter=f"({listed('image_id', sent)}) and (seq < {seq})")
        touched = {row["image_id"] for row in rows} | moved
        others = self._images(name, list(touched - set(sent)))
        counted = record_counts(self._client, records, [*sent, *others], Level.REGION)
        changed = [
            replace(i, region_count=counted.get(i.image_id, 0)) for i in [*sent.values(), *others.values()]
        ]
        if changed:
            self._client.upsert(images, [tables.image_row(image) for image in changed])

    def delete(self, name: str, deletion: Deletion) -> DeleteResult:
        """See `Engine`."""
        with explained():
            self._find(name)
            records, images = self._tables(name)
            asked = self._images(name, deletion.image_ids)
            rows: dict[str, str] = {}
            wanted = [listed("image_id", asked)] if asked else []
            if deletion.record_ids:
                wanted.append(listed("record_id", deletion.record_ids))
            if deletion.filter is not None:
                wanted.append(expression(deletion.filter))
            for term in wanted:
                for row in every_row(self._client, records, term, ["record_id", "image_id"]):
                    rows[row["record_id"]] = row["image_id"]
            ids = list(rows)
            for start in range(0, len(ids), self._settings.batch_rows):
                self._client.delete(records, ids=ids[start : start + self._settings.batch_rows])
            touched = self._images(name, list(set(rows.values()) - set(asked)))
            left = record_counts(self._client, records, list(touched))
            emptied = [i for i in touched if deletion.filter is not None and not left.get(i)]
            gone = [*asked, *emptied]
            if gone:
                self._client.delete(images, ids=gone)
            counted = record_counts(self._client, records, list(touched), Level.REGION)
            kept = [
                replace(i, region_count=counted.get(k, 0)) for k, i in touched.items() if k not in emptied
            ]
            if kept:
                self._client.upsert(images, [tables.image_row(image) for image in kept])
            return DeleteResult(_now_seq(), len(gone), len(ids))

    # Reading

    def search(
        self,
        name: str,
        model: ModelIdentity,
        queries: Sequence[Query],
        min_seq: int | None = None,
        caller: Caller = ANYBODY,
    ) -> list[Page]:
        """See `Engine`. Reads are strongly consistent, so every answered write is seen."""
        with explained():
            check_model(name, self._find(name).model, model)
            now = _now_seq()
            if min_seq is not None and min_seq > now:
                raise RegionSearchError(
                    Kind.UNAVAILABLE, f"write {min_seq} has not arrived", retry_after_s=0.1
                )
            return [
                self._page(name, query, now if query.seq is None else query.seq, caller) for query in queries
            ]

    def _page(self, name: str, query: Query, seq: int, caller: Caller) -> Page:
        records, _ = self._tables(name)
        ranked, more = rank(
            query, MilvusSource(self._client, records, query, seq, self._settings.max_candidates, caller)
        )
        places = [r.position for hit in ranked for r in (hit, hit.best_region) if r is not None]
        rows = {
            row["record_id"]: row
            for row in some_rows(
                self._client, records, listed("record_id", [p.record_id for p in places]), EVERY_FIELD
            )
        }
        images = self._images(name, list({p.image_id for p in places}))

        def hit(number: int, found: Ranked) -> Hit:
            place = found.position
            record = tables.record_of(rows[place.record_id], masks=query.include_masks)
            image = images.get(place.image_id, StoredImage(place.image_id))
            region = None if found.best_region is None else hit(number, found.best_region)
            return Hit(number, place.score, found.relevancy, found.query_index, record, image, region)

        hits = [hit(number, found) for number, found in enumerate(ranked, start=query.skipped + 1)]
        return Page(tuple(hits), seq, more)

    def get_records(
        self, name: str, record_ids: Sequence[str], image_ids: Sequence[str], *, masks: bool, vectors: bool
    ) -> Stored:
        """See `Engine`."""
        with explained():
            self._find(name)
            records, _ = self._tables(name)
            asked = self._images(name, image_ids)
            fields = [*EVERY_FIELD, "vector"] if vectors else EVERY_FIELD
            rows: dict[str, Row] = {}
            for term in [listed("record_id", record_ids)] * bool(record_ids) + [
                listed("image_id", asked)
            ] * bool(asked):
                rows |= {row["record_id"]: row for row in every_row(self._client, records, term, fields)}
            ordered = sorted(
                rows.values(), key=lambda r: (r["image_id"], r["level"], r["seq"], r["record_id"])
            )
            images = asked | self._images(name, list({row["image_id"] for row in ordered} - set(asked)))
            found = None
            if vectors:
                dimension = self._find(name).model.dimension
                found = np.array([row["vector"] for row in ordered], np.float32).reshape(-1, dimension)
            described = tuple(tables.record_of(row, masks=masks) for row in ordered)
            return Stored(described, tuple(images[i] for i in sorted(images)), found, _now_seq())

    def list_images(self, name: str, limit: int, after: tuple[int, str] | None) -> ImagePage:
        """See `Engine`. Milvus cannot sort, so the ids of all images are read for each page."""
        with explained():
            self._find(name)
            _, table = self._tables(name)
            rows = every_row(self._client, table, 'image_id != ""', ["image_id", "created_ms"])
            places = sorted(((row["created_ms"], row["image_id"]) for row in rows), reverse=True)
            behind = [place for place in places if after is None or place < after]
            images = self._images(name, [image_id for _, image_id in behind[:limit]])
            page = tuple(images[image_id] for _, image_id in behind[:limit] if image_id in images)
            return ImagePage(page, behind[limit - 1] if len(behind) > limit else None, len(places))

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

    def _find(self, name: str) -> Collection:
        rows = some_rows(self._client, self._registry, listed("name", [name]), ["name", "created_ms", "body"])
        if not rows:
            raise not_found("collection", f"there is no collection {name!r}: create it first")
        return tables.collection_of(rows[0])

    def _images(self, name: str, ids: Iterable[str]) -> dict[str, StoredImage]:
        return stored_images(self._client, self._tables(name)[1], ids)

    def _homes(
        self, name: str, records: Sequence[Record], sent: dict[str, StoredImage], skipped: set[str]
    ) -> dict[str, StoredImage]:
        needed = {record.image_id for record in records} - set(sent) - skipped
        homes = self._images(name, needed)
        for index, record in enumerate(records):
            if record.image_id in needed and record.image_id not in homes:
                raise invalid(
                    f"records[{index}].image_id",
                    f"record {record.record_id!r} belongs to image {record.image_id!r}, which is neither in "
                    "this request nor in the collection: send the image along",
                )
        return homes

    def _created_ms(self, image: StoredImage, existing: dict[str, StoredImage]) -> int:
        known = existing.get(image.image_id)
        return known.created_ms if known else image.created_ms or _now_ms()


def _cannot(what: str, instead: str) -> RegionSearchError:
    return RegionSearchError(Kind.UNIMPLEMENTED, f"the milvus engine has no {what}: {instead}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _now_seq() -> int:
    """Searchers share no counter, but clocks; microseconds are numbers that grow."""
    return time.time_ns() // 1000
