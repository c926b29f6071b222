"""Snapshots and restores during traffic, and when something fails."""

from __future__ import annotations

import errno
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import open_store as engine_module
from services.searcher.embedded import planning, snapshots
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.index_files import FOLDER
from services.searcher.embedded.store.database import FILE_NAME
from services.searcher.queries import Deletion
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection
from tests.searcher.clusters import MODEL, clustered, fill
from tests.searcher.test_store_faults import found, kind_of, write


def settings_of(folder: Path, **fields: object) -> EmbeddedSettings:
    rows = {"chunk_rows": 500, "ann_above": 1000, "ann_rows": 1000, "codes_rows": 1000}
    return EmbeddedSettings(folder=folder, page_ttl_s=0.0, **rows, **fields)


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM vector WHERE key = 7", "UPDATE collection SET codec = x'00'"],
    ids=["row", "codec"],
)
def test_a_snapshot_that_is_damaged_inside_changes_nothing(engine, settings, damage) -> None:
    write(engine, "image", regions=9)
    engine.snapshot("bad")
    with sqlite3.connect(settings.folder / "snapshots" / "bad") as connection:
        connection.execute(damage)
    connection.close()
    write(engine, "later", regions=1)
    with pytest.raises(RegionSearchError, match="bad is damaged") as caught:
        engine.restore("bad")
    assert caught.value.kind is Kind.DATA_LOSS
    assert found(engine) == 10
    engine.close()
    reopened = EmbeddedEngine(settings)
    assert found(reopened) == 10
    reopened.close()


def test_a_damaged_codec_is_refused_by_name(engine, settings) -> None:
    engine._database.writer.execute("UPDATE collection SET codec = x'00'")
    engine.close()
    with pytest.raises(RegionSearchError, match=FILE_NAME) as caught:
        EmbeddedEngine(settings)
    assert caught.value.kind is Kind.DATA_LOSS


def test_a_snapshot_does_not_overwrite_another(engine, settings) -> None:
    engine.snapshot("a.part")
    engine.snapshot("a")
    assert sorted(path.name for path in (settings.folder / "snapshots").iterdir()) == ["a", "a.part"]


def test_unfinished_snapshot_files_are_deleted_at_start(engine, settings) -> None:
    write(engine, "image")
    engine.snapshot("one")
    engine.close()
    folder = settings.folder / "snapshots"
    for left in (".two.part", ".one.restoring", ".one.restoring-wal", ".one.restoring-journal"):
        (folder / left).write_bytes(b"x")
    (folder / ".keep").touch()
    reopened = EmbeddedEngine(settings)
    assert sorted(path.name for path in folder.iterdir()) == [".keep", "one"]
    reopened.restore("one")
    assert found(reopened) == 4
    reopened.close()


def test_snapshots_of_one_name_and_restores_of_it_take_turns(engine, settings) -> None:
    for number in range(20):
        write(engine, f"image{number}", regions=20)

    def outcome(call, *arguments) -> Kind | None:
        try:
            call(*arguments)
        except RegionSearchError as error:
            return error.kind
        return None

    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(outcome, engine.snapshot, "one") for _ in range(4)]
        assert sorted(str(done.result()) for done in taken) == sorted(
            map(str, [None, *[Kind.ALREADY_EXISTS] * 3])
        )
        restored = [pool.submit(outcome, engine.restore, "one") for _ in range(4)]
        assert [done.result() for done in restored] == [None] * 4
    assert found(engine) == 400
    assert [path.name for path in (settings.folder / "snapshots").iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, Kind.STORAGE_FULL), (errno.EROFS, Kind.FAILED_PRECONDITION), (errno.EIO, Kind.INTERNAL)],
)
def test_a_disk_error_while_copying_a_snapshot_names_the_snapshot(engine, monkeypatch, number, kind) -> None:
    write(engine, "image")
    engine.snapshot("one")

    def refuse(*arguments: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(snapshots.shutil, "copyfile", refuse)
    assert kind_of(lambda: engine.restore("one")) is kind
    assert found(engine) == 4


def test_a_restored_store_that_cannot_be_loaded_ends_the_process(tmp_path, monkeypatch) -> None:
    fatal: list[BaseException] = []
    engine = EmbeddedEngine(settings_of(tmp_path), fatal.append)
    engine.snapshot("one")

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(engine_module, "open_collections", fail)
    with pytest.raises(MemoryError):
        engine.restore("one")
    assert [type(error) for error in fatal] == [MemoryError]
    engine.close()


def test_maintenance_during_a_restore_deletes_no_index_file(tmp_path, monkeypatch) -> None:
    engine = EmbeddedEngine(settings_of(tmp_path))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(1000))
    engine.run_maintenance()
    engine.snapshot("one")
    files = sorted((tmp_path / FOLDER).iterdir())
    assert len(files) == 1
    load = engine_module.open_collections

    def slow(*arguments):
        assert kind_of(engine.run_maintenance) is Kind.UNAVAILABLE
        return load(*arguments)

    monkeypatch.setattr(engine_module, "open_collections", slow)
    engine.restore("one")
    assert sorted((tmp_path / FOLDER).iterdir()) == files
    assert [segment.index for segment in engine.stats("c")[0].segments] == ["ivf"]
    engine.close()


def test_a_codec_is_not_stored_for_another_collection_with_the_same_rowid(tmp_path, monkeypatch) -> None:
    engine = EmbeddedEngine(settings_of(tmp_path))
    engine.snapshot("before")
    spec = CodeSpec(CodeMethod.PCA_ROTATION, 16)
    engine.create_collection(Collection("c", MODEL, spec))
    fill(engine, clustered(1000))
    train = planning.train_codec

    def late(*arguments):
        engine.restore("before")
        engine.create_collection(Collection("other", replace(MODEL, dimension=32), spec))
        return train(*arguments)

    monkeypatch.setattr(planning, "train_codec", late)
    engine.run_maintenance()  # drops what it has made for the collection that is gone
    kept = engine._database.writer.execute("SELECT id, name, codec FROM collection").fetchall()
    assert kept == [(1, "other", None)]
    engine.close()


def test_a_collection_whose_maintenance_fails_does_not_stop_the_others(tmp_path, monkeypatch) -> None:
    def fail(spec: CodeSpec, sample: np.ndarray) -> None:
        raise RegionSearchError(Kind.INTERNAL, "these codes cannot be learned")

    monkeypatch.setattr(planning, "train_codec", fail)
    engine = EmbeddedEngine(settings_of(tmp_path))
    for name, codes in (("a", CodeSpec(CodeMethod.ITQ, 16)), ("b", None)):
        engine.create_collection(Collection(name, MODEL, codes))
        fill(engine, clustered(1000), name)
    engine.delete("b", Deletion(record_ids=tuple(f"r{number}" for number in range(100))))
    with pytest.raises(RegionSearchError, match="cannot be learned"):
        engine.run_maintenance()
    assert [segment.index for segment in engine.stats("b")[0].segments] == ["ivf"]
    assert engine._database.writer.execute("SELECT COUNT(*) FROM record").fetchone() == (1900,)
    engine.close()


def test_snapshots_are_kept_and_restored_elsewhere(tmp_path) -> None:
    away = tmp_path / "away"
    settings = EmbeddedSettings(folder=tmp_path / "here", snapshot_url=away.as_uri())
    engine = EmbeddedEngine(settings)
    assert engine.list_snapshots() == []
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(100), "c")
    for name in ("one", "two"):
        engine.snapshot(name)
    assert [one.name for one in engine.list_snapshots()] == ["two", "one"]
    assert not [*(tmp_path / "here" / "snapshots").iterdir()]
    with pytest.raises(RegionSearchError) as caught:
        engine.snapshot("two")
    assert caught.value.kind is Kind.ALREADY_EXISTS
    engine.delete_collection("c")
    engine.delete_snapshot("two")
    engine.restore("one")
    assert engine.get_collection("c").record_count == 100
    data = (away / "one").read_bytes()
    (away / "one").write_bytes(data[: len(data) // 2])  # as an upload that was cut off leaves it
    with pytest.raises(RegionSearchError) as caught:
        engine.restore("one")
    assert caught.value.kind is Kind.DATA_LOSS
    away.rename(tmp_path / "gone")
    (tmp_path / "away").write_text("not a folder")
    with pytest.raises(RegionSearchError, match=r"cannot be reached") as caught:
        engine.snapshot("three")
    assert caught.value.kind is Kind.UNAVAILABLE
    assert engine.get_collection("c").record_count == 100
    engine.close()
