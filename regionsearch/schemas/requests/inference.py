"""What a model is asked about an image that need not be stored: masks, everything in it, and vectors."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from regionsearch.schemas.requests.values import (
    INT32,
    ONE_IMAGE,
    Base64Image,
    Body,
    BoxBody,
    OneImage,
    Points,
    PromptBody,
    Shape,
    Text,
    Texts,
    absent,
    combined,
    constant,
    either,
    given,
    shaped,
)
from regionsearch.v1 import segment_pb2, types_pb2

_Share = Annotated[FiniteFloat, Field(ge=0, le=1)]

EVERYTHING_MODES = {
    "grid": segment_pb2.EVERYTHING_MODE_GRID,
    "proposals": segment_pb2.EVERYTHING_MODE_PROPOSALS,
}
RANKS = {"quality": segment_pb2.RANK_BY_QUALITY, "area": segment_pb2.RANK_BY_AREA}


_NO_GRID_OR_NO_PROPOSALS: list[Shape] = [
    absent("points_per_side"),
    {"properties": {"mode": {"enum": [None, "grid"]}}},
]


class EverythingOptions(Body):
    """Options of everything mode; what is absent has the model's default."""

    model_config = shaped(_NO_GRID_OR_NO_PROPOSALS)

    mode: Literal["grid", "proposals"] | None = Field(
        None,
        description="Where to look: at a grid of points, or at the far fewer points that a model with a "
        "proposer names.",
    )
    points_per_side: int | None = Field(None, ge=1, le=128, description="Of the grid; not with proposals.")
    pred_iou_thresh: _Share | None = Field(None, description="Lowest predicted IoU that is kept.")
    stability_score_thresh: _Share | None = Field(None, description="Lowest stability score that is kept.")
    stability_score_offset: Annotated[FiniteFloat, Field(ge=0, le=100)] | None = Field(
        None, description="Shift of the mask threshold when the stability score is measured."
    )
    box_nms_thresh: _Share | None = Field(
        None, description="Box IoU above which the worse of two regions is dropped."
    )
    crop_n_layers: int | None = Field(
        None, ge=0, le=4, description="Layers of crops in addition to the whole image."
    )
    crop_nms_thresh: _Share | None = Field(
        None, description="Box IoU above which the worse of two regions of different crops is dropped."
    )
    crop_overlap_ratio: Annotated[FiniteFloat, Field(ge=0, le=0.9)] | None = Field(
        None, description="Overlap of neighbouring crops, as a part of the image's shorter side."
    )
    crop_n_points_downscale_factor: int | None = Field(
        None, ge=1, le=8, description="In layer i the grid has points_per_side / factor^i points a side."
    )
    min_mask_region_area: int | None = Field(
        None, ge=0, le=INT32, description="Holes and islands below this many pixels are removed."
    )
    max_regions: int | None = Field(
        None, ge=1, le=1000, description="Keeps only what an ingest would keep, at most this many."
    )
    rank_by: Literal["quality", "area"] | None = Field(
        None,
        description="Which regions come first and are kept: those with the best masks, or the largest; an "
        "ingest keeps no more than max_regions either way.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.mode == "proposals" and self.points_per_side is not None:
            raise ValueError("points_per_side needs a grid, but mode is proposals; send one of them")
        return self

    def to_proto(self) -> segment_pb2.EverythingOptions:
        """As the contract has it."""
        values = self.model_dump(exclude_none=True, exclude={"max_regions", "mode", "rank_by"})
        options = segment_pb2.EverythingOptions(**values)
        if self.mode is not None:
            options.mode = EVERYTHING_MODES[self.mode]
        if self.max_regions is not None:
            options.selection.max_regions = self.max_regions
        if self.rank_by is not None:
            options.selection.rank_by = RANKS[self.rank_by]
        return options


_MODEL = constant("among", "model", default=True)
_STORED = combined(constant("among", "stored"), given("image_id"), absent("features_level"))
_POINTED = [
    combined(given(one), absent("prompts", "text", "texts", "min_score", "everything"))
    for one in ("points", "box")
]
_UNPOINTED = absent("points", "box")
_MODES = [
    *(combined(pointed, among) for pointed in _POINTED for among in (_MODEL, _STORED)),
    combined(given("prompts"), _UNPOINTED, absent("text", "texts", "min_score", "everything"), _MODEL),
    combined(given("everything"), _UNPOINTED, absent("prompts", "text", "texts", "min_score"), _MODEL),
    combined(given("texts"), _UNPOINTED, absent("prompts", "text", "everything"), _MODEL),
    combined(given("text"), _UNPOINTED, absent("prompts", "texts", "min_score", "everything"), _STORED),
]


class SegmentBody(OneImage):
    """Masks of an image: of everything, of one prompt (points, box), of several, or of what phrases name."""

    model_config = shaped(ONE_IMAGE, _MODES)

    points: Points = Field([], description="Clicks on the object, and next to it.")
    box: BoxBody | None = Field(None, description="Around the object.")
    prompts: list[PromptBody] = Field(
        [], max_length=1000, fail_fast=True, description="Several objects at once."
    )
    text: Text | None = Field(None, description="With among=stored: the region of the highest score.")
    texts: Texts = Field(
        [], description="Phrases: all objects that each names, of a model that takes phrases (SAM 3)."
    )
    min_score: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = Field(
        None, description="With texts: least score of an object; 0.5 when absent."
    )
    everything: bool | EverythingOptions = Field(False, description="true, or options: all objects.")
    multimask: bool = Field(False, description="The three masks of an ambiguous click.")
    zoom: bool | None = Field(
        None, description="Look more closely at what was found; absent: as it suits the model."
    )
    among: Literal["model", "stored"] = Field(
        "model", description="stored: pick among the regions of a stored image instead of asking the model."
    )
    features_level: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Adds the features of each region and of the image, vectors of length one: means over "
        "this feature map of the encoder, where 0 is the coarsest.",
    )

    @model_validator(mode="after")
    def _one_mode(self) -> SegmentBody:
        pointed = bool(self.points) or self.box is not None
        modes = [pointed, bool(self.prompts), self.text is not None, bool(self.texts)]
        if sum(modes) + (self.everything is not False) != 1:
            raise ValueError("say what to segment: points and box, or prompts, or texts, or everything: true")
        if self.min_score is not None and not self.texts:
            raise ValueError("min_score is for texts; leave it out")
        if self.among == "stored" and (self.image_id is None or not (pointed or self.text)):
            raise ValueError("among=stored needs an image_id and points, a box or a text")
        if self.among == "stored" and self.features_level is not None:
            raise ValueError("features are the model's; ask for them with among=model")
        if self.among == "model" and self.text is not None:
            raise ValueError(
                "a text picks among stored regions; use it with image_id and among=stored, or send texts"
            )
        return self

    def prompt(self) -> segment_pb2.Prompt:
        """Points and box as one prompt."""
        return PromptBody(points=self.points, box=self.box).to_proto()

    def to_proto(self, image: types_pb2.Image) -> segment_pb2.SegmentRequest:
        """As the contract has it."""
        output = segment_pb2.OutputOptions(
            features=self.features_level is not None, features_level=self.features_level or 0
        )
        if self.everything is not False:
            options = EverythingOptions() if self.everything is True else self.everything
            return segment_pb2.SegmentRequest(image=image, everything=options.to_proto(), output=output)
        if self.texts:
            phrases = segment_pb2.Phrases(texts=self.texts, min_score=self.min_score)
            return segment_pb2.SegmentRequest(image=image, phrases=phrases, output=output)
        prompts = [prompt.to_proto() for prompt in self.prompts] or [self.prompt()]
        asked = segment_pb2.Prompts(prompts=prompts, multimask=self.multimask, zoom=self.zoom)
        return segment_pb2.SegmentRequest(image=image, prompts=asked, output=output)


class EmbeddingsBody(Body):
    """Texts or images, not both."""

    model_config = shaped(either("texts", "images"))

    texts: Texts = Field([], description="Phrases.")
    images: list[Base64Image] = Field([], max_length=64, fail_fast=True, description="At most 64.")

    @model_validator(mode="after")
    def _one(self) -> EmbeddingsBody:
        if bool(self.texts) == bool(self.images):
            raise ValueError("send either texts or images")
        return self
