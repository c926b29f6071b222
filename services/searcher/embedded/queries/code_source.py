"""The candidates of a ranking by binary codes alone."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.candidates import Candidates, Numbers
from services.searcher.embedded.index.binary import Codec, CodeSegment
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import Part
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.queries.candidate_source import SelectedRows
from services.searcher.embedded.store.database import Database
from services.searcher.queries import Query
from services.searcher.types import Vectors

_BLOCK = 8192

Codes = NDArray[np.uint8]
"""Packed bits, shape (rows, bits / 8)."""

_kept: weakref.WeakKeyDictionary[IndexSegment, tuple[Codec, Codes]] = weakref.WeakKeyDictionary()


class CodeSource(SelectedRows):
    """Scores all rows that pass by their codes, on the caller's thread: 32 bytes a row for 256 bits.

    Args:
        database: The record store.
        collection: The collection.
        query: The query.
        seq: The write whose state is searched.

    Attributes:
        ahead: See `CandidateSource`.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when the collection has no codes yet.
    """

    approximate = False

    def __init__(self, database: Database, collection: OpenCollection, query: Query, seq: int) -> None:
        super().__init__(database, collection, query, seq)
        codec = collection.codec
        if codec is None:
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"the binary codes of {collection.spec.name!r} have not been trained; train them with "
                "TrainCodes or `regionsearch codes train`",
                field="codes_only",
            )
        self.ahead = query.skipped + len(query.shown)
        against = codec.encode(self._against)
        self._parts: list[Part] = []
        self._scores: list[Vectors] = []
        for one in self._selected:
            rows = np.arange(one.rows) if one.mask is None else np.flatnonzero(one.mask)
            codes = codes_of(one.segment, codec, one.rows)
            self._parts.append(Part(one.segment, rows))
            self._scores.append(similarities(codes if one.mask is None else codes[rows], against))

    def best(self, count: int) -> Candidates:
        """See `CandidateSource`; all that tie with the last of them come along."""
        finals = [these[:, : len(self._query.vectors)].max(axis=1) for these in self._scores]
        tops = np.concatenate([np.empty(0, np.float32), *finals])
        if count >= len(tops):
            return self._candidates(self._parts, self._scores, complete=True)
        floor = np.partition(tops, len(tops) - count)[len(tops) - count]
        return self._chosen([final >= floor for final in finals], complete=False)

    def of_images(self, images: Numbers) -> Candidates:
        """See `CandidateSource`."""
        owners = [part.segment.columns.image_rowid[part.rows] for part in self._parts]
        return self._chosen([np.isin(these, images) for these in owners], complete=True)

    def _chosen(self, kept: list[NDArray[np.bool_]], *, complete: bool) -> Candidates:
        parts = [Part(part.segment, part.rows[k]) for part, k in zip(self._parts, kept, strict=True)]
        scores = [these[k] for these, k in zip(self._scores, kept, strict=True)]
        return self._candidates(parts, scores, complete=complete)


def codes_of(segment: IndexSegment, codec: Codec, rows: int) -> Codes:
    """The codes of the first rows of a segment; those that were made once are kept."""
    maker, codes = _kept.get(segment, (None, np.empty((0, len(codec.bias) // 8), np.uint8)))
    if maker is not codec:
        codes = codes[:0] if maker is None else np.empty((0, len(codec.bias) // 8), np.uint8)
        if isinstance(segment, CodeSegment) and segment.codec is codec:
            codes = segment.codes()
    if len(codes) < rows:
        starts = range(len(codes), rows, _BLOCK)
        made = [codec.encode(segment.gather(np.arange(at, min(rows, at + _BLOCK)))) for at in starts]
        codes = np.concatenate([codes, *made])
    _kept[segment] = codec, codes
    return codes[:rows]


def similarities(codes: Codes, against: Codes) -> Vectors:
    """1 - 2 * Hamming distance / bits of each row with each query, shape (rows, queries)."""
    bits = 8 * codes.shape[1]
    word = np.uint64 if bits % 64 == 0 else np.uint8
    rows, queries = np.ascontiguousarray(codes).view(word), np.ascontiguousarray(against).view(word)
    scores = np.empty((len(rows), len(queries)), np.float32)
    for column, query in enumerate(queries):
        distance = np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.int32)
        scores[:, column] = 1 - 2 * distance / np.float32(bits)
    return scores
