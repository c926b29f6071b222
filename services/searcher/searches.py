"""Search calls: read into plain values, answered alone or together with others, and written as messages."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from regionsearch.errors import not_found
from regionsearch.v1 import search_pb2
from services.searcher.answers import hit_to_proto, model_to_proto
from services.searcher.bounded_executor import BoundedExecutor, CancellationToken
from services.searcher.call_groups import CallGroups
from services.searcher.engine import Engine, SearchCall, attempt
from services.searcher.queries import Page
from services.searcher.requests import Reader
from services.searcher.response_budget import ResponseBudget
from services.searcher.search_requests import PageTokens, SearchReader
from services.searcher.types import Vectors

_ORDINARY = frozenset(
    (
        "collection", "model", "queries", "query_mode", "level", "filter", "min_score", "relative_cutoff",
        "min_relevancy", "group_by", "page_size", "min_seq", "whole_image_margin",
    )
)  # fmt: skip
"""The fields of searches that are answered together: each costs little after the pass that they share."""
_MOST_HITS = 100
_LARGEST_FILTER = 4096  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    request: search_pb2.SearchRequest
    cancellation: CancellationToken
    budget: ResponseBudget


class Searches:
    """Answers searches.

    Ordinary ones, which ask for one short list of hits among the same rows, wait for each other and are
    answered together. Others have a thread of their own, as have all where the engine does not gain by it.

    Args:
        engine: Where collections are kept.
        read: Reads requests.
        tokens: Signs and reads page tokens.
        threads: For searches and look-ups.
    """

    def __init__(self, engine: Engine, read: Reader, tokens: PageTokens, threads: BoundedExecutor) -> None:
        self._engine = engine
        self._read = read
        self._reader = SearchReader(read, tokens)
        self._threads = threads
        self._groups = CallGroups(threads, self._answer, engine.together)

    async def answer(
        self, request: search_pb2.SearchRequest, cancellation: CancellationToken, budget: ResponseBudget
    ) -> search_pb2.SearchResponse:
        """Answers a request; see `Engine.search`."""
        call = _Call(request, cancellation, budget)
        if self._engine.together > 1 and _is_ordinary(request):
            return await self._groups.run(_alike(request), call, cancellation)
        return await self._threads.run(partial(self._answer_alone, call), cancellation)

    def _answer_alone(self, call: _Call) -> search_pb2.SearchResponse:
        [(_, answer)] = self._answer([call])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(
        self, calls: Sequence[_Call]
    ) -> Iterator[tuple[_Call, search_pb2.SearchResponse | Exception]]:
        """Answers searches of one collection; raises what all have in common."""
        asked: list[tuple[_Call, SearchCall, str]] = []
        for call in calls:
            read = attempt(partial(self._read_call, call))
            if isinstance(read, Exception):
                yield call, read
            else:
                asked.append((call, *read))
        if not asked:
            return
        found = self._engine.search_together(calls[0].request.collection, [search for _, search, _ in asked])
        for (call, search, digest), pages in zip(asked, found, strict=True):
            if isinstance(pages, Exception):
                yield call, pages
            else:
                yield call, attempt(partial(self._message, search, digest, pages))

    def _read_call(self, call: _Call) -> tuple[SearchCall, str]:
        request = call.request
        model = self._read.model(request.model)
        queries, digest = self._reader.queries(request, self._vectors_of)
        min_seq = request.min_seq if request.HasField("min_seq") else None
        return SearchCall(model, queries, min_seq, call.cancellation, call.budget), digest

    def _message(self, search: SearchCall, digest: str, found: Sequence[Page]) -> search_pb2.SearchResponse:
        answer = search_pb2.SearchResponse(
            results=[
                search_pb2.QueryResult(
                    hits=[hit_to_proto(hit) for hit in page.hits],
                    next_page_token=self._reader.next_page_token(page, digest),
                )
                for page in found
            ],
            seq=found[0].seq,
            model=model_to_proto(search.model),
        )
        search.budget.check(answer.ByteSize())
        return answer

    def _vectors_of(self, collection: str, record_ids: Sequence[str], field: str) -> Vectors:
        """The vectors of records, shape (records, dimension), in their order.

        Raises:
            RegionSearchError: NOT_FOUND.
        """
        stored = self._engine.get_records(collection, record_ids, [], masks=False, vectors=True)
        assert stored.vectors is not None
        rows = {record.record_id: row for row, record in enumerate(stored.records)}
        for number, record_id in enumerate(record_ids):
            if record_id not in rows:
                place = f"{field}[{number}]"
                raise not_found(place, f"{place}: collection {collection!r} has no record {record_id!r}")
        return stored.vectors[[rows[record_id] for record_id in record_ids]]


def _is_ordinary(request: search_pb2.SearchRequest) -> bool:
    return (
        all(field.name in _ORDINARY for field, _ in request.ListFields())
        and list(request.queries.shape[:1]) == [1]
        and request.page_size <= _MOST_HITS
        and request.filter.ByteSize() <= _LARGEST_FILTER
    )


def _alike(request: search_pb2.SearchRequest) -> Hashable:
    """What searches have in common that are answered together: no cheap one waits for an expensive filter."""
    conditions = request.filter.SerializeToString(deterministic=True)
    return request.collection, request.level, request.group_by, conditions
