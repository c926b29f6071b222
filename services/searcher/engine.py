"""The interface between the servicer and the engine that stores and searches vectors.

There are two engines: `embedded` (SQLite and FAISS in this process, the default) and `milvus` (a Milvus
cluster for those who outgrow one machine). Both are called from many threads at once and block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.texts import MetadataLimits
from services.searcher.bounded_executor import NEVER_CANCELLED, CancellationToken
from services.searcher.queries import NO_FILTER, Deletion, Filter, ImageUpdate, Page, Query, UpdateResult
from services.searcher.response_budget import UNLIMITED, ResponseBudget
from services.searcher.scrolling import NEWEST_FIRST, Counts, Facet, ImageOrder, RecordPage, Scroll
from services.searcher.types import (
    CodeSpec,
    Collection,
    CollectionStats,
    DeleteResult,
    FeedFile,
    ImagePage,
    ImagePlace,
    Level,
    ModelIdentity,
    SnapshotFile,
    SnapshotInfo,
    Stored,
    StorePosition,
    Upsert,
    UpsertResult,
)

_RETRY_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class SearchCall:
    """A search; the fields are the arguments of `Engine.search`."""

    model: ModelIdentity
    queries: Sequence[Query]
    min_seq: int | None = None
    cancellation: CancellationToken = NEVER_CANCELLED
    budget: ResponseBudget = UNLIMITED


def attempt(function: Callable[[], T]) -> T | Exception:
    """What a function returns or raises: the error of one call must not end the others."""
    try:
        return function()
    except Exception as error:
        return error


class Engine(Protocol):
    """Collections of images, records and vectors. Every method raises `RegionSearchError` and nothing else.

    NOT_FOUND when there is no such collection; MODEL_MISMATCH for vectors of another model.

    Attributes:
        name: Its name.
        together: How many searches are better answered together than each on a thread of its own.
    """

    name: str
    together: int

    def create_collection(self, collection: Collection) -> Collection:
        """Adds an empty collection; ALREADY_EXISTS when there is one of that name."""

    def get_collection(self, name: str) -> Collection:
        """One collection with its counts."""

    def list_collections(self) -> list[Collection]:
        """All collections by name."""

    def delete_collection(self, name: str) -> None:
        """Deletes a collection and all that is in it."""

    def replace_collection(self, name: str, by: str, keep_as: str, hold_s: float = 0.0) -> Sequence[str]:
        """Gives the name of a collection to `by`, in one step, and keeps what had it as `keep_as`.

        Writes to the collection wait for `hold_s` seconds, or until a call has given the name away.

        Returns:
            Empty when that is done; else some of the images in which the two differ, and nothing is changed.
        """

    def train_codes(self, name: str, spec: CodeSpec) -> Collection:
        """Learns binary codes from the vectors of a collection, in place of those that it has.

        FAILED_PRECONDITION when it has too few records.
        """

    def upsert(
        self, name: str, model: ModelIdentity, write: Upsert, generation: str | None = None
    ) -> UpsertResult:
        """Writes images and records. What is answered is on disk and visible to the next search.

        ABORTED when the collection is not of the given generation.
        """

    def update_images(
        self, name: str, updates: Sequence[ImageUpdate], limits: MetadataLimits
    ) -> UpdateResult:
        """Changes names, tags and attributes of images; ids that do not exist are left out.

        ABORTED when an image is not as it was read, TOO_LARGE when it would be over `limits`.
        """

    def delete(self, name: str, deletion: Deletion) -> DeleteResult:
        """Deletes images, records, or what passes a filter."""

    def search(
        self,
        name: str,
        model: ModelIdentity,
        queries: Sequence[Query],
        min_seq: int | None = None,
        cancellation: CancellationToken = NEVER_CANCELLED,
        budget: ResponseBudget = UNLIMITED,
    ) -> list[Page]:
        """One page for each query; UNAVAILABLE before write `min_seq` is visible.

        FAILED_PRECONDITION at once when no write has been acknowledged with that number: it may never come.
        ABORTED when the state or the generation that a query is pinned to is no longer there. CANCELLED or
        DEADLINE_EXCEEDED when the caller has left before the search began. A single query's page ends
        early where `budget` is used up; TOO_LARGE when not even one hit fits, or when several pages do not.
        """

    def search_together(self, name: str, calls: Sequence[SearchCall]) -> Iterator[list[Page] | Exception]:
        """The pages of several searches, in their order, or the error of each; raises what all have."""

    def get_records(
        self,
        name: str,
        record_ids: Sequence[str],
        image_ids: Sequence[str],
        *,
        masks: bool,
        vectors: bool,
        images_only: bool = False,
        budget: ResponseBudget = UNLIMITED,
    ) -> Stored:
        """Records by id, and all records of images, or only these images. What does not exist is left out.

        TOO_LARGE when they need more than `budget`.
        """

    def list_images(
        self,
        name: str,
        limit: int,
        after: ImagePlace | None,
        budget: ResponseBudget = UNLIMITED,
        generation: str | None = None,
        wanted: Filter = NO_FILTER,
        order: ImageOrder = NEWEST_FIRST,
    ) -> ImagePage:
        """Images in an order, from behind a place that an earlier page named; with a filter those of which a
        record passes.

        A page ends early where `budget` is used up; TOO_LARGE when not even one image fits. ABORTED when
        the collection is not of the given generation.
        """

    def scroll(
        self, name: str, asked: Scroll, min_seq: int | None = None, budget: ResponseBudget = UNLIMITED
    ) -> RecordPage:
        """A page of the records that pass a filter, in an order that writes do not change.

        `min_seq` and errors as of `search`. A page ends early where `budget` is used up.
        """

    def count(
        self,
        name: str,
        wanted: Filter,
        level: Level | None,
        facets: Sequence[Facet] = (),
        min_seq: int | None = None,
    ) -> Counts:
        """How many records pass a filter, in all and by facets; `min_seq` as of `search`."""

    def token_key(self, *, fresh: bool = False) -> bytes:
        """The secret that signs page tokens; the same for every searcher of one store.

        Args:
            fresh: Read it again, as a token that does not fit may be from another searcher.
        """

    def snapshot(self, name: str) -> SnapshotInfo:
        """Writes a consistent copy of all collections under a file name."""

    def list_snapshots(self) -> list[SnapshotFile]:
        """The snapshots that can be restored, newest first."""

    def delete_snapshot(self, name: str) -> None:
        """Deletes a snapshot."""

    def restore(self, name: str, collection: str = "") -> tuple[int, int]:
        """Replaces all collections by those of a snapshot, or one; returns the write number and how many."""

    def follow(self, position: StorePosition) -> Feed:
        """What a read replica needs from a position on.

        FAILED_PRECONDITION when its store has another format.
        """

    def last_write(self) -> int:
        """The number of the last write, not below those that this process has answered."""

    def stats(self, name: str | None) -> list[CollectionStats]:
        """Sizes and recall of one collection or all."""

    def disk_bytes(self) -> int:
        """Size on disk; 0 where another system keeps the data."""

    def close(self) -> None:
        """Finishes pending work and closes files and connections."""


class Feed(Protocol):
    """The changes of a store for one read replica."""

    @property
    def last_seq(self) -> int:
        """The last write of the store."""

    def following(self, timeout_s: float) -> FeedFile | None:
        """What comes next; None when nothing has changed for so long.

        ABORTED when the store was replaced by a snapshot. UNAVAILABLE while that is going on.
        """

    def close(self) -> None:
        """Lets go of what was kept for the replica."""


def upsert_patiently(engine: Engine, name: str, model: ModelIdentity, write: Upsert) -> UpsertResult:
    """Writes; where the engine refuses because it is overloaded, waits as long as that lasts."""
    while True:
        try:
            return engine.upsert(name, model, write)
        except RegionSearchError as error:
            if error.kind is not Kind.OVERLOADED:
                raise
            time.sleep(error.retry_after_s or _RETRY_S)


class BehindError(RegionSearchError):
    """A read replica does not have a write yet.

    Attributes:
        seq: The write.
    """

    def __init__(self, seq: int, last: int) -> None:
        super().__init__(
            Kind.UNAVAILABLE,
            f"this read replica has received write {last} and not yet {seq}: ask another searcher",
            retry_after_s=0.1,
        )
        self.seq = seq


def never_acknowledged(min_seq: int, last: int) -> RegionSearchError:
    """The error of a search for a `min_seq` that no write was acknowledged with.

    Args:
        min_seq: What the search asks for.
        last: The last write.
    """
    return RegionSearchError(
        Kind.FAILED_PRECONDITION,
        f"no write {min_seq} has been acknowledged, the last one is {last}; take min_seq from the answer to "
        "a write, or leave it out (after a restore, numbers begin again at the snapshot's)",
        field="min_seq",
    )
