"""Collections and their names: created, listed, deleted, and replaced by others under the same name."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace

from services.searcher.embedded.index.binary import Codec, learned_codec
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.open_store import OpenStore
from services.searcher.embedded.planning import heads_folder
from services.searcher.embedded.store import collection_rows, reads
from services.searcher.embedded.store.database import UNFINISHED
from services.searcher.types import Collection

_DIFFERING = 256  # images that are named where two collections differ


class CollectionNames(OpenStore):
    """The part of the engine that knows collections by name. What its methods do stands in `Engine`."""

    def create_collection(self, collection: Collection) -> Collection:
        codec = None
        if collection.codes is not None and collection.codes.head:
            codec = learned_codec(heads_folder(self._settings), collection.codes, collection.model.dimension)
        return self._create(collection, codec)

    def _create(self, collection: Collection, codec: Codec | None) -> Collection:
        """Creates a collection with the codec that was trained for its codes."""
        made = replace(collection, created_ms=time.time_ns() // 1_000_000, image_count=0, record_count=0)

        def operation(connection: sqlite3.Connection) -> tuple[tuple[int, Collection], None]:
            seq, created = collection_rows.next_seq(connection), made
            if made.codes is not None:
                created = replace(made, codes=replace(made.codes, trained_seq=seq if codec else 0))
            rowid = collection_rows.create_collection(connection, created)
            if codec is not None:
                collection_rows.store_codec(connection, rowid, codec.to_bytes())
            return (rowid, created), None

        self._reserve_file.require(self._database.log_bytes())  # which the record file may grow by
        with self._restore_lock.shared(), self._naming:
            rowid, created = self._committer.submit(operation).result()
            index = VectorIndex(created.model.dimension, self._settings.chunk_rows)
            self._collections.add(OpenCollection(rowid, created, index, codec))
        return created

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
                    collection_rows.describe_collection(connection, old.rowid, kept)
                    collection_rows.describe_collection(connection, new.rowid, renamed)
                return differing, None

            differing = self._committer.submit(operation).result()
            if not differing:
                self._collections.rename(new, renamed)
                self._collections.rename(old, kept)
                self.holds.release(name)
            return differing

    def take_name(self, hidden: str, name: str) -> int:
        """Lets a collection take a name, and drops the one that has it now."""
        # Rows of the latter stay until no search can find it any more.
        with self._restore_lock.shared(), self._naming, self._horizon.holding():
            new, old = self._collections.find(hidden), self._collections.get(name)
            renamed = replace(new.spec, name=name)

            def operation(connection: sqlite3.Connection) -> tuple[int, None]:
                seq = collection_rows.next_seq(connection)
                if old is not None:
                    collection_rows.drop_collection(connection, old.rowid, seq)
                collection_rows.describe_collection(connection, new.rowid, renamed)
                return seq, None

            seq = self._committer.submit(operation).result()
            self._collections.rename(new, renamed)
            if old is not None:
                self._collections.remove(old)
            return seq
