"""What a disk gives back is what was written, or it is noticed: rows that were changed behind our back."""

from __future__ import annotations

import json
import random
import sqlite3
import zlib
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.store import schema, writes
from services.searcher.embedded.store.database import FILE_NAME
from services.searcher.queries import Filter, Query
from services.searcher.types import Level, Record, RleMask, StoredImage, Upsert
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
def test_damage_to_indexed_values_is_found_at_start(engine: EmbeddedEngine, settings, statement: str) -> None:
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


def contents(engine: EmbeddedEngine) -> list[object]:
    """All that can be asked for."""
    listed = engine.list_images("default", 1000, None)
    ids = [image.image_id for image in listed.images]
    stored = engine.get_records("default", [], ids, masks=True, vectors=True)
    assert stored.vectors is not None
    filters = (Filter(tags=("a",)), Filter(attributes=(("label", "cat"),)), Filter(attributes=(("k", "v"),)))
    queries = [Query(unit_vectors(1), NOTHING, filter=one, limit=100) for one in filters]
    found = [page.hits for query in queries for page in engine.search("default", MODEL, [query])]
    return [listed, stored.records, stored.images, stored.vectors.tolist(), found, engine.list_collections()]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit, one sector or two pages are not what they were."""
    changed = bytearray(data)
    kind = rng.randrange(3)
    if kind == 0:
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        start = rng.randrange(len(data) // 512) * 512
        changed[start : start + 512] = bytes(512)
    else:
        one, other = (page * 8192 for page in rng.sample(range(len(data) // 8192), 2))
        changed[one : one + 8192], changed[other : other + 8192] = (
            data[other : other + 8192],
            data[one : one + 8192],
        )
    return bytes(changed)


def test_no_flipped_bit_is_served_unnoticed(engine: EmbeddedEngine, settings, capsys) -> None:
    """Refused by name, or harmless; 60 damages of the live file and of a snapshot each."""
    for number in range(12):
        write(engine, f"image{number}")
    engine.snapshot("sound")
    engine.restore("sound")
    before = contents(engine)
    snapshot = settings.folder / "snapshots" / "sound"
    signed = snapshot.read_bytes()
    engine.close()
    path = settings.folder / FILE_NAME
    data, rng = path.read_bytes(), random.Random(5)
    refused = 0
    for _ in range(60):
        for left in settings.folder.glob(f"{FILE_NAME}*"):
            left.unlink()
        path.write_bytes(flipped(data, rng))
        try:
            opened = EmbeddedEngine(settings)
        except RegionSearchError as error:
            named = FILE_NAME in error.message and error.kind in (Kind.DATA_LOSS, Kind.FAILED_PRECONDITION)
            refused += 1 if named else pytest.fail(f"{error!r} does not name the file")
        else:
            assert contents(opened) == before
            opened.close()
    assert refused > 10, "the others hit bytes that are not used"
    for left in settings.folder.glob(f"{FILE_NAME}*"):
        left.unlink()
    path.write_bytes(data)
    opened = EmbeddedEngine(settings)
    for _ in range(60):
        changed = flipped(signed, rng)
        if changed == signed:  # a sector of zeros was overwritten
            continue
        snapshot.write_bytes(changed)
        with pytest.raises(RegionSearchError, match="sound") as caught:
            opened.restore("sound")
        assert caught.value.kind is Kind.DATA_LOSS
        assert opened.get_collection("default").image_count == 12
    opened.close()


FORGERIES = [
    "CREATE TRIGGER t AFTER INSERT ON vector BEGIN DELETE FROM vector; END",
    "CREATE VIEW v AS SELECT 1",
    "DROP INDEX record_live",
    "DROP INDEX image_live",
    "DROP TABLE attribute",
    "ALTER TABLE image ADD COLUMN more TEXT",
    "UPDATE sqlite_sequence SET seq = 1 WHERE name = 'record'",
    "DELETE FROM sqlite_sequence WHERE name = 'image'",
    "UPDATE state SET seq = 1",
    "UPDATE collection SET record_count = 7",
    "UPDATE image SET region_count = 7 WHERE ordinal = 1",
    "UPDATE image SET tags = '{'",
    "UPDATE image SET tags = '{', checksum = NULL",
    "UPDATE record SET attributes = '[]', body_checksum = NULL WHERE attributes IS NOT NULL",
    "DELETE FROM image_tag WHERE image = 1 AND tag = 'a'",
    "INSERT INTO image_tag VALUES (1, 'foreign', 1)",
    "DELETE FROM attribute WHERE record = 2",
    "INSERT INTO attribute VALUES (1, 'label', 'dog', 1, 1)",
    "INSERT INTO attribute VALUES (1, 'k', 'w', 1, 0)",
    "UPDATE image SET name = 'other' WHERE ordinal = 1",
]


@pytest.mark.parametrize("statement", FORGERIES)
def test_a_record_file_with_a_foreign_schema_or_content_is_refused(
    engine: EmbeddedEngine, settings, statement: str
) -> None:
    for image_id in ("one", "two"):
        write(engine, image_id)
    engine.snapshot("unsigned")
    engine.close()
    snapshot = settings.folder / "snapshots" / "unsigned"
    path = settings.folder / FILE_NAME
    for file in (path, snapshot):
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute(statement)
    with pytest.raises(RegionSearchError, match=FILE_NAME) as caught:
        EmbeddedEngine(settings)
    assert caught.value.kind is Kind.DATA_LOSS
    for left in settings.folder.glob(f"{FILE_NAME}*"):
        left.unlink()
    opened = EmbeddedEngine(settings)
    with pytest.raises(RegionSearchError, match="unsigned") as caught:
        opened.restore("unsigned")
    assert caught.value.kind is Kind.DATA_LOSS
    assert opened.list_collections() == []
    opened.close()


def old_snapshot(path: Path, *damages: str) -> None:
    """A snapshot of the first version: no row and no file has a checksum."""
    spec = json.dumps({"model": asdict(MODEL), "codes": None})
    vector = unit_vectors(1).astype("<f2").tobytes()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 8192")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.executescript(schema.MIGRATIONS[0] + "PRAGMA user_version = 1;")
        connection.execute("UPDATE state SET seq = 5")
        connection.execute("INSERT INTO collection VALUES (1, 'default', ?, 5, 1, 1, NULL, 0)", (spec,))
        connection.execute(
            "INSERT INTO image VALUES (1, 1, 'old', 'n', 1, 1, '', 1, '[\"t\"]', '{}', 5, 1, 5, NULL)"
        )
        connection.execute("INSERT INTO image_tag VALUES (1, 't', 1)")
        connection.execute(
            "INSERT INTO record VALUES (1, 1, 1, 'old-0', 2, 0, 0, 1, 1, 1, 0, 0, NULL, 5, NULL, NULL, NULL,"
            " NULL)"
        )
        connection.execute("INSERT INTO vector VALUES (1, ?)", (vector,))
        for damage in damages:
            connection.execute(damage)


def test_snapshots_without_checksums_are_restored_with_the_checks_that_are_left(
    engine: EmbeddedEngine, settings, capsys
) -> None:
    folder = settings.folder / "snapshots"
    folder.mkdir()
    old_snapshot(folder / "old")
    for number, damage in enumerate((
        "UPDATE image SET tags = '{'",
        "CREATE TRIGGER t AFTER INSERT ON vector BEGIN DELETE FROM vector; END",
        "DROP INDEX image_recent",
        "DELETE FROM sqlite_sequence",
        "UPDATE collection SET record_count = 2",
    )):  # fmt: skip
        old_snapshot(folder / f"bad{number}", damage)
        with pytest.raises(RegionSearchError, match=f"bad{number}") as caught:
            engine.restore(f"bad{number}")
        assert caught.value.kind is Kind.DATA_LOSS
    engine.restore("old")
    assert "damage may go unnoticed" in capsys.readouterr().out
    assert everything(engine) == ["old-0"]
    write(engine, "new")
    assert [image.image_id for image in engine.list_images("default", 10, None).images] == ["new", "old"]
    engine.close()
    reopened = EmbeddedEngine(settings)
    assert everything(reopened) == ["new-0", "new-1", "old-0"]
    reopened.close()


def test_a_snapshot_without_its_checksum_trailer_is_refused(engine: EmbeddedEngine, settings) -> None:
    write(engine, "one")
    engine.snapshot("cut")
    path = settings.folder / "snapshots" / "cut"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RegionSearchError, match="checksum is missing"):
        engine.restore("cut")


def test_removing_records_uses_the_primary_key_not_a_scan(engine: EmbeddedEngine) -> None:
    plan = engine._database.writer.execute(f"EXPLAIN QUERY PLAN {writes.REMOVE_RECORDS}", (1, "[1]", 1))
    assert plan.fetchone()[3].startswith("SEARCH record USING INTEGER PRIMARY KEY")
