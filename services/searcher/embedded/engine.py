"""The embedded engine: joins the record store (SQLite) and one index for each collection."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.texts import MetadataLimits
from services.searcher.bounded_executor import NEVER_CANCELLED, CancellationToken
from services.searcher.embedded import deletions, snapshots
from services.searcher.embedded.change_feed import ChangeFeed
from services.searcher.embedded.collection_names import CollectionNames
from services.searcher.embedded.faiss_compat import faiss
from services.searcher.embedded.index.binary import Codec, train_codec, training_sample
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.open_collections import statistics
from services.searcher.embedded.queries import result_pages, scrolling
from services.searcher.embedded.rows import Change
from services.searcher.embedded.store import changes, collection_rows, reads, writes
from services.searcher.embedded.store.database import UNFINISHED
from services.searcher.engine import SearchCall, attempt, never_acknowledged, upsert_patiently
from services.searcher.queries import (
    NO_FILTER,
    Deletion,
    Filter,
    ImageUpdate,
    Page,
    Query,
    UpdateResult,
)
from services.searcher.response_budget import UNLIMITED, ResponseBudget
from services.searcher.scrolling import NEWEST_FIRST, Counts, Facet, ImageOrder, RecordPage, Scroll
from services.searcher.types import (
    CodeSpec,
    Collection,
    CollectionStats,
    DeleteResult,
    ImagePage,
    ImagePlace,
    Level,
    ModelIdentity,
    SnapshotFile,
    SnapshotInfo,
    Stored,
    StorePosition,
    Upsert,
    UpsertResult,
    check_bits,
    check_generation,
    check_model,
)

P = ParamSpec("P")
T = TypeVar("T")

_LEAST_TRAINING_ROWS = 64


def _follows_its_name(
    write: Callable[Concatenate[EmbeddedEngine, str, P], T],
) -> Callable[Concatenate[EmbeddedEngine, str, P], T]:
    """Does a write again where its collection's name was given to another collection while it waited."""

    @functools.wraps(write)
    def follow(engine: EmbeddedEngine, name: str, /, *args: P.args, **options: P.kwargs) -> T:
        while True:
            engine.holds.wait(name)
            try:
                return write(engine, name, *args, **options)
            except collection_rows.RenamedError:
                engine.await_names()

    return follow


class EmbeddedEngine(CollectionNames):
    """Everything in this process: SQLite is the source of truth, the indexes in memory follow from it.

    What its methods do stands in `Engine`.
    """

    together = 32

    @_follows_its_name
    def train_codes(self, name: str, spec: CodeSpec) -> Collection:
        self._reserve_file.require(self._database.log_bytes())  # which the record file may grow by
        with self._restore_lock.shared():
            collection = self._collections.find_searchable(name)
            dimension = collection.spec.model.dimension
            check_bits(spec.method, spec.bits, dimension)
            segments = [view.segment for view in collection.index.state.views]
            rows = CompactionInput(segments, self._committer.seq)
            least = max(_LEAST_TRAINING_ROWS, min(spec.bits, dimension))
            if len(rows) < least:
                raise RegionSearchError(
                    Kind.FAILED_PRECONDITION,
                    f"collection {name!r} has {len(rows)} records; {spec.bits}-bit codes are trained on "
                    f"{least} or more: add images first",
                    field="collection",
                )
            faiss.omp_set_num_threads(self._settings.build_threads)  # of this thread; searches keep theirs
            codec = train_codec(spec, training_sample(rows))

            def operation(connection: sqlite3.Connection) -> tuple[None, None]:
                collection_rows.require_collection(connection, collection.rowid, name)
                trained = replace(spec, trained_seq=collection_rows.next_seq(connection))
                described = replace(collection.spec, codes=trained)
                collection_rows.describe_collection(connection, collection.rowid, described, codec.to_bytes())
                collection.spec, collection.codec = described, codec  # before maintenance stores another one
                return None, None

            with self._naming:
                before = collection.spec, collection.codec
                try:
                    self._committer.submit(operation, alone=True).result()
                except BaseException:
                    collection.spec, collection.codec = before
                    raise
        return self.get_collection(name)

    # Writing

    @_follows_its_name
    def upsert(
        self, name: str, model: ModelIdentity, write: Upsert, generation: str | None = None
    ) -> UpsertResult:
        def operation(connection: sqlite3.Connection) -> tuple[UpsertResult, Change]:
            seq = collection_rows.next_seq(connection)
            collection_rows.require_collection(connection, collection.rowid, name)
            return writes.upsert(connection, collection.rowid, write, seq)

        self._reserve_file.require(self._database.log_bytes())  # which the record file may grow by
        with self._restore_lock.shared():
            collection = self._collections.find_searchable(name, generation)
            check_model(name, collection.spec.model, model)
            self._planner.check_backlog(collection)
            done = self._committer.submit(operation, cost=len(write.records)).result()
            return replace(done, generation=self._collections.generation(collection))

    @_follows_its_name
    def update_images(
        self, name: str, updates: Sequence[ImageUpdate], limits: MetadataLimits
    ) -> UpdateResult:
        def operation(connection: sqlite3.Connection) -> tuple[UpdateResult, Change | None]:
            collection_rows.require_collection(connection, collection.rowid, name)
            last = reads.last_seq(connection)
            images, changed = writes.update_images(connection, collection.rowid, updates, limits, last + 1)
            if not changed:
                return UpdateResult(last, images), None
            seq = collection_rows.next_seq(connection)
            return UpdateResult(seq, images), Change(collection.rowid, seq, described=True)

        self._reserve_file.require(self._database.log_bytes())  # which the record file may grow by
        with self._restore_lock.shared():
            collection = self._collections.find(name)
            return self._committer.submit(operation, cost=len(updates)).result()

    @_follows_its_name
    def delete(self, name: str, deletion: Deletion) -> DeleteResult:
        with self._restore_lock.shared():
            found = self._collections
            collection = found.find(name) if deletion.filter is None else found.find_searchable(name)
            return deletions.delete(collection, name, deletion, self._committer, self._reserve_file)

    # Reading

    def search(
        self,
        name: str,
        model: ModelIdentity,
        queries: Sequence[Query],
        min_seq: int | None = None,
        cancellation: CancellationToken = NEVER_CANCELLED,
        budget: ResponseBudget = UNLIMITED,
    ) -> list[Page]:
        call = SearchCall(model, queries, min_seq, cancellation, budget)
        [found] = self.search_together(name, [call])
        if isinstance(found, Exception):
            raise found
        return found

    def search_together(self, name: str, calls: Sequence[SearchCall]) -> Iterator[list[Page] | Exception]:
        # Held before the collection is looked up: should it be deleted from now on, its rows stay.
        with (
            self._restore_lock.shared(),
            self._horizon.holding() as present,
            contextlib.ExitStack() as held,
        ):
            collection = self._collections.find_searchable(name)
            generation = self._collections.generation(collection)

            def begin(call: SearchCall) -> list[result_pages.Source]:
                held.enter_context(self._horizon.holding(self._pinned(call.queries)))
                for query in call.queries:
                    check_generation(name, generation, query.generation)
                check_model(name, collection.spec.model, call.model)
                self._check_acknowledged(call.min_seq, present)
                return result_pages.sources(self._database, self._search, collection, call, present)

            begun = [attempt(partial(begin, call)) for call in calls]
            found = [sources for sources in begun if not isinstance(sources, Exception)]
            result_pages.ask(self._search, collection, found)
            for call, sources in zip(calls, begun, strict=True):
                if isinstance(sources, Exception):
                    yield sources
                else:
                    yield attempt(partial(result_pages.pages, self._database, call, sources, generation))

    def _pinned(self, queries: Sequence[Query]) -> list[int]:
        """The writes whose states are searched, where it is not the present one."""
        return [query.seq for query in queries if query.seq is not None]

    def get_records(
        self,
        name: str,
        record_ids: Sequence[str],
        image_ids: Sequence[str],
        *,
        masks: bool,
        vectors: bool,
        images_only: bool = False,
        budget: ResponseBudget = UNLIMITED,
    ) -> Stored:
        with self._restore_lock.shared():
            collection = self._collections.find(name)
            return result_pages.records(
                self._database,
                collection,
                record_ids,
                image_ids,
                self._committer.seq,
                budget,
                masks=masks,
                vectors=vectors,
                images_only=images_only,
            )

    def list_images(
        self,
        name: str,
        limit: int,
        after: ImagePlace | None,
        budget: ResponseBudget = UNLIMITED,
        generation: str | None = None,
        wanted: Filter = NO_FILTER,
        order: ImageOrder = NEWEST_FIRST,
    ) -> ImagePage:
        with self._restore_lock.shared(), self._horizon.holding() as present:
            if wanted == NO_FILTER:
                collection = self._collections.find(name, generation)
            else:
                collection = self._collections.find_searchable(name, generation)
            page = scrolling.list_images(
                self._database, collection, wanted, order, limit, after, present, budget
            )
            return replace(page, generation=self._collections.generation(collection))

    def scroll(
        self, name: str, asked: Scroll, min_seq: int | None = None, budget: ResponseBudget = UNLIMITED
    ) -> RecordPage:
        with self._restore_lock.shared(), self._horizon.holding() as present:
            self._check_acknowledged(min_seq, present)
            collection = self._collections.find_searchable(name, asked.generation)
            page = scrolling.scroll(self._database, collection, asked, present, budget)
            return replace(page, generation=self._collections.generation(collection))

    def count(
        self,
        name: str,
        wanted: Filter,
        level: Level | None,
        facets: Sequence[Facet] = (),
        min_seq: int | None = None,
    ) -> Counts:
        with self._restore_lock.shared(), self._horizon.holding() as present:
            self._check_acknowledged(min_seq, present)
            collection = self._collections.find_searchable(name)
            return scrolling.count(self._database, collection, wanted, level, facets, present)

    def _check_acknowledged(self, min_seq: int | None, present: int) -> None:
        if min_seq is not None and min_seq > present:
            raise never_acknowledged(min_seq, present)

    def token_key(self, *, fresh: bool = False) -> bytes:
        return self._token_key

    # Operations

    def snapshot(self, name: str) -> SnapshotInfo:
        with self._copying, self._restore_lock.shared():
            self._reserve_file.require(self._database.file_bytes())
            return snapshots.take(self._database, self._snapshots, name, self._archive)

    def list_snapshots(self) -> list[SnapshotFile]:
        return snapshots.listed(self._snapshots, self._archive)

    def delete_snapshot(self, name: str) -> None:
        with self._copying:
            snapshots.delete(self._snapshots, name, self._archive)

    def restore(self, name: str, collection: str = "") -> tuple[int, int]:
        if collection:
            return self._restore_collection(name, collection), 1
        with (
            self._copying,
            snapshots.prepared(self._snapshots, name, self._archive) as file,
            self._restore_lock.exclusive("the searcher is restoring a snapshot"),
        ):
            self._committer.check()
            self._database.replace_by(file, self._committer.seq + 1)
            return self._reload(), len(self._collections.all())

    def _restore_collection(self, name: str, wanted: str) -> int:
        """Writes a collection of a snapshot next to the present one, then gives it the name."""
        with self._copying, snapshots.prepared(self._snapshots, name, self._archive) as file:
            hidden = UNFINISHED + wanted
            if self._collections.get(hidden) is not None:  # of a restore that could not clean up
                self.delete_collection(hidden)
            with snapshots.collection_of(file, wanted) as (spec, codec, contents):
                made = replace(spec, name=hidden, replaces="")
                if codec is None:
                    self.create_collection(made)
                else:
                    self._create(made, Codec.from_bytes(codec))
                try:
                    for write in contents:
                        upsert_patiently(self, hidden, spec.model, write)
                    return self.take_name(hidden, wanted)
                except BaseException:
                    self.delete_collection(hidden)
                    raise

    def _reload(self) -> int:
        """Goes on with a store that was replaced, whose last write it returns; nobody else may be inside."""
        try:
            self._load()
            seq = self._committer.resume()
        except BaseException as error:  # the store is the new one: only a restart follows it
            self._on_fatal(error)
            raise
        self._horizon.reset()
        return seq

    def follow(self, position: StorePosition) -> ChangeFeed:
        return ChangeFeed(
            self._database, self._committer, self._horizon, self._restore_lock, lambda: self.history,
            self._replica_snapshot, position,
        )  # fmt: skip

    def _replica_snapshot(self) -> tuple[BinaryIO, StorePosition]:
        with self._copying:
            self._reserve_file.require(self._database.file_bytes())
            return snapshots.for_replica(
                self._database, self._snapshots, lambda copy: changes.position(copy, self.history)
            )

    def last_write(self) -> int:
        return self._committer.seq

    def stats(self, name: str | None) -> list[CollectionStats]:
        with self._restore_lock.shared():
            chosen = self._collections.all() if name is None else [self._collections.find(name)]
            return [
                statistics(self._database, collection, self._committer.seq)
                for collection in sorted(chosen, key=lambda collection: collection.spec.name)
                if not collection.spec.name.startswith(UNFINISHED)
            ]

    def disk_bytes(self) -> int:
        return self._database.disk_bytes()
