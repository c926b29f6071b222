"""Any order of writes, deletions, searches, pages, snapshots and restarts against the oracle."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import engine as engine_module
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import (
    Collection,
    Deletion,
    Filter,
    Level,
    ModelIdentity,
    Query,
    Record,
    StoredImage,
    Upsert,
)
from tests.searcher.fake_gpu import FakeDevice
from tests.searcher.oracle import Oracle

DIMENSION = 4
MODEL = ModelIdentity("open_clip", "test", "digest", DIMENSION)
IMAGES = [f"image{i}" for i in range(6)]
TAGS = ["red", "green", "blue"]
# Few directions, so that equal scores and equal vectors are common.
DIRECTIONS = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [-1, 0, 2, 0], [3, 1, 0, 0], [30, 11, 0, 1]], np.float32
)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)

directions = st.integers(0, len(DIRECTIONS) - 1)
some_images = st.lists(st.sampled_from(IMAGES), unique=True, max_size=3).map(tuple)
some_tags = st.lists(st.sampled_from(TAGS), unique=True, max_size=2).map(tuple)
some_records = st.lists(
    st.builds(lambda i, n: f"{i}-{n}", st.sampled_from(IMAGES), st.integers(0, 4)), unique=True, max_size=3
).map(tuple)
attributes = st.dictionaries(st.sampled_from(["kind", "room"]), st.sampled_from(["a", "b"]), max_size=2)
maybe = st.none() | st.integers(0, 4)

filters = st.builds(
    Filter,
    image_ids=st.just(()) | some_images,
    exclude_image_ids=st.just(()) | some_images,
    record_ids=st.just(()) | some_records,
    exclude_record_ids=st.just(()) | some_records,
    tags=st.just(()) | some_tags,
    exclude_tags=st.just(()) | some_tags,
    min_area=maybe,
    max_area=maybe,
    min_predicted_iou=st.none() | st.sampled_from([0.0, 0.5, 0.9]),
    attributes=attributes.map(lambda found: tuple(sorted(found.items()))),
)
plain_filters = st.just(Filter()) | filters


@st.composite
def upserts(draw) -> Upsert:
    ids = draw(st.lists(st.sampled_from(IMAGES), unique=True, min_size=1, max_size=2))
    images, records, chosen = [], [], []
    for image_id in ids:
        images.append(StoredImage(image_id, tags=draw(some_tags), attributes=draw(attributes)))
        for number in range(draw(st.integers(0, 5))):
            level = Level.REGION if number else draw(st.sampled_from(Level))
            records.append(
                Record(
                    f"{image_id}-{number}",
                    image_id,
                    level,
                    area=number,
                    predicted_iou=draw(st.sampled_from([0.25, 0.5, 1.0])),
                    attributes=draw(st.just({}) | attributes),
                )
            )
            chosen.append(draw(directions))
    vectors = DIRECTIONS[np.array(chosen, np.intp)]
    return Upsert(images, records, vectors, draw(st.booleans()))


@st.composite
def queries(draw) -> Query:
    vectors = DIRECTIONS[np.array(draw(st.lists(directions, min_size=1, max_size=2)), np.intp)]
    negatives = DIRECTIONS[np.array(draw(st.just([]) | st.lists(directions, max_size=2)), np.intp)]
    return Query(
        vectors=vectors,
        negatives=negatives,
        level=draw(st.none() | st.sampled_from(Level)),
        filter=draw(plain_filters),
        min_score=draw(st.none() | st.sampled_from([0.0, 0.5, 0.9])),
        min_relevancy=draw(st.sampled_from([0.0, 0.5, 0.9])),
        relative_cutoff=draw(st.none() | st.sampled_from([0.0, 0.5, 1.0])),
        group_by_image=draw(st.booleans()),
        whole_image_margin=draw(st.sampled_from([0.0, 0.02, 0.5])),
        limit=draw(st.integers(1, 5)),
    )


class SearcherMachine(RuleBasedStateMachine):
    """Also checks, after every step, that counts agree."""

    pages = Bundle("pages")

    @initialize(keep=st.booleans())
    def begin(self, keep: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.keeps_states = keep
        self.settings = EmbeddedSettings(
            folder=self.folder,
            chunk_rows=4,
            gpu_rows=8,
            page_ttl_s=1000.0 if keep else 0.0,
            check_at_start=False,
        )
        self.engine = EmbeddedEngine(self.settings)
        self.engine.create_collection(Collection("c", MODEL))
        self.oracle = Oracle()
        self.snapshots: dict[str, Oracle] = {}
        self.shaken = 0  # times that old states may have been forgotten

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            shutil.rmtree(self.folder)

    @rule(write=upserts())
    def upsert(self, write: Upsert) -> None:
        known = self.engine.upsert("c", MODEL, write)
        assert list(known.skipped) == self.oracle.upsert(write)

    @rule(image=st.sampled_from(IMAGES), number=st.integers(0, 7), direction=directions)
    def add_record(self, image: str, number: int, direction: int) -> None:
        record = Record(f"{image}-{number}", image, Level.REGION, area=number)
        write = Upsert([], [record], DIRECTIONS[direction : direction + 1])
        if image in self.oracle.images:
            self.engine.upsert("c", MODEL, write)
            self.oracle.upsert(write)
        else:
            with pytest.raises(RegionSearchError) as caught:
                self.engine.upsert("c", MODEL, write)
            assert caught.value.kind is Kind.INVALID_ARGUMENT

    @rule(images=some_images, records=some_records)
    def delete(self, images, records) -> None:
        self.engine.delete("c", Deletion(images, records))
        self.oracle.delete_records(records, drop_empty=False)
        self.oracle.delete_images(images)

    @rule(wanted=filters)
    def delete_by_filter(self, wanted: Filter) -> None:
        if wanted == Filter():
            return
        gone = [record.record_id for _, record, _ in self.oracle.passing(wanted)]
        answer = self.engine.delete("c", Deletion(filter=wanted))
        assert answer.record_count == len(gone)
        self.oracle.delete_records(gone, drop_empty=True)

    @rule(target=pages, query=queries())
    def search(self, query: Query):
        (page,) = self.engine.search("c", MODEL, [query])
        ranking = self.oracle.search(query)
        check_page(page, ranking, 0, query.limit)
        if not page.more:
            return None
        following = Query(
            **{name: getattr(query, name) for name in query.__slots__ if name not in ("seq", "after", "skipped")},
            seq=page.seq,
            after=page.hits[-1].position,
            skipped=len(page.hits),
        )
        return following, ranking, self.shaken

    @rule(target=pages, page=pages)
    def turn_the_page(self, page):
        if page is None:
            return None
        query, ranking, shaken = page
        try:
            (found,) = self.engine.search("c", MODEL, [query])
        except RegionSearchError as error:
            assert error.kind is Kind.ABORTED
            assert shaken < self.shaken
            return None
        check_page(found, ranking, query.skipped, query.limit)
        if not found.more:
            return None
        following = Query(
            **{name: getattr(query, name) for name in query.__slots__ if name not in ("after", "skipped")},
            after=found.hits[-1].position,
            skipped=query.skipped + len(found.hits),
        )
        return following, ranking, shaken

    @rule()
    def keep_up(self) -> None:
        self.engine.keep_up()
        self.shaken += not self.keeps_states

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.engine = EmbeddedEngine(self.settings)
        self.shaken += 1

    @rule(name=st.sampled_from(["one", "two"]))
    def snapshot(self, name: str) -> None:
        if name not in self.snapshots:
            self.engine.snapshot(name)
            self.snapshots[name] = self.oracle.copy()

    @rule(name=st.sampled_from(["one", "two"]))
    def restore(self, name: str) -> None:
        if name in self.snapshots:
            self.engine.restore(name)
            self.oracle = self.snapshots[name].copy()
            self.shaken += 1

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "engine"):
            return
        collection = self.engine.get_collection("c")
        entries = self.oracle.images.values()
        assert collection.image_count == len(self.oracle.images)
        assert collection.record_count == sum(len(entry.records) for entry in entries)
        (stats,) = self.engine.stats("c")
        assert sum(segment.record_count for segment in stats.segments) == collection.record_count
        listed = {image.image_id: image for image in self.engine.list_images("c", 100, None).images}
        assert set(listed) == set(self.oracle.images)
        for image_id, entry in self.oracle.images.items():
            regions = [r for r, _ in entry.records.values() if r.level == Level.REGION]
            assert listed[image_id].region_count == len(regions)
            assert set(listed[image_id].tags) == set(entry.image.tags)


def check_page(page, ranking, skipped: int, limit: int) -> None:
    expected = ranking[skipped : skipped + limit]
    got = [
        (hit.rank, hit.score, hit.record.record_id, hit.query_index, hit.best_region and hit.best_region.record.record_id)
        for hit in page.hits
    ]
    wanted = [
        (rank, item.score, item.record_id, item.query_index, item.best_region)
        for rank, item in enumerate(expected, skipped + 1)
    ]
    assert got == wanted
    assert page.more == (len(ranking) > skipped + limit)


def test_exact_segments_answer_as_the_oracle() -> None:
    run_state_machine_as_test(SearcherMachine, settings=machine_settings(40))


def test_gpu_segments_answer_as_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_device", lambda settings: FakeDevice())
    run_state_machine_as_test(SearcherMachine, settings=machine_settings(20))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("gpu", [False, True], ids=["flat", "gpu"])
def test_long_histories(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    if gpu:
        monkeypatch.setattr(engine_module, "_device", lambda settings: FakeDevice())
    run_state_machine_as_test(SearcherMachine, settings=machine_settings(1000, steps=80))


def machine_settings(examples: int, steps: int = 40) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
