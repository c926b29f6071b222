"""Any order of writes, deletions, searches, pages, snapshots and restarts against the oracle."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import open_store as engine_module
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Deletion
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, Level, Record, Upsert
from tests.searcher.fake_gpu import FakeDevice
from tests.searcher.oracle import Oracle
from tests.searcher.random_ops import (
    IMAGES,
    LIMITS,
    MODEL,
    check_page,
    following,
    some,
    some_filter,
    some_query,
    some_update,
    some_upsert,
    some_vectors,
)

MEMORY = Path("/dev/shm")  # this is about order, not about power loss
# One draw a step keeps Hypothesis fast; what it chooses and shrinks are the steps.
seeds = st.integers(0, 2**32 - 1).map(random.Random)


class SearcherMachine(RuleBasedStateMachine):
    """Also checks, after every step, that counts agree."""

    @initialize(keep=st.booleans(), rng=seeds)
    def begin(self, keep: bool, rng: random.Random) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
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
        self.pages: list = []  # query of the next page, whole ranking, how shaken things were
        self.shaken = 0  # times that old states may have been forgotten
        for _ in range(4):
            self.write(some_upsert(rng))

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            shutil.rmtree(self.folder)

    @rule(rng=seeds)
    def upsert(self, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 3)):
            self.write(some_upsert(rng))

    def write(self, write: Upsert) -> None:
        known = self.engine.upsert("c", MODEL, write)
        assert list(known.skipped) == self.oracle.upsert(write)

    @rule(rng=seeds)
    def add_record(self, rng: random.Random) -> None:
        image, number = rng.choice(IMAGES), rng.randint(0, 7)
        record = Record(f"{image}-{number}", image, Level.REGION, area=number)
        write = Upsert([], [record], some_vectors(rng, 1, 1))
        if image in self.oracle.images:
            self.engine.upsert("c", MODEL, write)
            self.oracle.upsert(write)
        else:
            with pytest.raises(RegionSearchError) as caught:
                self.engine.upsert("c", MODEL, write)
            assert caught.value.kind is Kind.INVALID_ARGUMENT

    @rule(rng=seeds)
    def describe(self, rng: random.Random) -> None:
        update = some_update(rng)
        changed = self.oracle.update(update)
        found = self.engine.update_images("c", [update], LIMITS).images
        assert [(i.name, i.tags, i.attributes) for i in found] == (
            [] if changed is None else [(changed.name, changed.tags, changed.attributes)]
        )
        # Later pages of an earlier search filter by what is said now.
        self.pages = [
            page
            for page in self.pages
            if not (page[0].filter.tags or page[0].filter.exclude_tags or page[0].filter.attributes)
        ]

    @rule(rng=seeds)
    def delete(self, rng: random.Random) -> None:
        images = some(rng, IMAGES, 2) if rng.random() < 0.5 else ()
        records = some(rng, [f"{image}-{number}" for image in IMAGES for number in range(5)], 8)
        self.engine.delete("c", Deletion(images, records))
        self.oracle.delete_records(records, drop_empty=False)
        self.oracle.delete_images(images)

    @rule(rng=seeds)
    def delete_by_filter(self, rng: random.Random) -> None:
        wanted = some_filter(rng, least=1)
        gone = [record.record_id for _, record, _ in self.oracle.passing(wanted)]
        answer = self.engine.delete("c", Deletion(filter=wanted))
        assert answer.record_count == len(gone)
        self.oracle.delete_records(gone, drop_empty=True)

    @rule(rng=seeds)
    def search(self, rng: random.Random) -> None:
        asked = [some_query(rng) for _ in range(8)]
        found = self.engine.search("c", MODEL, asked)
        for query, page in zip(asked, found, strict=True):
            ranking = self.oracle.search(query)
            check_page(page, ranking, 0, query.limit)
            if page.more:
                self.pages.append((following(query, page), ranking, self.shaken))

    @precondition(lambda self: getattr(self, "pages", None))
    @rule()
    def turn_the_pages(self) -> None:
        turned, self.pages = self.pages, []
        for query, ranking, shaken in turned:
            try:
                (page,) = self.engine.search("c", MODEL, [query])
            except RegionSearchError as error:
                assert error.kind is Kind.ABORTED  # noqa: PT017  # both ways are right, at their time
                assert shaken < self.shaken
            else:
                check_page(page, ranking, query.skipped, query.limit)
                if page.more:
                    self.pages.append((following(query, page), ranking, shaken))

    @rule()
    def run_maintenance(self) -> None:
        self.engine.run_maintenance()
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
            assert listed[image_id].attributes == entry.image.attributes


def test_random_histories_on_exact_segments_match_the_oracle() -> None:
    run_state_machine_as_test(SearcherMachine, settings=machine_settings(30))


def test_random_histories_on_gpu_segments_match_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "choose_device", lambda settings: FakeDevice())
    run_state_machine_as_test(SearcherMachine, settings=machine_settings(12))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("gpu", [False, True], ids=["flat", "gpu"])
def test_long_random_histories_match_the_oracle(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    if gpu:
        monkeypatch.setattr(engine_module, "choose_device", lambda settings: FakeDevice())
    run_state_machine_as_test(SearcherMachine, settings=machine_settings(1000, steps=80))


def machine_settings(examples: int, steps: int = 40) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
