"""Searching inside one image: its regions, sent along or stored, scored against phrases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.catalog import Catalog, PendingCollection
from gateway.prompt_resolver import PromptResolver
from gateway.query import QueryEncoder, QueryVectors, check_finite
from gateway.service_clients import remap_error_field
from gateway.vectors import Vectors
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.masks import encode_rle
from regionsearch.prompts import merge_masks
from regionsearch.relevancy import relevancies
from regionsearch.rpc.calls import gather_or_cancel
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import embed_pb2, region_search_pb2, search_pb2, segment_pb2, types_pb2

MIN_RELEVANCY = 0.5


class WithinSearch:
    """Answers queries about one image."""

    def __init__(self, catalog: Catalog, resolver: PromptResolver, encoder: QueryEncoder) -> None:
        self._catalog = catalog
        self._resolver = resolver
        self._encoder = encoder

    async def search(
        self, request: region_search_pb2.SearchWithinRequest
    ) -> region_search_pb2.SearchWithinResponse:
        """Finds phrases in one image: with the embedder, each region goes to its best phrase.

        Raises:
            RegionSearchError: INVALID_ARGUMENT that names the field, NOT_FOUND, MODEL_MISMATCH,
                FAILED_PRECONDITION for a segmenter that does not take phrases.
        """
        check_finite(request)
        if not request.texts:
            raise invalid("texts", "say what to look for: give at least one phrase")
        self._encoder.check_phrases(request.texts, "texts", request)
        by_segmenter = await self._by_segmenter(request)
        answer = await (self._segmented(request) if by_segmenter else self._compared(request))
        if request.HasField("include_masks") and not request.include_masks:
            for scored in answer.regions:
                scored.region.ClearField("mask")
        return answer

    async def _by_segmenter(self, request: region_search_pb2.SearchWithinRequest) -> bool:
        """Whether the segmenter finds the phrases."""
        of_embedder = {
            "relative_cutoff": request.HasField("relative_cutoff"),
            "min_relevancy": request.HasField("min_relevancy"),
            "negatives": bool(request.negatives),
        }
        given = [name for name, is_given in of_embedder.items() if is_given]
        match request.find_by:
            case region_search_pb2.FIND_BY_EMBEDDER:
                return False
            case region_search_pb2.FIND_BY_SEGMENTER:
                if given:
                    raise invalid(
                        given[0],
                        f"{given[0]} needs the embedder; leave it out, or do not find by the segmenter",
                    )
                return True
            case _:
                plain = not given and not request.HasField("min_score")
                return (
                    plain and request.WhichOneof("source") == "image" and await self._resolver.takes_phrases()
                )

    async def _segmented(
        self, request: region_search_pb2.SearchWithinRequest
    ) -> region_search_pb2.SearchWithinResponse:
        """All objects that the segmenter finds for the phrases."""
        image = request.image
        if request.WhichOneof("source") == "image_id":
            image = await self._resolver.stored_image(request.collection, request.image_id)
        elif request.WhichOneof("source") is None:
            raise _no_image()
        min_score = min(max(request.min_score, 0.0), 1.0) if request.HasField("min_score") else None
        phrases = segment_pb2.Phrases(texts=request.texts, min_score=min_score)
        asked = segment_pb2.SegmentRequest(image=image, phrases=phrases)
        with remap_error_field("phrases.", ""):
            found = await self._resolver.segment(asked, request.collection)
        size = found.image_height, found.image_width
        answer = region_search_pb2.SearchWithinResponse(
            image_height=size[0],
            image_width=size[1],
            model=found.model,
            truncated=found.truncated,
            found_by=region_search_pb2.FIND_BY_SEGMENTER,
        )
        for index, result in enumerate(found.results):
            for region in result.candidates:
                answer.regions.add(region=region, score=region.predicted_iou, text_index=index, is_hit=True)
        answer.regions.sort(key=lambda region: -region.score)
        masks = [scored.region.mask.coco_rle for scored in answer.regions]
        answer.union_mask.height, answer.union_mask.width = size
        answer.union_mask.coco_rle = await asyncio.to_thread(
            lambda: merge_masks(masks, size) if masks else _empty_rle(size)
        )
        return answer

    async def _compared(
        self, request: region_search_pb2.SearchWithinRequest
    ) -> region_search_pb2.SearchWithinResponse:
        """All regions of the image, compared with the phrases."""

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
        answer.found_by = region_search_pb2.FIND_BY_EMBEDDER
        await asyncio.to_thread(_score, answer, vectors, query, request)
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
            raise _no_image()
        segmented = await self._resolver.regions(request.image)
        answer.image_height, answer.image_width = segmented.image_height, segmented.image_width
        for region in segmented.regions:
            answer.regions.add(region=region)
        cuts = [embed_pb2.RegionCut(box=region.box, mask=region.mask) for region in segmented.regions]
        if not cuts:
            return answer, np.empty((0, (await pending).model.dimension), np.float32)
        return answer, await self._encoder.regions(pending, request.image, cuts)


def _no_image() -> RegionSearchError:
    return invalid("image", "there is no image to search in; send image or image_id")


def region_of(record: search_pb2.Record) -> types_pb2.Region:
    """A stored region as the segmenter described it."""
    return types_pb2.Region(
        box=record.box,
        mask=record.mask,
        area=record.area,
        predicted_iou=record.predicted_iou,
        stability_score=record.stability_score,
    )


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
