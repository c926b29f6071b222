"""The engine of a read replica: the same reads, on a copy of another searcher's store."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Sequence
from typing import IO, NoReturn

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.texts import MetadataLimits
from services.searcher.embedded import snapshots
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.rows import Change
from services.searcher.embedded.store import changes, reads
from services.searcher.embedded.store.faults import explained
from services.searcher.engine import BehindError
from services.searcher.queries import Deletion, ImageUpdate, Query, UpdateResult
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import (
    CodeSpec,
    Collection,
    DeleteResult,
    ModelIdentity,
    StorePosition,
    Upsert,
    UpsertResult,
)


class ReplicaEngine(EmbeddedEngine):
    """A copy of the store of another searcher. Its writes are the other's; those of callers are refused.

    Args:
        settings: Folder and sizes.
        on_fatal: Called when the process should end.
        writer: The other searcher's address, for the errors.
    """

    replica = True

    def __init__(
        self, settings: EmbeddedSettings, on_fatal: Callable[[BaseException], None], writer: str
    ) -> None:
        if settings.read_only:
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                "a read replica writes what it receives to its folder: unset embedded.read_only or follow",
            )
        self._writer = writer
        super().__init__(settings, on_fatal)

    # What is received, in one thread

    @property
    def filled(self) -> bool:
        """Whether there has been a first copy."""
        with self._database.reading() as connection:
            return reads.is_replica(connection)

    def position(self) -> StorePosition:
        """How much it has."""
        with self._database.reading() as connection:
            return changes.position(connection, self.history if reads.is_replica(connection) else "")

    def incoming(self, *, snapshot: bool) -> IO[bytes]:
        """Where to write what arrives, for `take`."""
        with explained(self._snapshots):
            return snapshots.incoming(self._snapshots) if snapshot else io.BytesIO()

    def take(self, file: IO[bytes], *, snapshot: bool) -> None:
        """Takes over what has arrived as a whole, and closes the file.

        Changes come at once, also for those who read meanwhile. Calls are refused while a snapshot is loaded,
        which replaces everything.

        Raises:
            RegionSearchError: DATA_LOSS or INTERNAL where it was damaged on the way or does not fit;
                STORAGE_FULL and the like.
        """
        if snapshot:
            loading = "the read replica is loading a new copy"
            with (
                self._copying,
                snapshots.received(file, self._snapshots) as path,
                self._restore_lock.exclusive(loading),
            ):
                self._database.become(path)
                self._reload()
            return
        with explained(self._database.path), file, changes.opened(file) as batch:
            self._take_changes(batch)

    def _take_changes(self, batch: sqlite3.Connection) -> None:
        new = {rowid: spec for rowid, spec, _ in reads.collections(batch)}
        (described,) = batch.execute("SELECT EXISTS (SELECT 1 FROM collection)").fetchone()

        def operation(connection: sqlite3.Connection) -> tuple[None, Sequence[Change]]:
            effects = changes.apply(connection, batch)
            # Before their rows come, and so before the commit.
            for rowid in new.keys() - self._collections.rowids():
                index = VectorIndex(new[rowid].model.dimension, self._settings.chunk_rows)
                self._collections.add(OpenCollection(rowid, new[rowid], index))
            return None, effects

        with self._restore_lock.shared(), self._naming:
            self._committer.submit(operation, alone=True).result()
            if described:
                with self._database.reading() as connection:
                    found = {rowid: (spec, codec) for rowid, spec, codec in reads.collections(connection)}
                self._collections.follow(found)

    # Reading

    def _pinned(self, queries: Sequence[Query]) -> list[int]:
        """UNAVAILABLE for a page's state that has not been received yet."""
        pinned = super()._pinned(queries)
        for seq in pinned:
            self._check_acknowledged(seq, self._committer.seq)
        return pinned

    def _check_acknowledged(self, min_seq: int | None, present: int) -> None:
        if min_seq is not None and min_seq > present:
            raise BehindError(min_seq, present)

    # Writing

    def create_collection(self, collection: Collection) -> Collection:
        self._refuse()

    def delete_collection(self, name: str) -> None:
        self._refuse()

    def replace_collection(self, name: str, by: str, keep_as: str, hold_s: float = 0.0) -> Sequence[str]:
        self._refuse()

    def train_codes(self, name: str, spec: CodeSpec) -> Collection:
        self._refuse()

    def upsert(
        self, name: str, model: ModelIdentity, write: Upsert, generation: str | None = None
    ) -> UpsertResult:
        self._refuse()

    def update_images(
        self, name: str, updates: Sequence[ImageUpdate], limits: MetadataLimits
    ) -> UpdateResult:
        self._refuse()

    def delete(self, name: str, deletion: Deletion) -> DeleteResult:
        self._refuse()

    def restore(self, name: str, collection: str = "") -> tuple[int, int]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION, f"this searcher is a read replica of {self._writer}: write to that one"
        )
