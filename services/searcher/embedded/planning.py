"""Which sealed segments get which faster index, and when."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import structlog

from services.searcher.embedded.index.binary import (
    CodeSegment,
    build_codes,
    learned_codec,
    restore_codes,
    train_codec,
    training_sample,
)
from services.searcher.embedded.index.compaction import ALL_ROWS, Build, CompactionInput
from services.searcher.embedded.index.faiss_compat import faiss
from services.searcher.embedded.index.flat import FlatSegment
from services.searcher.embedded.index.gpu import Device, build_gpu
from services.searcher.embedded.index.index_files import Arrays, SavedIndex
from services.searcher.embedded.index.ivf import IvfSegment, build_ivf, restore_ivf
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.recall import (
    QUERIES,
    Approximate,
    RecallEvaluator,
    examinations,
    falls_short,
    tune,
)
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segments import IndexSegment, View
from services.searcher.embedded.open_collection import OpenCollection
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import CodeMethod

_ENOUGH_QUERIES = 64
_FRESH_QUERIES = 32
_MEASURE_S = 30.0
_MEASURED_ROWS = 250_000
_TOLERANCE = 0.01  # of a recall that is measured with few queries
_log = structlog.get_logger(__name__)


class Planner:
    """Chooses: binary codes where a collection wants them, else the GPU if there is one, else IVF.

    Args:
        settings: Sizes and the recall target.
        search: Its thread owns the device.
        device: The GPU; None without one.
    """

    def __init__(self, settings: EmbeddedSettings, search: SearchThreads, device: Device | None) -> None:
        self._settings = settings
        self._search = search
        self._device = device
        self._turns = itertools.count()
        self._next: weakref.WeakKeyDictionary[OpenCollection, float] = weakref.WeakKeyDictionary()

    def plan(self, opened: OpenCollection) -> tuple[list[IndexSegment], Build] | None:
        """The segments to replace next and what builds the new one."""
        settings = self._settings
        views = opened.index.state.views
        build: Callable[[CompactionInput], IndexSegment]
        if opened.spec.codes is not None:
            sources, build = (
                _run(views, settings.codes_rows),
                lambda rewrite: self._build_codes(opened, rewrite),
            )
        elif self._device is not None:
            sources, build = _run(views, settings.gpu_rows), self._build_gpu
        elif sum(view.rows for view in views) >= settings.ann_above:
            sources, build = _run(views, settings.ann_rows), lambda rewrite: self._build_ivf(opened, rewrite)
        else:
            return None
        return (sources, build) if sources else None

    def _build_ivf(self, opened: OpenCollection, rewrite: CompactionInput) -> IndexSegment:
        faiss.omp_set_num_threads(self._settings.build_threads)  # of this thread; searches keep theirs
        segment = build_ivf(rewrite)
        self._tune(opened, segment, rewrite)
        return segment

    def tune(self, opened: OpenCollection) -> Approximate | None:
        """Tunes a segment that finds too little, or has not seen real queries of a kind that has come.

        Returns:
            The segment; None if none is due.
        """
        live, target = opened.index.live, self._settings.recall_target
        come = {kind for kind in QueryKind if live.count(kind) >= _ENOUGH_QUERIES}
        for segment in approximate_segments(opened):
            if falls_short(segment, target - _TOLERANCE) or come - segment.seen:
                faiss.omp_set_num_threads(self._settings.build_threads)
                self._tune(opened, segment, CompactionInput([segment], ALL_ROWS))
                return segment
        return None

    def measure(self, opened: OpenCollection) -> bool:
        """Measures with the queries that have come since; whether there were enough and it was time.

        Where there are many rows, some segments have their turn and the others later.
        """
        segments = approximate_segments(opened)
        if not segments or time.monotonic() < self._next.get(opened, 0.0):
            return False
        first = next(self._turns) % len(segments)
        turn: list[Approximate] = []
        for segment in [*segments[first:], *segments[:first]]:
            if sum(one.columns.used for one in turn) < _MEASURED_ROWS:
                turn.append(segment)
        measured = False
        for kind in QueryKind:
            queries = opened.index.live.fresh(kind, _FRESH_QUERIES)
            if queries is None:
                continue
            faiss.omp_set_num_threads(self._settings.build_threads)
            for segment in turn:
                found = RecallEvaluator(CompactionInput([segment], ALL_ROWS), queries).recall(segment)
                segment.recalls = {**segment.recalls, kind: found}
            measured = True
        if measured:
            self._next[opened] = time.monotonic() + _MEASURE_S
        return measured

    def _tune(self, opened: OpenCollection, segment: Approximate, rewrite: CompactionInput) -> None:
        samples = {kind: opened.index.live.sample(kind, QUERIES) for kind in QueryKind}
        real = {kind: queries for kind, queries in samples.items() if len(queries) >= _ENOUGH_QUERIES}
        tune(segment, examinations(rewrite, real), self._settings.recall_target)
        segment.seen = segment.seen | real.keys()

    def _build_gpu(self, rewrite: CompactionInput) -> IndexSegment:
        device = self._device
        assert device is not None
        segment = build_gpu(rewrite, lambda vectors: self._search.run(lambda: device.place(vectors)))
        segment.when_unused(self._search.post)
        return segment

    def _build_codes(self, opened: OpenCollection, rewrite: CompactionInput) -> IndexSegment:
        spec, codec = opened.spec.codes, opened.codec
        assert spec is not None
        if codec is None and spec.method is CodeMethod.LEARNED:
            codec = learned_codec(heads_folder(self._settings), spec, opened.spec.model.dimension)
        elif codec is None:
            codec = train_codec(spec, training_sample(rewrite))
        segment = build_codes(rewrite, codec, spec.rerank_factor)
        self._tune(opened, segment, rewrite)
        return segment


def restored(
    saved: SavedIndex,
    rewrite: CompactionInput,
    opened: OpenCollection,
    records: int,
    settings: EmbeddedSettings,
) -> IndexSegment | None:
    """The segment that a file has kept, if it is one that would be built of these rows today.

    Args:
        saved: The file.
        rewrite: The rows.
        opened: The collection.
        records: Records in the collection.
        settings: Sizes and the recall target.
    """
    spec = opened.spec.codes
    rows = saved.rows_of(rewrite)
    segment: IndexSegment | None = None
    try:
        if rows is None:
            raise ValueError("its rows are not in the store")
        if saved.kind == "codes" and spec is not None and opened.codec is not None:
            segment = restore_codes(rewrite, rows, saved.arrays, opened.codec, spec.rerank_factor)
        elif saved.kind == "ivf" and spec is None and records >= settings.ann_above:
            segment = restore_ivf(rewrite, rows, saved.arrays)
    except (KeyError, ValueError, IndexError) as error:
        _log.info("index file does not fit, it will be made anew", kind=saved.kind, reason=str(error))
        return None
    return segment


def approximate_segments(opened: OpenCollection) -> list[Approximate]:
    """The segments of a collection that do not look everywhere."""
    segments = [view.segment for view in opened.index.state.views]
    return [segment for segment in segments if isinstance(segment, IvfSegment | CodeSegment)]


def arrays_of(segment: IndexSegment) -> Arrays | None:
    """What to keep of a segment; None for kinds that are made in no time."""
    return segment.to_arrays() if isinstance(segment, IvfSegment | CodeSegment) else None


def heads_folder(settings: EmbeddedSettings) -> Path:
    """Where learned heads are looked for."""
    return settings.heads_folder or settings.folder / "heads"


def _run(views: tuple[View, ...], rows: int) -> list[IndexSegment]:
    """The first neighbouring sealed flat segments that have so many rows together.

    Half as many do between faster segments: a compaction has left them there, and no more rows come.
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
