"""What was found, as it goes out over HTTP; made from the contract's messages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.http.answers import Box, Mask, Model, Region
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2


class HitImage(BaseModel):
    """The image of a hit."""

    width: int
    height: int
    name: str
    tags: list[str]


class Hit(BaseModel):
    """Something that was found."""

    rank: int
    score: float = Field(description="Cosine of query and record, -1 to 1.")
    relevancy: float | None = None
    image_id: str
    region_id: str | None
    level: Literal["image", "region"]
    box: Box
    mask: Mask | None = None
    area: int
    image: HitImage
    label: str | None = Field(description="The phrase that it fits best.")
    text_index: int | None = Field(None, description="The place of that phrase, from 0.")
    best_region: Hit | None = Field(None, description="When the whole image is the hit: its best region.")

    @classmethod
    def of(cls, hit: search_pb2.Hit, phrases: list[str]) -> Hit:
        """From the contract."""
        record, image = hit.record, hit.image
        region = record.level == search_pb2.LEVEL_REGION
        return cls(
            rank=hit.rank,
            score=hit.score,
            relevancy=hit.relevancy if hit.HasField("relevancy") else None,
            image_id=record.image_id,
            region_id=record.record_id if region else None,
            level="region" if region else "image",
            box=Box.of(record.box),
            mask=Mask.of(record.mask) if record.HasField("mask") else None,
            area=record.area,
            image=HitImage(width=image.width, height=image.height, name=image.name, tags=list(image.tags)),
            label=phrases[hit.query_index] if phrases else None,
            text_index=hit.query_index if phrases else None,
            best_region=cls.of(hit.best_region, phrases) if hit.HasField("best_region") else None,
        )


class SearchAnswer(BaseModel):
    """A page of hits, best first; empty when there is nothing."""

    hits: list[Hit]
    next_page_token: str
    model: Model
    seq: int
    truncated: list[bool] = Field(
        description="On the first page, for each phrase: it was longer than the model reads."
    )


class ScoredRegion(Region):
    """A region with its score."""

    score: float
    relevancy: float | None = None
    label: str
    text_index: int
    is_hit: bool


class WithinAnswer(BaseModel):
    """Every region of an image, best first."""

    width: int
    height: int
    regions: list[ScoredRegion]
    union_mask: Mask = Field(description="Of the hits.")
    model: Model
    truncated: list[bool] = Field([], description="For each phrase: it was longer than the model reads.")

    @classmethod
    def of(
        cls, answer: region_search_pb2.SearchWithinResponse, phrases: list[str], *, masks: bool
    ) -> WithinAnswer:
        """From the contract."""
        regions = [
            ScoredRegion(
                **Region.of(one.region, mask=masks, region_id=one.region_id or None).model_dump(),
                score=one.score,
                relevancy=one.relevancy if one.HasField("relevancy") else None,
                label=phrases[one.text_index],
                text_index=one.text_index,
                is_hit=one.is_hit,
            )
            for one in answer.regions
        ]
        return cls(
            width=answer.image_width,
            height=answer.image_height,
            regions=regions,
            union_mask=Mask.of(answer.union_mask),
            model=Model.of(answer.model),
            truncated=list(answer.truncated),
        )


class PromptAnswer(BaseModel):
    """The masks of one prompt, best first."""

    candidates: list[Region]


class SegmentAnswer(BaseModel):
    """Masks: `regions` in everything mode, `results` for prompts."""

    width: int
    height: int
    regions: list[Region] = []
    results: list[PromptAnswer] = []
    model: Model | None = Field(None, description="Absent when stored regions were picked.")
    embedding_cached: bool = False

    @classmethod
    def of(cls, answer: segment_pb2.SegmentResponse) -> SegmentAnswer:
        """From the contract."""
        return cls(
            width=answer.image_width,
            height=answer.image_height,
            regions=[Region.of(region) for region in answer.regions],
            results=[
                PromptAnswer(candidates=[Region.of(region) for region in result.candidates])
                for result in answer.results
            ],
            model=Model.of(answer.model),
            embedding_cached=answer.embedding_cached,
        )


class EmbeddingsAnswer(BaseModel):
    """One vector of length one for each text or image."""

    vectors: list[list[float]]
    model: Model
    truncated: list[bool] = []


class CocoDocument(BaseModel):
    """With `format=coco`: annotations as pycocotools and labelling tools read them."""

    info: dict[str, Any]
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
