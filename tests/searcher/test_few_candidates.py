"""The oracle's answers, where a ranking has hardly any candidates to spare and nearly everything ties."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.searcher import ranking
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index import approximate, inverted_lists
from services.searcher.embedded.queries import candidate_source, tie_order
from services.searcher.queries import Deletion, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, Level, Record, StoredImage, Upsert
from tests.searcher.oracle import Oracle
from tests.searcher.random_ops import MODEL, check_page, following, some_filter, some_query, some_upsert


@pytest.fixture(autouse=True)
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_SPARE", 0)
    monkeypatch.setattr(tie_order, "_BLOCK", 3)
    for module in (tie_order, candidate_source):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(approximate, "_GATHER_ROWS", 0)
    monkeypatch.setattr(inverted_lists, "_BROAD_ROWS", 0)
    monkeypatch.setattr(inverted_lists, "_GATHER", np.inf)


def walked(folder: Path, seed: int, **fields: object):
    """An engine and its oracle after each of some writes and deletions, with queries to compare."""
    rng, oracle = random.Random(seed), Oracle()
    engine = EmbeddedEngine(EmbeddedSettings(folder=folder, **fields))
    engine.create_collection(Collection("c", MODEL))
    for turn in range(8):
        write = some_upsert(rng)
        engine.upsert("c", MODEL, write)
        oracle.upsert(write)
        if turn % 3 == 2:
            wanted = some_filter(rng, least=1)
            gone = [record.record_id for _, record, _ in oracle.passing(wanted)]
            engine.delete("c", Deletion(filter=wanted))
            oracle.delete_records(gone, drop_empty=True)
        if turn % 4 == 1:
            engine.run_maintenance()
        yield engine, oracle, [some_query(rng) for _ in range(8)]
    engine.close()


def pages_are_right(engine: EmbeddedEngine, oracle: Oracle, query: Query) -> None:
    ranked, skipped = oracle.search(query), 0
    while True:
        (page,) = engine.search("c", MODEL, [query])
        check_page(page, ranked, skipped, query.limit)
        if not page.more:
            return
        skipped += len(page.hits)
        query = following(query, page)


@pytest.mark.parametrize("seed", [105, 116, 607, 1, 2])
def test_pages_of_few_candidates_match_the_oracle(tmp_path: Path, seed: int) -> None:
    for engine, oracle, queries in walked(tmp_path, seed, chunk_rows=random.Random(seed).choice([4, 7, 64])):
        for query in queries:
            pages_are_right(engine, oracle, query)


@pytest.mark.parametrize("seed", [3, 4])
def test_exact_pages_of_an_approximate_index_match_the_oracle(tmp_path: Path, seed: int) -> None:
    for engine, oracle, queries in walked(tmp_path, seed, chunk_rows=4, ann_above=1, ann_rows=8):
        for query in queries:
            pages_are_right(engine, oracle, replace(query, effort=np.inf))


@pytest.mark.parametrize("seed", [5, 6])
def test_pages_of_an_approximate_index_hold_every_hit_once(tmp_path: Path, seed: int) -> None:
    nothing = np.empty((0, 4), np.float32)
    for engine, oracle, queries in walked(
        tmp_path, seed, chunk_rows=4, ann_above=1, ann_rows=16, recall_target=0.3
    ):
        for query in queries:
            asked = query = replace(query, negatives=nothing, relative_cutoff=None)
            seen: list[str] = []
            while True:
                (page,) = engine.search("c", MODEL, [asked])
                seen += [hit.record.record_id for hit in page.hits]
                if not page.more:
                    break
                asked = following(asked, page)
            assert sorted(seen) == sorted(hit.record_id for hit in oracle.search(query))


def test_a_region_that_stands_for_its_image_is_the_first_of_those_that_tie(tmp_path: Path) -> None:
    """The whole image ties with its regions and is not a hit; each region is best for another query."""
    queries = np.eye(4, dtype=np.float32)[:2]
    engine, oracle = EmbeddedEngine(EmbeddedSettings(folder=tmp_path, chunk_rows=7)), Oracle()
    engine.create_collection(Collection("c", MODEL))
    for number in range(7):
        levels = [Level.IMAGE, *[Level.REGION] * 4]
        records = [Record(f"i{number}-{k}", f"i{number}", level) for k, level in enumerate(levels)]
        vectors = queries[[number % 2, 1, 0, 1, 0] if number % 3 else [1, 1, 1, 0, 1]]
        write = Upsert([StoredImage(f"i{number}")], records, vectors)
        engine.upsert("c", MODEL, write)
        oracle.upsert(write)
    for limit in range(1, 8):
        query = Query(queries, queries[:0], group_by_image=True, whole_image_margin=0.0, limit=limit)
        pages_are_right(engine, oracle, query)
    engine.close()
