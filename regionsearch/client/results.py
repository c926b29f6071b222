"""What the client answers with: frozen, typed, tolerant of fields that a newer server adds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from regionsearch.masks import decode_rle


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Box(_Result):
    """A box in pixels of the upright image; edges are half-open."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Mask(_Result):
    """A mask in COCO's compressed run-length encoding."""

    size: tuple[int, int]
    counts: str

    def to_array(self) -> NDArray[np.bool_]:
        """The mask as a bool array (height, width)."""
        return decode_rle(self.counts, *self.size)


class Collection(_Result):
    """A named set of images and vectors of one model."""

    name: str
    image_count: int
    record_count: int
    created_at: str
    model: dict[str, Any]


class CollectionPage(_Result):
    """Some of the collections, by name."""

    collections: tuple[Collection, ...]
    next_page_token: str


class Image(_Result):
    """A stored image; its id is the SHA-256 of its file."""

    image_id: str
    name: str
    width: int
    height: int
    content_type: str
    size_bytes: int
    tags: tuple[str, ...]
    attributes: dict[str, str] = {}
    created_at: str
    region_count: int


class UpdatedImage(Image):
    """A stored image after a change; a search with its seq as min_seq sees the change."""

    seq: int


class ImagePage(_Result):
    """Some of a collection's images, newest first."""

    images: tuple[Image, ...]
    next_page_token: str
    total_count: int


class Problem(_Result):
    """Why something failed; the code is that of a `regionsearch.errors.Kind`."""

    code: str
    detail: str


class IngestResult(_Result):
    """What became of a file.

    Attributes:
        name: As it was sent.
        outcome: A `duplicate` was there already; `error` says why one has `failed`.
        image_id: SHA-256 of the file.
        regions: Number of regions that were found.
        known_as: The name that a duplicate keeps, where it was stored under another one.
        tags: Of the image now.
        added_tags: Those that a file that was there already has got now.
        seq: A search with this min_seq sees the image.
        error: Why it failed.
    """

    name: str
    outcome: Literal["created", "duplicate", "failed"]
    image_id: str | None = None
    regions: int | None = None
    known_as: str | None = None
    tags: tuple[str, ...] = ()
    added_tags: tuple[str, ...] = ()
    seq: int | None = None
    error: Problem | None = None


class IngestProgress(_Result):
    """How far an image is; its `result` comes with the stage `done`."""

    name: str
    stage: Literal["received", "segmenting", "embedding", "storing", "done"]
    result: IngestResult | None = None


class Region(_Result):
    """A region of an image."""

    region_id: str | None = None
    box: Box
    mask: Mask | None = None
    area: int
    predicted_iou: float
    stability_score: float


class ScoredRegion(Region):
    """A region with its cosine to the phrase that fits it best."""

    score: float
    relevancy: float | None = None
    label: str
    text_index: int
    is_hit: bool


class HitImage(_Result):
    """The image of a hit."""

    width: int
    height: int
    name: str
    tags: tuple[str, ...]


class Hit(_Result):
    """Something that was found: a region, or a whole image."""

    rank: int
    score: float
    relevancy: float | None = None
    image_id: str
    region_id: str | None = None
    level: Literal["image", "region"]
    box: Box
    mask: Mask | None = None
    image: HitImage
    label: str | None = None
    best_region: Hit | None = None


class SearchResult(_Result):
    """A page of hits, best first; to be used like a sequence of them.

    Attributes:
        hits: The hits.
        next_page_token: For the next page; empty on the last one.
        seq: The last write that the search has seen.
        truncated: For each phrase of the query: it was longer than the model reads, and its end was left out.
    """

    hits: tuple[Hit, ...]
    next_page_token: str
    seq: int
    truncated: tuple[bool, ...] = ()

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


class WithinResult(_Result):
    """Every region of one image, best first, and what the hits cover together.

    Attributes:
        width: Of the image, pixels.
        height: Of the image, pixels.
        regions: Best first.
        union_mask: What the hits cover.
        truncated: For each phrase: it was longer than the model reads, and its end was left out.
    """

    width: int
    height: int
    regions: tuple[ScoredRegion, ...]
    union_mask: Mask
    truncated: tuple[bool, ...] = ()

    @property
    def hits(self) -> tuple[ScoredRegion, ...]:
        """The regions that passed."""
        return tuple(region for region in self.regions if region.is_hit)


class PromptResult(_Result):
    """The masks of one prompt, best first."""

    candidates: tuple[Region, ...]


class SegmentResult(_Result):
    """Masks: `regions` in everything mode, `results` for prompts."""

    width: int
    height: int
    regions: tuple[Region, ...] = ()
    results: tuple[PromptResult, ...] = ()
    embedding_cached: bool = False


class ServiceState(_Result):
    """Whether a service can do its work, and if not, why."""

    ready: bool
    detail: str


class Readiness(_Result):
    """Whether the gateway can do its work, and what it waits for."""

    ready: bool
    services: dict[str, ServiceState] = {}

    @property
    def reason(self) -> str:
        """What it waits for, in one line."""
        waiting = (f"{name}: {state.detail}" for name, state in self.services.items() if not state.ready)
        return "; ".join(waiting)
