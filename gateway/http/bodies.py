"""Request bodies other than searches: prompts, what to embed, new collections, changes of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from gateway.catalog import MOST_IDS
from gateway.http.shapes import absent, combined, constant, either, given, shaped
from gateway.http.values import (
    INT32,
    ONE_IMAGE,
    Body,
    BoxBody,
    CollectionName,
    Number,
    OnePicture,
    Picture,
    Points,
    PromptBody,
    Text,
    Texts,
)
from gateway.settings import CropPolicyName
from regionsearch.v1 import search_pb2, segment_pb2, types_pb2

_WORD: dict[str, JsonValue] = {"minLength": 1, "maxLength": 4096, "pattern": r"^[^\u0000]*$"}
Word = Annotated[str, Field(max_length=4096, json_schema_extra=_WORD)]
"""A tag, or an attribute's name or value; what an image may have in all is looked at later."""


class EverythingBody(Body):
    """Options of everything mode; what is absent has the model's default."""

    points_per_side: int | None = Field(None, ge=1, le=128)
    pred_iou_thresh: Number | None = None
    stability_score_thresh: Number | None = None
    stability_score_offset: Number | None = None
    box_nms_thresh: Number | None = None
    crop_n_layers: int | None = Field(None, ge=0, le=4)
    min_mask_region_area: int | None = Field(None, ge=0, le=INT32)
    max_regions: int | None = Field(
        None, ge=1, le=1000, description="Keeps only what an ingest would keep, at most this many."
    )

    def to_proto(self) -> segment_pb2.EverythingOptions:
        """As the contract has it."""
        values = self.model_dump(exclude_none=True, exclude={"max_regions"})
        options = segment_pb2.EverythingOptions(**values)
        if self.max_regions is not None:
            options.selection.max_regions = self.max_regions
        return options


_MODEL = constant("among", "model", default=True)
_STORED = combined(constant("among", "stored"), given("image_id"))
_POINTED = [combined(given(one), absent("prompts", "text", "everything")) for one in ("points", "box")]
_UNPOINTED = absent("points", "box")
_MODES = [
    *(combined(pointed, among) for pointed in _POINTED for among in (_MODEL, _STORED)),
    combined(given("prompts"), _UNPOINTED, absent("text", "everything"), _MODEL),
    combined(given("everything"), _UNPOINTED, absent("prompts", "text"), _MODEL),
    combined(given("text"), _UNPOINTED, absent("prompts", "everything"), _STORED),
]


class SegmentBody(OnePicture):
    """Masks of an image: of everything, of one prompt (points, box) or of several."""

    model_config = shaped(ONE_IMAGE, _MODES)

    points: Points = Field([])
    box: BoxBody | None = None
    prompts: list[PromptBody] = Field(
        [], max_length=1000, fail_fast=True, description="Several objects at once."
    )
    text: Text | None = Field(None, description="With among=stored: the region of the highest score.")
    everything: bool | EverythingBody = False
    multimask: bool = Field(False, description="The three masks of an ambiguous click.")
    zoom: bool | None = Field(
        None, description="Look more closely at what was found; absent: as it suits the model."
    )
    among: Literal["model", "stored"] = Field(
        "model", description="stored: pick among the regions of a stored image instead of asking the model."
    )

    @model_validator(mode="after")
    def _one_mode(self) -> SegmentBody:
        pointed = bool(self.points) or self.box is not None
        modes = [pointed, bool(self.prompts), self.text is not None, self.everything is not False]
        if sum(modes) != 1:
            raise ValueError("say what to segment: points and box, or prompts, or everything: true")
        if self.among == "stored" and (self.image_id is None or not (pointed or self.text)):
            raise ValueError("among=stored needs an image_id and points, a box or a text")
        if self.among == "model" and self.text is not None:
            raise ValueError("a text picks among stored regions; use it with image_id and among=stored")
        return self

    def prompt(self) -> segment_pb2.Prompt:
        """Points and box as one prompt."""
        return PromptBody(points=self.points, box=self.box).to_proto()

    def to_proto(self, image: types_pb2.Image) -> segment_pb2.SegmentRequest:
        """As the contract has it."""
        if self.everything is not False:
            options = EverythingBody() if self.everything is True else self.everything
            return segment_pb2.SegmentRequest(image=image, everything=options.to_proto())
        prompts = [prompt.to_proto() for prompt in self.prompts] or [self.prompt()]
        asked = segment_pb2.Prompts(prompts=prompts, multimask=self.multimask, zoom=self.zoom)
        return segment_pb2.SegmentRequest(image=image, prompts=asked)


class EmbeddingsBody(Body):
    """Texts or images, not both."""

    model_config = shaped(either("texts", "images"))

    texts: Texts = Field([])
    images: list[Picture] = Field([], max_length=64, fail_fast=True)

    @model_validator(mode="after")
    def _one(self) -> EmbeddingsBody:
        if bool(self.texts) == bool(self.images):
            raise ValueError("send either texts or images")
        return self


class ImageChangeBody(Body):
    """A change of what is said about an image, as a JSON merge patch (RFC 7396): what is absent stays.

    `tags` replaces all tags, as merge patches replace every list; `add_tags` and `remove_tags` change single
    ones.
    """

    name: str | None = Field(None, max_length=4096, description="null: no name.")
    tags: list[Word] | None = Field(None, max_length=1000, fail_fast=True, description="null: none.")
    add_tags: list[Word] = Field([], max_length=1000, fail_fast=True)
    remove_tags: list[Word] = Field([], max_length=1000, fail_fast=True)
    attributes: dict[Annotated[str, Field(max_length=4096)], Word | None] = Field(
        {},
        max_length=1000,
        description="Sets each, or takes it away where it is null.",
        json_schema_extra={"propertyNames": _WORD},
    )

    def to_proto(self, image_id: str) -> search_pb2.ImageUpdate:
        """As the contract has it."""
        update = search_pb2.ImageUpdate(
            image_id=image_id, add_tags=self.add_tags, remove_tags=self.remove_tags
        )
        if "name" in self.model_fields_set:
            update.name = self.name or ""
        if "tags" in self.model_fields_set:
            update.tags.values.extend(self.tags or [])
            update.tags.SetInParent()
        for name, value in self.attributes.items():
            if value is None:
                update.remove_attributes.append(name)
            else:
                update.set_attributes[name] = value
        return update


class ImageIdsBody(Body):
    """Images by id."""

    image_ids: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        min_length=1, max_length=MOST_IDS, fail_fast=True, description="SHA-256 of their files."
    )


class BinaryCodesBody(Body):
    """Short codes for a first pass in Hamming space."""

    model_config = shaped(
        [
            combined(
                constant("method", "learned"),
                {"required": ["head"], "properties": {"head": {"minLength": 1}}},
            ),
            {"properties": {"method": {"not": {"const": "learned"}}}},
        ]
    )

    method: Literal["pca_rotation", "itq", "learned"]
    bits: int = Field(
        256, ge=8, le=4096, multiple_of=8, description="At most the model's dimension, unless learned."
    )
    rerank_factor: int = Field(10, ge=1, le=1000)
    head: Annotated[
        str,
        Field(
            max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$", description="A learned one's file."
        ),
    ] = ""

    def to_proto(self) -> search_pb2.BinaryCodes:
        """As the contract has it."""
        method = search_pb2.BinaryCodes.Method.Value(f"METHOD_{self.method.upper()}")
        return search_pb2.BinaryCodes(**self.model_dump(exclude={"method"}), method=method)


class CollectionBody(Body):
    """A new collection, for the embedder's present model."""

    name: CollectionName = Field(
        min_length=1,
        json_schema_extra={"pattern": "^[a-z0-9][a-z0-9_-]*$"},
        description="1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.",
    )
    crop_policy: CropPolicyName = Field(
        "default", description="How regions are cut out; default: the gateway's."
    )
    binary_codes: BinaryCodesBody | None = None
