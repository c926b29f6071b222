"""What is stored and what is served, as it goes out over HTTP; made from the contract's messages."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, Field

from regionsearch.v1 import search_pb2, types_pb2


class Box(BaseModel):
    """Pixels of the image as a viewer shows it; the edges are half-open."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def of(cls, box: types_pb2.Box) -> Box:
        """From the contract."""
        return cls(x_min=box.x_min, y_min=box.y_min, x_max=box.x_max, y_max=box.y_max)


class Mask(BaseModel):
    """COCO's compressed run-length code of a mask as large as its image."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str

    @classmethod
    def of(cls, mask: types_pb2.Mask) -> Mask:
        """From the contract."""
        return cls(size=(mask.height, mask.width), counts=mask.coco_rle)


class Model(BaseModel):
    """What a model is; vectors are comparable when all of this agrees."""

    family: str
    variant: str
    weights_digest: str
    dimension: int
    crop_policy: str | None = None
    precision: str | None = None
    device: str | None = None

    @classmethod
    def of(cls, model: types_pb2.ModelInfo) -> Model:
        """From the contract."""
        policy = types_pb2.CropPolicy.Name(model.crop_policy).removeprefix("CROP_POLICY_").lower()
        return cls(
            family=model.family,
            variant=model.variant,
            weights_digest=model.weights_digest,
            dimension=model.dimension,
            crop_policy=None if policy == "unspecified" else policy,
            precision=model.precision or None,
            device=model.device or None,
        )


class Collection(BaseModel):
    """A named set of images and vectors of one model."""

    name: str
    model: Model
    created_at: str
    image_count: int
    record_count: int
    binary_codes: dict[str, Any] | None = None

    @classmethod
    def of(cls, collection: search_pb2.Collection) -> Collection:
        """From the contract."""
        codes = None
        if collection.binary_codes.method:
            method = search_pb2.BinaryCodes.Method.Name(collection.binary_codes.method)
            codes = {
                "method": method.removeprefix("METHOD_").lower(),
                "bits": collection.binary_codes.bits,
                "rerank_factor": collection.binary_codes.rerank_factor,
            }
        return cls(
            name=collection.name,
            model=Model.of(collection.model),
            created_at=collection.create_time.ToJsonString(),
            image_count=collection.image_count,
            record_count=collection.record_count,
            binary_codes=codes,
        )


class Collections(BaseModel):
    """A page of collections, by name."""

    collections: list[Collection]
    next_page_token: str


class Image(BaseModel):
    """A stored image."""

    image_id: str = Field(description="SHA-256 of the file.")
    name: str
    width: int
    height: int
    content_type: str
    size_bytes: int
    tags: list[str]
    attributes: dict[str, str]
    created_at: str
    region_count: int

    @classmethod
    def of(cls, image: search_pb2.StoredImage) -> Image:
        """From the contract."""
        return cls(
            image_id=image.image_id,
            name=image.name,
            width=image.width,
            height=image.height,
            content_type=image.content_type,
            size_bytes=image.size_bytes,
            tags=list(image.tags),
            attributes=dict(image.attributes),
            created_at=image.create_time.ToJsonString(),
            region_count=image.region_count,
        )


class UpdatedImage(Image):
    """A stored image after a change."""

    seq: int = Field(description="A search with this min_seq sees the change.")


class StoredImages(BaseModel):
    """Images that need not be sent."""

    images: list[Image] = Field(description="Those that are stored, in the order of their ids.")


class Images(BaseModel):
    """A page of images, newest first."""

    images: list[Image]
    next_page_token: str
    total_count: int


class IngestResult(BaseModel):
    """What became of a file."""

    name: str
    outcome: Literal["created", "duplicate", "failed"]
    image_id: str | None = None
    regions: int | None = Field(None, description="Number of regions that were found.")
    known_as: str | None = Field(
        None,
        description="Of a duplicate that was stored under another name before: that name, which it keeps.",
    )
    tags: list[str] | None = Field(
        None, description="Of the image now: a duplicate keeps its own and gets those of the request."
    )
    seq: int | None = Field(None, description="A search with this min_seq sees the image.")
    error: dict[str, Any] | None = Field(
        None, description="code, detail and errors, as in a problem document."
    )


class IngestResults(BaseModel):
    """One result for each file, in the order of the request."""

    results: list[IngestResult]


class Region(BaseModel):
    """A region of an image."""

    region_id: str | None = Field(None, description="Of a stored region.")
    box: Box
    mask: Mask | None = None
    area: int
    predicted_iou: float
    stability_score: float

    @classmethod
    def of(
        cls, region: types_pb2.Region | search_pb2.Record, *, mask: bool = True, region_id: str | None = None
    ) -> Region:
        """From the contract."""
        return cls(
            region_id=region_id or getattr(region, "record_id", None),
            box=Box.of(region.box),
            mask=Mask.of(region.mask) if mask and region.HasField("mask") else None,
            area=region.area,
            predicted_iou=_finite(region.predicted_iou),
            stability_score=_finite(region.stability_score),
        )


class Regions(BaseModel):
    """The regions of a stored image, best first."""

    image: Image
    regions: list[Region]


class Models(BaseModel):
    """The models that are served now."""

    segmenter: Model
    embedder: Model
    searcher: dict[str, Any]


class ServiceState(BaseModel):
    """Whether a service answers, and if not, why."""

    ready: bool
    detail: str


class Ready(BaseModel):
    """Whether the gateway can do its work, and what it waits for."""

    ready: bool
    services: dict[str, ServiceState]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
