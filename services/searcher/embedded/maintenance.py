"""Maintenance while searches and writes continue: compaction, faster indexes, vacuum, in small steps."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import structlog

from regionsearch.errors import RegionSearchError
from services.searcher.embedded.index.approximate import ApproximateSegment, stored_bytes
from services.searcher.embedded.index.binary import Codec, CodeSegment
from services.searcher.embedded.index.compaction import (
    CompactionInput,
    build_flat,
    select_for_compaction,
    should_seal,
)
from services.searcher.embedded.index.index_files import IndexCache
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.open_collections import OpenCollection, answering_kind
from services.searcher.embedded.planning import Planner
from services.searcher.embedded.store import collection_rows, visibility
from services.searcher.embedded.store.disk_reserve import DiskReserve
from services.searcher.embedded.store.faults import Backoff, LogThrottle
from services.searcher.embedded.store.group_commit import GroupCommitter
from services.searcher.embedded.store.locks import RestoreLock
from services.searcher.embedded.store.visibility import VisibilityHorizon
from services.searcher.settings import EmbeddedSettings

_log = structlog.get_logger(__name__)
_PERIOD_S = 1.0
_VACUUM_ROWS = 2000
_VACUUM_PAGES = 512
_CLOSE_TIMEOUT_S = 2.0


class _GoneError(Exception):
    """A collection was deleted or replaced while something was built for it."""


class Maintenance:
    """A thread that wakes every second: advances the horizon, compacts, builds faster indexes, vacuums.

    Args:
        committer: Where its writes go.
        horizon: Up to which write removed rows may go.
        restore_lock: Held alone during a restore.
        collections: The open collections.
        planner: Decides which faster indexes are due.
        cache: Keeps what was built for the next start.
        reserve: Disk space for the writes that free space.
        settings: Sizes and limits.
    """

    def __init__(
        self,
        committer: GroupCommitter,
        horizon: VisibilityHorizon,
        restore_lock: RestoreLock,
        collections: Callable[[], list[OpenCollection]],
        planner: Planner,
        cache: IndexCache,
        reserve: DiskReserve,
        settings: EmbeddedSettings,
    ) -> None:
        self._committer = committer
        self._horizon = horizon
        self._restore_lock = restore_lock
        self._collections = collections
        self._planner = planner
        self._cache = cache
        self._reserve = reserve
        self._settings = settings
        self._running = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; a long build is abandoned."""
        self._stop.set()
        self._thread.join(timeout=_CLOSE_TIMEOUT_S)

    def run_once(self) -> None:
        """Does everything that is due once; raises the first failure after all steps have been tried."""
        with self._running:
            self._horizon.advance()
            failures: list[Exception] = []
            steps: list[Callable[[], None]] = [partial(self._improve, one) for one in self._collections()]
            for step in [*steps, self._prune, self._vacuum]:
                try:
                    step()
                except Exception as error:  # a failure in one collection does not stop the others
                    failures.append(error)
            if failures:
                raise failures[0]

    def _run(self) -> None:
        backoff, throttle = Backoff(_PERIOD_S), LogThrottle()
        while not self._stop.wait(backoff.delay_s):
            try:
                self.run_once()
            except RegionSearchError as error:  # stopping, restoring, or a disk that refuses writes
                backoff.failed()
                if throttle.due(error.message):
                    _log.info("maintenance waits", reason=error.message)
            except Exception as error:  # exact search works without it
                backoff.failed()
                if throttle.due(repr(error)):
                    _log.exception("maintenance failed")
            else:
                backoff.succeeded()
                throttle.reset()

    def _improve(self, collection: OpenCollection) -> None:
        steps = (self._compact, self._build_faster, self._tune)
        with contextlib.suppress(_GoneError):  # what is built for it is not needed any more
            while not self._stop.is_set() and any(step(collection) for step in steps):
                pass
            self._planner.measure(collection)

    def _compact(self, collection: OpenCollection) -> bool:
        """Compacts segments with many dead rows; returns whether there were any."""
        horizon, settings = self._horizon.seq, self._settings
        state = collection.index.state
        if state.views and should_seal(state.views[-1].segment, horizon, settings.compact_above):
            self._in_writing_thread(collection, lambda connection: collection.index.seal())
        sources = select_for_compaction(
            collection.index.state, horizon, settings.chunk_rows, settings.compact_above
        )
        if not sources:
            return False
        live = len(CompactionInput(sources, horizon))
        size = settings.chunk_rows
        compactions = [
            CompactionInput(sources, horizon, start, start + size) for start in range(0, live, size)
        ]
        self._swap(collection, sources, [(compaction, build_flat(compaction)) for compaction in compactions])
        return True

    def _build_faster(self, collection: OpenCollection) -> bool:
        """Builds a faster index where one is due; returns whether one was."""
        horizon = self._horizon.seq
        plan = self._planner.plan(collection, horizon)
        if plan is None:
            return False
        sources, build = plan
        compaction = CompactionInput(sources, horizon)
        if not len(compaction):
            self._swap(collection, sources, [])
            return True
        self._reserve.require(stored_bytes(compaction))
        started = time.monotonic()
        segment = build(compaction)
        codec = segment.codec if isinstance(segment, CodeSegment) else None
        self._swap(collection, sources, [(compaction, segment)], codec)
        self._save(collection, segment)
        _log.info(
            "index built",
            collection=collection.spec.name,
            index=answering_kind(segment),
            rows=len(compaction),
            recall=segment.recall,
            seconds=round(time.monotonic() - started, 2),
        )
        return True

    def _tune(self, collection: OpenCollection) -> bool:
        """Tunes an approximate index whose recall is too low; returns whether one was due."""
        segment = self._planner.tune(collection)
        if segment is None:
            return False
        self._save(collection, segment)
        _log.info(
            "index tuned", collection=collection.spec.name, effort=segment.effort, recall=segment.recall
        )
        return True

    def _save(self, collection: OpenCollection, segment: IndexSegment) -> None:
        """Writes the index file of a segment, for the next start."""
        if isinstance(segment, ApproximateSegment):
            with self._unchanged(collection):
                self._cache.save(collection.rowid, segment, segment.files, segment.to_arrays())

    def _swap(
        self,
        collection: OpenCollection,
        sources: list[IndexSegment],
        made: list[tuple[CompactionInput, IndexSegment]],
        codec: Codec | None = None,
    ) -> None:
        """Replaces segments by others, and stores the codec that they use if it is the collection's first."""

        def swap(connection: sqlite3.Connection) -> None:
            for compaction, segment in made:
                compaction.refresh(segment.columns)
            collection.index.replace(sources, [segment for _, segment in made])
            if codec is not None and collection.codec is None:
                collection_rows.store_codec(connection, collection.rowid, codec.to_bytes())
                collection.codec = codec

        self._in_writing_thread(collection, swap)

    def _in_writing_thread(
        self, collection: OpenCollection, action: Callable[[sqlite3.Connection], None]
    ) -> None:
        def operation(connection: sqlite3.Connection) -> tuple[None, None]:
            action(connection)
            return None, None

        with self._unchanged(collection):
            # Alone: memory that was reserved in the growing segment must not be sealed before it is used.
            self._committer.submit(operation, alone=True).result()

    @contextlib.contextmanager
    def _unchanged(self, collection: OpenCollection) -> Iterator[None]:
        """Holds off restores.

        Raises:
            _GoneError: The collection was deleted or replaced.
        """
        with self._restore_lock.shared():
            if collection not in self._collections():
                raise _GoneError
            yield

    def _prune(self) -> None:
        with self._restore_lock.shared():
            self._cache.prune(
                {collection.rowid: collection.index.state for collection in self._collections()}
            )

    def _vacuum(self) -> None:
        """Deletes removed rows on disk and returns free pages, in small steps."""
        horizon = self._horizon.kept

        def operation(connection: sqlite3.Connection) -> tuple[int, None]:
            return visibility.vacuum(connection, horizon, _VACUUM_ROWS) + visibility.release_pages(
                connection, _VACUUM_PAGES
            ), None

        more = True
        while more and not self._stop.is_set():
            with self._restore_lock.shared():
                more = self._reserve.deleting(lambda: self._committer.submit(operation)) > 0
        self._reserve.fill()
