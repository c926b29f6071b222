"""The embedded engine: joins the record store (SQLite) and one index for each collection."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar

import numpy as np

from regionsearch.errors import not_found
from regionsearch.texts import MetadataLimits
from services.searcher.bounded_executor import NEVER_CANCELLED, CancellationToken
from services.searcher.embedded import snapshots
from services.searcher.embedded.change_feed import ChangeFeed
from services.searcher.embedded.index.binary import learned_codec
from services.searcher.embedded.index.filters import Terms
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.open_collections import OpenCollection, statistics
from services.searcher.embedded.open_store import OpenStore
from services.searcher.embedded.planning import heads_folder
from services.searcher.embedded.queries import result_pages, scrolling
from services.searcher.embedded.queries.filter_compiler import compile_filter
from services.searcher.embedded.rows import Change, RowIds
from services.searcher.embedded.store import changes, collection_rows, lookups, reads, writes
from services.searcher.embedded.store.database import UNFINISHED, connect
from services.searcher.embedded.store.group_commit import Operation
from services.searcher.engine import never_acknowledged
from services.searcher.queries import (
    NO_FILTER,
    Deletion,
    Filter,
    ImageUpdate,
    Page,
    Query,
    UpdateResult,
    check_unchanged,
)
from services.searcher.response_budget import UNLIMITED, ResponseBudget
from services.searcher.scrolling import NEWEST_FIRST, Counts, Facet, ImageOrder, RecordPage, Scroll
from services.searcher.types import (
    CodeMethod,
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
    check_generation,
    check_model,
)

P = ParamSpec("P")
T = TypeVar("T")

_DIFFERING = 256  # images that are named where two collections differ
_STEP_ROWS = 20_000  # of a deletion, some tenths of a second


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


class EmbeddedEngine(OpenStore):
    """Everything in this process: SQLite is the source of truth, the indexes in memory follow from it.

    What its methods do stands in `Engine`.
    """

    # Collections

    def create_collection(self, collection: Collection) -> Collection:
        if collection.codes is not None and collection.codes.method is CodeMethod.LEARNED:
            learned_codec(heads_folder(self._settings), collection.codes, collection.model.dimension)
        made = replace(collection, created_ms=time.time_ns() // 1_000_000, image_count=0, record_count=0)

        def operation(connection: sqlite3.Connection) -> tuple[int, None]:
            collection_rows.next_seq(connection)
            return collection_rows.create_collection(connection, made), None

        self._reserve_file.require(self._database.log_bytes())  # which the record file may grow by
        with self._restore_lock.shared(), self._naming:
            rowid = self._committer.submit(operation).result()
            index = VectorIndex(made.model.dimension, self._settings.chunk_rows)
            self._collections.add(OpenCollection(rowid, made, index))
        return made

    def get_collection(self, name: str) -> Collection:
        with self._restore_lock.shared():
            collection = self._collections.find(name)
            with self._database.reading() as connection:
                image_count, record_count = reads.counts(connection, collection.rowid)
        return replace(collection.spec, image_count=image_count, record_count=record_count)

    def list_collections(self) -> list[Collection]:
        with self._restore_lock.shared(), self._database.reading() as connection:
            found = [spec for _, spec, _ in reads.collections(connection)]
        return [spec for spec in found if not spec.name.startswith(UNFINISHED)]

    def delete_collection(self, name: str) -> None:
        def operation(connection: sqlite3.Connection) -> tuple[None, None]:
            collection_rows.drop_collection(
                connection, collection.rowid, collection_rows.next_seq(connection)
            )
            return None, None

        with self._restore_lock.shared(), self._naming:
            collection = self._collections.find(name)
            self._collections.hide(collection)  # before the write: a later search would see its rows go
            try:
                self._reserve_file.deleting(lambda: self._committer.submit(operation))
            except BaseException:
                self._collections.add(collection)
                raise
            self._collections.remove(collection)

    def await_names(self) -> None:
        """Returns once no collection is being created, renamed or deleted."""
        with self._naming:
            pass

    def replace_collection(self, name: str, by: str, keep_as: str, hold_s: float = 0.0) -> Sequence[str]:
        self.holds.hold(name, hold_s)
        with self._restore_lock.shared(), self._naming:
            old, new = self._collections.find(name), self._collections.find_searchable(by)
            with self._database.reading() as connection:  # takes its time, for which no write has to wait
                differing = reads.differing_images(connection, old.rowid, new.rowid, _DIFFERING)
            if differing:
                return differing
            kept, renamed = replace(old.spec, name=keep_as), replace(new.spec, name=name, replaces="")

            def operation(connection: sqlite3.Connection) -> tuple[list[str], None]:
                differing = reads.differing_images(connection, old.rowid, new.rowid, _DIFFERING)
                if not differing:
                    collection_rows.next_seq(connection)
                    collection_rows.rename_collection(connection, old.rowid, kept)
                    collection_rows.rename_collection(connection, new.rowid, renamed)
                return differing, None

            differing = self._committer.submit(operation).result()
            if not differing:
                self._collections.rename(new, renamed)
                self._collections.rename(old, kept)
                self.holds.release(name)
            return differing

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
        """See `Engine`. A filter's records go in steps, between which other writes are committed."""
        by_filter = deletion.filter is not None

        def matching(connection: sqlite3.Connection) -> tuple[RowIds, None]:
            assert deletion.filter is not None
            conditions = compile_filter(
                connection, collection.rowid, deletion.filter, None, self._committer.seq, Terms()
            )
            return collection.index.matching(conditions), None

        def step(
            keys: RowIds, named: Deletion, connection: sqlite3.Connection
        ) -> tuple[DeleteResult, Change]:
            collection_rows.require_collection(connection, collection.rowid, name)
            if named.as_read is not None:
                read = named.as_read.image_id
                _, image = reads.images_by_id(connection, collection.rowid, [read]).get(read, (0, None))
                check_unchanged(named.as_read, image)
            keys = np.union1d(keys, lookups.rowids_of_records(connection, collection.rowid, named.record_ids))
            seq = collection_rows.next_seq(connection)
            images, change = writes.delete(
                connection, collection.rowid, named.image_ids, keys, seq, drop_empty_images=by_filter
            )
            return DeleteResult(seq, images, len(change.removed)), change

        with self._restore_lock.shared():
            collection = (
                self._collections.find_searchable(name) if by_filter else self._collections.find(name)
            )
            keys = np.empty(0, np.int64)
            if by_filter:
                keys = self._committer.submit(matching, alone=True).result()
            done = self._delete_step(partial(step, keys[:_STEP_ROWS], deletion))
            for start in range(_STEP_ROWS, len(keys), _STEP_ROWS):
                more = self._delete_step(partial(step, keys[start : start + _STEP_ROWS], Deletion()))
                done = DeleteResult(
                    more.seq, done.image_count + more.image_count, done.record_count + more.record_count
                )
            return done

    def _delete_step(self, operation: Operation[DeleteResult]) -> DeleteResult:
        return self._reserve_file.deleting(lambda: self._committer.submit(operation))

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
        pinned = [query.seq for query in queries if query.seq is not None]
        # Held before the collection is looked up: should it be deleted from now on, its rows stay.
        with self._restore_lock.shared(), self._horizon.holding(pinned) as present:
            collection = self._collections.find_searchable(name)
            for query in queries:
                check_generation(name, self._collections.generation(collection), query.generation)
            check_model(name, collection.spec.model, model)
            self._check_acknowledged(min_seq, present)
            pages = result_pages.pages(
                self._database, self._search, collection, queries, present, cancellation, budget
            )
            return [replace(page, generation=self._collections.generation(collection)) for page in pages]

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
        with (
            self._copying,
            snapshots.prepared(self._snapshots, name, self._archive) as file,
            contextlib.closing(connect(file, read_only=True)) as copy,
        ):
            found = {spec.name: (rowid, spec) for rowid, spec, _ in reads.collections(copy)}
            if wanted not in found:
                raise not_found("collection", f"snapshot {name!r} has no collection {wanted!r}")
            rowid, spec = found[wanted]
            hidden = UNFINISHED + wanted
            if self._collections.get(hidden) is not None:  # of a restore that could not clean up
                self.delete_collection(hidden)
            self.create_collection(replace(spec, name=hidden, replaces=""))
            try:
                for write in reads.everything(copy, rowid, spec.model.dimension):
                    self.upsert(hidden, spec.model, write)
                return self._take_name(hidden, wanted)
            except BaseException:
                self.delete_collection(hidden)
                raise

    def _take_name(self, hidden: str, name: str) -> int:
        """Lets a collection take a name, and drops the one that has it now."""
        # Rows of the latter stay until no search can find it any more.
        with self._restore_lock.shared(), self._naming, self._horizon.holding():
            new, old = self._collections.find(hidden), self._collections.get(name)
            renamed = replace(new.spec, name=name)

            def operation(connection: sqlite3.Connection) -> tuple[int, None]:
                seq = collection_rows.next_seq(connection)
                if old is not None:
                    collection_rows.drop_collection(connection, old.rowid, seq)
                collection_rows.rename_collection(connection, new.rowid, renamed)
                return seq, None

            seq = self._committer.submit(operation).result()
            self._collections.rename(new, renamed)
            if old is not None:
                self._collections.remove(old)
            return seq

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
