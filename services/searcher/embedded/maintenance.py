"""What happens beside the traffic: forgetting removed rows and making faster indexes, in small steps."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import structlog

from regionsearch.errors import RegionSearchError, not_found
from services.searcher.embedded.index.binary import Codec, CodeSegment
from services.searcher.embedded.index.compaction import (
    CompactionInput,
    build_flat,
    select_for_compaction,
    should_seal,
)
from services.searcher.embedded.index.index_files import IndexCache
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.open_collection import OpenCollection
from services.searcher.embedded.planning import Planner, arrays_of
from services.searcher.embedded.store import vacuum, writes
from services.searcher.embedded.store.disk_reserve import DiskReserve
from services.searcher.embedded.store.group_commit import GroupCommitter
from services.searcher.embedded.store.restore_lock import RestoreLock
from services.searcher.embedded.store.retries import Backoff, Seldom
from services.searcher.embedded.store.visibility import VisibilityHorizon
from services.searcher.settings import EmbeddedSettings

_log = structlog.get_logger(__name__)
_TICK_S = 1.0
_PURGE_ROWS = 2000
_PURGE_PAGES = 512
_PATIENCE_S = 2.0


class Maintenance:
    """A thread that wakes every second: forgets old states, compacts, builds faster indexes, frees space.

    Args:
        committer: Where its writes go.
        horizon: What may be forgotten.
        gate: Closed during a restore.
        collections: The open collections.
        planner: Decides which faster indexes are due.
        cache: Keeps what was built for the next start.
        reserve: Space for what frees space.
        settings: Sizes and limits.
    """

    def __init__(
        self,
        committer: GroupCommitter,
        horizon: VisibilityHorizon,
        gate: RestoreLock,
        collections: Callable[[], list[OpenCollection]],
        planner: Planner,
        cache: IndexCache,
        reserve: DiskReserve,
        settings: EmbeddedSettings,
    ) -> None:
        self._committer = committer
        self._horizon = horizon
        self._gate = gate
        self._collections = collections
        self._planner = planner
        self._cache = cache
        self._reserve = reserve
        self._settings = settings
        self._round = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; a long build is left behind, its result is not needed any more."""
        self._stop.set()
        self._thread.join(timeout=_PATIENCE_S)

    def run_once(self) -> None:
        """One round of everything that is due; raises the first failure when all has been tried."""
        with self._round:
            self._horizon.advance()
            failures: list[Exception] = []
            steps: list[Callable[[], None]] = [partial(self._improve, one) for one in self._collections()]
            for step in [*steps, self._prune, self._purge]:
                try:
                    step()
                except Exception as error:  # what is wrong with one collection does not hinder the others
                    failures.append(error)
            if failures:
                raise failures[0]

    def _run(self) -> None:
        backoff, said = Backoff(_TICK_S), Seldom()
        while not self._stop.wait(backoff.delay_s):
            try:
                self.run_once()
            except RegionSearchError as error:  # stopping, restoring, or a disk that refuses writes
                backoff.failed()
                if said.due(error.message):
                    _log.info("upkeep waits", reason=error.message)
            except Exception as error:  # exact search goes on without it
                backoff.failed()
                if said.due(repr(error)):
                    _log.exception("upkeep failed")
            else:
                backoff.succeeded()
                said.forget()

    def _improve(self, opened: OpenCollection) -> None:
        steps = (self._compact, self._speed_up, self._tune)
        while not self._stop.is_set() and any(step(opened) for step in steps):
            pass
        self._planner.measure(opened)

    def _compact(self, opened: OpenCollection) -> bool:
        """Rewrites segments with many dead rows; whether there were any."""
        horizon, settings = self._horizon.seq, self._settings
        state = opened.index.state
        if state.views and should_seal(state.views[-1].segment, horizon, settings.compact_above):
            self._in_writing_thread(opened, lambda connection: opened.index.seal())
        sources = select_for_compaction(
            opened.index.state, horizon, settings.chunk_rows, settings.compact_above
        )
        if not sources:
            return False
        live = len(CompactionInput(sources, horizon))
        size = settings.chunk_rows if sources[0].kind == "flat" else max(live, 1)
        rewrites = [CompactionInput(sources, horizon, start, start + size) for start in range(0, live, size)]
        self._swap(opened, sources, [(rewrite, build_flat(rewrite)) for rewrite in rewrites])
        return True

    def _speed_up(self, opened: OpenCollection) -> bool:
        """Builds a faster index where one is due; whether one was."""
        plan = self._planner.plan(opened)
        if plan is None:
            return False
        sources, build = plan
        rewrite = CompactionInput(sources, self._horizon.seq)
        started = time.monotonic()
        segment = build(rewrite)
        codec = segment.codec if isinstance(segment, CodeSegment) else None
        self._swap(opened, sources, [(rewrite, segment)], None if opened.codec is not None else codec)
        opened.codec = opened.codec or codec
        self._save(opened, segment)
        _log.info(
            "index built",
            collection=opened.spec.name,
            index=segment.kind,
            rows=len(rewrite),
            recall=segment.recall,
            seconds=round(time.monotonic() - started, 2),
        )
        return True

    def _tune(self, opened: OpenCollection) -> bool:
        """Tunes an approximate index that finds too little; whether one was due."""
        segment = self._planner.tune(opened)
        if segment is None:
            return False
        self._save(opened, segment)
        _log.info("index tuned", collection=opened.spec.name, effort=segment.effort, recall=segment.recall)
        return True

    def _save(self, opened: OpenCollection, segment: IndexSegment) -> None:
        """Keeps what was expensive to compute for the next start."""
        arrays = arrays_of(segment)
        if arrays is not None:
            with self._unchanged(opened):
                self._cache.save(opened.number, segment, arrays)

    def _swap(
        self,
        opened: OpenCollection,
        sources: list[IndexSegment],
        made: list[tuple[CompactionInput, IndexSegment]],
        codec: Codec | None = None,
    ) -> None:
        """Puts segments in the place of others, and keeps the codec that they are the first to use."""

        def swap(connection: sqlite3.Connection) -> None:
            for rewrite, segment in made:
                rewrite.refresh(segment.columns)
            opened.index.replace(sources, [segment for _, segment in made])
            if codec is not None:
                writes.store_codec(connection, opened.number, codec.to_bytes())

        self._in_writing_thread(opened, swap)

    def _in_writing_thread(
        self, opened: OpenCollection, action: Callable[[sqlite3.Connection], None]
    ) -> None:
        def operation(connection: sqlite3.Connection) -> tuple[None, None]:
            action(connection)
            return None, None

        with self._unchanged(opened):
            # Alone: memory that was reserved in the growing segment must not be sealed before it is used.
            self._committer.submit(operation, alone=True).result()

    @contextlib.contextmanager
    def _unchanged(self, opened: OpenCollection) -> Iterator[None]:
        """Keeps restores out; raises where the collection is not the one that its number means any more."""
        with self._gate.shared():
            if opened not in self._collections():
                raise not_found("collection", f"{opened.spec.name!r} was deleted or restored meanwhile")
            yield

    def _prune(self) -> None:
        with self._gate.shared():
            self._cache.prune({opened.number: opened.index.state for opened in self._collections()})

    def _purge(self) -> None:
        """Frees removed rows on disk, in small steps."""
        horizon = self._horizon.seq

        def operation(connection: sqlite3.Connection) -> tuple[int, None]:
            return vacuum.vacuum(connection, horizon, _PURGE_ROWS) + vacuum.release_pages(
                connection, _PURGE_PAGES
            ), None

        more = True
        while more and not self._stop.is_set():
            with self._gate.shared():
                more = self._reserve.deleting(lambda: self._committer.submit(operation)) > 0
        self._reserve.fill()
