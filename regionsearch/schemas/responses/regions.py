"""Regions, and what else models say of an image."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from regionsearch.schemas.responses.records import Image
from regionsearch.schemas.responses.values import Box, Mask, Model, Response
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import search_pb2, segment_pb2, types_pb2


class Region(Response):
    """A region of an image."""

    region_id: str | None = Field(None, description="Of a stored region.")
    box: Box = Field(description="Around it.")
    mask: Mask | None = Field(None, description="Null if it was not asked for.")
    area: int = Field(description="Pixels of the mask.")
    predicted_iou: float = Field(
        description="The segmenter's estimate of how well the mask fits, mostly 0 to 1."
    )
    stability_score: float = Field(description="How little the mask depends on its threshold, 0 to 1.")

    @classmethod
    def from_proto(cls, region: types_pb2.Region | search_pb2.Record) -> Region:
        """Converts the contract's message."""
        return cls(**region_fields(region))


class SegmentedRegion(Region):
    """A region that the segmenter has just found."""

    features: list[float] | None = Field(
        None, description="What the encoder makes of it, of length one; if asked for."
    )

    @classmethod
    def from_proto(cls, region: types_pb2.Region | search_pb2.Record) -> SegmentedRegion:
        """Converts the contract's message."""
        features = _features(region.features) if isinstance(region, types_pb2.Region) else None
        return cls(**region_fields(region), features=features)


class Regions(Response):
    """The regions of a stored image, best first."""

    image: Image = Field(description="The image that contains them.")
    regions: tuple[Region, ...] = Field(description="Best first.")


class PromptResult(Response):
    """The masks of one prompt or phrase, best first; `predicted_iou` is the score of what a phrase names."""

    candidates: tuple[SegmentedRegion, ...] = Field(description="Best first.")


class SegmentResult(Response):
    """Masks: `regions` in everything mode, `results` for prompts and phrases."""

    width: int = Field(description="Of the image, in pixels.")
    height: int = Field(description="Of the image, in pixels.")
    regions: tuple[SegmentedRegion, ...] = Field((), description="Everything mode: best first.")
    results: tuple[PromptResult, ...] = Field((), description="One for each prompt or phrase.")
    model: Model | None = Field(None, description="Absent when stored regions were picked.")
    embedding_cached: bool = Field(False, description="Whether the image had been looked at before.")
    image_features: list[float] | None = Field(
        None, description="What the encoder makes of the whole image; with features and everything mode."
    )
    truncated: tuple[bool, ...] = Field(
        (), description="For each phrase: it was longer than the model reads."
    )

    @classmethod
    def from_proto(cls, answer: segment_pb2.SegmentResponse) -> SegmentResult:
        """Converts the contract's message."""
        return cls(
            width=answer.image_width,
            height=answer.image_height,
            regions=tuple(map(SegmentedRegion.from_proto, answer.regions)),
            results=tuple(
                PromptResult(candidates=tuple(map(SegmentedRegion.from_proto, result.candidates)))
                for result in answer.results
            ),
            model=Model.from_proto(answer.model),
            embedding_cached=answer.embedding_cached,
            image_features=_features(answer.image_features),
            truncated=tuple(answer.truncated),
        )


class EmbeddingsResult(Response):
    """One vector of length one for each text or image."""

    vectors: list[list[float]] = Field(description="In the order of the request.")
    model: Model = Field(description="The model that made them.")
    truncated: tuple[bool, ...] = Field((), description="For each text: it was longer than the model reads.")


class CocoDocument(Response):
    """With `format=coco`: annotations as pycocotools and labelling tools read them."""

    info: dict[str, Any] = Field(description="Where it is from; `next_page_token` if there is more.")
    images: list[dict[str, Any]] = Field(description="With `sha256`, their id here.")
    categories: list[dict[str, Any]] = Field(description="The phrases, or `object`.")
    annotations: list[dict[str, Any]] = Field(description="With `score`, and `region_id` of stored regions.")


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


def _features(tensor: types_pb2.Tensor) -> list[float] | None:
    return tensor_from_proto(tensor, "features", ndim=1).tolist() if tensor.data else None


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0  # JSON knows neither NaN nor infinity
