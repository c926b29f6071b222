"""The images and records of one collection in Milvus: writing, deleting, listing.

Milvus has no transaction over several rows. Records are written before their images, so that an image that is
there is complete; a write that fails half-way is repaired by sending it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from regionsearch.errors import invalid
from regionsearch.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST, check_same_request
from regionsearch.texts import MetadataLimits
from services.searcher.milvus.access import Access, Freshness, Row
from services.searcher.milvus.expressions import expression, quoted
from services.searcher.milvus.rows import image_of, image_row, record_row, relabelled
from services.searcher.milvus.session import Clock, Session
from services.searcher.milvus.tables import Placement
from services.searcher.queries import Deletion, Filter, ImageUpdate, check_unchanged
from services.searcher.response_budget import UNLIMITED, ResponseBudget
from services.searcher.types import ImagePage, Level, Record, StoredImage, Upsert

_IMAGE_FIELDS = ["image_id", "created_ms", "body"]
_PLACE = ["record_id", "image_id"]
_EARLIEST = 0


class Contents:
    """What a collection holds.

    Args:
        access: The connection.
        placement: Where it lies.
        session: What this process has written there.
        batch_rows: Rows of one writing call.
    """

    def __init__(self, access: Access, placement: Placement, session: Session, batch_rows: int) -> None:
        self._access = access
        self._placement = placement
        self.session = session
        self._batch = batch_rows

    def images(
        self, ids: Iterable[str], budget: ResponseBudget = UNLIMITED, freshness: Freshness | None = None
    ) -> dict[str, StoredImage]:
        """Those of the images that exist, by id; deducts each from the budget."""
        freshness = freshness or self.session.freshness()
        rows = self._access.rows_of(self._placement.images, "image_id", list(ids), _IMAGE_FIELDS, freshness)
        return {image.image_id: image for image in _images(rows, budget)}

    def records(
        self,
        record_ids: Sequence[str],
        image_ids: Sequence[str],
        fields: Sequence[str],
        freshness: Freshness | None = None,
    ) -> Iterator[Row]:
        """Records by id, and all records of images, each once, in any order; read as they are taken."""
        freshness = freshness or self.session.freshness()
        seen: set[str] = set()
        for field, values in (("record_id", record_ids), ("image_id", image_ids)):
            for row in self._access.rows_of(self._placement.records, field, values, fields, freshness):
                if row["record_id"] not in seen:
                    seen.add(row["record_id"])
                    yield row

    def check_keys(self, write: Upsert) -> None:
        """Refuses new images whose idempotency key belongs to another request, as records of its images tell.

        Raises:
            RegionSearchError: ALREADY_EXISTS.
        """
        known = self.images([image.image_id for image in write.images])
        now = self.session.freshness()
        for image in write.images:
            if image.image_id in known:
                continue
            key, request = (image.attributes.get(name) for name in (IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST))
            if key is not None and request is not None:
                term = expression(self._placement, Filter(attributes=((IDEMPOTENCY_KEY, key),)))
                for row in self._access.query(self._placement.records, term, ["attributes"], now, limit=1):
                    check_same_request(row["attributes"], request)

    def upsert(self, write: Upsert, clock: Clock, now_ms: int) -> tuple[tuple[str, ...], int]:
        """Writes images and records; returns the ids of skipped images and the number of written records.

        Records that an image has no more are deleted first, and the others replaced by their ids, so that no
        search sees an image's old records together with its new ones.
        """
        ids = [image.image_id for image in write.images]
        record_ids = [record.record_id for record in write.records]
        named = dict.fromkeys([*ids, *(record.image_id for record in write.records)])
        freshness = self.session.freshness_of([*named, *record_ids])
        seq, existing, placed, inside = self._access.at_once(
            clock.before,
            lambda: self.images(named, freshness=freshness),
            lambda: list(self.records(record_ids, [], _PLACE, freshness)),
            lambda: list(self.records([], ids, _PLACE, freshness)),
        )  # fmt: skip
        skipped = tuple(name for name in ids if write.skip_existing and name in existing)
        sent: dict[str, StoredImage] = {}
        for image in write.images:
            if image.image_id not in skipped:
                known = existing.get(image.image_id)
                created_ms = known.created_ms if known else image.created_ms or now_ms
                sent[image.image_id] = replace(image, created_ms=created_ms, region_count=0)
        kept = [i for i, record in enumerate(write.records) if record.image_id not in skipped]
        owners = {**existing, **sent}
        _check_owners(write.records, owners)
        stored = write.vectors.astype(np.float16).astype(np.float32)
        rows = [
            record_row(write.records[i], owners[write.records[i].image_id], stored[i], seq, self._placement)
            for i in kept
        ]
        written = {row["record_id"]: row for row in rows}
        for row in written.values():
            if row["image_id"] in sent and row["level"] == Level.REGION:
                image = sent[row["image_id"]]
                sent[row["image_id"]] = replace(image, region_count=image.region_count + 1)
        image_rows = [image_row(image) for image in sent.values()]  # checked before anything is written
        stale = [
            row["record_id"] for row in inside if row["image_id"] in sent and row["record_id"] not in written
        ]
        moved = {row["image_id"] for row in placed if row["record_id"] in written}
        touched = (moved | {row["image_id"] for row in rows}) - set(sent)
        self.session.add([*sent, *touched, *written, *stale])
        self._access.delete(self._placement.records, stale, self._batch)
        self._access.upsert(self._placement.records, rows, self._batch)
        self._access.upsert(self._placement.images, image_rows, self._batch)
        if touched:
            self.session.written()
            self._recount(self.images(touched))
        return skipped, len(kept)

    def update_images(
        self, updates: Sequence[ImageUpdate], limits: MetadataLimits, now: Freshness
    ) -> tuple[StoredImage, ...]:
        """Changes names, tags and attributes of images; returns those that exist.

        A record carries its image's tags and attributes, because filters look at records alone. They are
        written first: an image that says so is found so. All reads are as fresh as `now`.
        """
        known = self.images((update.image_id for update in updates), freshness=now)
        changes = [
            (known[update.image_id], update.apply(known[update.image_id], limits))
            for update in updates
            if update.image_id in known
        ]
        changed = {new.image_id: new for old, new in changes if new is not old}
        rows = [
            relabelled(row, changed[row["image_id"]], self._placement)
            for row in self.records([], list(changed), self._placement.every_field, now)
        ]
        image_rows = [image_row(image) for image in changed.values()]
        self.session.add([*changed, *(row["record_id"] for row in rows)])
        self._access.upsert(self._placement.records, rows, self._batch)
        self._access.upsert(self._placement.images, image_rows, self._batch)
        return tuple(new for _, new in changes)

    def delete(self, deletion: Deletion, now: Freshness) -> tuple[int, int]:
        """Deletes what any of the selectors names; returns the numbers of images and records.

        What other searchers have written is deleted too, so all reads are as fresh as `now`.
        """
        as_read = deletion.as_read
        wanted = dict.fromkeys([*deletion.image_ids, *([] if as_read is None else [as_read.image_id])])
        images, *found = self._access.at_once(
            lambda: self.images(wanted, freshness=now),
            lambda: list(self.records(deletion.record_ids, deletion.image_ids, _PLACE, now)),
            lambda: [] if deletion.filter is None else list(self._passing(deletion.filter, now)),
        )
        if as_read is not None:
            check_unchanged(as_read, images.get(as_read.image_id))
        asked = {name: images[name] for name in deletion.image_ids if name in images}
        owners = {row["record_id"]: row["image_id"] for rows in found for row in rows}
        touched = self.images(set(owners.values()) - set(asked), freshness=now)
        self.session.add([*asked, *touched, *owners])
        self._access.delete(self._placement.records, list(owners), self._batch)
        if touched:
            self.session.written()
        emptied: set[str] = set()
        if deletion.filter is not None and touched:
            emptied = set(touched) - set(self._counts(touched))
        gone = [*asked, *emptied]
        self._access.delete(self._placement.images, gone, self._batch)
        self._recount({name: image for name, image in touched.items() if name not in emptied})
        return len(gone), len(owners)

    def _passing(self, wanted: Filter, now: Freshness) -> Iterable[Row]:
        return self._access.rows(self._placement.records, expression(self._placement, wanted), _PLACE, now)

    def newest_images(
        self, limit: int, after: tuple[int, str] | None, budget: ResponseBudget = UNLIMITED
    ) -> ImagePage:
        """Images, newest first, from behind a place.

        Milvus does not sort. So it is asked how many images are as new as this or newer, until just enough
        are, and only these are read.
        """
        behind = ""
        if after is not None:
            same_time = f"created_ms == {after[0]} and image_id < {quoted(after[1])}"
            behind = f"(created_ms < {after[0]}) or ({same_time})"
        everything = self._access.count(self._placement.images, self.session.freshness())
        left = everything if after is None else self._count_since(_EARLIEST, behind)
        since = _EARLIEST if left <= limit + 1 else self._newest_time_with(limit + 1, behind)
        rows = self._access.rows(
            self._placement.images, _since(since, behind), _IMAGE_FIELDS, self.session.freshness()
        )
        found = sorted(map(image_of, rows), key=lambda i: (i.created_ms, i.image_id), reverse=True)
        page: list[StoredImage] = []
        for image in map(budget.shown, found[:limit]):
            if page and not budget.fits(image):
                break
            budget.take_image(image)
            page.append(image)
        following = (page[-1].created_ms, page[-1].image_id) if len(page) < len(found) else None
        return ImagePage(tuple(page), following, everything)

    def counts(self) -> tuple[int, int]:
        """Numbers of images and records."""
        return self._access.count(self._placement.images, self.session.freshness()), self._access.count(
            self._placement.records, self.session.freshness()
        )

    def _newest_time_with(self, count: int, behind: str) -> int:
        """The newest time since which there are `count` images; the earliest one if there are fewer."""
        some = self._access.query(
            self._placement.images, behind, ["created_ms"], self.session.freshness(), limit=1
        )
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
        return self._access.count(
            self._placement.images, self.session.freshness(), _since(created_ms, behind)
        )

    def _counts(self, images: Iterable[str], level: Level | None = None) -> dict[str, int]:
        """Numbers of records by image; images without any are left out."""
        counts: dict[str, int] = {}
        also = "" if level is None else f"level == {int(level)}"
        rows = self._access.rows_of(
            self._placement.records, "image_id", list(images), _PLACE, self.session.freshness(), also
        )
        for row in rows:
            counts[row["image_id"]] = counts.get(row["image_id"], 0) + 1
        return counts

    def _recount(self, images: dict[str, StoredImage]) -> None:
        """Writes images with the number of regions that they have now."""
        regions = self._counts(images, Level.REGION)
        rows = [
            image_row(replace(image, region_count=regions.get(name, 0))) for name, image in images.items()
        ]
        self._access.upsert(self._placement.images, rows, self._batch)


def _check_owners(records: Sequence[Record], owners: Mapping[str, StoredImage]) -> None:
    """Every record must belong to an image that is sent along or stored."""
    for index, record in enumerate(records):
        if record.image_id not in owners:
            raise invalid(
                f"records[{index}].image_id",
                f"record {record.record_id!r} belongs to image {record.image_id!r}, which is neither in "
                "this request nor in the collection: send the image along",
            )


def _images(rows: Iterable[Row], budget: ResponseBudget) -> Iterator[StoredImage]:
    for row in rows:
        image = image_of(row)
        budget.take_image(image)
        yield image


def _since(created_ms: int, behind: str) -> str:
    term = f"created_ms >= {created_ms}"
    return f"({term}) and ({behind})" if behind else term
