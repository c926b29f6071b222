"""Compaction: rewrites sealed segments during searches, without their dead rows or with a faster index.

A compaction copies rows that no longer change except for their `removed` marks. It is built on another
thread; the writing thread then brings the marks up to date and swaps it in, so that no removal is lost in
between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from services.searcher.embedded.index.columns import NEVER, Columns, Positions
from services.searcher.embedded.index.nearest import FlatSegment
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import State
from services.searcher.types import Vectors

ALL_ROWS = -1
"""The horizon of a compaction that leaves no row out."""

_BLOCK = 8192
_FEW_DEAD = 16  # tombstones that are not worth a compaction
_STEP_CHUNKS = 4  # rows of one compaction, which holds them twice
_MERGE = 2  # an approximate segment joins newer ones that hold a half of its rows

Build = Callable[["CompactionInput"], IndexSegment]
"""Makes a segment of a compaction's rows."""


class CompactionInput:
    """Rows of neighbouring sealed segments that are to become one new segment.

    Args:
        sources: The segments, in their order.
        horizon: Rows removed up to this write are left out.
        start: First row to take, counted over all rows that stay.
        stop: End of the rows to take.
    """

    def __init__(
        self, sources: Sequence[IndexSegment], horizon: int, start: int = 0, stop: int | None = None
    ) -> None:
        self.sources = list(sources)
        self._rows: list[Positions] = []
        passed = 0
        for source in sources:
            columns = source.columns
            rows = np.flatnonzero(columns.removed[: columns.used] > horizon)
            first = max(0, start - passed)
            last = len(rows) if stop is None else max(0, stop - passed)
            self._rows.append(rows[first:last])
            passed += len(rows)

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return int(self.sources[0].gather(np.zeros(1, np.intp)).shape[1])

    def taken_from(self, source: IndexSegment) -> tuple[int, Positions]:
        """The place of the first row of one of the segments, and which of its rows are taken."""
        number = self.sources.index(source)
        return sum(map(len, self._rows[:number])), self._rows[number]

    def columns(self) -> Columns:
        """Their columns, copied."""
        columns = Columns(len(self))
        for source, rows in zip(self.sources, self._rows, strict=True):
            columns.take(source.columns, rows)
        return columns

    def vectors(self) -> Iterator[Vectors]:
        """Their vectors, in blocks."""
        for source in self.sources:
            yield from self.vectors_of(source)

    def vectors_of(self, source: IndexSegment) -> Iterator[Vectors]:
        """Those of one of the segments, in blocks."""
        _, rows = self.taken_from(source)
        for start in range(0, len(rows), _BLOCK):
            yield source.gather(rows[start : start + _BLOCK])

    def sample(self, count: int, seed: int = 0) -> Vectors:
        """Vectors of up to `count` rows, chosen at random."""
        total = len(self)
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
        found: list[Vectors] = []
        passed = 0
        for source, rows in zip(self.sources, self._rows, strict=True):
            here = chosen[(chosen >= passed) & (chosen < passed + len(rows))] - passed
            found.append(source.gather(rows[here]))
            passed += len(rows)
        return np.concatenate(found)

    def refresh(self, columns: Columns) -> None:
        """Brings the `removed` marks of a copy up to date (writing thread only)."""
        place = 0
        for source, rows in zip(self.sources, self._rows, strict=True):
            columns.removed[place : place + len(rows)] = source.columns.removed[rows]
            place += len(rows)
        columns.dead = int(np.count_nonzero(columns.removed[:place] != NEVER))


def build_flat(compaction: CompactionInput) -> FlatSegment:
    """An exact segment of the rows, and no larger than they are."""
    first = next(iter(compaction.vectors()))
    segment = FlatSegment(first.shape[1], len(compaction))
    place = 0
    for block in compaction.vectors():
        segment.vectors[place : place + len(block)] = block
        place += len(block)
    segment.columns = compaction.columns()
    segment.sealed = True
    return segment


def select_for_compaction(state: State, horizon: int, chunk_rows: int, limit: float) -> list[IndexSegment]:
    """Adjacent sealed exact segments that are worth compacting: some have over `limit` tombstones.

    Small neighbours join in, so that many deletions do not leave many small segments. A run ends once it has
    rows for a few chunks, even if more would be worth it: they come next.
    """
    run: list[IndexSegment] = []
    for view in state.views:
        segment = view.segment
        if sum(_live(one, horizon) for one in run) >= _STEP_CHUNKS * chunk_rows and _worth_compacting(
            run, horizon, chunk_rows, limit
        ):
            return run
        live = _live(segment, horizon)
        dead = segment.columns.used - live > limit * segment.columns.used
        small = live <= chunk_rows // 2
        if segment.sealed and (dead or small) and not segment.approximate:
            run.append(segment)
        elif _worth_compacting(run, horizon, chunk_rows, limit):
            return run
        else:
            run = []
    return run if _worth_compacting(run, horizon, chunk_rows, limit) else []


def select_for_merge(state: State, horizon: int, least: int, limit: float) -> list[IndexSegment]:
    """Adjacent sealed segments that should become one approximate segment.

    Those are exact ones with `least` rows together, or approximate ones with over `limit` tombstones, with
    all before them that are not much larger. So the number of segments grows with the logarithm of the rows,
    and a row is merged about as often.
    """

    def needs_rewrite(segment: IndexSegment) -> bool:
        used = segment.columns.used
        return segment.approximate and used - _live(segment, horizon) > limit * used

    def due(run: list[IndexSegment]) -> bool:
        exact = sum(segment.columns.used for segment in run if not segment.approximate)
        return exact >= least or any(map(needs_rewrite, run))

    run: list[IndexSegment] = []
    for segment in reversed([view.segment for view in state.views if view.segment.sealed]):
        held = sum(_live(one, horizon) for one in run)
        if not segment.approximate or needs_rewrite(segment) or _live(segment, horizon) <= _MERGE * held:
            run.insert(0, segment)
        elif due(run):
            break
        else:
            run = []
    return run if due(run) else []


def should_seal(segment: IndexSegment, horizon: int, limit: float) -> bool:
    """Whether a growing segment has enough dead rows to be sealed and compacted."""
    used = segment.columns.used
    return not segment.sealed and used - _live(segment, horizon) > max(limit * used, _FEW_DEAD)


def _worth_compacting(run: Sequence[IndexSegment], horizon: int, chunk_rows: int, limit: float) -> bool:
    live = [_live(segment, horizon) for segment in run]
    used = [segment.columns.used for segment in run]
    return any(n - m > limit * n for n, m in zip(used, live, strict=True)) or -(
        -sum(live) // chunk_rows
    ) < len(run)


def _live(segment: IndexSegment, horizon: int) -> int:
    columns = segment.columns
    if not columns.dead:
        return columns.used
    return int(np.count_nonzero(columns.removed[: columns.used] > horizon))
