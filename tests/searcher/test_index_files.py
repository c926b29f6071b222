"""Index files: a restart uses them, and nothing that is wrong with them changes an answer."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.searcher.embedded import planning
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.index_files import FOLDER
from services.searcher.embedded.index.segment_files import SegmentFiles
from services.searcher.queries import Deletion, Filter
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod, CodeSpec, Collection, Level, Record, Upsert
from tests.searcher.clusters import MODEL, clustered, fill, search

ROWS = 4750
KINDS = ["ivf", "codes"]


class Builds:
    """Counts the indexes that are trained or encoded, rather than read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("build_ivf", "build_codes"):
            monkeypatch.setattr(planning, name, self._counting(getattr(planning, name)))

    def _counting(self, build: Callable) -> Callable:
        def counting(*arguments):
            self.count += 1
            return build(*arguments)

        return counting


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    return Builds(monkeypatch)


def settings_of(folder: Path, **fields: object) -> EmbeddedSettings:
    return EmbeddedSettings(
        folder=folder,
        chunk_rows=500,
        ann_above=2000,
        ann_rows=1000,
        codes_rows=1000,
        page_ttl_s=0.0,
        **fields,
    )


def made(folder: Path, kind: str) -> EmbeddedEngine:
    """A collection with two fast segments, exact rows behind them, and files of both."""
    engine = EmbeddedEngine(settings_of(folder))
    engine.create_collection(Collection("c", MODEL, codes_of(kind)))
    fill_in_steps(engine, clustered(ROWS))
    assert kinds(engine) == [kind, kind, "flat", "growing"]
    assert len(files(folder)) == 2
    return engine


def fill_in_steps(engine: EmbeddedEngine, vectors: np.ndarray) -> None:
    """The second segment is too small for the first one to be merged with it."""
    for start, stop in ((0, 3000), (3000, 4000), (4000, ROWS)):
        fill(engine, vectors[start:stop], first=start)
        engine.run_maintenance()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], list]:
    """Copies what `made` makes, which is made once, into a folder; returns its answers."""
    folders, known = {}, {}

    def copy(kind: str, folder: Path) -> list:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            engine = made(folders[kind], kind)
            known[kind] = answers(engine)
            engine.close()
        shutil.copytree(folders[kind], folder, dirs_exist_ok=True)
        return known[kind]

    return copy


def codes_of(kind: str) -> CodeSpec | None:
    return CodeSpec(CodeMethod.PCA_ROTATION, 48, 20) if kind == "codes" else None


def kinds(engine: EmbeddedEngine) -> list[str]:
    return [segment.index for segment in engine.stats("c")[0].segments]


def files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).iterdir())


def answers(engine: EmbeddedEngine) -> list[list[tuple[str, float]]]:
    odd = Filter(tags=("odd",))
    return [
        [(hit.record.record_id, hit.score) for hit in search(engine, query, limit=20, filter=wanted)]
        for query in clustered(10, seed=4)
        for wanted in (Filter(), odd)
    ]


def damage(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return {
        "flipped": bytes(flipped),
        "short": data[: len(data) // 2],
        "empty": b"",
        "text": b"not an index file\n" * 99,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_from_index_files_gives_the_same_results(tmp_path, builds, kind) -> None:
    engine = made(tmp_path, kind)
    before, recalls = answers(engine), [s.recall for s in engine.stats("c")[0].segments]
    written = [path.stat().st_mtime_ns for path in files(tmp_path)]
    engine.close()
    assert builds.count == 2
    engine = EmbeddedEngine(settings_of(tmp_path))
    assert kinds(engine) == [kind, kind, "flat", "growing"]  # before any maintenance
    assert [s.recall for s in engine.stats("c")[0].segments] == recalls
    assert answers(engine) == before
    engine.run_maintenance()
    assert builds.count == 2
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == written
    fill(engine, clustered(2500, seed=9) * -1, batch=2500)  # the index goes on growing
    engine.close()


@pytest.mark.parametrize(
    ("kind", "name", "how"),
    [("codes", "vectors", "flipped")]
    + [("ivf", "rows", how) for how in (*damage(b"12"), "missing", "swapped")]
    + [("ivf", name, how) for name in ("vectors", "lists") for how in ("flipped", "missing")],
)
def test_damaged_and_missing_index_files_are_rebuilt(tmp_path, built, builds, kind, name, how) -> None:
    before, builds.count = built(kind, tmp_path), 0
    first, second = (folder / name for folder in files(tmp_path))
    if how == "missing":
        first.unlink()
    elif how == "swapped":
        first.write_bytes(second.read_bytes())
    else:
        first.write_bytes(damage(first.read_bytes())[how])
    engine = EmbeddedEngine(settings_of(tmp_path))
    assert kinds(engine)[5:7] == ["flat", kind]
    best = [row[0] for row in before]
    assert [row[0] for row in answers(engine)] == best
    engine.run_maintenance()
    assert kinds(engine) == [kind, "growing"], "the second one is small against the rows before it"
    assert builds.count == 1
    assert [row[0] for row in answers(engine)] == best
    engine.close()
    engine = EmbeddedEngine(settings_of(tmp_path))
    assert kinds(engine) == [kind, "growing"]
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_index_files_of_another_store_are_ignored(tmp_path, kind) -> None:
    """Same collection number, same keys, other vectors: only the checksums tell."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    engine = made(mine, kind)
    engine.close()
    engine = EmbeddedEngine(settings_of(other))
    engine.create_collection(Collection("c", MODEL, codes_of(kind)))
    fill_in_steps(engine, clustered(ROWS, seed=77))
    before = answers(engine)
    engine.close()
    for path in files(mine):
        shutil.rmtree(other / FOLDER / path.name)
        shutil.copytree(path, other / FOLDER / path.name)
    engine = EmbeddedEngine(settings_of(other))
    assert kind not in kinds(engine)
    engine.run_maintenance()
    assert kinds(engine) == [kind, "growing"]
    assert [row[0] for row in answers(engine)] == [row[0] for row in before]
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_deleted_since_an_index_file_was_written_are_not_found(tmp_path, builds, kind) -> None:
    engine = made(tmp_path, kind)
    gone = tuple(f"r{number}" for number in range(0, 900, 3))
    engine.delete("c", Deletion(record_ids=gone))
    before = answers(engine)
    engine.close()
    engine = EmbeddedEngine(settings_of(tmp_path))
    stats = engine.stats("c")[0]
    assert kinds(engine)[:2] == [kind, kind]
    assert (stats.record_count, stats.tombstone_count) == (ROWS - 300, 300)
    if kind == "ivf":  # with codes fewer rows reach the second pass
        assert answers(engine) == before
    vectors = clustered(ROWS)
    for number in range(0, 900, 90):
        found = search(engine, vectors[number], limit=50)
        assert not {hit.record.record_id for hit in found} & set(gone)
    assert builds.count == 2
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_snapshot_and_restore_work_with_index_files_of_other_states(tmp_path, kind) -> None:
    engine = made(tmp_path, kind)
    before = answers(engine)
    engine.snapshot("early")
    assert len(list((tmp_path / "snapshots").iterdir())) == 1
    # The same keys come again with other vectors after the restore.
    fill(engine, -clustered(ROWS, seed=5)[:3000], batch=3000)
    engine.run_maintenance()
    engine.restore("early")
    assert answers(engine) == before
    records = [Record(f"x{i}", "image0", Level.REGION) for i in range(3000)]
    engine.upsert("c", MODEL, Upsert([], records, clustered(3000, seed=6)))
    engine.run_maintenance()
    after = answers(engine)
    engine.close()
    engine = EmbeddedEngine(settings_of(tmp_path))
    assert answers(engine) == after
    engine.close()


def test_index_files_are_deleted_with_their_segments(tmp_path) -> None:
    engine = made(tmp_path, "ivf")
    engine.delete("c", Deletion(filter=Filter(tags=("even",))))
    for _ in range(2):
        engine.run_maintenance()
    ranges = [tuple(map(int, path.stem.split("-")[1:])) for path in files(tmp_path)]
    views = engine._collections.find("c").index.state.views
    held = [view.segment.columns for view in views if view.segment.kind == "ivf"]
    assert sorted(ranges) == [(int(c.record_rowid[0]), int(c.record_rowid[c.used - 1])) for c in held]
    engine.delete_collection("c")
    engine.run_maintenance()
    assert files(tmp_path) == []
    engine.close()


def test_a_changed_recall_target_or_threshold_applies_to_restored_indexes(tmp_path) -> None:
    engine = made(tmp_path, "ivf")
    recall = min(s.recall for s in engine.stats("c")[0].segments if s.recall is not None)
    engine.close()
    exact = settings_of(tmp_path).model_copy(update={"ann_above": 1_000_000})
    engine = EmbeddedEngine(exact)
    assert "ivf" not in kinds(engine)
    engine.close()
    if recall < 1.0:
        engine = EmbeddedEngine(settings_of(tmp_path, recall_target=1.0))
        assert kinds(engine).count("ivf") == 2
        engine.run_maintenance()
        assert min(s.recall for s in engine.stats("c")[0].segments if s.index == "ivf") >= 0.99
        engine.close()


@pytest.mark.parametrize(("method", "kind"), [("write_rows", "ivf"), ("write_vectors", "flat")])
def test_an_index_that_cannot_be_written_costs_no_answer(tmp_path, monkeypatch, method, kind) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentFiles, method, refuse)
    engine = EmbeddedEngine(settings_of(tmp_path))
    engine.create_collection(Collection("c", MODEL))
    fill(engine, clustered(3000))
    with contextlib.suppress(OSError):
        engine.run_maintenance()
    assert kinds(engine)[0] == kind
    assert files(tmp_path) == []
    vectors = clustered(3000)
    assert [search(engine, query)[0].record.record_id for query in vectors[:5]] == [f"r{i}" for i in range(5)]
    engine.close()


def test_read_only_searchers_use_index_files_and_change_none(tmp_path) -> None:
    engine = made(tmp_path, "ivf")
    before = answers(engine)
    engine.close()
    engine = EmbeddedEngine(settings_of(tmp_path, read_only=True))
    assert kinds(engine) == ["ivf", "ivf", "flat", "growing"]
    assert answers(engine) == before
    engine.close()
    assert len(files(tmp_path)) == 2
