"""What the gateway answers, over HTTP and gRPC: the same classes on both ends.

The gateway makes them from the contract's messages (`from_proto`), and they describe its JSON in the OpenAPI
document. The client reads them from JSON or from messages, and ignores fields that a newer server adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from regionsearch.errors import from_status
from regionsearch.masks import decode_rle
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2, types_pb2


class Response(BaseModel):
    """Base of everything that is answered: immutable, and unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Box(Response):
    """Pixels of the image as a viewer shows it; the edges are half-open."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def from_proto(cls, box: types_pb2.Box) -> Box:
        """Converts the contract's message."""
        return cls(x_min=box.x_min, y_min=box.y_min, x_max=box.x_max, y_max=box.y_max)


class Mask(Response):
    """COCO's compressed run-length code of a mask as large as its image."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str

    @classmethod
    def from_proto(cls, mask: types_pb2.Mask) -> Mask:
        """Converts the contract's message."""
        return cls(size=(mask.height, mask.width), counts=mask.coco_rle)

    def to_array(self) -> NDArray[np.bool_]:
        """The mask as a bool array of shape (height, width)."""
        return decode_rle(self.counts, *self.size)


class Model(Response):
    """What a model is; vectors are comparable when all of this agrees."""

    family: str
    variant: str
    weights_digest: str
    dimension: int
    crop_policy: str | None = None
    precision: str | None = None
    device: str | None = None

    @classmethod
    def from_proto(cls, model: types_pb2.ModelInfo) -> Model:
        """Converts the contract's message."""
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


class BinaryCodes(Response):
    """How the vectors of a collection are quantized to bits."""

    method: str
    bits: int
    rerank_factor: int

    @classmethod
    def from_proto(cls, codes: search_pb2.BinaryCodes) -> BinaryCodes:
        """Converts the contract's message."""
        method = search_pb2.BinaryCodes.Method.Name(codes.method).removeprefix("METHOD_").lower()
        return cls(method=method, bits=codes.bits, rerank_factor=codes.rerank_factor)


class Collection(Response):
    """A named set of images and vectors of one model."""

    name: str
    model: Model
    created_at: str
    image_count: int
    record_count: int
    binary_codes: BinaryCodes | None = None

    @classmethod
    def from_proto(cls, collection: search_pb2.Collection) -> Collection:
        """Converts the contract's message."""
        codes = collection.binary_codes
        return cls(
            name=collection.name,
            model=Model.from_proto(collection.model),
            created_at=collection.create_time.ToJsonString(),
            image_count=collection.image_count,
            record_count=collection.record_count,
            binary_codes=BinaryCodes.from_proto(codes) if codes.method else None,
        )


class Collections(Response):
    """A page of collections, by name."""

    collections: tuple[Collection, ...]
    next_page_token: str

    @classmethod
    def from_proto(cls, page: search_pb2.ListCollectionsResponse) -> Collections:
        """Converts the contract's message."""
        return cls(
            collections=tuple(map(Collection.from_proto, page.collections)),
            next_page_token=page.next_page_token,
        )


class Image(Response):
    """A stored image."""

    image_id: str = Field(description="SHA-256 of the file.")
    name: str
    width: int
    height: int
    content_type: str
    size_bytes: int
    tags: tuple[str, ...]
    attributes: dict[str, str]
    created_at: str
    region_count: int

    @classmethod
    def from_proto(cls, image: search_pb2.StoredImage) -> Image:
        """Converts the contract's message."""
        return cls(**_image_fields(image))


class UpdatedImage(Image):
    """A stored image after a change."""

    seq: int = Field(description="A search with this min_seq sees the change.")

    @classmethod
    def from_update(cls, image: search_pb2.StoredImage, seq: int) -> UpdatedImage:
        """Converts an image as it is after a change, and the number of that write."""
        return cls(**_image_fields(image), seq=seq)


class StoredImages(Response):
    """Images that need not be sent."""

    images: tuple[Image, ...] = Field(description="Those that are stored, in the order of their ids.")

    @classmethod
    def from_proto(cls, images: Sequence[search_pb2.StoredImage]) -> StoredImages:
        """Converts the contract's messages."""
        return cls(images=tuple(map(Image.from_proto, images)))


class Images(Response):
    """A page of images, newest first."""

    images: tuple[Image, ...]
    next_page_token: str
    total_count: int

    @classmethod
    def from_proto(
        cls, page: search_pb2.ListImagesResponse | region_search_pb2.RegionSearchServiceListImagesResponse
    ) -> Images:
        """Converts the contract's message."""
        return cls(
            images=tuple(map(Image.from_proto, page.images)),
            next_page_token=page.next_page_token,
            total_count=page.total_count,
        )


class FieldError(Response):
    """A field of a request that is at fault."""

    pointer: str
    detail: str


class IngestError(Response):
    """Why a file was not stored, as in a problem document."""

    code: str
    detail: str
    errors: tuple[FieldError, ...] | None = None
    retry_after_s: float | None = None
    metadata: dict[str, str] | None = None


class IngestResult(Response):
    """What became of a file."""

    name: str
    outcome: Literal["created", "duplicate", "failed"]
    image_id: str | None = None
    regions: int | None = Field(None, description="Number of regions that were found.")
    known_as: str | None = Field(
        None,
        description="Of a duplicate that was stored under another name before: that name, which it keeps.",
    )
    tags: tuple[str, ...] = Field(
        (), description="Of the image now: a duplicate keeps its own and gets those of the request."
    )
    added_tags: SkipJsonSchema[tuple[str, ...]] = ()  # known only to a client that has asked before it sends
    seq: int | None = Field(None, description="A search with this min_seq sees the image.")
    error: IngestError | None = Field(None, description="code, detail and errors, as in a problem document.")

    @classmethod
    def from_proto(cls, name: str, answer: region_search_pb2.IngestImageResponse) -> IngestResult:
        """Converts the contract's message; `name` is what the request called the file."""
        created = answer.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
        return cls(
            name=name,
            outcome="created" if created else "duplicate",
            image_id=answer.image_id,
            regions=answer.region_count,
            known_as=answer.name if not created and answer.name not in ("", name) else None,
            tags=tuple(answer.tags),
            seq=answer.seq,
        )

    def to_json(self) -> dict[str, Any]:
        """The result as JSON: without what is not known of this file."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class IngestResults(Response):
    """One result for each file, in the order of the request."""

    results: tuple[IngestResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The results as JSON: without what is not known of a file."""
        return self.model_dump(exclude_none=True, exclude_unset=True)


class IngestProgress(Response):
    """How far an image is; its `result` comes with the stage `done`."""

    name: str
    stage: Literal["received", "segmenting", "embedding", "storing", "done"]
    result: IngestResult | None = None

    @classmethod
    def from_proto(cls, name: str, answer: region_search_pb2.IngestImagesResponse) -> IngestProgress:
        """Converts the contract's message; `name` is what the request called the file."""
        result = None
        if answer.HasField("response"):
            result = IngestResult.from_proto(name, answer.response)
        elif answer.HasField("error"):
            error = from_status(answer.error)
            failure = IngestError(code=error.kind.value, detail=error.message)
            result = IngestResult(name=name, outcome="failed", error=failure)
        stage = region_search_pb2.IngestStage.Name(answer.stage).removeprefix("INGEST_STAGE_").lower()
        return cls.model_validate({"name": name, "stage": stage, "result": result})


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
        return cls(**_region_fields(region))


class Regions(Response):
    """The regions of a stored image, best first."""

    image: Image
    regions: tuple[Region, ...]


class HitImage(Response):
    """The image of a hit."""

    width: int
    height: int
    name: str
    tags: tuple[str, ...]


class Hit(Response):
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
    def from_proto(cls, hit: search_pb2.Hit, phrases: Sequence[str]) -> Hit:
        """Converts the contract's message; the phrases are those of the query."""
        record, image = hit.record, hit.image
        region = record.level == search_pb2.LEVEL_REGION
        return cls(
            rank=hit.rank,
            score=hit.score,
            relevancy=hit.relevancy if hit.HasField("relevancy") else None,
            image_id=record.image_id,
            region_id=record.record_id if region else None,
            level="region" if region else "image",
            box=Box.from_proto(record.box),
            mask=Mask.from_proto(record.mask) if record.HasField("mask") else None,
            area=record.area,
            image=HitImage(width=image.width, height=image.height, name=image.name, tags=tuple(image.tags)),
            label=phrases[hit.query_index] if phrases else None,
            text_index=hit.query_index if phrases else None,
            best_region=cls.from_proto(hit.best_region, phrases) if hit.HasField("best_region") else None,
        )


class SearchPage(Protocol):
    """A page of hits as messages: the contract's own, or the gateway's, which spares a copy of every hit."""

    @property
    def hits(self) -> Sequence[search_pb2.Hit]:
        """Best first."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""

    @property
    def model(self) -> types_pb2.ModelInfo:
        """Of the collection."""

    @property
    def seq(self) -> int:
        """Of the last write that was searched."""

    @property
    def truncated(self) -> Sequence[bool]:
        """For each phrase, whether its end was cut off."""


class SearchAnswer(Response):
    """A page of hits, best first; empty when there is nothing."""

    hits: tuple[Hit, ...]
    next_page_token: str
    model: Model
    seq: int
    truncated: tuple[bool, ...] = Field(
        description="On the first page, for each phrase: it was longer than the model reads."
    )

    @classmethod
    def from_proto(cls, answer: SearchPage, phrases: Sequence[str]) -> SearchAnswer:
        """Converts the contract's message; the phrases are those of the query."""
        return cls(
            hits=tuple(Hit.from_proto(hit, phrases) for hit in answer.hits),
            next_page_token=answer.next_page_token,
            model=Model.from_proto(answer.model),
            seq=answer.seq,
            truncated=tuple(answer.truncated),
        )

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:  # type: ignore[override]
        return iter(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]


class ScoredRegion(Region):
    """A region with its score."""

    score: float
    relevancy: float | None = None
    label: str
    text_index: int
    is_hit: bool

    @classmethod
    def from_scored(cls, scored: region_search_pb2.ScoredRegion, phrases: Sequence[str]) -> ScoredRegion:
        """Converts the contract's message; the phrases are those of the query."""
        return cls(
            **_region_fields(scored.region) | {"region_id": scored.region_id or None},
            score=scored.score,
            relevancy=scored.relevancy if scored.HasField("relevancy") else None,
            label=phrases[scored.text_index],
            text_index=scored.text_index,
            is_hit=scored.is_hit,
        )


class WithinAnswer(Response):
    """Every region of an image, best first."""

    width: int
    height: int
    regions: tuple[ScoredRegion, ...]
    union_mask: Mask = Field(description="Of the hits.")
    model: Model
    truncated: tuple[bool, ...] = Field(
        (), description="For each phrase: it was longer than the model reads."
    )

    @classmethod
    def from_proto(
        cls, answer: region_search_pb2.SearchWithinResponse, phrases: Sequence[str]
    ) -> WithinAnswer:
        """Converts the contract's message; the phrases are those of the query."""
        return cls(
            width=answer.image_width,
            height=answer.image_height,
            regions=tuple(ScoredRegion.from_scored(one, phrases) for one in answer.regions),
            union_mask=Mask.from_proto(answer.union_mask),
            model=Model.from_proto(answer.model),
            truncated=tuple(answer.truncated),
        )

    @property
    def hits(self) -> tuple[ScoredRegion, ...]:
        """The regions that passed the thresholds."""
        return tuple(region for region in self.regions if region.is_hit)


class PromptAnswer(Response):
    """The masks of one prompt, best first."""

    candidates: tuple[Region, ...]


class SegmentAnswer(Response):
    """Masks: `regions` in everything mode, `results` for prompts."""

    width: int
    height: int
    regions: tuple[Region, ...] = ()
    results: tuple[PromptAnswer, ...] = ()
    model: Model | None = Field(None, description="Absent when stored regions were picked.")
    embedding_cached: bool = False

    @classmethod
    def from_proto(cls, answer: segment_pb2.SegmentResponse) -> SegmentAnswer:
        """Converts the contract's message."""
        return cls(
            width=answer.image_width,
            height=answer.image_height,
            regions=tuple(map(Region.from_proto, answer.regions)),
            results=tuple(
                PromptAnswer(candidates=tuple(map(Region.from_proto, result.candidates)))
                for result in answer.results
            ),
            model=Model.from_proto(answer.model),
            embedding_cached=answer.embedding_cached,
        )


class EmbeddingsAnswer(Response):
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


class Models(Response):
    """The models that are served now."""

    segmenter: Model
    embedder: Model
    searcher: dict[str, Any]


class ServiceState(Response):
    """Whether a service answers, and if not, why."""

    ready: bool
    detail: str


class Ready(Response):
    """Whether the gateway can do its work, and what it waits for."""

    ready: bool
    services: dict[str, ServiceState]

    @property
    def reason(self) -> str:
        """What it waits for, in one line."""
        waiting = (f"{name}: {state.detail}" for name, state in self.services.items() if not state.ready)
        return "; ".join(waiting)


def _image_fields(image: search_pb2.StoredImage) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "content_type": image.content_type,
        "size_bytes": image.size_bytes,
        "tags": tuple(image.tags),
        "attributes": dict(image.attributes),
        "created_at": image.create_time.ToJsonString(),
        "region_count": image.region_count,
    }


def _region_fields(region: types_pb2.Region | search_pb2.Record) -> dict[str, Any]:
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
