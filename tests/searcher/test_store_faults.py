"""Disks that are full, broken, read-only or damaged."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.store import database as database_module
from services.searcher.embedded.store.database import FILE_NAME
from services.searcher.queries import Deletion, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, Level, Record, StoredImage, Upsert
from tests.searcher.conftest import DIMENSION, MODEL, unit_vectors
from tests.stack import ROOT

NOTHING = np.empty((0, DIMENSION), np.float32)


def write(engine: EmbeddedEngine, image_id: str, regions: int = 4) -> int:
    records = [Record(f"{image_id}-{i}", image_id, Level.REGION) for i in range(regions)]
    return engine.upsert(
        "default", MODEL, Upsert([StoredImage(image_id)], records, unit_vectors(regions))
    ).seq


def found(engine: EmbeddedEngine) -> int:
    return len(engine.search("default", MODEL, [Query(unit_vectors(1), NOTHING, limit=1000)])[0].hits)


def kind_of(call) -> Kind:
    with pytest.raises(RegionSearchError) as caught:
        call()
    return caught.value.kind


def test_a_full_disk_refuses_writes_and_serves_reads(engine: EmbeddedEngine) -> None:
    write(engine, "before")
    pages = engine._database.writer.execute("PRAGMA page_count").fetchone()[0]
    engine._database.writer.execute(f"PRAGMA max_page_count = {pages + 1}")
    assert kind_of(lambda: write(engine, "large", regions=400)) is Kind.STORAGE_FULL
    assert found(engine) == 4
    engine._database.writer.execute("PRAGMA max_page_count = 1000000")
    write(engine, "after")
    assert found(engine) == 8
    assert engine.get_collection("default").image_count == 2


class FailingConnection(sqlite3.Connection):
    """Fails where it is told to."""

    fail_on: str | None = None

    def execute(self, sql, *parameters):
        if self.fail_on and sql.startswith(self.fail_on):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return super().execute(sql, *parameters)


@pytest.mark.parametrize("statement", ["COMMIT", "BEGIN", "INSERT INTO image", "SAVEPOINT"])
def test_a_failing_disk_stops_writes_and_serves_reads(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(
        database_module.sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": FailingConnection})
    )
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("default", MODEL))
    write(engine, "before")
    engine._database.writer.fail_on = statement
    assert kind_of(lambda: write(engine, "lost")) is Kind.INTERNAL
    engine._database.writer.fail_on = None
    # A disk that failed once is not trusted again: the kernel may have dropped what it could not write.
    assert kind_of(lambda: write(engine, "later")) is Kind.FAILED_PRECONDITION
    assert found(engine) == 4
    engine.close()
    reopened = EmbeddedEngine(settings)
    assert found(reopened) == 4
    write(reopened, "after")
    reopened.close()


def test_file_size_limit_is_a_full_disk_to_a_real_process(tmp_path: Path) -> None:
    """A limit of the operating system: writes fail for real, in the middle of a transaction."""
    script = """
import resource, signal, sys
from pathlib import Path
from regionsearch.errors import RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.conftest import MODEL
from tests.searcher.test_store_faults import found, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
engine = EmbeddedEngine(EmbeddedSettings(folder=Path(sys.argv[1])))
engine.create_collection(Collection("default", MODEL))
write(engine, "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
answered = 0
try:
    while answered < 10_000:
        write(engine, f"image{answered}", regions=50)
        answered += 1
except RegionSearchError as error:
    print("END", error.kind.name, answered, found(engine) > 0, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    # On a slow machine the maintenance thread may log that it waits.
    (end,) = (line for line in done.stdout.splitlines() if line.startswith("END"))
    _, kind, answered, reads = end.split()
    assert kind in ("STORAGE_FULL", "INTERNAL"), done.stderr
    assert reads == "True"
    engine = EmbeddedEngine(EmbeddedSettings(folder=tmp_path / "data"))
    assert engine.get_collection("default").image_count == int(answered) + 1
    engine.close()


def filled(settings: EmbeddedSettings, images: int = 60) -> Path:
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("default", MODEL))
    for number in range(images):
        write(engine, f"image{number}")
    engine.close()
    return settings.folder / FILE_NAME


@pytest.mark.parametrize("place", [0, 1, 2, 5, 9])
def test_a_record_file_with_a_torn_page_is_refused_by_name(settings: EmbeddedSettings, place: int) -> None:
    path = filled(settings)
    data = bytearray(path.read_bytes())
    size = 8192
    data[place * size : place * size + size // 2] = b"\x5a" * (size // 2)
    path.write_bytes(data)
    with pytest.raises(RegionSearchError) as caught:
        EmbeddedEngine(settings)
    assert caught.value.kind is Kind.DATA_LOSS
    assert FILE_NAME in caught.value.message


def test_stored_vectors_that_are_not_of_unit_length_are_refused(settings: EmbeddedSettings) -> None:
    path = filled(settings)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vector SET value = zeroblob(?) WHERE key = 7", (2 * DIMENSION,))
    connection.close()
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.DATA_LOSS


@pytest.mark.parametrize("table", ["vector", "image"])
def test_stored_records_without_vector_or_image_are_refused(settings: EmbeddedSettings, table: str) -> None:
    path = filled(settings)
    with sqlite3.connect(path) as connection:
        connection.execute(f"DELETE FROM {table} WHERE rowid = 7")
    connection.close()
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.DATA_LOSS


def test_truncated_and_foreign_record_files_are_refused(settings: EmbeddedSettings) -> None:
    path = filled(settings)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.DATA_LOSS
    path.write_bytes(b"a letter, not a database\n" * 500)
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.DATA_LOSS
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.DATA_LOSS


def test_a_record_file_of_a_newer_version_is_refused_unchanged(settings: EmbeddedSettings) -> None:
    path = filled(settings, images=1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.FAILED_PRECONDITION
    assert path.read_bytes() == before


def test_a_record_file_of_an_older_version_is_migrated(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(settings, images=3)
    newer = (*database_module.MIGRATIONS, "ALTER TABLE image ADD COLUMN note TEXT;")
    monkeypatch.setattr(database_module, "MIGRATIONS", newer)
    engine = EmbeddedEngine(settings)
    assert found(engine) == 12
    engine.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(newer)
        assert "note" in [row[1] for row in connection.execute("PRAGMA table_info(image)")]
    connection.close()


def test_a_second_process_cannot_open_the_record_file(
    engine: EmbeddedEngine, settings: EmbeddedSettings
) -> None:
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.FAILED_PRECONDITION


LOCKING = """
import sys
from pathlib import Path
from regionsearch.errors import RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
for read_only in (False, True):
    try:
        engine = EmbeddedEngine(EmbeddedSettings(folder=Path(sys.argv[1]), read_only=read_only))
        print("END served", flush=True)
        engine.close()
    except RegionSearchError as error:
        print("END", error.kind.name, "another searcher" in error.message, flush=True)
"""


def test_a_record_file_has_one_writer_or_readers_in_whatever_process(settings: EmbeddedSettings) -> None:
    """Whatever else in the folder is deleted: the record file itself is locked."""

    def others() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", LOCKING, str(settings.folder)], cwd=ROOT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        return [line[4:] for line in done.stdout.splitlines() if line.startswith("END")]

    path = filled(settings, images=1)
    refused = "FAILED_PRECONDITION True"
    writer = EmbeddedEngine(settings)
    for file in settings.folder.iterdir():
        if file.is_file() and not file.name.startswith(path.name):
            file.unlink()
    assert others() == [refused, refused]
    writer.close()
    reader = EmbeddedEngine(settings.model_copy(update={"read_only": True}))
    assert others() == [refused, "served"]
    reader.close()
    assert others() == ["served", "served"]


def test_a_read_only_searcher_serves_reads_and_refuses_writes(settings: EmbeddedSettings) -> None:
    filled(settings, images=2)
    files = sorted(settings.folder.iterdir())
    engine = EmbeddedEngine(settings.model_copy(update={"read_only": True}))
    assert found(engine) == 8
    assert kind_of(lambda: write(engine, "new")) is Kind.FAILED_PRECONDITION
    assert (
        kind_of(lambda: engine.delete("default", Deletion(image_ids=("image0",)))) is Kind.FAILED_PRECONDITION
    )
    assert found(engine) == 8
    engine.close()
    assert sorted(settings.folder.iterdir()) == files


def test_a_record_file_locked_by_another_program_is_unavailable(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, "before")
    engine._database.writer.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(engine._database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert kind_of(lambda: write(engine, "blocked")) is Kind.UNAVAILABLE
    assert found(engine) == 4
    other.execute("ROLLBACK")
    other.close()
    write(engine, "after")
    assert found(engine) == 8


def test_restoring_a_damaged_snapshot_changes_nothing(
    engine: EmbeddedEngine, settings: EmbeddedSettings
) -> None:
    for number in range(60):
        write(engine, f"image{number}")
    engine.snapshot("good")
    folder = settings.folder / "snapshots"
    data = bytearray((folder / "good").read_bytes())
    data[5 * 8192 : 6 * 8192] = b"\x00" * 8192
    (folder / "torn").write_bytes(data)
    (folder / "short").write_bytes(data[: len(data) // 2])
    for name in ("torn", "short"):
        with pytest.raises(RegionSearchError) as caught:
            engine.restore(name)
        assert caught.value.kind is Kind.DATA_LOSS
        assert name in caught.value.message
    assert found(engine) == 240
    write(engine, "after")
    assert engine.restore("good")[1] == 1
    assert found(engine) == 240
