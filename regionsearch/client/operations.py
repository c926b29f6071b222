"""Every operation of a gateway, said once: its arguments, its requests, and how the answers are read.

The functions send nothing and read no file: they answer with an `Operation`, and a transport does the rest.
`Client` and `AsyncClient` make their methods out of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from regionsearch import defaults
from regionsearch.client import messages
from regionsearch.client.problems import error_of
from regionsearch.client.results import (
    Collection,
    ImagePage,
    IngestResult,
    Readiness,
    Region,
    SearchResult,
    SegmentResult,
    WithinResult,
)
from regionsearch.client.sources import (
    Box,
    Point,
    Source,
    checked_picture,
    filter_proto,
    name_of,
    picture_json,
    picture_proto,
    pointing_json,
    pointing_proto,
    read_source,
)
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import search_pb2
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub

T = TypeVar("T")
Render = Literal["outline", "boxes", "mask"]
Level = Literal["region", "image", "both"]

PAGE_SIZE = 500

_LEVELS = {
    "region": search_pb2.LEVEL_REGION,
    "image": search_pb2.LEVEL_IMAGE,
    "both": search_pb2.LEVEL_UNSPECIFIED,
}


@dataclass(frozen=True)
class HttpRequest:
    """A request of the HTTP API."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, tuple[str, bytes]]] | None = None
    form: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class HttpCall(Generic[T]):
    """An operation over HTTP.

    Attributes:
        request: Makes the request; reads files, so that it may block.
        read: Reads the answer.
        answers: Further statuses that are answers and no errors.
    """

    request: Callable[[], HttpRequest]
    read: Callable[[httpx.Response], T]
    answers: tuple[int, ...] = ()


@dataclass(frozen=True)
class GrpcCall(Generic[T]):
    """An operation over gRPC.

    Attributes:
        method: Of a stub on the given channel.
        message: Makes the request; reads files, so that it may block.
        read: Reads the answer.
    """

    method: Callable[[Any], Any]
    message: Callable[[], Message]
    read: Callable[[Any], T]


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One operation.

    Attributes:
        name: For messages.
        http: Over HTTP.
        grpc: Over gRPC; None where the gateway offers it over HTTP only.
        patient: Whether it is tried again when the server is busy or away.
    """

    name: str
    http: HttpCall[T]
    grpc: GrpcCall[T] | None = None
    patient: bool = True


def ingest_one(
    source: Source,
    collection: str = defaults.COLLECTION,
    *,
    tags: Sequence[str] = (),
    attributes: Mapping[str, str] | None = None,
) -> Operation[IngestResult]:
    """Adds one picture; the same bytes again are a `duplicate` and change nothing.

    Args:
        source: The picture.
        collection: Where to.
        tags: Put on it.
        attributes: Further facts about it.

    Raises:
        RegionSearchError: UNSUPPORTED_IMAGE or TOO_LARGE for what is refused, INVALID_ARGUMENT for a file
            that cannot be read.
    """
    name = name_of(source)

    def request() -> HttpRequest:
        file = (name, read_source(source))
        form = {"tags": list(tags)} | ({"attributes": json.dumps(dict(attributes))} if attributes else {})
        return HttpRequest("POST", _path(collection, "images"), files=[("files", file)], form=form)

    def read(response: httpx.Response) -> IngestResult:
        (result,) = response.json()["results"]
        if result.get("error"):
            raise error_of(result["error"])
        return IngestResult.model_validate(result)

    def message() -> pb.IngestImageRequest:
        return pb.IngestImageRequest(
            collection=collection, image=picture_proto(source), name=name, tags=tags, attributes=attributes
        )

    return Operation(
        "ingest",
        HttpCall(request, read),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).IngestImage,
            message,
            partial(messages.read_ingest, name),
        ),
    )


def search(
    text: str | Sequence[str] | None = None,
    collection: str = defaults.COLLECTION,
    *,
    image: Source | None = None,
    region_id: str | None = None,
    image_id: str | None = None,
    points: Sequence[Point] = (),
    box: Box | None = None,
    negatives: Sequence[str] = (),
    level: Level = "region",
    group_by_image: bool = False,
    filter: Mapping[str, Any] | None = None,
    min_score: float | None = None,
    relative_cutoff: float | None = None,
    min_relevancy: float | None = None,
    page_size: int = 20,
    page_token: str = "",
    min_seq: int | None = None,
    masks: bool = False,
) -> Operation[SearchResult]:
    """Finds regions and images; words, examples and pointing combine.

    Args:
        text: One phrase, or several: then each region stands with its best phrase.
        collection: Where to look.
        image: A picture of it; with points or a box, the object that they point at.
        region_id: A stored region: more like this.
        image_id: A stored image; with points or a box, the object that they point at.
        points: (x, y) or (x, y, label), pixels; label 0 is background.
        box: x_min, y_min, x_max, y_max, pixels.
        negatives: Phrases that are not meant.
        level: Regions, whole images, or both.
        group_by_image: One hit an image, its best.
        filter: Conditions as in the HTTP API: image_ids, tags, min_area, ...
        min_score: Lowest cosine.
        relative_cutoff: Lowest part of the best score, 0 to 1.
        min_relevancy: With negatives, lowest relevancy; 0.5 when absent.
        page_size: Most hits of a page, at most 1000.
        page_token: From an earlier result.
        min_seq: See at least this write.
        masks: Adds the masks.
    """
    phrases = _phrases(text)
    shared = _given(min_score=min_score, relative_cutoff=relative_cutoff, min_relevancy=min_relevancy)
    shared |= _given(min_seq=min_seq) | {"page_size": page_size, "page_token": page_token}

    def request() -> HttpRequest:
        query = picture_json(image) | pointing_json(points, box) | {"texts": phrases}
        query |= _given(region_id=region_id, image_id=image_id)
        body = {"query": query, "negatives": list(negatives), "level": level, **shared}
        body |= _given(group_by="image" if group_by_image else None, filter=filter)
        body["include"] = ["mask"] if masks else []
        return HttpRequest("POST", _path(collection, "search"), json=body)

    def message() -> pb.RegionSearchServiceSearchRequest:
        query = pb.Query(
            texts=phrases,
            image=picture_proto(image),
            region_id=region_id or "",
            image_id=image_id or "",
            **pointing_proto(points, box),
        )
        return pb.RegionSearchServiceSearchRequest(
            collection=collection,
            query=query,
            negatives=negatives,
            level=_LEVELS[level],
            group_by=search_pb2.GROUP_BY_IMAGE if group_by_image else search_pb2.GROUP_BY_UNSPECIFIED,
            filter=filter_proto(filter),
            include_masks=masks,
            **shared,
        )

    return Operation(
        "search",
        HttpCall(request, lambda response: SearchResult.model_validate(response.json())),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).Search,
            message,
            partial(messages.read_search, phrases),
        ),
    )


def within(
    texts: str | Sequence[str],
    *,
    image: Source | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    negatives: Sequence[str] = (),
    min_score: float | None = None,
    relative_cutoff: float | None = None,
) -> Operation[WithinResult]:
    """Scores every region of one picture, sent along or stored.

    Args:
        texts: One phrase or several; each region goes to its best one.
        image: The picture.
        image_id: A stored image instead.
        collection: Of the stored image.
        negatives: Phrases that are not meant.
        min_score: Lowest cosine that makes a hit; without thresholds the best region of each phrase is one.
        relative_cutoff: Lowest part of a phrase's best score that makes a hit, 0 to 1.
    """
    checked_picture(image, image_id)
    phrases = _phrases(texts)
    shared = _given(min_score=min_score, relative_cutoff=relative_cutoff)
    shared |= {"collection": collection, "texts": phrases, "negatives": list(negatives)}

    def message() -> pb.SearchWithinRequest:
        source = {"image_id": image_id} if image is None else {"image": picture_proto(image)}
        return pb.SearchWithinRequest(**source, **shared)

    return Operation(
        "within",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/search-within", json=picture_json(image, image_id) | shared),
            lambda response: WithinResult.model_validate(response.json()),
        ),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).SearchWithin,
            message,
            partial(messages.read_within, phrases),
        ),
    )


def render(
    texts: str | Sequence[str],
    *,
    image: Source | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    style: Render = "outline",
    min_score: float | None = None,
) -> Operation[bytes]:
    """The picture as PNG with the finds of `within` drawn into it."""
    checked_picture(image, image_id)
    body = {"collection": collection, "texts": _phrases(texts), "render": style} | _given(min_score=min_score)
    return Operation(
        "render",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/search-within", json=picture_json(image, image_id) | body),
            lambda response: response.content,
        ),
    )


def segment(
    *,
    image: Source | None = None,
    image_id: str | None = None,
    collection: str = defaults.COLLECTION,
    points: Sequence[Point] = (),
    box: Box | None = None,
    multimask: bool = False,
) -> Operation[SegmentResult]:
    """The mask of what points and box mean; without them, of everything in the picture.

    Args:
        image: The picture.
        image_id: A stored image instead.
        collection: Of the stored image.
        points: (x, y) or (x, y, label), pixels; label 0 is background.
        box: x_min, y_min, x_max, y_max, pixels.
        multimask: The three masks of an ambiguous click.
    """
    checked_picture(image, image_id)
    prompt = pointing_json(points, box)
    body = {"collection": collection} | (
        prompt | {"multimask": multimask} if prompt else {"everything": True}
    )
    return Operation(
        "segment",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/segment", json=picture_json(image, image_id) | body),
            lambda response: SegmentResult.model_validate(response.json()),
        ),
    )


def embed(texts: Sequence[str] = (), *, images: Sequence[Source] = ()) -> Operation[NDArray[np.float32]]:
    """Vectors of length one, shape (n, dimension): of texts, or of pictures."""

    def request() -> HttpRequest:
        body = {"texts": list(texts)} if texts else {"images": [picture_json(one)["image"] for one in images]}
        return HttpRequest("POST", "/v1/embeddings", json=body)

    return Operation(
        "embed", HttpCall(request, lambda response: np.asarray(response.json()["vectors"], np.float32))
    )


def collections() -> Operation[tuple[Collection, ...]]:
    """All collections, by name."""
    return Operation(
        "collections",
        HttpCall(
            lambda: HttpRequest("GET", "/v1/collections", params={"page_size": 1000}),
            lambda response: tuple(map(Collection.model_validate, response.json()["collections"])),
        ),
    )


def create_collection(name: str, *, crop_policy: str = "default") -> Operation[Collection]:
    """Makes a collection for the model that is served now."""
    body = {"name": name, "crop_policy": crop_policy}
    return Operation(
        "create_collection",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/collections", json=body),
            lambda response: Collection.model_validate(response.json()),
        ),
    )


def delete_collection(name: str) -> Operation[None]:
    """Deletes a collection with all that is in it; `default` is empty afterwards."""
    return Operation("delete_collection", HttpCall(lambda: HttpRequest("DELETE", _path(name)), _nothing))


def list_images(
    collection: str = defaults.COLLECTION, *, page_size: int = PAGE_SIZE, page_token: str = ""
) -> Operation[ImagePage]:
    """One page of a collection's images, newest first."""
    page = {"page_size": page_size, "page_token": page_token}
    return Operation(
        "list_images",
        HttpCall(
            lambda: HttpRequest("GET", _path(collection, "images"), params=page),
            lambda response: ImagePage.model_validate(response.json()),
        ),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).ListImages,
            lambda: pb.RegionSearchServiceListImagesRequest(collection=collection, **page),  # type: ignore[arg-type]
            messages.read_images,
        ),
    )


def content(image_id: str, collection: str = defaults.COLLECTION) -> Operation[bytes]:
    """The file of an image, as it was sent."""
    path = _path(collection, "images", image_id, "content")
    return Operation("content", HttpCall(lambda: HttpRequest("GET", path), lambda response: response.content))


def regions(
    image_id: str, collection: str = defaults.COLLECTION, *, masks: bool = False
) -> Operation[tuple[Region, ...]]:
    """The regions of an image, best first."""
    params = {"include": "mask"} if masks else {}
    return Operation(
        "regions",
        HttpCall(
            lambda: HttpRequest("GET", _path(collection, "images", image_id, "regions"), params=params),
            lambda response: tuple(map(Region.model_validate, response.json()["regions"])),
        ),
    )


def export_hits(
    text: str | Sequence[str], collection: str = defaults.COLLECTION, *, limit: int = 100
) -> Operation[dict[str, Any]]:
    """The hits of a search as a COCO document with masks; the phrases are its categories."""
    body = {"query": {"texts": _phrases(text)}, "level": "region", "page_size": limit}
    path = _path(collection, "search")
    return Operation(
        "export_hits",
        HttpCall(lambda: HttpRequest("POST", path, json=body, params={"format": "coco"}), _document),
    )


def export_regions(image_id: str, collection: str = defaults.COLLECTION) -> Operation[dict[str, Any]]:
    """All regions of an image as a COCO document with masks."""
    path = _path(collection, "images", image_id, "regions")
    return Operation(
        "export_regions", HttpCall(lambda: HttpRequest("GET", path, params={"format": "coco"}), _document)
    )


def delete_image(image_id: str, collection: str = defaults.COLLECTION) -> Operation[None]:
    """Deletes an image with its regions."""
    return Operation(
        "delete_image",
        HttpCall(lambda: HttpRequest("DELETE", _path(collection, "images", image_id)), _nothing),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).DeleteImage,
            lambda: pb.DeleteImageRequest(collection=collection, image_id=image_id),
            _nothing,
        ),
    )


def ready() -> Operation[Readiness]:
    """Whether the gateway can do its work, and if not, what it waits for."""
    return Operation(
        "ready",
        HttpCall(
            lambda: HttpRequest("GET", "/readyz"),
            lambda response: Readiness.model_validate(response.json()),
            answers=(httpx.codes.SERVICE_UNAVAILABLE,),
        ),
        GrpcCall(
            lambda channel: health_pb2_grpc.HealthStub(channel).Check,
            health_pb2.HealthCheckRequest,
            lambda answer: Readiness(ready=answer.status == health_pb2.HealthCheckResponse.SERVING),
        ),
        patient=False,
    )


def _path(collection: str, *parts: str) -> str:
    return "/".join(["/v1/collections", *(quote(part, safe="") for part in (collection, *parts))])


def _phrases(text: str | Sequence[str] | None) -> list[str]:
    if text is None:
        return []
    return [text] if isinstance(text, str) else list(text)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _document(response: httpx.Response) -> dict[str, Any]:
    return dict(response.json())


def _nothing(answer: object) -> None:
    return None
