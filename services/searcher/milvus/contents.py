"""The images and records of one collection in Milvus: writing, deleting, listing.

Milvus has no transaction over several rows. Records are written before their images, so that an image that is
there is complete; a write that fails half-way is repaired by sending it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from pymilvus import MilvusClient

from regionsearch.errors import invalid
from regionsearch.metadata import MetadataLimits
from services.searcher.milvus import tables
from services.searcher.milvus.access import count_rows, every_row, rows_of, some_rows
from services.searcher.milvus.tables import Row, expression, listed, quoted
from services.searcher.response_budget import ANY_SIZE, ResponseBudget
from services.searcher.types import Deletion, ImagePage, Level, Record, StoredImage, Upsert
from services.searcher.updates import ImageUpdate, check_unchanged

_IMAGE_FIELDS = ["image_id", "created_ms", "body"]
_EARLIEST = 0


class Contents:
    """What a collection holds.

    Args:
        client: The connection.
        records: Name of the Milvus collection with its records.
        images: Name of the one with its images.
        batch_rows: Rows of one writing call.
    """

    def __init__(self, client: MilvusClient, records: str, images: str, batch_rows: int) -> None:
        self._client = client
        self._records = records
        self._images = images
        self._batch = batch_rows

    def images(self, ids: Iterable[str], room: ResponseBudget = ANY_SIZE) -> dict[str, StoredImage]:
        """Those of the images that exist, by id; takes room for each."""
        rows = rows_of(self._client, self._images, "image_id", list(ids), _IMAGE_FIELDS)
        return {image.image_id: image for image in _images(rows, room)}

    def records(
        self, record_ids: Sequence[str], image_ids: Sequence[str], fields: Sequence[str]
    ) -> Iterator[Row]:
        """Records by id, and all records of images, each once, in any order; read as they are taken."""
        seen: set[str] = set()
        for field, values in (("record_id", record_ids), ("image_id", image_ids)):
            for row in rows_of(self._client, self._records, field, values, fields):
                if row["record_id"] not in seen:
                    seen.add(row["record_id"])
                    yield row

    def upsert(self, write: Upsert, seq: int, now_ms: int) -> tuple[tuple[str, ...], int]:
        """Writes images and records; returns the ids of skipped images and the number of written records."""
        existing = self.images([image.image_id for image in write.images])
        skipped = tuple(i.image_id for i in write.images if write.skip_existing and i.image_id in existing)
        sent: dict[str, StoredImage] = {}
        for image in write.images:
            if image.image_id not in skipped:
                known = existing.get(image.image_id)
                created_ms = known.created_ms if known else image.created_ms or now_ms
                sent[image.image_id] = replace(image, created_ms=created_ms)
        kept = [i for i, record in enumerate(write.records) if record.image_id not in skipped]
        homes = {**self._homes(write.records, sent, set(skipped)), **sent}
        stored = write.vectors.astype(np.float16).astype(np.float32)
        rows = [
            tables.record_row(write.records[i], homes[write.records[i].image_id], stored[i], seq)
            for i in kept
        ]
        moved = list(
            rows_of(
                self._client, self._records, "record_id", [row["record_id"] for row in rows], ["image_id"]
            )
        )
        for start in range(0, len(rows), self._batch):
            self._client.upsert(self._records, rows[start : start + self._batch])
        if sent:
            self._client.delete(self._records, filter=f"({listed('image_id', sent)}) and (seq < {seq})")
        touched = {row["image_id"] for row in [*rows, *moved]} - set(sent)
        self._write_images({**sent, **self.images(touched)})
        return skipped, len(kept)

    def update_images(
        self, updates: Sequence[ImageUpdate], limits: MetadataLimits
    ) -> tuple[StoredImage, ...]:
        """Changes what is said about images; returns those that exist.

        A record carries its image's tags and attributes, because filters look at records alone. They are
        written first: an image that says so is found so.
        """
        known = self.images(update.image_id for update in updates)
        changes = [
            (known[update.image_id], update.apply(known[update.image_id], limits))
            for update in updates
            if update.image_id in known
        ]
        changed = {new.image_id: new for old, new in changes if new is not old}
        rows = [
            tables.relabelled(row, changed[row["image_id"]])
            for row in rows_of(self._client, self._records, "image_id", list(changed), tables.RECORD_FIELDS)
        ]
        for start in range(0, len(rows), self._batch):
            self._client.upsert(self._records, rows[start : start + self._batch])
        self._write_images(changed)
        return tuple(new for _, new in changes)

    def delete(self, deletion: Deletion) -> tuple[int, int]:
        """Deletes what any of the selectors names; returns the numbers of images and records."""
        if deletion.as_read is not None:
            read = deletion.as_read.image_id
            check_unchanged(deletion.as_read, self.images([read]).get(read))
        asked = self.images(deletion.image_ids)
        rows = list(self.records(deletion.record_ids, list(asked), ["record_id", "image_id"]))
        if deletion.filter is not None:
            rows += every_row(
                self._client, self._records, expression(deletion.filter), ["record_id", "image_id"]
            )
        homes = {row["record_id"]: row["image_id"] for row in rows}
        ids = list(homes)
        for start in range(0, len(ids), self._batch):
            self._client.delete(self._records, ids=ids[start : start + self._batch])
        touched = self.images(set(homes.values()) - set(asked))
        emptied: set[str] = set()
        if deletion.filter is not None:
            emptied = set(touched) - set(self._counts(touched))
        gone = [*asked, *emptied]
        for start in range(0, len(gone), self._batch):
            self._client.delete(self._images, ids=gone[start : start + self._batch])
        self._write_images({name: image for name, image in touched.items() if name not in emptied})
        return len(gone), len(ids)

    def newest_images(
        self, limit: int, after: tuple[int, str] | None, room: ResponseBudget = ANY_SIZE
    ) -> ImagePage:
        """Images, newest first, from behind a place.

        Milvus does not sort. So it is asked how many images are as new as this or newer, until just enough
        are, and only these are read.
        """
        behind = ""
        if after is not None:
            same_time = f"created_ms == {after[0]} and image_id < {quoted(after[1])}"
            behind = f"(created_ms < {after[0]}) or ({same_time})"
        everything = count_rows(self._client, self._images)
        left = everything if after is None else self._count_since(_EARLIEST, behind)
        since = _EARLIEST if left <= limit + 1 else self._newest_time_with(limit + 1, behind)
        rows = every_row(self._client, self._images, _since(since, behind), _IMAGE_FIELDS)
        found = sorted(map(tables.image_of, rows), key=lambda i: (i.created_ms, i.image_id), reverse=True)
        page: list[StoredImage] = []
        for image in map(room.shown, found[:limit]):
            if page and not room.has_room_for(image):
                break
            room.take_image(image)
            page.append(image)
        following = (page[-1].created_ms, page[-1].image_id) if len(page) < len(found) else None
        return ImagePage(tuple(page), following, everything)

    def counts(self) -> tuple[int, int]:
        """Numbers of images and records."""
        return count_rows(self._client, self._images), count_rows(self._client, self._records)

    def _newest_time_with(self, count: int, behind: str) -> int:
        """The newest time from which on there are so many images; the earliest one if there are fewer."""
        some = some_rows(self._client, self._images, behind, ["created_ms"], limit=1)
        least: int = some[0]["created_ms"] if some else _EARLIEST  # near the others, so few steps are needed
        step = 1
        while least > _EARLIEST and self._count_since(least, behind) < count:
            least, step = max(least - step, _EARLIEST), 2 * step
        most, step = least + 1, 1
        while self._count_since(most, behind) >= count:
            least, most, step = most, most + step, 2 * step
        while most - least > 1:
            middle = (least + most) // 2
            if self._count_since(middle, behind) >= count:
                least = middle
            else:
                most = middle
        return least

    def _count_since(self, created_ms: int, behind: str) -> int:
        return count_rows(self._client, self._images, _since(created_ms, behind))

    def _counts(self, images: Iterable[str], level: Level | None = None) -> dict[str, int]:
        """Numbers of records by image; images without any are left out."""
        counts: dict[str, int] = {}
        also = "" if level is None else f"level == {int(level)}"
        rows = rows_of(self._client, self._records, "image_id", list(images), ["record_id", "image_id"], also)
        for row in rows:
            counts[row["image_id"]] = counts.get(row["image_id"], 0) + 1
        return counts

    def _write_images(self, images: dict[str, StoredImage]) -> None:
        """Writes images with the number of regions that they have now."""
        regions = self._counts(images, Level.REGION)
        rows = [
            tables.image_row(replace(image, region_count=regions.get(name, 0)))
            for name, image in images.items()
        ]
        for start in range(0, len(rows), self._batch):
            self._client.upsert(self._images, rows[start : start + self._batch])

    def _homes(
        self, records: Sequence[Record], sent: dict[str, StoredImage], skipped: set[str]
    ) -> dict[str, StoredImage]:
        """The stored images that records belong to, without those just sent."""
        needed = {record.image_id for record in records} - set(sent) - skipped
        homes = self.images(needed)
        for index, record in enumerate(records):
            if record.image_id in needed and record.image_id not in homes:
                raise invalid(
                    f"records[{index}].image_id",
                    f"record {record.record_id!r} belongs to image {record.image_id!r}, which is neither in "
                    "this request nor in the collection: send the image along",
                )
        return homes


def _images(rows: Iterable[Row], room: ResponseBudget) -> Iterator[StoredImage]:
    for row in rows:
        image = tables.image_of(row)
        room.take_image(image)
        yield image


def _since(created_ms: int, behind: str) -> str:
    term = f"created_ms >= {created_ms}"
    return f"({term}) and ({behind})" if behind else term
