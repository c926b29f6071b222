"""Opening and closing the embedded engine: record file, indexes, locks and threads, in their order."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded import snapshots
from services.searcher.embedded.index.device import choose_device
from services.searcher.embedded.index.index_files import FOLDER as INDEX_FOLDER
from services.searcher.embedded.index.index_files import IndexCache
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.maintenance import Maintenance
from services.searcher.embedded.open_collections import OpenCollections
from services.searcher.embedded.planning import Planner
from services.searcher.embedded.startup import open_collections
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.checkpoints import Checkpointer
from services.searcher.embedded.store.database import FILE_NAME, Database
from services.searcher.embedded.store.disk_reserve import DiskReserve
from services.searcher.embedded.store.faults import explained
from services.searcher.embedded.store.group_commit import GroupCommitter
from services.searcher.embedded.store.locks import RestoreLock, StoreLock, WriteHolds
from services.searcher.embedded.store.verification import check_store
from services.searcher.embedded.store.visibility import VisibilityHorizon
from services.searcher.settings import EmbeddedSettings

SNAPSHOT_FOLDER = "snapshots"
_ANN_ABOVE_ON_GPU = 4_000_000


class OpenStore:
    """The parts of the engine, opened: the record file, the indexes, and the threads that keep them.

    Args:
        settings: Folder and sizes.
        on_fatal: Called when the process should end, because its memory no longer follows the store.

    Raises:
        RegionSearchError: The folder is in use, or the record file is damaged, foreign or too new.
    """

    replica = False
    """Whether it follows another searcher, and refuses writes of its own."""

    def __init__(
        self, settings: EmbeddedSettings, on_fatal: Callable[[BaseException], None] = lambda error: None
    ) -> None:
        device = choose_device(settings)
        if device is not None and "ann_above" not in settings.model_fields_set:
            settings = settings.model_copy(update={"ann_above": _ANN_ABOVE_ON_GPU})
        self.name = "faiss-cpu" if device is None else "faiss-gpu"
        self._settings = settings
        self._on_fatal = on_fatal
        self._folder = settings.folder
        self._snapshots = settings.folder / SNAPSHOT_FOLDER
        self._archive = snapshots.Archive(settings.snapshot_url) if settings.snapshot_url else None
        path = self._folder / FILE_NAME
        if not settings.read_only:
            with explained(path):
                self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = StoreLock(path, shared=settings.read_only)
        self._reserve_file = DiskReserve(self._folder, settings.reserve_bytes)
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            if not settings.read_only:
                snapshots.clear(self._snapshots)
            self._database = self._opened(path)
            undo.callback(self._database.close)
            if not settings.read_only:
                self._database.take_role(replica=self.replica)
            self._restore_lock = RestoreLock()
            self.holds = WriteHolds()
            self._naming = threading.Lock()  # held while a collection is created or deleted
            self._copying = threading.Lock()  # held while a snapshot is written or restored
            self._cache = IndexCache(
                self._folder / INDEX_FOLDER, read_only=settings.read_only, verify=settings.check_at_start
            )
            with ThreadPoolExecutor(1) as background:
                checking = background.submit(self._check) if settings.check_at_start else None
                self._load()
                if checking is not None:
                    checking.result()
            passes = settings.passes if device is None else 1
            self._search = SearchThreads(settings.max_batch, threads=passes, own_threads=device is None)
            self._planner = Planner(settings, self._search, device, self._cache)
            self._committer = GroupCommitter(
                self._database,
                lambda change: self._collections.apply(change),
                on_fatal,
                reserve=lambda change: self._collections.reserve(change),
                release=lambda: self._collections.release(),
            )
            with self._database.reading() as connection:
                vacuumed = reads.vacuumed(connection)
            self._horizon = VisibilityHorizon(settings.page_ttl_s, lambda: self._committer.seq, vacuumed)
            undo.pop_all()
        self._maintenance: Maintenance | None = None
        self._checkpointer: Checkpointer | None = None
        if settings.read_only:
            self._committer.refuse(
                RegionSearchError(
                    Kind.FAILED_PRECONDITION, "the searcher runs read-only: unset embedded.read_only"
                )
            )
            return
        self._reserve_file.fill()
        self._database.keep_log_below(self._reserve_file.size())
        self._checkpointer = Checkpointer(
            self._database,
            self._committer,
            self._restore_lock,
            self._reserve_file,
            self._lock.check,
            settings.max_log_bytes,
        )
        self._maintenance = Maintenance(
            self._committer, self._horizon, self._restore_lock, lambda: self._collections.all(),
            self._planner, self._cache, self._reserve_file, settings,
        )  # fmt: skip

    def run_maintenance(self) -> None:
        """Runs now what the maintenance thread would do within the next second."""
        if self._maintenance is not None:
            self._maintenance.run_once()

    def close(self) -> None:
        if self._maintenance is not None:
            self._maintenance.close()
        if self._checkpointer is not None:
            self._checkpointer.close()
        self._committer.close()
        self._search.close()
        self._database.close()
        self._lock.release()

    def _opened(self, path: Path) -> Database:
        """The record file; on a full disk the reserve makes room for what opening it needs."""
        read_only = self._settings.read_only
        try:
            return Database(path, read_only=read_only)
        except RegionSearchError as error:
            if error.kind is not Kind.STORAGE_FULL or read_only or not self._reserve_file.spend():
                raise
            return Database(path, read_only=read_only)

    def _check(self) -> None:
        with self._database.reading() as connection:
            check_store(connection, self._database.path)

    def _load(self) -> None:
        """Builds all indexes from the store."""
        if not (self.replica or self._settings.read_only):
            self._database.drop_unfinished()
        with self._database.reading() as connection:
            epoch, self._token_key = reads.epoch(connection)
        self.history = f"{hashlib.sha256(self._token_key).hexdigest()[:16]}.{epoch}"
        self._collections = OpenCollections(
            epoch, open_collections(self._database, self._cache, self._settings)
        )
