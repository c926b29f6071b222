"""Queries: searching collections and single images, segmenting, embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regionsearch import defaults
from regionsearch.client.image_inputs import (
    Box,
    ImageInput,
    Negative,
    Point,
    check_one_image,
    filter_proto,
    image_json,
    image_proto,
    negatives_json,
    negatives_proto,
    pointing_json,
    pointing_proto,
)
from regionsearch.client.operations.base import (
    GrpcCall,
    HttpCall,
    HttpRequest,
    Operation,
    document,
    given,
    path_of,
)
from regionsearch.schemas.responses import SearchAnswer, SegmentAnswer, WithinAnswer
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import search_pb2
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub

Render = Literal["outline", "boxes", "mask"]
Level = Literal["region", "image", "both"]

_LEVELS = {
    "region": search_pb2.LEVEL_REGION,
    "image": search_pb2.LEVEL_IMAGE,
    "both": search_pb2.LEVEL_UNSPECIFIED,
}


def search(
    text: str | Sequence[str] | None = None,
    collection: str = defaults.COLLECTION,
    *,
    image: ImageInput | None = None,
    region_id: str | None = None,
    image_id: str | None = None,
    points: Sequence[Point] = (),
    box: Box | None = None,
    negatives: Sequence[Negative] = (),
    level: Level = "region",
    group_by_image: bool = False,
    filter: Mapping[str, Any] | None = None,
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    min_relevancy: float | None = None,
    page_size: int = 20,
    page_token: str = "",
    min_seq: int | None = None,
    exact: bool = False,
    effort: float | None = None,
    masks: bool = False,
) -> Operation[SearchAnswer]:
    """Finds regions and images; words, examples and pointing combine.

    Args:
        text: One phrase, or several: then each region stands with its best phrase.
        collection: Where to look.
        image: An image of it; with points or a box, the object that they point at.
        region_id: A stored region: more like this.
        image_id: A stored image; with points or a box, the object that they point at.
        points: (x, y) or (x, y, label), pixels; label 0 is background.
        box: x_min, y_min, x_max, y_max, pixels.
        negatives: What is not meant: phrases, or an `NegativeExample` each.
        level: Regions, whole images, or both.
        group_by_image: One hit an image, its best.
        filter: Conditions as in the HTTP API: image_ids, tags, min_area, ...
        min_score: Lowest cosine.
        relative_cutoff: Lowest part of the best score, 0 to 1.
        min_relevancy: With negatives, lowest relevancy; 0.5 when absent.
        page_size: Most hits of a page, at most 1000.
        page_token: From an earlier result.
        min_seq: See at least this write.
        exact: Look at every record, whatever index there is.
        effort: How far an approximate index looks, as a multiple of the usual.
        masks: Adds the masks.
    """
    phrases = _phrases(text)
    shared = given(min_score=min_score, relative_cutoff=relative_cutoff, min_relevancy=min_relevancy)
    shared |= given(min_seq=min_seq, effort=effort, exact=exact or None)
    shared |= {"page_size": page_size, "page_token": page_token}

    def request() -> HttpRequest:
        query = image_json(image) | pointing_json(points, box) | {"texts": phrases}
        query |= given(region_id=region_id, image_id=image_id)
        body = {"query": query, "negatives": negatives_json(negatives), "level": level, **shared}
        body |= given(group_by="image" if group_by_image else None, filter=filter)
        body["include"] = ["mask"] if masks else []
        return HttpRequest("POST", path_of(collection, "search"), json=body)

    def message() -> pb.RegionSearchServiceSearchRequest:
        query = pb.Query(
            texts=phrases,
            image=image_proto(image),
            region_id=region_id or "",
            image_id=image_id or "",
            **pointing_proto(points, box),
        )
        return pb.RegionSearchServiceSearchRequest(
            collection=collection,
            query=query,
            level=_LEVELS[level],
            group_by=search_pb2.GROUP_BY_IMAGE if group_by_image else search_pb2.GROUP_BY_UNSPECIFIED,
            filter=filter_proto(filter),
            include_masks=masks,
            negatives=negatives_proto(negatives),
            **shared,
        )

    return Operation(
        "search",
        HttpCall(request, lambda response: SearchAnswer.model_validate(response.json())),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).Search,
            message,
            lambda answer: SearchAnswer.from_proto(answer, phrases),
        ),
    )


def within(
    texts: str | Sequence[str],
    *,
    image: ImageInput | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    negatives: Sequence[Negative] = (),
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    min_relevancy: float | None = None,
) -> Operation[WithinAnswer]:
    """Scores every region of one image, sent along or stored.

    Args:
        texts: One phrase or several; each region goes to its best one.
        image: The image.
        image_id: A stored image instead.
        collection: Of the stored image.
        negatives: What is not meant: phrases, or an `NegativeExample` each.
        min_score: Lowest cosine that makes a hit; without thresholds the best region of each phrase is one.
        relative_cutoff: Lowest part of a phrase's best score that makes a hit, 0 to 1.
        min_relevancy: With negatives, lowest relevancy that makes a hit; 0.5 when absent.
    """
    check_one_image(image, image_id)
    phrases = _phrases(texts)
    shared = given(min_score=min_score, relative_cutoff=relative_cutoff, min_relevancy=min_relevancy)
    shared |= {"collection": collection, "texts": phrases}

    def request() -> HttpRequest:
        body = image_json(image, image_id) | shared | {"negatives": negatives_json(negatives)}
        return HttpRequest("POST", "/v1/search-within", json=body)

    def message() -> pb.SearchWithinRequest:
        source = {"image_id": image_id} if image is None else {"image": image_proto(image)}
        return pb.SearchWithinRequest(**source, **shared, negatives=negatives_proto(negatives))

    return Operation(
        "within",
        HttpCall(request, lambda response: WithinAnswer.model_validate(response.json())),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).SearchWithin,
            message,
            lambda answer: WithinAnswer.from_proto(answer, phrases),
        ),
    )


def render(
    texts: str | Sequence[str],
    *,
    image: ImageInput | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    style: Render = "outline",
    min_score: float | None = None,
) -> Operation[bytes]:
    """The image as PNG with the finds of `within` drawn into it."""
    check_one_image(image, image_id)
    body = {"collection": collection, "texts": _phrases(texts), "render": style} | given(min_score=min_score)
    return Operation(
        "render",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/search-within", json=image_json(image, image_id) | body),
            lambda response: response.content,
        ),
    )


def segment(
    *,
    image: ImageInput | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    points: Sequence[Point] = (),
    box: Box | None = None,
    multimask: bool = False,
    zoom: bool | None = None,
) -> Operation[SegmentAnswer]:
    """The mask of what points and box mean; without them, of everything in the image.

    Args:
        image: The image.
        image_id: A stored image instead.
        collection: Of the stored image.
        points: (x, y) or (x, y, label), pixels; label 0 is background.
        box: x_min, y_min, x_max, y_max, pixels.
        multimask: The three masks of an ambiguous click.
        zoom: Looks more closely at what was found: better masks, above all of what is small, for more time.
            None: as it suits the model that is served.
    """
    check_one_image(image, image_id)
    prompt = pointing_json(points, box)
    body = {"collection": collection} | (
        prompt | {"multimask": multimask} | given(zoom=zoom) if prompt else {"everything": True}
    )
    return Operation(
        "segment",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/segment", json=image_json(image, image_id) | body),
            lambda response: SegmentAnswer.model_validate(response.json()),
        ),
    )


def embed(texts: Sequence[str] = (), *, images: Sequence[ImageInput] = ()) -> Operation[NDArray[np.float32]]:
    """Vectors of length one, shape (n, dimension): of texts, or of images."""

    def request() -> HttpRequest:
        body = {"texts": list(texts)} if texts else {"images": [image_json(one)["image"] for one in images]}
        return HttpRequest("POST", "/v1/embeddings", json=body)

    return Operation(
        "embed", HttpCall(request, lambda response: np.asarray(response.json()["vectors"], np.float32))
    )


def export_hits(
    text: str | Sequence[str], collection: str = defaults.COLLECTION, *, limit: int = 100
) -> Operation[dict[str, Any]]:
    """The hits of a search as a COCO document with masks; the phrases are its categories."""
    body = {"query": {"texts": _phrases(text)}, "level": "region", "page_size": limit}
    path = path_of(collection, "search")
    return Operation(
        "export_hits",
        HttpCall(lambda: HttpRequest("POST", path, json=body, params={"format": "coco"}), document),
    )


def _phrases(text: str | Sequence[str] | None) -> list[str]:
    if text is None:
        return []
    return [text] if isinstance(text, str) else list(text)
