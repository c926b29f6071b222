"""Stores and snapshots of earlier versions open, with the same answers; those of later ones are refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import snapshots
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.store.database import FILE_NAME
from services.searcher.embedded.store.schema import MIGRATIONS
from services.searcher.queries import Filter, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Level, ModelIdentity, Record, StoredImage, Upsert

STORES = Path(__file__).resolve().parents[1] / "fixtures" / "stores"
VERSIONS = sorted(
    path.name for path in STORES.iterdir() if path.is_dir() and (path / "answers.json.gz").exists()
)
MODEL = ModelIdentity("open_clip", "then", "digest", 16, "BLUR")
FILTERS = {
    "none": Filter(),
    "tags": Filter(tags=("red",), exclude_tags=("blue",)),
    "attributes": Filter(attributes=(("shelf", "2"),)),
    "area": Filter(min_area=10, max_area=25, min_predicted_iou=0.5),
    "images": Filter(exclude_image_ids=("image-3", "bild-ü")),
}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Path:
    return STORES / request.param


@pytest.fixture
def answers(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((version / "answers.json.gz").read_bytes()))
    return found


@pytest.fixture
def folder(version: Path, tmp_path: Path) -> Path:
    """A store as that version's searcher left it when it was killed."""
    folder = tmp_path / "searcher"
    (folder / "snapshots").mkdir(parents=True)
    for name, target in (
        (FILE_NAME, FILE_NAME),
        (f"{FILE_NAME}-wal", f"{FILE_NAME}-wal"),
        ("then", "snapshots/then"),
    ):
        (folder / target).write_bytes(gzip.decompress((version / f"{name}.gz").read_bytes()))
    return folder


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[EmbeddedEngine]:
    with contextlib.closing(EmbeddedEngine(EmbeddedSettings(folder=folder, chunk_rows=32))) as engine:
        yield engine


def check(engine: EmbeddedEngine, expected: dict[str, Any], vectors: list[list[float]]) -> None:
    """Compares everything that the version said; see the script that made the stores."""
    assert [one.name for one in engine.list_collections()] == list(expected)
    for name, then in expected.items():
        collection = engine.get_collection(name)
        assert [collection.image_count, collection.record_count] == then["counts"]
        images = engine.list_images(name, 1000, None).images
        assert [
            [i.image_id, i.name, i.width, i.height, i.size_bytes, list(i.tags), dict(i.attributes),
             i.created_ms, i.region_count]
            for i in images
        ] == then["images"]  # fmt: skip
        stored = engine.get_records(name, [], [i.image_id for i in images], masks=True, vectors=True)
        assert [
            [r.record_id, r.image_id, int(r.level), None if r.box is None else [*r.box], r.area,
             r.predicted_iou, dict(r.attributes), None if r.mask is None else r.mask.counts.decode()]
            for r in stored.records
        ] == then["records"]  # fmt: skip
        assert stored.vectors is not None
        np.testing.assert_allclose(stored.vectors[:, :3], then["vectors"], atol=1e-4)
        for label, wanted in FILTERS.items():
            asked = [(vector, grouped) for vector in vectors for grouped in (False, True)]
            for (vector, grouped), hits in zip(asked, then["searches"][label], strict=True):
                query = Query(
                    np.array([vector], np.float32), np.zeros((0, 16), np.float32),
                    limit=10, group_by_image=grouped, filter=wanted,
                )  # fmt: skip
                (page,) = engine.search(name, MODEL, [query])
                assert [[h.record.record_id, h.image.image_id] for h in page.hits] == [
                    hit[:2] for hit in hits
                ]
                scores = [hit.score for hit in page.hits]
                np.testing.assert_allclose(scores, [hit[2] for hit in hits], atol=1e-3)


def test_a_store_of_an_earlier_version_is_searchable_at_once(folder: Path, answers: dict[str, Any]) -> None:
    with opened(folder) as engine:
        check(engine, answers["store"], answers["vectors"])
        vectors = np.eye(2, 16, dtype=np.float32)
        records = [Record("new-0", "new", Level.IMAGE), Record("new-1", "new", Level.REGION)]
        engine.upsert("plain", MODEL, Upsert([StoredImage("new")], records, vectors))
        assert engine.list_images("plain", 1, None).images[0].image_id == "new", "places go on"
    with opened(folder) as engine:
        assert engine.get_collection("plain").image_count == answers["store"]["plain"]["counts"][0] + 1


def test_a_snapshot_of_an_earlier_version_is_restored_as_a_whole_and_in_part(
    folder: Path, answers: dict[str, Any]
) -> None:
    with opened(folder) as engine:
        engine.restore("then", "gone")
        one = {
            name: answers["store" if name != "gone" else "snapshot"][name]
            for name in ("coded", "gone", "plain")
        }
        check(engine, one, answers["vectors"])
        engine.restore("then")
        check(engine, answers["snapshot"], answers["vectors"])


def test_a_snapshot_of_a_later_version_is_refused_with_a_sentence(folder: Path) -> None:
    later = len(MIGRATIONS) + 1
    with opened(folder) as engine:
        engine.snapshot("later")
        path = folder / "snapshots" / "later"
        with contextlib.closing(sqlite3.connect(path)) as snapshot:
            snapshot.execute(f"PRAGMA user_version = {later}")
        path.write_bytes(path.read_bytes()[: -snapshots._TRAILER_BYTES])
        snapshots._sign(path)
        message = f"version {later}, this program reads up to {later - 1}: upgrade it"
        with pytest.raises(RegionSearchError, match=message) as caught:
            engine.restore("later")
        assert caught.value.kind is Kind.FAILED_PRECONDITION
