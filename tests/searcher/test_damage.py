"""What a disk gives back is what was written, or it is noticed: rows that were changed behind our back."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import writes
from services.searcher.embedded.database import FILE_NAME
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.types import Filter, Level, Query, Record, RleMask, StoredImage, Upsert
from tests.searcher.conftest import DIMENSION, MODEL, unit_vectors

NOTHING = np.empty((0, DIMENSION), np.float32)


def write(engine: EmbeddedEngine, image_id: str) -> None:
    """An image with tags and attributes, a region with a mask and another one without."""
    image = StoredImage(image_id, f"{image_id}.jpg", 64, 48, "image/jpeg", 99, ("a", "b"), {"k": "v"})
    records = [
        Record(
            f"{image_id}-0", image_id, Level.REGION, (1, 2, 3.5, -0.0), RleMask(48, 64, b"abc"), 7, 0.5, 1
        ),
        Record(f"{image_id}-1", image_id, Level.REGION, attributes={"label": "cat"}),
    ]
    engine.upsert(
        "default", MODEL, Upsert([image], records, unit_vectors(2, seed=zlib.crc32(image_id.encode())))
    )


def change(engine: EmbeddedEngine, statement: str) -> None:
    with closing(sqlite3.connect(engine._database.path, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount == 1


def everything(engine: EmbeddedEngine) -> list[str]:
    query = Query(unit_vectors(1), NOTHING, limit=100, include_masks=True)
    return sorted(hit.record.record_id for hit in engine.search("default", MODEL, [query])[0].hits)


CHANGES = {
    "name": "UPDATE image SET name = 'other' WHERE image_id = 'two'",
    "tags": "UPDATE image SET tags = '[\"a\"]' WHERE image_id = 'two'",
    "broken JSON": "UPDATE image SET tags = '{', checksum = NULL WHERE image_id = 'two'",
    "half a character": """UPDATE image SET tags = '["\\ud800"]', checksum = NULL WHERE image_id = 'two'""",
    "JSON of another kind": "UPDATE image SET attributes = '[]', checksum = NULL WHERE image_id = 'two'",
    "size": "UPDATE image SET width = 65 WHERE image_id = 'two'",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_a_damaged_image_is_named_where_it_is_asked_for_and_hides_no_other(
    engine: EmbeddedEngine,
    statement: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for image_id in ("one", "two", "three"):
        write(engine, image_id)
    change(engine, statement)
    listed = engine.list_images("default", 10, None)
    assert [image.image_id for image in listed.images] == ["three", "one"]
    assert listed.total_count == 3
    assert everything(engine) == ["one-0", "one-1", "three-0", "three-1"]
    assert "'two'" in capsys.readouterr().out
    for ids, images in ((["two-0"], []), ([], ["two"])):
        with pytest.raises(RegionSearchError, match=FILE_NAME) as caught:
            engine.get_records("default", ids, images, masks=False, vectors=False)
        assert caught.value.kind is Kind.DATA_LOSS
        assert "'two'" in caught.value.message
    assert len(engine.get_records("default", [], ["one"], masks=True, vectors=True).records) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET x_min = 2 WHERE record_id = 'two-0'",
        "UPDATE record SET mask = x'616264' WHERE record_id = 'two-0'",
        "UPDATE record SET attributes = '{' WHERE record_id = 'two-0'",
        "UPDATE record SET area = 8 WHERE record_id = 'two-0'",
        "UPDATE vector SET value = (SELECT value FROM vector WHERE key = 1) WHERE key = 3",
    ],
    ids=["box", "mask", "attributes", "area", "vector"],
)
def test_a_damaged_record_is_named_where_it_is_asked_for(engine: EmbeddedEngine, statement: str) -> None:
    for image_id in ("one", "two"):
        write(engine, image_id)
    change(engine, statement)
    with pytest.raises(RegionSearchError, match=FILE_NAME) as caught:
        engine.get_records("default", ["two-0"], [], masks=True, vectors=True)
    assert caught.value.kind is Kind.DATA_LOSS
    left_out = set() if "vector" in statement else {"two-0"}
    assert set(everything(engine)) == {"one-0", "one-1", "two-0", "two-1"} - left_out


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET area = 8 WHERE key = 1",
        "UPDATE record SET level = 1 WHERE key = 1",
        "UPDATE record SET image = 2 WHERE key = 1",
        "UPDATE vector SET value = (SELECT value FROM vector WHERE key = 1) WHERE key = 3",
        "UPDATE collection SET spec = replace(spec, 'digest', 'tigest')",
        "UPDATE collection SET spec = '{}'",
        "UPDATE collection SET spec = '{}', checksum = NULL",
        "UPDATE collection SET name = 'other'",
    ],
)
def test_what_the_index_is_made_of_is_checked_at_the_start(
    engine: EmbeddedEngine, settings, statement: str
) -> None:
    for image_id in ("one", "two"):
        write(engine, image_id)
    engine.close()
    change(engine, statement)
    with pytest.raises(RegionSearchError, match=FILE_NAME) as caught:
        EmbeddedEngine(settings.model_copy(update={"check_at_start": False}))
    assert caught.value.kind is Kind.DATA_LOSS


def test_a_clock_that_goes_back_does_not_change_the_order_of_images(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newest first is by the order of writing; the times are what the clock said, before 1970 too."""
    for number, now in enumerate((2_000_000, 1_000_000, -5_000_000, 1_500_000)):
        monkeypatch.setattr(writes.time, "time_ns", lambda now=now: now * 1_000_000)
        write(engine, f"image{number}")
    write(engine, "image0")  # keeps its place
    seen, after = [], None
    while True:
        page = engine.list_images("default", 1, after)
        seen += [(image.image_id, image.created_ms) for image in page.images]
        if page.next_key is None:
            break
        assert page.next_key[0] >= 0
        after = page.next_key
    assert seen == [
        ("image3", 1_500_000), ("image2", -5_000_000), ("image1", 1_000_000), ("image0", 2_000_000),
    ]  # fmt: skip
    late = Query(unit_vectors(1), NOTHING, filter=Filter(created_after_ms=1_200_000), limit=100)
    assert {hit.image.image_id for hit in engine.search("default", MODEL, [late])[0].hits} == {
        "image0",
        "image3",
    }
