"""Searching a collection, page by page."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from google.protobuf.message import DecodeError

from gateway.catalog import Catalog, PendingCollection
from gateway.matches import add_others, is_match, judge, says_scores, wants_others
from gateway.query import QueryEncoder, QueryVectors, SearchRequest, check_finite
from gateway.records import check_filter, hide_key
from gateway.service_clients import Services
from gateway.settings import GatewaySettings
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import invalid
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2


@dataclass(frozen=True)
class FoundPage:
    """A page of hits; they are the searcher's own messages, not copies.

    Attributes:
        hits: Best first.
        next_page_token: Empty on the last page.
        model: The collection's model.
        seq: Sequence number of the last write that was searched.
        truncated: On the first page, for each phrase, whether the model read only its beginning.
        cut_off: From which score on a region is confident; None where no hit is judged.
    """

    hits: Sequence[search_pb2.Hit]
    next_page_token: str
    model: types_pb2.ModelInfo
    seq: int
    truncated: Sequence[bool]
    cut_off: float | None

    def to_proto(self) -> region_search_pb2.RegionSearchServiceSearchResponse:
        """The answer over gRPC."""
        return region_search_pb2.RegionSearchServiceSearchResponse(
            hits=self.hits,
            next_page_token=self.next_page_token,
            model=self.model,
            seq=self.seq,
            truncated=self.truncated,
            cut_off=self.cut_off,
        )


class Search:
    """Answers queries."""

    def __init__(
        self,
        services: Services,
        catalog: Catalog,
        encoder: QueryEncoder,
        settings: GatewaySettings,
    ) -> None:
        self._services = services
        self._catalog = catalog
        self._encoder = encoder
        self._margin = settings.whole_image_margin
        self._max_page_size = settings.limits.max_page_size

    async def search(self, request: SearchRequest) -> FoundPage:
        """Finds regions and images of a collection.

        Later pages take the query's vectors from the page token, so that all pages answer exactly the same
        query and nothing is segmented or embedded twice.

        Raises:
            RegionSearchError: INVALID_ARGUMENT that names the field, NOT_FOUND, MODEL_MISMATCH.
        """
        check_finite(request)
        check_filter(request.filter)
        if request.page_size < 0:
            raise invalid("page_size", "page_size cannot be negative; 0 asks for the default")
        with_others = wants_others(request)
        resumed = _resume(request) if request.page_token else None

        async def find(
            pending: PendingCollection,
        ) -> tuple[QueryVectors, search_pb2.SearchRequest, search_pb2.SearchResponse]:
            query, token = resumed or (await self._encoder.encode(pending, request), "")
            if request.codes_only:
                query = replace(query, cut_off=None)
            message = self._to_searcher(request, await pending, query, token)
            reader = self._services.reader
            answer = await reader.call(reader.stub.Search, message)
            return query, message, answer

        query, message, answer = await self._catalog.with_collection(request.collection, find)
        (result,) = answer.results
        for hit in result.hits:
            hide_key(hit.image)
            hide_key(hit.best_region.image)
            judge(hit, query.cut_off)
        hits: Sequence[search_pb2.Hit] = result.hits
        if not request.include_weak:
            hits = [hit for hit in hits if is_match(hit, request)]
        if with_others:
            hits = await add_others(self._services, request, message, hits, query.cut_off)
        next_page_token = _token(request, query, result.next_page_token)
        return FoundPage(hits, next_page_token, answer.model, answer.seq, query.truncated, query.cut_off)

    def _to_searcher(
        self, request: SearchRequest, collection: search_pb2.Collection, query: QueryVectors, token: str
    ) -> search_pb2.SearchRequest:
        level = _level(request)
        message = search_pb2.SearchRequest(
            collection=collection.name,
            model=collection.model,
            queries=tensor_to_proto(query.positives),
            query_mode=search_pb2.QUERY_MODE_BEST,
            negatives=tensor_to_proto(query.negatives) if len(query.negatives) else None,
            level=level,
            filter=request.filter if request.HasField("filter") else None,
            group_by=request.group_by,
            page_size=min(request.page_size, self._max_page_size),
            page_token=token,
            whole_image_margin=self._margin,
            include_masks=request.include_masks,
            exact=request.exact,
            codes_only=request.codes_only,
        )
        for name in (
            "min_score", "relative_cutoff", "min_relevancy", "min_seq", "effort", "fold_similarity",
            "diversity",
        ):  # fmt: skip
            if request.HasField(name):
                setattr(message, name, getattr(request, name))
        by_model = not (request.include_weak or says_scores(request))
        if by_model and query.cut_off is not None and level == search_pb2.LEVEL_REGION:
            message.min_score = query.cut_off
        return message


def _fingerprint(request: SearchRequest) -> str:
    bare = SearchRequest()
    bare.CopyFrom(request)
    bare.ClearField("page_token")
    bare.ClearField("min_seq")
    if not bare.collection:
        bare.collection = DEFAULT
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:32]


def _level(request: SearchRequest) -> search_pb2.Level.ValueType:
    """What the searcher compares with; unspecified is what fits the query."""
    if request.level == search_pb2.LEVEL_BOTH:
        return search_pb2.LEVEL_UNSPECIFIED
    if request.level:
        return request.level
    query = request.query
    whole = (query.HasField("image") or query.image_id or query.image_ids) and not (
        query.region_id or query.region_ids or query.points or query.HasField("box")
    )
    return search_pb2.LEVEL_IMAGE if whole else search_pb2.LEVEL_REGION


def _token(request: SearchRequest, query: QueryVectors, searcher_token: str) -> str:
    """The searcher's token with the query's vectors and cut-offs, as text."""
    if not searcher_token:
        return ""
    packed = region_search_pb2.SearchPageToken(
        fingerprint=_fingerprint(request),
        positives=tensor_to_proto(query.positives),
        negatives=tensor_to_proto(query.negatives) if len(query.negatives) else None,
        cut_off=query.cut_off,
        searcher_token=searcher_token,
    )
    return base64.urlsafe_b64encode(packed.SerializeToString()).decode().rstrip("=")


def _resume(request: SearchRequest) -> tuple[QueryVectors, str]:
    """What `_token` packed.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the token is damaged or belongs to another request.
    """
    token = request.page_token
    try:
        data = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), b"-_", validate=True)
        packed = region_search_pb2.SearchPageToken.FromString(data)
    except (ValueError, binascii.Error, DecodeError) as error:
        raise invalid("page_token", "the page token is damaged; take it as it was given") from error
    if packed.fingerprint != _fingerprint(request):
        raise invalid(
            "page_token",
            "the page token belongs to another request; repeat that one, changing nothing but the token",
        )
    positives = tensor_from_proto(packed.positives, "page_token", ndim=2)
    negatives = np.empty((0, positives.shape[1]), np.float32)
    if packed.HasField("negatives"):
        negatives = tensor_from_proto(packed.negatives, "page_token", ndim=2)
    cut_off = packed.cut_off if packed.HasField("cut_off") else None
    return QueryVectors(positives, negatives, (), cut_off), packed.searcher_token
