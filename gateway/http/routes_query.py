"""Searching, searching inside an image, segmenting, embedding."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from gateway import coco, render
from gateway.core import Gateway
from gateway.http.access import needs
from gateway.http.body_parser import read_body
from gateway.http.openapi import COCO, COCO_CONTENT, IMAGE, body_of
from gateway.prompt_resolver import merged_mask, select_stored
from gateway.records import clean_name
from gateway.rights import Scope
from gateway.service_clients import remap_error_field
from gateway.within import region_of
from regionsearch.errors import RegionSearchError, invalid, not_found
from regionsearch.images import EncodedImage, image_id
from regionsearch.masks import decode_rle, mask_box
from regionsearch.prompts import select_by_scores
from regionsearch.schemas.requests.inference import EmbeddingsBody, SegmentBody
from regionsearch.schemas.requests.scrolls import CountBody, MapBody, ScrollBody
from regionsearch.schemas.requests.searches import SearchBody, WithinBody
from regionsearch.schemas.requests.values import OneImage
from regionsearch.schemas.responses.regions import (
    EmbeddingsResult,
    PromptResult,
    SegmentedRegion,
    SegmentResult,
)
from regionsearch.schemas.responses.scrolls import CountResult, MapResult, ScrollResult
from regionsearch.schemas.responses.searches import SearchResult, WithinResult
from regionsearch.schemas.responses.values import Model
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import embed_pb2, region_search_pb2, search_pb2, types_pb2

T = TypeVar("T")

_POINT = {"x": 120, "y": 80}
_ZEROS = "0" * 64
Form = Annotated[
    Literal["json", "coco"], Query(alias="format", description="coco: the hits as COCO annotations.")
]


def router(gateway: Gateway) -> APIRouter:
    """The routes that look for something."""
    routes = APIRouter(tags=["search"], dependencies=[needs(gateway, Scope.SEARCH)])
    limits = gateway.settings.limits

    @routes.post(
        "/v1/collections/{collection}/search",
        summary="Search a collection",
        response_model=SearchResult,
        responses={200: {"content": COCO_CONTENT}},
        openapi_extra=body_of(
            SearchBody, {"query": {"text": "red mug"}, "level": "region", "page_size": 10}, form=True
        ),
    )
    async def search(collection: str, request: Request, form: Form = "json") -> Response:
        """By words, by an image, by a stored region, by pointing at something, or by all of these together.

        Several `texts` make one list in which each record stands with its best phrase. No result is an
        answer: `hits` is empty then. A page may hold fewer hits than `page_size`; `next_page_token` alone
        says whether there are more. The pages of one search show the collection as it was at the first one: a
        later page may name an image that has been deleted since, whose files are 404 by then.
        """
        body = await read_body(request, SearchBody, limits)
        message = body.to_proto(collection)
        message.include_masks |= form == "coco"
        with _phrases_named(body.query.text, "query."):
            answer = await gateway.search.search(message)
        phrases = list(message.query.texts)
        if form == "coco":
            return JSONResponse(
                coco.export_hits(answer.hits, phrases, answer.next_page_token), media_type=COCO
            )
        found = SearchResult.from_proto(answer, phrases)
        return Response(found.model_dump_json(), media_type="application/json")

    @routes.post(
        "/v1/collections/{collection}/scroll",
        summary="Walk through a collection",
        response_model=ScrollResult,
        openapi_extra=body_of(ScrollBody, {"filter": {"tags": ["holiday"]}, "page_size": 500}),
    )
    async def scroll(collection: str, request: Request) -> Response:
        """All regions and whole images that pass a filter, page by page, without a query.

        In the order of the list of images, in an image the whole image first. A walk holds what is there from
        its first page to its last exactly once, however long it takes and whatever is written meanwhile.
        """
        body = await read_body(request, ScrollBody, limits)
        page = await gateway.catalog.images.scroll(body.to_proto(collection))
        return Response(ScrollResult.from_proto(page).model_dump_json(), media_type="application/json")

    @routes.post(
        "/v1/collections/{collection}/count",
        summary="Count by filter",
        response_model=CountResult,
        openapi_extra=body_of(CountBody, {"level": "image", "facets": [{"tags": True}]}),
    )
    async def count(collection: str, request: Request) -> Response:
        """How many regions and images pass a filter, and how many of them have each tag or value."""
        body = await read_body(request, CountBody, limits)
        found = await gateway.catalog.images.count(body.to_proto(collection))
        return JSONResponse(CountResult.from_proto(found).model_dump())

    @routes.post(
        "/v1/collections/{collection}/map",
        summary="Regions on a plane",
        response_model=MapResult,
        openapi_extra=body_of(MapBody, {"max_points": 1000}),
    )
    async def collection_map(collection: str, request: Request) -> Response:
        """Places regions, or whole images, so that what is alike lies together.

        The axes mean nothing, and distances between far points little. A map is kept until something is
        written.
        """
        body = await read_body(request, MapBody, limits)
        found = await gateway.map.get(body.to_proto(collection))
        made = await asyncio.to_thread(lambda: MapResult.from_proto(found).model_dump_json())
        return Response(made, media_type="application/json")

    @routes.post(
        "/v1/search-within",
        summary="Search inside one image",
        response_model=WithinResult,
        openapi_extra=body_of(WithinBody, {"image_id": _ZEROS, "texts": ["mug", "chair"]}, form=True),
        responses={200: {"content": {"image/png": IMAGE, "image/webp": IMAGE, **COCO_CONTENT}}},
    )
    async def search_within(request: Request, form: Form = "json") -> Response:
        """Scores every region of an image, sent along or stored, and says which are hits.

        Without thresholds the best region of each phrase is a hit. A segmenter that takes phrases may find
        them itself, see `find_by`. With `render` the answer is the image
        with the hits drawn into it.
        """
        body = await read_body(request, WithinBody, limits)
        message = body.to_proto()
        if body.render is not None or form == "coco":
            message.ClearField("include_masks")
        with _phrases_named(body.text):
            answer = await gateway.within.search(message)
        if body.render is not None:
            data = body.image
            if data is None:
                data = await gateway.catalog.images.content(body.collection, body.image_id or "")
            drawn = await gateway.decoder.decoded(data, lambda image: _render(image, answer, body))
            return Response(drawn, media_type=f"image/{body.image_format}")
        if form == "coco":
            document = coco.export_within(answer, body.phrases, *await _named(gateway, body))
            return JSONResponse(document, media_type=COCO)
        found = WithinResult.from_proto(answer, body.phrases)
        return JSONResponse(found.model_dump(exclude_none=True))

    @routes.post(
        "/v1/segment",
        summary="Masks of an image",
        response_model=SegmentResult,
        responses={200: {"content": COCO_CONTENT}},
        openapi_extra=body_of(SegmentBody, {"image_id": _ZEROS, "points": [_POINT]}, form=True),
    )
    async def segment(request: Request, form: Form = "json") -> Response:
        """Of everything, of the objects that points and boxes mean, or of those that phrases name.

        A second prompt on the same image costs only the mask decoder. With `among: stored` the stored
        regions of an image are picked instead, without a model: points pick the smallest region that holds
        them, a box the region that fits it best, a text the region of the highest score.
        """
        body = await read_body(request, SegmentBody, limits)
        if body.among == "stored":
            if form == "coco":
                raise invalid(
                    "format", "stored regions as COCO are at …/images/{image_id}/regions?format=coco"
                )
            answer = await _pick(gateway, body)
        else:
            if body.image is not None:
                image = types_pb2.Image(encoded=body.image)
            else:
                image = await gateway.resolver.stored_image(body.collection, body.image_id or "")
            theirs, ours = ("prompts.prompts", "prompts") if body.prompts else ("prompts.prompts[0].", "")
            if body.texts:
                theirs, ours = "phrases.", ""
            many = bool(body.prompts or body.texts) or body.everything is not False
            asked = await _in_thread_if(many, lambda: body.to_proto(image))
            with remap_error_field(theirs, ours):
                segmented = await gateway.resolver.segment(asked, body.collection)
            if form == "coco":
                document = coco.export_segments(segmented, body.texts, *await _named(gateway, body))
                return JSONResponse(document, media_type=COCO)
            answer = await _in_thread_if(many, lambda: SegmentResult.from_proto(segmented))
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    @routes.post(
        "/v1/embeddings",
        summary="Vectors of texts or images",
        response_model=EmbeddingsResult,
        openapi_extra=body_of(EmbeddingsBody, {"texts": ["a red mug"]}, form=True),
    )
    async def embeddings(request: Request) -> Response:
        """Of length one, in the space that the collections' vectors are in."""
        body = await read_body(request, EmbeddingsBody, limits)
        services = gateway.services
        answer: embed_pb2.EmbedTextsResponse | embed_pb2.EmbedImagesResponse
        truncated: tuple[bool, ...] = ()
        if body.texts:
            texts = embed_pb2.EmbedTextsRequest(texts=body.texts)
            answer = of_texts = await services.embedder.call(services.embedder.stub.EmbedTexts, texts)
            truncated = tuple(of_texts.truncated)
        else:
            images = [types_pb2.Image(encoded=data) for data in body.images]
            answer = await services.embedder.call(
                services.embedder.stub.EmbedImages, embed_pb2.EmbedImagesRequest(images=images)
            )
        vectors: Any = tensor_from_proto(answer.vectors, "vectors", ndim=2)
        found = EmbeddingsResult(
            vectors=np.asarray(vectors, np.float64).tolist(),
            model=Model.from_proto(answer.model),
            truncated=truncated,
        )
        return JSONResponse(found.model_dump())

    return routes


async def _in_thread_if(many: bool, work: Callable[[], T]) -> T:
    """Converts many objects in a thread, so that the event loop is free; few take less time than a thread."""
    return await asyncio.to_thread(work) if many else work()


@contextlib.contextmanager
def _phrases_named(text: str | None, prefix: str = "") -> Iterator[None]:
    """Names a faulty phrase as the body has it: where there is a `text`, it comes before all `texts`."""
    theirs = re.compile(re.escape(prefix) + r"texts\[(\d+)\]")
    try:
        yield
    except RegionSearchError as error:
        if text is not None and error.field is not None and (found := theirs.fullmatch(error.field)):
            place = int(found[1])
            ours = f"{prefix}texts[{place - 1}]" if place else f"{prefix}text"
            error.message = error.message.replace(error.field, ours)
            error.field = ours
        raise


async def _named(gateway: Gateway, body: OneImage) -> tuple[str, str]:
    """Id and name of the image of a request, for an export."""
    if body.image_id is not None:
        image = await gateway.catalog.images.get(body.collection, body.image_id)
        return image.image_id, body.image_name or image.name
    return await asyncio.to_thread(image_id, body.image or b""), clean_name(body.image_name or "")


def _render(image: EncodedImage, answer: region_search_pb2.SearchWithinResponse, body: WithinBody) -> bytes:
    assert body.render is not None
    overlays = [
        render.Overlay(one.region.mask, one.region.box, one.text_index)
        for one in answer.regions
        if one.is_hit
    ]
    return render.encode(render.draw(image.decode(), overlays, body.render, body.phrases), body.image_format)


async def _pick(gateway: Gateway, body: SegmentBody) -> SegmentResult:
    """Segment-then-select; several chosen regions are one object and come out merged."""
    found = await gateway.catalog.images.regions(body.collection, body.image_id or "", masks=True)
    records = list(found.records)
    if body.text is not None:
        request = region_search_pb2.SearchWithinRequest(
            collection=body.collection, image_id=found.images[0].image_id, texts=[body.text]
        )
        with _phrases_named(body.text):
            scored = (await gateway.within.search(request)).regions
        best = select_by_scores([one.score for one in scored])
        chosen = [] if best is None else [scored[best].region_id]
        records = [record for record in records if record.record_id in chosen]
    else:
        size = (found.images[0].height, found.images[0].width)
        picked = await asyncio.to_thread(select_stored, records, body.prompt(), size)
        records = [records[index] for index in picked]
    if not records:
        raise not_found("points", "no stored region is meant; ask the model with among=model")
    single = len(records) == 1
    region = SegmentedRegion.from_proto(records[0]) if single else await asyncio.to_thread(_merged, records)
    image, candidates = found.images[0], PromptResult(candidates=(region,))
    return SegmentResult(width=image.width, height=image.height, results=(candidates,))


def _merged(records: list[search_pb2.Record]) -> SegmentedRegion:
    mask = merged_mask(records)
    whole = region_of(records[0])
    whole.mask.CopyFrom(mask)
    pixels = decode_rle(mask.coco_rle, mask.height, mask.width)
    whole.area = int(pixels.sum())
    box = mask_box(pixels)
    if box is not None:
        whole.box.x_min, whole.box.y_min, whole.box.x_max, whole.box.y_max = box
    return SegmentedRegion.from_proto(whole)
