"""Search requests: read into the queries that an engine answers, with the page tokens that continue them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from regionsearch.errors import invalid, too_large
from regionsearch.v1 import search_pb2
from services.searcher.page_tokens import PageTokens, fingerprint, pack, unpack
from services.searcher.requests import Reader
from services.searcher.types import Page, Position, Query, Vectors

_HITS = 20
_MAX_EFFORT = 1000


class SearchReader:
    """Reads search requests.

    Args:
        read: Reads what they have in common with other requests.
        tokens: Signs and reads page tokens.
    """

    def __init__(self, read: Reader, tokens: PageTokens) -> None:
        self._read = read
        self._tokens = tokens

    def next_page_token(self, page: Page, digest: str) -> str:
        """The token of the page that follows; empty where none does."""
        if not page.more or not page.hits:
            return ""
        last = page.hits[-1]
        place = page.after or last.position
        return self._tokens.encode(
            digest, page.generation, page.seq, last.rank, place.score, place.level, place.image_id,
            place.record_id, pack(page.shown),
        )  # fmt: skip

    def queries(self, request: search_pb2.SearchRequest) -> tuple[list[Query], str]:
        """The ranked lists that a request asks for, and its fingerprint.

        Raises:
            RegionSearchError: INVALID_ARGUMENT or TOO_LARGE, naming the field.
        """
        read, limits, dimension = self._read, self._read.limits, request.model.dimension
        vectors = read.vectors(request.queries, "queries", dimension)
        if not 1 <= len(vectors) <= limits.max_queries:
            raise invalid("queries.shape", f"1 to {limits.max_queries} query vectors, not {len(vectors)}")
        negatives: Vectors = np.empty((0, dimension), np.float32)
        if request.HasField("negatives") and request.negatives.data:
            negatives = read.vectors(request.negatives, "negatives", dimension)
            if len(negatives) > limits.max_negatives:
                raise too_large(
                    "negatives", f"{len(negatives)} is over the limit of {limits.max_negatives} negatives"
                )
        for mode, known in (("query_mode", search_pb2.QueryMode), ("group_by", search_pb2.GroupBy)):
            if getattr(request, mode) not in known.values():
                raise invalid(mode, f"{getattr(request, mode)} is not a known {mode}")
        best = request.query_mode == search_pb2.QUERY_MODE_BEST
        for name in ("min_score", "min_relevancy", "relative_cutoff", "whole_image_margin", "effort"):
            if request.HasField(name) and not np.isfinite(getattr(request, name)):
                raise invalid(name, f"{name} must be a finite number")
        if request.HasField("relative_cutoff") and not 0.0 <= request.relative_cutoff <= 1.0:
            raise invalid("relative_cutoff", "relative_cutoff is between 0 and 1")
        if request.whole_image_margin < 0.0:
            raise invalid("whole_image_margin", "whole_image_margin cannot be negative")
        if request.HasField("effort") and not 0.0 < request.effort <= _MAX_EFFORT:
            raise invalid(
                "effort", f"effort must be above 0 and at most {_MAX_EFFORT}; set exact to search all records"
            )
        effort = request.effort if request.HasField("effort") else 1.0
        bare = search_pb2.SearchRequest()
        bare.CopyFrom(request)
        bare.page_token = ""
        bare.ClearField("min_seq")
        digest = fingerprint(bare.SerializeToString(deterministic=True))
        seq, generation, after, skipped, shown = None, None, None, 0, ""
        if request.page_token:
            if len(vectors) > 1 and not best:
                raise invalid("page_token", "paging needs a single query, or QUERY_MODE_BEST")
            generation, seq, skipped, *place, shown = self._tokens.decode(
                request.page_token, digest, str, int, int, float, int, str, str, str
            )
            after = Position(*place)
        common = Query(
            vectors=vectors,
            negatives=negatives,
            level=read.level(request.level),
            filter=read.filter(request.filter),
            min_score=request.min_score if request.HasField("min_score") else None,
            min_relevancy=request.min_relevancy if request.HasField("min_relevancy") else 0.5,
            relative_cutoff=request.relative_cutoff if request.HasField("relative_cutoff") else None,
            group_by_image=request.group_by == search_pb2.GROUP_BY_IMAGE,
            whole_image_margin=request.whole_image_margin if request.HasField("whole_image_margin") else 0.02,
            limit=read.page_size(request.page_size, _HITS),
            seq=seq,
            generation=generation,
            after=after,
            skipped=skipped,
            shown=unpack(shown),
            effort=np.inf if request.exact else effort,
            include_masks=request.include_masks,
        )
        if best:
            return [common], digest
        return [replace(common, vectors=vectors[i : i + 1]) for i in range(len(vectors))], digest
