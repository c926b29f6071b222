"""The plain values that the searcher's engines take and return, independent of gRPC.

Coordinates are pixels of the image after EXIF orientation; times are UTC milliseconds since 1970; vectors are
float32 arrays of unit length.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.searcher.conditions import AnyOf

Vectors = NDArray[np.float32]


class Level(enum.IntEnum):
    """What a vector stands for. The values are those of the contract, and the order of equal scores."""

    IMAGE = 1
    REGION = 2


class CodeMethod(enum.Enum):
    """How 256-bit codes are made from vectors."""

    PCA_ROTATION = "pca_rotation"
    ITQ = "itq"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """Short codes for a first pass in Hamming space.

    Attributes:
        method: How bits are made.
        bits: Code length, a multiple of 8.
        rerank_factor: Candidates scored again with full vectors for each requested hit.
        head: File name of the learned head, for `CodeMethod.LEARNED`.
    """

    method: CodeMethod
    bits: int = 256
    rerank_factor: int = 10
    head: str = ""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model whose vectors a collection holds.

    Attributes:
        family: Such as "open_clip".
        variant: Such as "ViT-B-32".
        weights_digest: SHA-256 of the weights, hexadecimal.
        dimension: Length of the vectors.
        crop_policy: Name of the crop policy; "" agrees with every policy (text, whole images).
    """

    family: str
    variant: str
    weights_digest: str
    dimension: int
    crop_policy: str = ""

    def agrees_with(self, other: ModelIdentity) -> bool:
        """Whether vectors of both models can be compared."""
        mine = (self.family, self.variant, self.weights_digest, self.dimension)
        theirs = (other.family, other.variant, other.weights_digest, other.dimension)
        policies = {self.crop_policy, other.crop_policy} - {""}
        return mine == theirs and len(policies) <= 1

    def __str__(self) -> str:
        digest = self.weights_digest[:12] or "no digest"
        return (
            f"{self.family}/{self.variant} ({digest}, {self.dimension}-d, crop {self.crop_policy or 'any'})"
        )


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of images and vectors of one model and crop policy."""

    name: str
    model: ModelIdentity
    codes: CodeSpec | None = None
    created_ms: int = 0
    image_count: int = 0
    record_count: int = 0
    replaces: str = ""
    """The collection whose name it is going to take; empty for none."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that is known to a collection; its bytes are kept elsewhere."""

    image_id: str
    name: str = ""
    width: int = 0
    height: int = 0
    content_type: str = ""
    size_bytes: int = 0
    tags: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    created_ms: int = 0
    region_count: int = 0


@dataclass(frozen=True, slots=True)
class RleMask:
    """A mask as large as its image, in COCO's compressed run-length string."""

    height: int
    width: int
    counts: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One vector's description: the whole image or a region of it. The box is x_min, y_min, x_max, y_max."""

    record_id: str
    image_id: str
    level: Level
    box: tuple[float, float, float, float] | None = None
    mask: RleMask | None = None
    area: int = 0
    predicted_iou: float = 0.0
    stability_score: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upsert:
    """One atomic write: images, their records, and one unit vector a record, shape (records, dimension)."""

    images: Sequence[StoredImage]
    records: Sequence[Record]
    vectors: Vectors
    skip_existing: bool = False


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """The result of an upsert. `skipped` are the ids of images that existed already.

    `generation` identifies the collection that it wrote to: one that was deleted and created again under the
    same name, or restored from a snapshot, has another.
    """

    seq: int
    skipped: tuple[str, ...]
    record_count: int
    generation: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold; empty ones are ignored.

    Attributes:
        image_ids: The record's image is one of these.
        exclude_image_ids: The record's image is none of these.
        record_ids: The record is one of these.
        exclude_record_ids: The record is none of these.
        tags: The image has at least one of these.
        exclude_tags: The image has none of these.
        min_area: Pixels, inclusive.
        max_area: Pixels, inclusive.
        min_predicted_iou: Inclusive.
        min_stability_score: Inclusive.
        attributes: The record, or else its image, has exactly these values.
        created_after_ms: Time of the image's first write, inclusive.
        created_before_ms: Time of the image's first write, exclusive.
        conditions: Further ones, of which each must hold.
    """

    image_ids: tuple[str, ...] = ()
    exclude_image_ids: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    exclude_record_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    exclude_tags: tuple[str, ...] = ()
    min_area: int | None = None
    max_area: int | None = None
    min_predicted_iou: float | None = None
    min_stability_score: float | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    conditions: tuple[AnyOf, ...] = ()


NO_FILTER = Filter()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the one total order of hits: after this hit the next page begins."""

    score: float
    level: int
    image_id: str
    record_id: str

    @property
    def sort_key(self) -> tuple[float, int, str, str]:
        """Ascending in the order of hits: best score first, image before region, then the ids."""
        return (-self.score, self.level, self.image_id, self.record_id)


BEGINNING = Position(2.0, 0, "", "")
"""Before every hit."""


@dataclass(frozen=True, slots=True)
class Query:
    """One ranked list to be made.

    Attributes:
        vectors: Shape (queries, dimension); a record scores with its best one.
        negatives: Shape (negatives, dimension), perhaps no rows.
        level: Only records of this level; None is both.
        filter: Conditions on records.
        min_score: Lowest cosine kept.
        min_relevancy: Lowest relevancy kept, where there are negatives.
        relative_cutoff: Keeps what scores at least this part of the best score.
        group_by_image: One hit an image.
        whole_image_margin: Grouped over both levels, a whole image goes before its own region that is
            better by less than this.
        limit: Hits wanted.
        seq: The state of the collection to search; None is the newest.
        generation: The generation of the collection to search (see `UpsertResult`); None is the present one.
        after: Only hits behind this place.
        skipped: Number of hits up to `after`, the rank of the last one.
        shown: The engine's own numbers of hits that were shown although they may come behind `after`.
        effort: How far an approximate index looks, as a multiple of what its target needs; infinity looks at
            all.
        include_masks: Whether the records of the hits carry their masks.
    """

    vectors: Vectors
    negatives: Vectors
    level: Level | None = None
    filter: Filter = NO_FILTER
    min_score: float | None = None
    min_relevancy: float = 0.5
    relative_cutoff: float | None = None
    group_by_image: bool = False
    whole_image_margin: float = 0.02
    limit: int = 20
    seq: int | None = None
    generation: str | None = None
    after: Position | None = None
    skipped: int = 0
    shown: tuple[int, ...] = ()
    effort: float = 1.0
    include_masks: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One found record with its image, and `best_region` where the whole image stands for it."""

    rank: int
    score: float
    relevancy: float | None
    query_index: int
    record: Record
    image: StoredImage
    best_region: Hit | None = None

    @property
    def position(self) -> Position:
        """Where the hit stands in the total order."""
        return Position(self.score, int(self.record.level), self.record.image_id, self.record.record_id)


@dataclass(frozen=True, slots=True)
class Page:
    """Hits in order, state and generation of the collection that they are from, and whether more follow.

    Attributes:
        hits: The hits.
        seq: The state.
        more: Whether more follow.
        generation: See `UpsertResult`.
        after: Where the next page goes on, if that is not behind the last hit.
        shown: What the next page's query has to name as shown.
    """

    hits: tuple[Hit, ...]
    seq: int
    more: bool
    generation: str = ""
    after: Position | None = None
    shown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """The result of a deletion."""

    seq: int
    image_count: int
    record_count: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """Selects what to delete: the union of all selectors. Images that a filter empties are deleted too.

    Nothing goes unless the image `as_read` still has the time of creation, name, tags and attributes that it
    has there.
    """

    image_ids: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    filter: Filter | None = None
    as_read: StoredImage | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Records with their images, and their vectors where requested."""

    records: tuple[Record, ...]
    images: tuple[StoredImage, ...]
    vectors: Vectors | None
    seq: int


@dataclass(frozen=True, slots=True)
class ImagePage:
    """Images, newest first. `next_key` continues the list; None on the last page."""

    images: tuple[StoredImage, ...]
    next_key: tuple[int, str] | None
    total_count: int
    generation: str = ""
