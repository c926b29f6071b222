"""Regions, and what else models say of an image."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from regionsearch.schemas.responses.records import Image
from regionsearch.schemas.responses.values import Box, Mask, Model, Response
from regionsearch.v1 import search_pb2, segment_pb2, types_pb2


class Region(Response):
    """A region of an image."""

    region_id: str | None = Field(None, description="Of a stored region.")
    box: Box
    mask: Mask | None = None
    area: int
    predicted_iou: float
    stability_score: float

    @classmethod
    def from_proto(cls, region: types_pb2.Region | search_pb2.Record) -> Region:
        """Converts the contract's message."""
        return cls(**region_fields(region))


class Regions(Response):
    """The regions of a stored image, best first."""

    image: Image
    regions: tuple[Region, ...]


class PromptResult(Response):
    """The masks of one prompt, best first."""

    candidates: tuple[Region, ...]


class SegmentResult(Response):
    """Masks: `regions` in everything mode, `results` for prompts."""

    width: int
    height: int
    regions: tuple[Region, ...] = ()
    results: tuple[PromptResult, ...] = ()
    model: Model | None = Field(None, description="Absent when stored regions were picked.")
    embedding_cached: bool = False

    @classmethod
    def from_proto(cls, answer: segment_pb2.SegmentResponse) -> SegmentResult:
        """Converts the contract's message."""
        return cls(
            width=answer.image_width,
            height=answer.image_height,
            regions=tuple(map(Region.from_proto, answer.regions)),
            results=tuple(
                PromptResult(candidates=tuple(map(Region.from_proto, result.candidates)))
                for result in answer.results
            ),
            model=Model.from_proto(answer.model),
            embedding_cached=answer.embedding_cached,
        )


class EmbeddingsResult(Response):
    """One vector of length one for each text or image."""

    vectors: list[list[float]]
    model: Model
    truncated: tuple[bool, ...] = ()


class CocoDocument(Response):
    """With `format=coco`: annotations as pycocotools and labelling tools read them."""

    info: dict[str, Any]
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


def region_fields(region: types_pb2.Region | search_pb2.Record) -> dict[str, Any]:
    """The fields of a `Region`, by name."""
    return {
        "region_id": getattr(region, "record_id", None),
        "box": Box.from_proto(region.box),
        "mask": Mask.from_proto(region.mask) if region.HasField("mask") else None,
        "area": region.area,
        "predicted_iou": _finite(region.predicted_iou),
        "stability_score": _finite(region.stability_score),
    }


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0  # JSON knows neither NaN nor infinity
