"""Plans which sealed segments get which faster index, and when they are tuned and evaluated."""

from __future__ import annotations

import itertools
import time
import weakref
from pathlib import Path

import structlog

from regionsearch.errors import overloaded
from services.searcher.embedded.faiss_compat import faiss
from services.searcher.embedded.index.approximate import ApproximateSegment
from services.searcher.embedded.index.binary import (
    Codec,
    CodeSegment,
    build_codes,
    learned_codec,
    restore_codes,
    train_codec,
    training_sample,
)
from services.searcher.embedded.index.columns import Columns
from services.searcher.embedded.index.compaction import (
    ALL_ROWS,
    Build,
    CompactionInput,
    build_flat,
    select_for_merge,
)
from services.searcher.embedded.index.device import (
    Device,
    OnDevice,
    flat_bytes,
    lists_bytes,
    tune_on_device,
)
from services.searcher.embedded.index.gpu import build_gpu
from services.searcher.embedded.index.index_files import IndexCache, SavedIndex
from services.searcher.embedded.index.inverted_lists import IvfSegment, build_ivf, restore_ivf
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import FlatSegment
from services.searcher.embedded.index.recall import (
    QUERIES,
    RecallEvaluator,
    below_target,
    recall_evaluators,
    tune,
)
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segments import IndexSegment, View
from services.searcher.embedded.open_collections import OpenCollection, approximate_segments
from services.searcher.settings import EmbeddedSettings

_ENOUGH_QUERIES = 64
_FRESH_QUERIES = 32
_MEASURE_S = 30.0
_BACKLOG_RETRY_S = 5.0
_MEASURED_ROWS = 250_000
_TOLERANCE = 0.01  # of a recall that is measured with few queries
_log = structlog.get_logger(__name__)


class Planner:
    """Chooses binary codes where a collection wants them, else by size: exact on a GPU, if any, or IVF.

    Args:
        settings: Sizes and the recall target.
        search: Its thread owns the device.
        device: The GPU; None without one.
        cache: Where approximate segments are stored.
    """

    def __init__(
        self, settings: EmbeddedSettings, search: SearchThreads, device: Device | None, cache: IndexCache
    ) -> None:
        self._settings = settings
        self._search = search
        self._device = device
        self._cache = cache
        self._turns = itertools.count()
        self._next: weakref.WeakKeyDictionary[OpenCollection, float] = weakref.WeakKeyDictionary()

    def plan(self, collection: OpenCollection, horizon: int) -> tuple[list[IndexSegment], Build] | None:
        """The segments to replace next and what builds the new one, without rows removed up to `horizon`."""
        settings, views = self._settings, collection.index.state.views
        coded = collection.spec.codes is not None
        least = settings.codes_rows if coded else settings.ann_rows
        if not coded and sum(view.rows for view in views) < settings.ann_above:
            return None if self._device is None else self._plan_gpu(self._device, collection)
        sources = _outdated(views, collection.codec) if coded else []
        sources = sources or select_for_merge(collection.index.state, horizon, least, settings.compact_above)
        if not sources:
            return None

        def build(compaction: CompactionInput) -> IndexSegment:
            if len(compaction) < least // 2:
                return build_flat(compaction)  # most rows have been removed
            return (self._build_codes if coded else self._build_ivf)(collection, compaction)

        return sources, build

    def check_backlog(self, collection: OpenCollection) -> None:
        """Refuses a write while too many rows wait for an approximate index.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        index, settings = collection.index, self._settings
        views, coded = index.state.views, collection.spec.codes is not None
        if not coded and sum(view.rows for view in views) < settings.ann_above:
            return
        waiting = sum(view.rows for view in views if isinstance(view.segment, FlatSegment))
        nbytes = 4 * index.dimension * waiting
        if nbytes > settings.max_unindexed_bytes:
            raise overloaded(
                f"{waiting} records of collection {collection.spec.name!r} ({nbytes >> 20} MiB) wait for an "
                "index (embedded.max_unindexed_bytes): retry later, or give the searcher more build_threads",
                retry_after_s=_BACKLOG_RETRY_S,
            )

    def _build_ivf(self, collection: OpenCollection, compaction: CompactionInput) -> IndexSegment:
        faiss.omp_set_num_threads(self._settings.build_threads)  # of this thread; searches keep theirs
        segment = build_ivf(compaction, self._cache.begin())
        self._tune(collection, segment, compaction)
        return segment

    def tune(self, collection: OpenCollection) -> ApproximateSegment | None:
        """Tunes a segment whose recall is too low, or that was never tuned with real queries of a kind.

        Returns:
            The segment; None if none is due.
        """
        live, target = collection.index.live, self._target(collection)
        sampled = {kind for kind in QueryKind if live.count(kind) >= _ENOUGH_QUERIES}
        for segment in approximate_segments(collection):
            if (
                below_target(segment, target - _TOLERANCE)
                or sampled - segment.seen
                or self._may_be_placed(segment)
            ):
                faiss.omp_set_num_threads(self._settings.build_threads)
                self._tune(collection, segment, CompactionInput([segment], ALL_ROWS))
                return segment
        return None

    def measure(self, collection: OpenCollection) -> bool:
        """Measures recall with the latest queries; returns whether it was due and there were enough of them.

        Where there are many rows, a part of the segments is measured each time.
        """
        segments = approximate_segments(collection)
        if not segments or time.monotonic() < self._next.get(collection, 0.0):
            return False
        first = next(self._turns) % len(segments)
        turn: list[ApproximateSegment] = []
        for segment in [*segments[first:], *segments[:first]]:
            if sum(one.columns.used for one in turn) < _MEASURED_ROWS:
                turn.append(segment)
        measured = False
        for kind in QueryKind:
            queries = collection.index.live.fresh(kind, _FRESH_QUERIES)
            if queries is None:
                continue
            faiss.omp_set_num_threads(self._settings.build_threads)
            for segment in turn:
                found = RecallEvaluator(CompactionInput([segment], ALL_ROWS), queries).recall(segment)
                segment.recalls = {**segment.recalls, kind: found}
            measured = True
        if measured:
            self._next[collection] = time.monotonic() + _MEASURE_S
        return measured

    def _tune(
        self, collection: OpenCollection, segment: ApproximateSegment, compaction: CompactionInput
    ) -> None:
        samples = {kind: collection.index.live.sample(kind, QUERIES) for kind in QueryKind}
        real = {kind: queries for kind, queries in samples.items() if len(queries) >= _ENOUGH_QUERIES}
        evaluators, target = recall_evaluators(compaction, real), self._target(collection)
        if self._device is not None and isinstance(segment, IvfSegment):
            tune_on_device(segment, self._device, self._search, evaluators, target)
        else:
            tune(segment, evaluators, target)
        segment.seen = segment.seen | real.keys()

    def _may_be_placed(self, segment: ApproximateSegment) -> bool:
        """Whether the device has room for a segment that is not yet there, such as one that was restored."""
        return (
            self._device is not None
            and isinstance(segment, IvfSegment)
            and segment.device is None
            and self._device.has_room(lists_bytes(segment.index))
        )

    def _target(self, collection: OpenCollection) -> float:
        return collection.spec.recall_target or self._settings.recall_target

    def _plan_gpu(
        self, device: Device, collection: OpenCollection
    ) -> tuple[list[IndexSegment], Build] | None:
        """Exact segments of a small collection for the device, while it has room."""
        sources = _run(collection.index.state.views, self._settings.gpu_rows)
        rows = sum(source.columns.used for source in sources)
        if not rows or not device.has_room(flat_bytes(rows, collection.index.dimension)):
            return None

        def build(compaction: CompactionInput) -> IndexSegment:
            try:
                return build_gpu(
                    compaction,
                    lambda vectors: OnDevice(self._search, lambda: device.place_flat(vectors)),
                )
            except MemoryError:  # it had less room than it seemed
                return build_flat(compaction)

        return sources, build

    def _build_codes(self, collection: OpenCollection, compaction: CompactionInput) -> IndexSegment:
        spec, codec = collection.spec.codes, collection.codec
        assert spec is not None
        if codec is None and spec.head:
            codec = learned_codec(heads_folder(self._settings), spec, collection.spec.model.dimension)
        elif codec is None:
            codec = train_codec(spec, training_sample(compaction))
        segment = build_codes(compaction, codec, spec.rerank_factor, self._cache.begin())
        self._tune(collection, segment, compaction)
        return segment


def restored(
    saved: SavedIndex,
    columns: Columns,
    collection: OpenCollection,
    settings: EmbeddedSettings,
) -> ApproximateSegment | None:
    """The segment that was saved, if one of its kind would be built today.

    Args:
        saved: Its files.
        columns: Its rows.
        collection: The collection.
        settings: Sizes and the recall target.
    """
    codes, codec = collection.spec.codes, collection.codec
    try:
        if saved.kind == "codes" and codes is not None and codec is not None:
            return restore_codes(saved, columns, codec, codes.rerank_factor)
        if saved.kind == "ivf" and codes is None and collection.spec.record_count >= settings.ann_above:
            return restore_ivf(saved, columns)
    except (KeyError, ValueError, OSError) as error:
        _log.info("index file does not match, it will be rebuilt", kind=saved.kind, reason=str(error))
    return None


def _outdated(views: tuple[View, ...], codec: Codec | None) -> list[IndexSegment]:
    """The first segment that was built before the collection had its present codes."""
    for view in views:
        segment = view.segment
        earlier = isinstance(segment, CodeSegment) and segment.codec is not codec
        if earlier or isinstance(segment, IvfSegment):
            return [segment]
    return []


def heads_folder(settings: EmbeddedSettings) -> Path:
    """The folder of the learned heads."""
    return settings.heads_folder or settings.folder / "heads"


def _run(views: tuple[View, ...], rows: int) -> list[IndexSegment]:
    """The first neighbouring sealed flat segments that together have `rows` rows.

    Half as many suffice between faster segments: compaction has left them there, and no more rows come.
    """
    run: list[IndexSegment] = []
    for view in views:
        faster = not isinstance(view.segment, FlatSegment)
        if not faster and view.segment.sealed:
            run.append(view.segment)
        held = sum(segment.columns.used for segment in run)
        if held >= rows or (faster and 2 * held >= rows):
            return run
        if faster:
            run = []
    return []
