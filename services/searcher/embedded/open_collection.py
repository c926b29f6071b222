"""A collection that is open in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from regionsearch.errors import RegionSearchError
from services.searcher.embedded.index.binary import Codec
from services.searcher.embedded.index.filters import FilterCache
from services.searcher.embedded.index.terms import Terms
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.types import Collection


@dataclass(slots=True, weakref_slot=True, eq=False)
class OpenCollection:
    """Description and index of a collection.

    Attributes:
        number: Its number in the record store.
        spec: What it was created with.
        index: Its vectors.
        codec: What makes its binary codes; None until it is learned, or without codes.
        conditions: What its last searches asked for.
        problem: Why its vectors are not in memory, which searches and writes answer; None where they are.
        revision: Counts changes of tags and attributes; conditions of another revision hold no longer.
        terms: The tags and attributes that their filters named.
    """

    number: int
    spec: Collection
    index: VectorIndex
    codec: Codec | None = None
    conditions: FilterCache = field(default_factory=FilterCache)
    revision: int = 0
    terms: Terms = field(default_factory=Terms)
    problem: RegionSearchError | None = None
