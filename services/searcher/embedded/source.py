"""Candidates for a ranking, out of one collection's index."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

from services.searcher.callers import Caller
from services.searcher.embedded import reads
from services.searcher.embedded.conditions import Conditions, compile_filter
from services.searcher.embedded.database import Database
from services.searcher.embedded.index import Fetch
from services.searcher.embedded.opened import OpenCollection
from services.searcher.embedded.searching import SearchThread
from services.searcher.ranking import Candidates, Numbers, first_count
from services.searcher.types import NO_FILTER, Query


class IndexSource:
    """What a ranking sees of one collection in one state.

    Args:
        database: The record store.
        search: Reads the vectors.
        opened: The collection.
        query: What is looked for.
        seq: The write whose state is looked at.
        caller: Who waits for it.
    """

    def __init__(
        self,
        database: Database,
        search: SearchThread,
        opened: OpenCollection,
        query: Query,
        seq: int,
        caller: Caller,
    ) -> None:
        self._caller = caller
        self._database = database
        self._search = search
        self._opened = opened
        self._query = query
        images = opened.index.state.images

        def look_up() -> Conditions:
            if query.filter == NO_FILTER:
                return Conditions(seq, query.level)
            with database.reading() as connection:
                return compile_filter(connection, opened.number, query.filter, query.level, seq, images)

        key = (query.filter, query.level, seq, images, opened.revision)
        self._conditions = opened.conditions.get(key, look_up)
        self._first = self._submit(self._conditions, first_count(query))

    def best(self, count: int) -> Candidates:
        """See `ranking.Source`; what is asked for first is under way already."""
        if count == first_count(self._query):
            return self._first.result()
        return self._submit(self._conditions, count).result()

    def of_images(self, images: Numbers) -> Candidates:
        """See `ranking.Source`."""
        chosen = self._conditions.within(images, self._opened.index.state.images)
        return self._submit(chosen, None).result()

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        """See `ranking.Source`."""
        with self._database.reading() as connection:
            return reads.public_ids(connection, keys)

    def _submit(self, conditions: Conditions, count: int | None) -> Future[Candidates]:
        request = Fetch(self._query.vectors, conditions, count, self._query.negatives)
        return self._search.submit(self._opened.index, request, self._caller)
