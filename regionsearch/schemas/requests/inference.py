"""What a model is asked about an image that need not be stored: masks, and vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from regionsearch.schemas.requests.everything import EverythingBody
from regionsearch.schemas.requests.shapes import absent, combined, constant, either, given, shaped
from regionsearch.schemas.requests.values import (
    ONE_IMAGE,
    Base64Image,
    Body,
    BoxBody,
    OneImage,
    Points,
    PromptBody,
    Text,
    Texts,
)
from regionsearch.v1 import segment_pb2, types_pb2

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


class SegmentBody(OneImage):
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
    images: list[Base64Image] = Field([], max_length=64, fail_fast=True)

    @model_validator(mode="after")
    def _one(self) -> EmbeddingsBody:
        if bool(self.texts) == bool(self.images):
            raise ValueError("send either texts or images")
        return self
