"""The HTTP API as values: what is sent and how the answer is read, the same for both clients."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import httpx

from regionsearch.client.results import (
    Collection,
    Image,
    IngestResult,
    Region,
    SearchResult,
    SegmentResult,
    WithinResult,
)
from regionsearch.errors import Kind, RegionSearchError, invalid

T = TypeVar("T")
Source = str | Path | tuple[str, bytes]
Point = tuple[float, float] | tuple[float, float, int]
Render = Literal["outline", "boxes", "mask"]
Level = Literal["region", "image", "both"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, tuple[str, bytes]]] | None = None
    form: Mapping[str, Any] | None = None


def collections() -> Call[list[Collection]]:
    """All collections."""
    return Call(
        "GET",
        "/v1/collections",
        lambda r: [Collection.model_validate(one) for one in r.json()["collections"]],
        params={"page_size": 1000},
    )


def collection(name: str) -> Call[Collection]:
    """One collection."""
    return Call("GET", f"/v1/collections/{name}", lambda r: Collection.model_validate(r.json()))


def create_collection(name: str, crop_policy: str) -> Call[Collection]:
    """A new collection."""
    body = {"name": name, "crop_policy": crop_policy}
    return Call("POST", "/v1/collections", lambda r: Collection.model_validate(r.json()), json=body)


def delete_collection(name: str) -> Call[None]:
    """The end of a collection."""
    return Call("DELETE", f"/v1/collections/{name}", _nothing)


def ingest(sources: Sequence[Source], collection: str, tags: Sequence[str]) -> Call[list[IngestResult]]:
    """Pictures in, one request."""
    return Call(
        "POST",
        f"/v1/collections/{collection}/images",
        lambda r: [IngestResult.model_validate(one) for one in r.json()["results"]],
        files=[("files", read_source(source)) for source in sources],
        form={"tags": list(tags)},
    )


def search(query: Mapping[str, Any], collection: str, options: Mapping[str, Any]) -> Call[SearchResult]:
    """A search."""
    return Call(
        "POST",
        f"/v1/collections/{collection}/search",
        lambda r: SearchResult(r.json()),
        json={"query": query, **_given(options)},
    )


def search_coco(query: Mapping[str, Any], collection: str, page_size: int) -> Call[dict[str, Any]]:
    """A search whose hits come as a COCO document with masks."""
    body = {"query": query, "level": "region", "page_size": page_size}
    path = f"/v1/collections/{collection}/search"
    return Call("POST", path, lambda r: dict(r.json()), json=body, params={"format": "coco"})


def within(
    picture: Mapping[str, Any], texts: Sequence[str], options: Mapping[str, Any]
) -> Call[WithinResult]:
    """A search inside one picture."""
    body = {**picture, "texts": list(texts), **_given(options)}
    return Call("POST", "/v1/search-within", lambda r: WithinResult.model_validate(r.json()), json=body)


def render(
    picture: Mapping[str, Any], texts: Sequence[str], style: Render, options: Mapping[str, Any]
) -> Call[bytes]:
    """A search inside one picture, answered with the picture and the hits drawn into it."""
    body = {**picture, "texts": list(texts), "render": style, **_given(options)}
    return Call("POST", "/v1/search-within", lambda r: r.content, json=body)


def segment(picture: Mapping[str, Any], prompt: Mapping[str, Any]) -> Call[SegmentResult]:
    """Masks of a picture."""
    body = {**picture, **prompt}
    return Call("POST", "/v1/segment", lambda r: SegmentResult.model_validate(r.json()), json=body)


def embed_texts(texts: Sequence[str]) -> Call[list[list[float]]]:
    """Vectors of texts."""
    return Call("POST", "/v1/embeddings", lambda r: list(r.json()["vectors"]), json={"texts": list(texts)})


def images(collection: str, page_size: int, page_token: str) -> Call[tuple[list[Image], str]]:
    """A page of images and the token of the next page."""

    def read(response: httpx.Response) -> tuple[list[Image], str]:
        answer = response.json()
        return [Image.model_validate(one) for one in answer["images"]], answer["next_page_token"]

    params = {"page_size": page_size, "page_token": page_token}
    return Call("GET", f"/v1/collections/{collection}/images", read, params=params)


def content(collection: str, image_id: str) -> Call[bytes]:
    """The file of an image."""
    return Call("GET", f"/v1/collections/{collection}/images/{image_id}/content", lambda r: r.content)


def regions(collection: str, image_id: str, masks: bool) -> Call[list[Region]]:
    """The regions of an image."""
    return Call(
        "GET",
        f"/v1/collections/{collection}/images/{image_id}/regions",
        lambda r: [Region.model_validate(one) for one in r.json()["regions"]],
        params={"include": "mask"} if masks else {},
    )


def delete_image(collection: str, image_id: str) -> Call[None]:
    """The end of an image."""
    return Call("DELETE", f"/v1/collections/{collection}/images/{image_id}", _nothing)


def ready() -> Call[dict[str, Any]]:
    """Whether the gateway can do its work."""
    return Call("GET", "/readyz", lambda r: dict(r.json()))


def read_source(source: Source) -> tuple[str, bytes]:
    """Name and bytes of a file, or of a (name, bytes) pair.

    Raises:
        RegionSearchError: NOT_FOUND for a file that cannot be read.
    """
    if isinstance(source, tuple):
        return source
    path = Path(source)
    try:
        return path.name, path.read_bytes()
    except OSError as error:
        raise RegionSearchError(Kind.NOT_FOUND, f"{path} cannot be read: {error.strerror}") from error


def picture_of(source: Source | None, image_id: str | None) -> dict[str, str]:
    """A picture in a JSON body: sent along, or stored.

    Raises:
        RegionSearchError: INVALID_ARGUMENT unless exactly one of the two is given.
    """
    if (source is None) == (image_id is None):
        raise invalid("image", "give either a picture or the image_id of a stored one")
    if source is not None:
        return {"image": base64.b64encode(read_source(source)[1]).decode("ascii")}
    return {"image_id": str(image_id)}


def pointing(points: Sequence[Point], box: Sequence[float] | None) -> dict[str, Any]:
    """Points (x, y) or (x, y, label) and a box (x_min, y_min, x_max, y_max) in a JSON body."""
    body: dict[str, Any] = {}
    if points:
        body["points"] = [dict(zip(("x", "y", "label"), point, strict=False)) for point in points]
    if box is not None:
        body["box"] = dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
    return body


def failure(response: httpx.Response) -> RegionSearchError:
    """The error that a problem document stands for."""
    try:
        problem = response.json()
        kind = Kind(problem["code"])
    except (ValueError, KeyError, TypeError):
        kind = Kind.UNAVAILABLE if response.status_code in (502, 503, 504) else Kind.INTERNAL
        return RegionSearchError(kind, f"the server answered {response.status_code}")
    errors = problem.get("errors") or [{}]
    pointer = errors[0].get("pointer")
    return RegionSearchError(
        kind,
        problem.get("detail", kind.value),
        field=pointer.strip("/").replace("/", ".") if pointer else None,
        retry_after_s=problem.get("retry_after_s"),
        metadata=problem.get("metadata"),
    )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _nothing(response: httpx.Response) -> None:
    return None
