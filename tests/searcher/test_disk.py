"""Disks that are full, that fail under the record file only, and logs that vanish."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import maintenance
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.store import checkpoints
from services.searcher.embedded.store import disk_reserve as reserve_module
from services.searcher.embedded.store.database import FILE_NAME
from services.searcher.embedded.store.faults import Backoff, LogThrottle
from services.searcher.metrics import CHECKPOINT_FAILURES
from services.searcher.queries import Deletion, Filter
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.conftest import MODEL
from tests.searcher.test_store_faults import FailingConnection, database_module, found, kind_of, write
from tests.stack import ROOT

FULL_DISK = """
import os, sys
from pathlib import Path
from regionsearch.errors import RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.queries import (Deletion)
from services.searcher.types import (Collection)
from tests.searcher.conftest import MODEL
from tests.searcher.test_store_faults import found, write

def kind(call):
    try:
        call()
    except RegionSearchError as error:
        return error.kind.name
    return "OK"

def fill():
    with open(disk / "other", "ab", buffering=0) as other:
        for size in (1 << 20, 4096, 1):
            try:
                while other.write(bytes(size)):
                    pass
            except OSError:
                pass

disk = Path(sys.argv[1])
settings = EmbeddedSettings(folder=disk / "store", page_ttl_s=0.0)
engine = EmbeddedEngine(settings)
for name in ("default", "second"):
    engine.create_collection(Collection(name, MODEL))
number = 0
while (answer := kind(lambda: write(engine, f"image{number}", regions=400))) == "OK":
    number += 1
free = lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
print("END", answer, number > 3, free() > 0)
engine._checkpointer.run_once()  # as a second later
fill()
print("END", free(), found(engine) > 0, kind(lambda: write(engine, "more")))
print("END", kind(lambda: engine.delete("default", Deletion(image_ids=("image0",)))))
engine.close()
fill()
engine = EmbeddedEngine(settings)
one = Deletion(image_ids=("image1",))
print("END", found(engine) > 0, kind(lambda: engine.delete("default", one)))
print("END", kind(lambda: engine.delete_collection("second")))
answers = set()
for n in range(2, number - 1):
    answers.add(kind(lambda: engine.delete("default", Deletion(image_ids=(f"image{n}",)))))
    kind(engine.run_maintenance)
    kind(engine._checkpointer.run_once)
print("END", *answers)
(disk / "other").unlink()
for _ in range(3):
    engine.run_maintenance()
    engine._checkpointer.run_once()
print("END", kind(lambda: write(engine, "again")), (settings.folder / "reserve").exists())
snapshots = settings.folder / "snapshots"
print("END", kind(lambda: engine.snapshot("one")), [file.name for file in snapshots.iterdir()])
engine.close()
"""


def test_deletions_work_on_a_full_disk(tmp_path: Path) -> None:
    """On a real file system of 24 MB; where none can be mounted, this is skipped."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    mounted = ["sh", "-c", 'mount -t tmpfs -o size=24m none "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*unshare, *mounted, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*unshare, *mounted, sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line[4:] for line in done.stdout.splitlines() if line.startswith("END")]
    assert said == [
        "STORAGE_FULL True True",
        "0 True STORAGE_FULL",
        "OK",
        "True OK",
        "OK",
        "OK",
        "OK True",
        "OK ['one']",
    ]


def test_writes_leave_disk_space_for_deletions(
    engine: EmbeddedEngine, settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(engine, f"image{number}")
    real = os.statvfs(settings.folder)

    def nearly_full(path: object) -> os.statvfs_result:
        values = list(real)
        values[4] = (settings.reserve_bytes - 1) // real.f_frsize  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(reserve_module.os, "statvfs", nearly_full)
    refused: list[Callable[[], object]] = [
        lambda: write(engine, "more"),
        lambda: engine.create_collection(Collection("other", MODEL)),
        lambda: engine.snapshot("one"),
    ]
    for call in refused:
        assert kind_of(call) is Kind.STORAGE_FULL
    assert engine.delete("default", Deletion(image_ids=("image0",))).image_count == 1
    assert found(engine) == 8


def test_a_large_deletion_runs_in_steps_with_other_writes_between(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.searcher.embedded.deletions._STEP_ROWS", 7)
    for number in range(10):
        write(engine, f"image{number}")
    submit, between = engine._committer.submit, []

    def submitting(operation, *arguments, **options):
        monkeypatch.setattr(engine._committer, "submit", submit)
        between.append(write(engine, f"between{len(between)}"))
        monkeypatch.setattr(engine._committer, "submit", submitting)
        return submit(operation, *arguments, **options)

    monkeypatch.setattr(engine._committer, "submit", submitting)
    done = engine.delete("default", Deletion(image_ids=("image9",), filter=Filter(image_ids=tuple(
        f"image{number}" for number in range(9)
    ))))  # fmt: skip
    monkeypatch.setattr(engine._committer, "submit", submit)
    assert (done.image_count, done.record_count) == (10, 40)
    assert len(between) == 7
    assert done.seq > between[-1]
    assert {image.image_id for image in engine.list_images("default", 99, None).images} == {
        f"between{number}" for number in range(7)
    }


def failing_engine(settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch) -> EmbeddedEngine:
    """Its checkpoints come by hand, and its connections can be told to fail."""
    monkeypatch.setattr(checkpoints, "_PERIOD_S", 1e6)
    real = sqlite3.connect
    monkeypatch.setattr(
        database_module.sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": FailingConnection})
    )
    engine = EmbeddedEngine(settings)
    engine.create_collection(Collection("default", MODEL))
    return engine


def test_a_disk_that_fails_checkpoints_is_noticed(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = failing_engine(settings.model_copy(update={"max_log_bytes": 200_000}), monkeypatch)
    checkpointer = engine._checkpointer
    assert checkpointer is not None
    write(engine, "before")
    checkpointer.run_once()
    failures = CHECKPOINT_FAILURES._value.get()
    checkpointer._connection.fail_on = "PRAGMA wal_checkpoint"
    number = 0
    with pytest.raises(RegionSearchError, match="max_log_bytes") as caught:  # noqa: PT012  # after some writes
        while number < 100:
            write(engine, f"image{number}", regions=50)
            number += 1
            assert kind_of(checkpointer.run_once) is Kind.INTERNAL
    assert caught.value.kind is Kind.UNAVAILABLE
    assert "disk failed" in caught.value.message
    assert CHECKPOINT_FAILURES._value.get() - failures == number
    assert found(engine) == min(50 * number + 4, 1000)
    checkpointer._connection.fail_on = None
    checkpointer.run_once()
    write(engine, "after")
    engine.close()


def test_the_log_starts_over_while_writes_go_on(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_SHORT_LOG", 0)
    engine = failing_engine(settings, monkeypatch)
    checkpointer = engine._checkpointer
    assert checkpointer is not None
    checkpoint, images = checkpointer._checkpoint_with_reserve, iter(range(100))

    def checkpoint_and_write() -> tuple[int, int]:
        done = checkpoint()
        write(engine, f"meanwhile{next(images)}", regions=10)
        return done

    monkeypatch.setattr(checkpointer, "_checkpoint_with_reserve", checkpoint_and_write)
    sizes = []
    for number in range(30):
        write(engine, f"image{number}", regions=10)
        checkpointer.run_once()
        sizes.append(engine._database.log_bytes())
    assert max(sizes) < 600_000
    engine.close()
    assert not engine._database.log_bytes()


def test_a_write_whose_synchronisation_failed_says_that_its_outcome_is_unknown(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = failing_engine(settings, monkeypatch)
    engine._database.writer.fail_on = "COMMIT"
    with pytest.raises(RegionSearchError, match="known only after a restart"):
        write(engine, "image")
    engine.close()


def test_a_record_file_that_is_moved_away_is_noticed(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = failing_engine(settings, monkeypatch)
    checkpointer = engine._checkpointer
    assert checkpointer is not None
    path = settings.folder / FILE_NAME
    path.rename(settings.folder / "moved")
    assert kind_of(checkpointer.run_once) is Kind.FAILED_PRECONDITION
    assert kind_of(lambda: write(engine, "image")) is Kind.FAILED_PRECONDITION
    engine.close()


KILLED = """
import sys
from pathlib import Path
from services.searcher.embedded.store import checkpoints
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.conftest import MODEL
from tests.searcher.test_store_faults import write
checkpoints._PERIOD_S = 1e6
engine = EmbeddedEngine(EmbeddedSettings(folder=Path(sys.argv[1])))
engine.create_collection(Collection("default", MODEL))
engine._checkpointer.run_once()
write(engine, "image")
print("WRITTEN", flush=True)
sys.stdin.read()
"""


def killed(folder: Path) -> None:
    """A searcher that has answered a write and was killed before its log was folded."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "WRITTEN\n" in process.stdout
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_read_only_folder_with_the_log_of_a_killed_searcher_names_the_remedy(tmp_path: Path) -> None:
    killed(tmp_path)
    index = tmp_path / f"{FILE_NAME}-shm"
    index.unlink()
    index.symlink_to(tmp_path / "missing" / "folder")  # nobody can create it, not even root
    settings = EmbeddedSettings(folder=tmp_path)
    with pytest.raises(RegionSearchError, match="start a searcher that may write") as caught:
        EmbeddedEngine(settings.model_copy(update={"read_only": True}))
    assert caught.value.kind is Kind.FAILED_PRECONDITION
    index.unlink()
    EmbeddedEngine(settings).close()
    engine = EmbeddedEngine(settings.model_copy(update={"read_only": True}))
    assert found(engine) == 4
    engine.close()


def test_a_log_that_vanished_after_a_crash_is_noticed(tmp_path: Path) -> None:
    killed(tmp_path)
    log = tmp_path / f"{FILE_NAME}-wal"
    log.rename(tmp_path / "kept")
    (tmp_path / f"{FILE_NAME}-shm").unlink()
    settings = EmbeddedSettings(folder=tmp_path)
    for read_only in (False, True):
        with pytest.raises(RegionSearchError, match="-wal is missing") as caught:
            EmbeddedEngine(settings.model_copy(update={"read_only": read_only}))
        assert caught.value.kind is Kind.DATA_LOSS
    for left in tmp_path.glob(f"{FILE_NAME}-[ws][ah][lm]"):
        left.unlink()
    (tmp_path / "kept").rename(log)
    engine = EmbeddedEngine(settings)
    assert found(engine) == 4
    engine.close()
    shutil.copy(tmp_path / FILE_NAME, tmp_path / "older")
    engine = EmbeddedEngine(settings)
    write(engine, "more")
    engine.close()
    shutil.copy(tmp_path / "older", tmp_path / FILE_NAME)
    assert kind_of(lambda: EmbeddedEngine(settings)) is Kind.DATA_LOSS
    (tmp_path / f"{FILE_NAME}-seq").unlink()
    engine = EmbeddedEngine(settings)
    assert found(engine) == 4
    engine.close()


def test_failing_maintenance_is_logged_once_and_backs_off(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maintenance, "_PERIOD_S", 0.01)
    tries: list[float] = []

    def full() -> None:
        tries.append(1)
        raise RegionSearchError(Kind.STORAGE_FULL, "no space")

    engine = EmbeddedEngine(settings)
    monkeypatch.setattr(engine._maintenance, "run_once", full)
    while len(tries) < 4:
        time.sleep(0.01)
    engine.close()
    assert capsys.readouterr().out.count("maintenance waits") == 1
    backoff, said = Backoff(1.0), LogThrottle()
    for _ in range(20):
        backoff.failed()
    assert backoff.delay_s == 60.0
    backoff.succeeded()
    assert backoff.delay_s == 1.0
    assert [said.due(text) for text in ("a", "b", "a")] == [True, True, False]
    said.reset()
    assert said.due("a")
