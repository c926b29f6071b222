"""Searching a collection, and searching inside one image."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gateway.catalog import Catalog, PendingCollection
from gateway.cut_offs import is_match, judge, says_scores
from gateway.prompt_resolver import PromptResolver
from gateway.query import QueryEncoder, QueryVectors, SearchRequest, Vectors
from gateway.records import check_reserved, hide_key
from gateway.service_clients import Services
from gateway.settings import GatewaySettings
from gateway.several_phrases import add_others, wants_others
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import invalid
from regionsearch.masks import encode_rle
from regionsearch.region_selection import merge_masks
from regionsearch.rpc import gather_or_cancel
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
from regionsearch.v1 import embed_pb2, region_search_pb2, search_pb2, types_pb2

RELEVANCY_SCALE = 100.0
"""Factor of the cosines in the softmax: CLIP's trained logit scale (arXiv 2103.00020, section 2.5)."""

MIN_RELEVANCY = 0.5


@dataclass(frozen=True)
class FoundPage:
    """A page of hits; they are the searcher's own messages, not copies.

    Attributes:
        hits: Best first.
        next_page_token: Empty on the last page.
        model: Of the collection.
        seq: Of the last write that was searched.
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
        resolver: PromptResolver,
        encoder: QueryEncoder,
        settings: GatewaySettings,
    ) -> None:
        self._services = services
        self._catalog = catalog
        self._resolver = resolver
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
        _check_finite(request, "min_score", "relative_cutoff", "min_relevancy")
        check_reserved(request.filter.attributes, "filter.attributes")
        tests = [test for one in request.filter.conditions for test in (one, *one.any_of)]
        check_reserved((test.attribute for test in tests), "filter.conditions")
        if request.page_size < 0:
            raise invalid("page_size", "page_size cannot be negative; 0 asks for the default")
        with_others = wants_others(request)
        resumed = _resume(request) if request.page_token else None

        async def find(
            pending: PendingCollection,
        ) -> tuple[QueryVectors, search_pb2.SearchRequest, search_pb2.SearchResponse]:
            query, token = resumed or (await self._encoder.encode(pending, request), "")
            message = self._to_searcher(request, await pending, query, token)
            answer = await self._services.searcher.call(self._services.search.Search, message)
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
        )
        for name in ("min_score", "relative_cutoff", "min_relevancy", "min_seq", "effort"):
            if request.HasField(name):
                setattr(message, name, getattr(request, name))
        by_model = not (request.include_weak or says_scores(request))
        if by_model and query.cut_off is not None and level == search_pb2.LEVEL_REGION:
            message.min_score = query.cut_off
        return message

    async def within(
        self, request: region_search_pb2.SearchWithinRequest
    ) -> region_search_pb2.SearchWithinResponse:
        """Scores the regions of one image against phrases; each region goes to its best phrase.

        Raises:
            RegionSearchError: INVALID_ARGUMENT that names the field, NOT_FOUND, MODEL_MISMATCH.
        """
        _check_finite(request, "min_score", "relative_cutoff", "min_relevancy")
        if not request.texts:
            raise invalid("texts", "say what to look for: give at least one phrase")
        self._encoder.check_phrases(request.texts, "texts", request)

        async def find(
            pending: PendingCollection,
        ) -> tuple[QueryVectors, region_search_pb2.SearchWithinResponse, Vectors]:
            query, (answer, vectors) = await gather_or_cancel(
                self._encoder.phrases(pending, request.texts, request), self._regions(pending, request)
            )
            answer.model.CopyFrom((await pending).model)
            return query, answer, vectors

        query, answer, vectors = await self._catalog.with_collection(request.collection, find)
        answer.truncated.extend(query.truncated)
        if query.cut_off is not None:
            answer.cut_off = query.cut_off
        await asyncio.to_thread(_score, answer, vectors, query, request)
        if request.HasField("include_masks") and not request.include_masks:
            for scored in answer.regions:
                scored.region.ClearField("mask")
        return answer

    async def _regions(
        self, pending: PendingCollection, request: region_search_pb2.SearchWithinRequest
    ) -> tuple[region_search_pb2.SearchWithinResponse, Vectors]:
        """The image's regions, not scored yet, and their vectors."""
        answer = region_search_pb2.SearchWithinResponse()
        source = request.WhichOneof("source")
        if source == "image_id":
            collection = await pending
            stored = await self._catalog.images.regions(
                collection.name, request.image_id, masks=True, vectors=True
            )
            answer.image_height, answer.image_width = stored.images[0].height, stored.images[0].width
            for record in stored.records:
                answer.regions.add(region=region_of(record), region_id=record.record_id)
            if not stored.records:
                return answer, np.empty((0, collection.model.dimension), np.float32)
            return answer, tensor_from_proto(stored.vectors, "vectors", ndim=2)
        if source is None:
            raise invalid("image", "there is no image to search in; send image or image_id")
        segmented = await self._resolver.regions(request.image)
        answer.image_height, answer.image_width = segmented.image_height, segmented.image_width
        for region in segmented.regions:
            answer.regions.add(region=region)
        cuts = [embed_pb2.RegionCut(box=region.box, mask=region.mask) for region in segmented.regions]
        if not cuts:
            return answer, np.empty((0, (await pending).model.dimension), np.float32)
        return answer, await self._encoder.regions(pending, request.image, cuts)


def region_of(record: search_pb2.Record) -> types_pb2.Region:
    """A stored region as the segmenter described it."""
    return types_pb2.Region(
        box=record.box,
        mask=record.mask,
        area=record.area,
        predicted_iou=record.predicted_iou,
        stability_score=record.stability_score,
    )


def relevancies(scores: NDArray[np.floating], against: NDArray[np.floating]) -> NDArray[np.float64]:
    """The smallest softmax of each score (n,) against one of its negatives' scores (n, negatives).

    As in LERF (arXiv 2303.09553, section 3.4), with CLIP's own scale.
    """
    excess = (against.max(axis=1) - scores).astype(np.float64)
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(RELEVANCY_SCALE * excess, -500.0, 500.0))))


def _score(
    answer: region_search_pb2.SearchWithinResponse,
    vectors: Vectors,
    query: QueryVectors,
    request: region_search_pb2.SearchWithinRequest,
) -> None:
    """Fills in scores, phrases, hits and their union, and puts the regions in order."""
    size = (answer.image_height, answer.image_width)
    answer.union_mask.height, answer.union_mask.width = size
    if not len(vectors):
        answer.union_mask.coco_rle = _empty_rle(size)
        return
    table = vectors @ query.positives.T
    phrase = table.argmax(axis=1)
    scores = table[np.arange(len(table)), phrase]
    relevancy = relevancies(scores, vectors @ query.negatives.T) if len(query.negatives) else None
    hits = _hits(scores, phrase, relevancy, query.cut_off, request)
    for row, region in enumerate(answer.regions):
        region.score = float(scores[row])
        region.text_index = int(phrase[row])
        region.is_hit = bool(hits[row])
        if query.cut_off is not None:
            region.confident = bool(scores[row] >= query.cut_off)
        if relevancy is not None:
            region.relevancy = float(relevancy[row])
    masks = [answer.regions[row].region.mask.coco_rle for row in np.flatnonzero(hits)]
    answer.union_mask.coco_rle = merge_masks(masks, size) if masks else _empty_rle(size)
    answer.regions.sort(key=lambda region: -region.score)


def _hits(
    scores: NDArray[np.floating],
    phrase: NDArray[np.intp],
    relevancy: NDArray[np.float64] | None,
    cut_off: float | None,
    request: region_search_pb2.SearchWithinRequest,
) -> NDArray[np.bool_]:
    """Which regions are hits: by the request's thresholds, or by the model's cut-off, or else the best one of
    each phrase.
    """
    passing = np.ones(len(scores), np.bool_)
    if relevancy is not None:
        passing &= relevancy >= (
            request.min_relevancy if request.HasField("min_relevancy") else MIN_RELEVANCY
        )
    if request.HasField("min_score"):
        passing &= scores >= request.min_score
    by_model = not request.HasField("min_score") and not request.HasField("relative_cutoff")
    if by_model and cut_off is not None:
        passing &= scores >= cut_off
    only_best = by_model and cut_off is None
    part = 1.0 if only_best else request.relative_cutoff if request.HasField("relative_cutoff") else None
    if part is None:
        return passing
    hits = np.zeros(len(scores), np.bool_)
    for index in np.unique(phrase[passing]):
        rows = np.flatnonzero(passing & (phrase == index))
        best = scores[rows].max()
        hits[rows] = scores[rows] >= best - (1.0 - part) * abs(best)
    return hits


def _empty_rle(size: Sequence[int]) -> str:
    return encode_rle(np.zeros(size, np.bool_))


def _check_finite(request: SearchRequest | region_search_pb2.SearchWithinRequest, *names: str) -> None:
    for name in names:
        if request.HasField(name) and not math.isfinite(getattr(request, name)):  # type: ignore[arg-type]
            raise invalid(name, f"{name} must be a finite number")
    if request.HasField("relative_cutoff") and not 0.0 <= request.relative_cutoff <= 1.0:
        raise invalid("relative_cutoff", "relative_cutoff is between 0 and 1")


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
    whole = (query.HasField("image") or query.image_id) and not (
        query.region_id or query.points or query.HasField("box")
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
