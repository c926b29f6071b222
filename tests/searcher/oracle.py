"""What the contract says, computed the slow and obvious way over plain dictionaries."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from services.searcher.conditions import Condition, Range, ValueTest
from services.searcher.queries import Filter, ImageUpdate, Query
from services.searcher.types import Level, Record, StoredImage, Upsert


@dataclass
class Entry:
    image: StoredImage
    records: dict[str, tuple[Record, np.ndarray]] = field(default_factory=dict)


@dataclass
class Expected:
    score: float
    record_id: str
    query_index: int
    best_region: str | None


class Oracle:
    """A collection as it is now."""

    def __init__(self) -> None:
        self.images: dict[str, Entry] = {}

    def copy(self) -> Oracle:
        return copy.deepcopy(self)

    def upsert(self, write: Upsert) -> list[str]:
        skipped = [i.image_id for i in write.images if write.skip_existing and i.image_id in self.images]
        for image in write.images:
            if image.image_id not in skipped:
                self.images[image.image_id] = Entry(image)
        for record, vector in zip(write.records, write.vectors, strict=True):
            if record.image_id not in skipped:
                for entry in self.images.values():
                    entry.records.pop(record.record_id, None)
                self.images[record.image_id].records[record.record_id] = (record, vector.astype(np.float16))
        return skipped

    def update(self, update: ImageUpdate) -> StoredImage | None:
        entry = self.images.get(update.image_id)
        if entry is None:
            return None
        image = entry.image
        tags = list(image.tags if update.tags is None else update.tags)
        tags = [tag for tag in tags if tag not in update.remove_tags]
        tags += [tag for tag in update.add_tags if tag not in tags]
        attributes = {k: v for k, v in image.attributes.items() if k not in update.remove_attributes}
        attributes |= update.set_attributes
        name = image.name if update.name is None else update.name
        entry.image = replace(image, name=name, tags=tuple(tags), attributes=attributes)
        return entry.image

    def delete_images(self, ids) -> None:
        for image_id in ids:
            self.images.pop(image_id, None)

    def delete_records(self, ids, *, drop_empty: bool) -> None:
        for image_id, entry in list(self.images.items()):
            before = len(entry.records)
            for record_id in ids:
                entry.records.pop(record_id, None)
            if drop_empty and len(entry.records) < before and not entry.records:
                del self.images[image_id]

    def passing(
        self, wanted: Filter, level: Level | None = None
    ) -> list[tuple[StoredImage, Record, np.ndarray]]:
        return [
            (entry.image, record, vector)
            for entry in self.images.values()
            for record, vector in entry.records.values()
            if (level is None or record.level == level) and _passes(wanted, entry.image, record)
        ]

    def search(self, query: Query) -> list[Expected]:
        """The whole ranking."""
        scored = []
        for image, record, vector in self.passing(query.filter, query.level):
            cosines = _cosines(query.vectors, vector)
            best = int(cosines.argmax())
            score = float(cosines[best])
            if len(query.negatives):
                against = _cosines(query.negatives, vector)
                relevancy = min(1 / (1 + np.exp(100.0 * (float(n) - score))) for n in against)
                if relevancy < query.min_relevancy:
                    continue
            scored.append((Expected(score, record.record_id, best, None), image.image_id, record.level))
        if query.min_score is not None:
            least = min(np.float32(query.min_score), 1 - 2**-22)  # what rounding leaves of a cosine of 1
            scored = [item for item in scored if item[0].score >= least]
        if query.relative_cutoff is not None and scored:
            top = max(item[0].score for item in scored)
            scored = [
                item for item in scored if item[0].score >= top - (1 - query.relative_cutoff) * abs(top)
            ]
        scored.sort(key=_order)
        if query.group_by_image:
            scored = sorted(self._grouped(query, scored), key=_order)
        return [item[0] for item in scored]

    def _grouped(self, query: Query, scored):
        groups: dict[str, list] = {}
        for item in scored:
            groups.setdefault(item[1], []).append(item)
        for members in groups.values():
            whole = next((m for m in members if m[2] == Level.IMAGE), None)
            region = next((m for m in members if m[2] == Level.REGION), None)
            if query.level is None and whole is not None and region is not None:
                if region[0].score - whole[0].score < query.whole_image_margin:
                    yield (replace(whole[0], best_region=region[0].record_id), *whole[1:])
                else:
                    yield region
            else:
                yield members[0]


def _cosines(queries: np.ndarray, vector: np.ndarray) -> np.ndarray:
    queries, vector = queries.astype(np.float64), vector.astype(np.float64)
    lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(vector)
    return np.clip(queries @ vector / lengths, -1.0, 1.0).astype(np.float32)


def _order(item):
    expected, image_id, level = item
    return (-expected.score, int(level), image_id, expected.record_id)


def _passes(wanted: Filter, image: StoredImage, record: Record) -> bool:
    checks = [
        not wanted.image_ids or image.image_id in wanted.image_ids,
        image.image_id not in wanted.exclude_image_ids,
        not wanted.record_ids or record.record_id in wanted.record_ids,
        record.record_id not in wanted.exclude_record_ids,
        not wanted.tags or bool(set(wanted.tags) & set(image.tags)),
        not set(wanted.exclude_tags) & set(image.tags),
        wanted.min_area is None or record.area >= wanted.min_area,
        wanted.max_area is None or record.area <= wanted.max_area,
        wanted.min_predicted_iou is None or record.predicted_iou >= np.float32(wanted.min_predicted_iou),
        wanted.min_stability_score is None
        or record.stability_score >= np.float32(wanted.min_stability_score),
    ]
    for name, value in wanted.attributes:
        checks.append(record.attributes.get(name, image.attributes.get(name)) == value)
    checks += [
        any(_holds(test, image, record) for test in one.conditions) != one.negate for one in wanted.conditions
    ]
    return all(checks)


def _holds(condition: Condition, image: StoredImage, record: Record) -> bool:
    if condition.tag:
        return (condition.tag in image.tags) != condition.negate
    value = record.attributes.get(condition.attribute, image.attributes.get(condition.attribute))
    return (value is not None and _is_right(condition.test, value)) != condition.negate


def _is_right(test: ValueTest, value: str) -> bool:
    if test.values:
        return value in test.values
    if test.prefix:
        return value[: len(test.prefix)] == test.prefix
    try:
        if test.number:
            return _between(test.number, float(value))
        if test.time:
            time = datetime.fromisoformat(value)
            return _between(test.time, (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except ValueError:
        return False
    return True


def _between(wanted: Range, number: float) -> bool:
    low = max(-np.inf if wanted.gte is None else wanted.gte, -np.inf if wanted.gt is None else wanted.gt)
    high = min(np.inf if wanted.lte is None else wanted.lte, np.inf if wanted.lt is None else wanted.lt)
    return low <= number <= high and number != wanted.gt and number != wanted.lt
