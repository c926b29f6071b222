"""The plain values that the searcher's engines keep and report, independent of gRPC, and which of them agree.

Coordinates are pixels of the image after EXIF orientation; times are UTC milliseconds since 1970; vectors are
float32 arrays of unit length.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError, invalid

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
        head: File name of a learned head; empty for codes that are learned from the collection's vectors.
        trained_seq: The write that stored trained codes, which read replicas take over; 0 for codes that each
            searcher learns by itself once there are many rows.
    """

    method: CodeMethod
    bits: int = 256
    rerank_factor: int = 10
    head: str = ""
    trained_seq: int = 0


def check_bits(method: CodeMethod, bits: int, dimension: int) -> None:
    """Refuses more bits than a projection of vectors of this dimension can give.

    Raises:
        RegionSearchError: INVALID_ARGUMENT.
    """
    if method is not CodeMethod.LEARNED and bits > dimension:
        most = dimension // 8 * 8
        remedy = f"set binary_codes.bits to {most} or less" if most else "leave binary_codes out"
        raise invalid(
            "binary_codes.bits", f"{dimension}-d vectors give at most {dimension} bits, not {bits}: {remedy}"
        )


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model whose vectors a collection holds.

    Attributes:
        family: Such as "open_clip".
        variant: Such as "ViT-B-32".
        weights_digest: SHA-256 of the weights, hexadecimal.
        dimension: Length of the vectors.
        crop_policy: Name of the crop policy; "" agrees with every policy (text, whole images).
        features: The contract's SegmentFeatures as JSON, which is only compared here; "" for none.
    """

    family: str
    variant: str
    weights_digest: str
    dimension: int
    crop_policy: str = ""
    features: str = ""

    def agrees_with(self, other: ModelIdentity) -> bool:
        """Whether vectors of both models can be compared."""
        mine = (self.family, self.variant, self.weights_digest, self.dimension, self.features)
        theirs = (other.family, other.variant, other.weights_digest, other.dimension, other.features)
        policies = {self.crop_policy, other.crop_policy} - {""}
        return mine == theirs and len(policies) <= 1

    def __str__(self) -> str:
        digest = self.weights_digest[:12] or "no digest"
        described = f"{digest}, {self.dimension}-d, crop {self.crop_policy or 'any'}"
        if self.features:
            described += f", features {self.features}"
        return f"{self.family}/{self.variant} ({described})"


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
    everything: str = ""
    """How ingested images are searched for regions, as JSON that is only kept here; empty: not said."""
    recall_target: float = 0.0
    """Least recall@10 of its approximate indexes; 0: the engine's own setting."""

    @property
    def spec(self) -> dict[str, Any]:
        """All that does not change, as JSON values without the name."""
        codes = None if self.codes is None else {**asdict(self.codes), "method": self.codes.method.value}
        model = asdict(self.model)
        if not self.model.features:
            del model["features"]
        optional = {
            "replaces": self.replaces,
            "everything": self.everything,
            "recall_target": self.recall_target,
        }
        given = {name: value for name, value in optional.items() if value}
        return {"model": model, "codes": codes, **given}

    @classmethod
    def from_spec(
        cls,
        name: str,
        spec: Mapping[str, Any],
        created_ms: int,
        image_count: int = 0,
        record_count: int = 0,
    ) -> Collection:
        """A collection of a name and a `spec`; other keys of that are ignored."""
        codes = spec["codes"]
        return cls(
            name,
            ModelIdentity(**spec["model"]),
            CodeSpec(**{**codes, "method": CodeMethod(codes["method"])}) if codes else None,
            created_ms,
            image_count,
            record_count,
            spec.get("replaces", ""),
            spec.get("everything", ""),
            spec.get("recall_target", 0.0),
        )


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
    """One atomic write: images, their records, and one unit vector a record, shape (records, dimension).

    `places` are those in lists of images that come from a snapshot, by id. With `check_key` nothing is
    written where the idempotency key of a new image belongs to another request.
    """

    images: Sequence[StoredImage]
    records: Sequence[Record]
    vectors: Vectors
    skip_existing: bool = False
    places: Mapping[str, int] = field(default_factory=dict)
    check_key: bool = False


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
class DeleteResult:
    """The result of a deletion."""

    seq: int
    image_count: int
    record_count: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Records with their images, and their vectors where requested."""

    records: tuple[Record, ...]
    images: tuple[StoredImage, ...]
    vectors: Vectors | None
    seq: int


ImagePlace = tuple[int | str, str]
"""Where an image stands in a list: what orders images, then its id."""


@dataclass(frozen=True, slots=True)
class ImagePage:
    """Images in order. `next_key` continues the list; None on the last page."""

    images: tuple[StoredImage, ...]
    next_key: ImagePlace | None
    total_count: int
    generation: str = ""


def check_model(collection: str, kept: ModelIdentity, sent: ModelIdentity) -> None:
    """Refuses vectors of another model or crop policy.

    Raises:
        RegionSearchError: MODEL_MISMATCH, naming both.
    """
    if not kept.agrees_with(sent):
        raise RegionSearchError(
            Kind.MODEL_MISMATCH,
            f"collection {collection!r} holds vectors of {kept}, these are of {sent}: use that model, or "
            "another collection",
            field="model",
            metadata={"collection_model": str(kept), "request_model": str(sent)},
        )


def check_generation(collection: str, present: str, begun: str | None) -> None:
    """Refuses to continue in a collection that was recreated or restored since a call or its first page.

    Raises:
        RegionSearchError: ABORTED.
    """
    if begun is not None and begun != present:
        raise RegionSearchError(
            Kind.ABORTED,
            f"collection {collection!r} was deleted and created again, or restored, since this call or its "
            "first page: start again from the first page",
            field="collection",
        )


@dataclass(frozen=True, slots=True)
class SegmentStats:
    """One part of the index. `recall` is recall@10 against exact search; None where the index is exact."""

    record_count: int
    tombstone_count: int
    index: str
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Sizes of a collection, and the recall of its indexes, `recalls` by kind of query."""

    collection: str
    seq: int
    image_count: int
    record_count: int
    tombstone_count: int
    memory_bytes: int
    segments: tuple[SegmentStats, ...]
    binary_recall: float | None = None
    recalls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StorePosition:
    """How much of a store a read replica has.

    Attributes:
        history: Names the store; restores and takeovers change it. Empty when the replica has nothing.
        seq: The last write.
        image_row: The highest row number of an image.
        record_row: The highest row number of a record.
        schema_version: The format of its store.
    """

    history: str
    seq: int
    image_row: int
    record_row: int
    schema_version: int


@dataclass(frozen=True, slots=True)
class FeedFile:
    """What a read replica is sent: a snapshot that replaces its store, or changes. To be closed after use."""

    content: BinaryIO
    snapshot: bool


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A snapshot that can be restored; `created_ms` is milliseconds since 1970."""

    name: str
    size_bytes: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A finished snapshot: file name, size in bytes, and the last write that it holds."""

    name: str
    size_bytes: int
    seq: int
