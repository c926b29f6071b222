"""Random writes, deletions, filters and queries, with many equal scores among them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regionsearch.texts import MetadataLimits
from services.searcher.conditions import AnyOf, Condition, Range, ValueTest
from services.searcher.queries import Filter, ImageUpdate, Query
from services.searcher.types import Level, ModelIdentity, Record, StoredImage, Upsert

DIMENSION = 4
MODEL = ModelIdentity("open_clip", "test", "digest", DIMENSION)
LIMITS = MetadataLimits(tags=5, attributes=5, text_bytes=20, total_bytes=60)
IMAGES = [f"image{i}" for i in range(6)]
TAGS = ["red", "green", "blue"]
VALUES = ["a", "b", "ab", "é", "-3", "10.5", "1e1", "2024-05-01", "2024-05-01T02+01"]
# Few directions, so that equal scores and equal vectors are common.
DIRECTIONS = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [-1, 0, 2, 0], [3, 1, 0, 0], [30, 11, 0, 1]],
    np.float32,
)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def some(rng: random.Random, values: list, most: int) -> tuple:
    return tuple(rng.sample(values, rng.randint(1, most)))


def some_attributes(rng: random.Random) -> dict[str, str]:
    return {name: rng.choice(VALUES) for name in rng.sample(["kind", "room"], rng.randint(0, 2))}


def some_vectors(rng: random.Random, least: int, most: int) -> np.ndarray:
    return DIRECTIONS[np.array(rng.choices(range(len(DIRECTIONS)), k=rng.randint(least, most)), np.intp)]


def some_condition(rng: random.Random, names: Sequence[str] = ("kind", "room")) -> AnyOf:
    day = 1_714_521_600_000.0  # 2024-05-01
    tests = [
        ValueTest(),
        ValueTest(values=some(rng, VALUES, 3)),
        ValueTest(prefix=rng.choice(["a", "2024", "10", "\U0010ffff"])),
        ValueTest(number=rng.choice([Range(gte=-3.0), Range(gt=-3.0, lt=10.5), Range(lte=10.0)])),
        ValueTest(time=rng.choice([Range(gte=day), Range(gt=day), Range(lt=day + 3.6e6), Range(lte=day)])),
    ]

    def one() -> Condition:
        negate = rng.random() < 0.4
        if rng.random() < 0.3:
            return Condition(tag=rng.choice(TAGS), negate=negate)
        return Condition(attribute=rng.choice(names), test=rng.choice(tests), negate=negate)

    return AnyOf(tuple(one() for _ in range(rng.randint(1, 3))), rng.random() < 0.3)


def some_filter(rng: random.Random, least: int = 0) -> Filter:
    records = [f"{image}-{number}" for image in IMAGES for number in range(5)]
    conditions = {
        "image_ids": some(rng, IMAGES, 3),
        "exclude_image_ids": some(rng, IMAGES, 3),
        "record_ids": some(rng, records, 9),
        "exclude_record_ids": some(rng, records, 9),
        "tags": some(rng, TAGS, 2),
        "exclude_tags": some(rng, TAGS, 2),
        "min_area": rng.randint(0, 4),
        "max_area": rng.randint(0, 4),
        "min_predicted_iou": rng.choice([0.0, 0.5, 0.9]),
        "attributes": (("kind", rng.choice(VALUES)),),
        "conditions": tuple(some_condition(rng) for _ in range(rng.randint(1, 2))),
    }
    names = rng.sample(sorted(conditions), rng.randint(least, 2))
    return Filter(**{name: conditions[name] for name in names})


def some_upsert(rng: random.Random) -> Upsert:
    images, records = [], []
    for image_id in rng.sample(IMAGES, rng.randint(1, 3)):
        images.append(StoredImage(image_id, tags=some(rng, TAGS, 2), attributes=some_attributes(rng)))
        for number in range(rng.randint(0, 6)):
            level = Level.REGION if number else rng.choice([Level.IMAGE, Level.IMAGE, Level.REGION])
            records.append(
                Record(
                    f"{image_id}-{number}",
                    image_id,
                    level,
                    area=number,
                    predicted_iou=rng.choice([0.25, 0.5, 1.0]),
                    attributes=rng.choice([{}, some_attributes(rng)]),
                )
            )
    return Upsert(images, records, some_vectors(rng, len(records), len(records)), rng.random() < 0.3)


def some_update(rng: random.Random) -> ImageUpdate:
    return ImageUpdate(
        rng.choice(IMAGES),
        name=rng.choice([None, "a", "b"]),
        tags=rng.choice([None, None, (), some(rng, TAGS, 2)]),
        remove_tags=rng.choice([(), some(rng, TAGS, 1)]),
        add_tags=rng.choice([(), some(rng, TAGS, 2)]),
        remove_attributes=rng.choice([(), ("kind",)]),
        set_attributes=some_attributes(rng),
    )


def some_query(rng: random.Random) -> Query:
    return Query(
        vectors=some_vectors(rng, 1, 2),
        negatives=some_vectors(rng, 0, rng.choice([0, 0, 2])),
        level=rng.choice([None, None, *Level]),
        filter=rng.choice([Filter(), some_filter(rng)]),
        min_score=rng.choice([None, None, 0.0, 0.5]),
        min_relevancy=rng.choice([0.0, 0.5, 0.9]),
        relative_cutoff=rng.choice([None, None, 0.0, 0.5, 1.0]),
        group_by_image=rng.random() < 0.5,
        whole_image_margin=rng.choice([0.0, 0.02, 0.5]),
        limit=rng.randint(1, 5),
    )


def following(query: Query, page) -> Query:
    after = page.after or page.hits[-1].position
    return replace(query, seq=page.seq, after=after, skipped=page.hits[-1].rank, shown=page.shown)


def check_page(page, ranking, skipped: int, limit: int) -> None:
    expected = ranking[skipped : skipped + limit]
    got = [
        (
            hit.rank,
            hit.score,
            hit.record.record_id,
            hit.query_index,
            hit.best_region and hit.best_region.record.record_id,
        )
        for hit in page.hits
    ]
    wanted = [
        (rank, item.score, item.record_id, item.query_index, item.best_region)
        for rank, item in enumerate(expected, skipped + 1)
    ]
    assert got == wanted
    assert page.more == (len(ranking) > skipped + limit)
