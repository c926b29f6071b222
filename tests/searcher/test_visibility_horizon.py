"""A search sees one state until it is answered, whatever is written, forgotten or deleted meanwhile."""

from __future__ import annotations

import threading

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.queries import filter_compiler
from services.searcher.embedded.store.visibility import VisibilityHorizon
from services.searcher.queries import Filter
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection
from tests.searcher.conftest import MODEL, unit_vectors
from tests.searcher.test_store_faults import NOTHING, Query, write


@pytest.fixture
def engine(tmp_path):
    made = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=32, page_ttl_s=0.0))
    made.create_collection(Collection("default", MODEL))
    yield made
    made.close()


def ids(engine: EmbeddedEngine, **fields: object) -> list[str]:
    query = Query(unit_vectors(1), NOTHING, limit=100, **fields)
    return sorted(hit.record.record_id for hit in engine.search("default", MODEL, [query])[0].hits)


def test_a_search_finds_rows_replaced_and_vacuumed_before_its_filter_is_compiled(engine, monkeypatch) -> None:
    write(engine, "image", regions=3)
    real = filter_compiler.compile_filter

    def late(*arguments):
        write(engine, "image", regions=1)
        engine.run_maintenance()
        return real(*arguments)

    monkeypatch.setattr(filter_compiler, "compile_filter", late)
    assert len(ids(engine, filter=Filter(image_ids=("image",)))) == 3
    monkeypatch.undo()
    engine.run_maintenance()
    assert len(ids(engine)) == 1
    assert engine._database.writer.execute("SELECT COUNT(*) FROM record").fetchone() == (1,), "let go"


def test_a_search_of_a_collection_that_is_being_deleted_is_answered(engine, monkeypatch) -> None:
    write(engine, "image", regions=3)
    real = SearchThreads.submit

    def then_delete(self, *arguments, **options):
        found = real(self, *arguments, **options)
        [one.result() for one in found]
        engine.delete_collection("default")
        for _ in range(2):
            engine.run_maintenance()
        return found

    monkeypatch.setattr(SearchThreads, "submit", then_delete)
    assert len(ids(engine)) == 3
    with pytest.raises(RegionSearchError) as caught:
        ids(engine)
    assert caught.value.kind is Kind.NOT_FOUND
    for _ in range(2):
        engine.run_maintenance()
    for table in ("collection", "image", "record", "vector"):
        assert engine._database.writer.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)


def test_a_collection_created_while_its_namesake_is_deleted_exists(engine, monkeypatch) -> None:
    making = threading.Thread(target=lambda: engine.create_collection(Collection("default", MODEL)))
    submit = engine._committer.submit

    class Slow:
        def __init__(self, future):
            self.future = future

        def result(self):
            self.future.result()
            monkeypatch.undo()
            making.start()
            making.join(0.2)  # were they not kept apart, it would be made now

    monkeypatch.setattr(engine._committer, "submit", lambda *a, **k: Slow(submit(*a, **k)))
    engine.delete_collection("default")
    making.join()
    write(engine, "image")
    assert len(ids(engine)) == 4


def test_a_collection_whose_deletion_fails_stays(engine) -> None:
    write(engine, "image")
    engine._committer.refuse(RegionSearchError(Kind.FAILED_PRECONDITION, "no more writes"))
    with pytest.raises(RegionSearchError):
        engine.delete_collection("default")
    assert len(ids(engine)) == 4


def test_the_horizon_follows_the_oldest_search_and_never_goes_back() -> None:
    present = 5
    horizon = VisibilityHorizon(0.0, lambda: present)
    with horizon.holding() as seq:
        assert seq == 5
        present = 7
        horizon.advance()
        assert horizon.seq == 5
        with horizon.holding([6]):
            pass
    horizon.advance()
    assert horizon.seq == 7
    for pinned in (6, 8):
        with pytest.raises(RegionSearchError) as caught, horizon.holding([pinned]):
            pass
        assert caught.value.kind is Kind.ABORTED
    present = 3
    horizon.advance()
    assert horizon.seq == 7
