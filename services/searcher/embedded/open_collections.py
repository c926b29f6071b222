"""The collections that are open in memory, what a committed write does to their indexes, and their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from regionsearch.errors import RegionSearchError, not_found
from services.searcher.embedded.index.approximate import ApproximateSegment
from services.searcher.embedded.index.binary import Codec
from services.searcher.embedded.index.filters import FilterCache, Terms
from services.searcher.embedded.index.inverted_lists import IvfSegment
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.rows import Change
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.database import Database
from services.searcher.types import Collection, CollectionStats, SegmentStats, check_generation


@dataclass(slots=True, weakref_slot=True, eq=False)
class OpenCollection:
    """Description and index of one collection.

    Attributes:
        rowid: Its row in the record store.
        spec: What it was created with.
        index: Its vectors.
        codec: Makes its binary codes; None until it is learned, or without codes.
        filters: The compiled filters of its last searches.
        problem: Why its vectors are not in memory; searches and writes raise it. None if they are.
        revision: Counts changes of tags and attributes in place; filters of another revision are stale.
        terms: The tags and attributes that its filters named.
    """

    rowid: int
    spec: Collection
    index: VectorIndex
    codec: Codec | None = None
    filters: FilterCache = field(default_factory=FilterCache)
    revision: int = 0
    terms: Terms = field(default_factory=Terms)
    problem: RegionSearchError | None = None


class OpenCollections:
    """All open collections, by name and by rowid.

    Args:
        epoch: How many restores the store has seen.
        collections: Those that were loaded.
    """

    def __init__(self, epoch: int, collections: Iterable[OpenCollection] = ()) -> None:
        self._epoch = epoch
        self._by_name: dict[str, OpenCollection] = {}
        self._by_rowid: dict[int, OpenCollection] = {}
        for collection in collections:
            self.add(collection)

    def add(self, collection: OpenCollection) -> None:
        """Adds a collection."""
        self._by_name[collection.spec.name] = self._by_rowid[collection.rowid] = collection

    def hide(self, collection: OpenCollection) -> None:
        """Hides a collection from callers; committed writes still reach its index."""
        del self._by_name[collection.spec.name]

    def remove(self, collection: OpenCollection) -> None:
        """Removes a hidden collection."""
        del self._by_rowid[collection.rowid]

    def follow(self, described: Mapping[int, tuple[Collection, bytes | None]]) -> None:
        """Takes over names, descriptions and trained codes, and drops the collections that are gone.

        Args:
            described: All collections by rowid, with their codecs; those that are not open are left out.
        """
        specs = {rowid: spec for rowid, (spec, _) in described.items()}
        open_now = list(self._by_rowid.values())
        kept = [one for one in open_now if one.rowid in specs]
        for collection in kept:
            spec, codec = described[collection.rowid]
            if codec is not None and (collection.codec is None or spec.codes != collection.spec.codes):
                collection.spec = replace(collection.spec, codes=spec.codes)
                collection.codec = Codec.from_bytes(codec)
        renamed = [one for one in kept if one.spec.name != specs[one.rowid].name]
        # Names that are taken come first, so that each is known at every moment.
        for collection in sorted(renamed, key=lambda one: specs[one.rowid].name not in self._by_name):
            self.rename(collection, specs[collection.rowid])
        for collection in open_now:
            if collection.rowid not in specs:
                self.remove(collection)
                if self._by_name.get(collection.spec.name) is collection:
                    self.hide(collection)

    def rename(self, collection: OpenCollection, spec: Collection) -> None:
        """Makes a collection known by another name; its old one may be another's already."""
        old = collection.spec.name
        collection.spec = spec
        self._by_name[spec.name] = collection
        if self._by_name.get(old) is collection:
            del self._by_name[old]

    def rowids(self) -> set[int]:
        """The rowids of all, of hidden ones too."""
        return set(self._by_rowid)

    def all(self) -> list[OpenCollection]:
        """The collections that callers can find."""
        return list(self._by_name.values())

    def get(self, name: str) -> OpenCollection | None:
        """The collection of a name, if there is one."""
        return self._by_name.get(name)

    def find(self, name: str, generation: str | None = None) -> OpenCollection:
        """Finds a collection by name.

        Raises:
            RegionSearchError: NOT_FOUND; ABORTED when it is not of the given generation.
        """
        try:
            collection = self._by_name[name]
        except KeyError:
            raise not_found("collection", f"there is no collection {name!r}: create it first") from None
        check_generation(name, self.generation(collection), generation)
        return collection

    def find_searchable(self, name: str, generation: str | None = None) -> OpenCollection:
        """Finds a collection whose vectors are in memory.

        Raises:
            RegionSearchError: As `find` does; FAILED_PRECONDITION when its vectors are not in memory.
        """
        collection = self.find(name, generation)
        if collection.problem is not None:
            raise collection.problem
        return collection

    def generation(self, collection: OpenCollection) -> str:
        """Names this very collection: rowids are not given twice between two restores."""
        return f"{self._epoch}.{collection.rowid}"

    # For the writing thread

    def reserve(self, change: Change) -> None:
        """Before a commit: allocates the memory that its rows will need.

        Raises:
            MemoryError: There is not enough.
        """
        collection = self._by_rowid.get(change.collection)
        if collection is not None and change.rows is not None:
            collection.index.reserve(len(change.rows))

    def release(self) -> None:
        """After a rollback: the rows that memory was reserved for do not come."""
        for collection in list(self._by_rowid.values()):
            collection.index.release()

    def apply(self, change: Change) -> None:
        """After a commit: brings the index of its collection up to date."""
        collection = self._by_rowid.get(change.collection)
        if collection is None:
            return  # dropped in the meantime
        if change.described:
            collection.revision += 1
        collection.index.remove(change.removed, change.seq)
        if change.rows is not None:
            collection.index.add(change.rows, np.full(len(change.rows), change.seq, np.int64))


def approximate_segments(collection: OpenCollection) -> list[ApproximateSegment]:
    """The segments of a collection that may overlook rows."""
    segments = [view.segment for view in collection.index.state.views]
    return [segment for segment in segments if isinstance(segment, ApproximateSegment)]


def answering_kind(segment: IndexSegment) -> str:
    """The name of the index that answers: of a segment's copy on a device, if it has one."""
    device = segment.device if isinstance(segment, IvfSegment) else None
    return segment.kind if device is None else device.kind


def statistics(database: Database, collection: OpenCollection, seq: int) -> CollectionStats:
    """Sizes and recall of an open collection after write `seq`."""
    views = collection.index.state.views
    with database.reading() as connection:
        image_count, record_count = reads.counts(connection, collection.rowid)
    segments = tuple(
        SegmentStats(
            view.rows - view.segment.columns.dead,
            view.segment.columns.dead,
            "growing"
            if view is views[-1] and view.rows < view.segment.columns.capacity
            else answering_kind(view.segment),
            view.segment.recall,
        )
        for view in views
    )
    return CollectionStats(
        collection=collection.spec.name,
        seq=seq,
        image_count=image_count,
        record_count=record_count,
        tombstone_count=sum(segment.tombstone_count for segment in segments),
        memory_bytes=sum(v.segment.vector_bytes + v.segment.columns.nbytes for v in views),
        segments=segments,
        binary_recall=_binary_recall(segments),
        recalls=_recalls(approximate_segments(collection)),
    )


def _recalls(segments: Sequence[ApproximateSegment]) -> dict[str, float]:
    """Mean recall by kind of query, weighted by rows."""
    found: dict[str, float] = {}
    for kind in QueryKind:
        known = [(s.recalls[kind], s.columns.used) for s in segments if kind in s.recalls]
        if known:
            found[kind.value] = sum(r * n for r, n in known) / sum(n for _, n in known)
    return found


def _binary_recall(segments: Sequence[SegmentStats]) -> float | None:
    """Mean recall of the segments with codes, by rows."""
    coded = [(s.recall, s.record_count) for s in segments if s.index == "codes" and s.recall is not None]
    rows = sum(count for _, count in coded)
    return sum(recall * count for recall, count in coded) / rows if rows else None
