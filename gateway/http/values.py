"""What bodies are made of: pictures, points, boxes, and the limits of numbers and names."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    WithJsonSchema,
    model_validator,
)

from regionsearch.v1 import segment_pb2, types_pb2

INT32 = 2**31 - 1
INT64 = 2**63 - 1


def _picture(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no base64; send the picture's file in base64, or as a part of a form") from None


Picture = Annotated[
    bytes,
    BeforeValidator(_picture),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": "A picture's file in base64."}
    ),
]
Pixel = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]
Text = Annotated[str, Field(max_length=10_000)]
Id = Annotated[str, Field(max_length=160)]
Tag = Annotated[str, Field(min_length=1, max_length=255)]
PageSize = Annotated[int, Field(ge=0, le=INT32)]


class Body(BaseModel):
    """Base of what comes in: unknown names are mistakes."""

    model_config = ConfigDict(extra="forbid")


class PointBody(Body):
    """A click, in pixels of the picture as a viewer shows it."""

    x: Pixel
    y: Pixel
    label: Literal[0, 1] = Field(1, description="1: the object is here; 0: it is not here.")

    def to_proto(self) -> types_pb2.Point:
        """As the contract has it."""
        return types_pb2.Point(x=self.x, y=self.y, label=self.label)


class BoxBody(Body):
    """A box in pixels; the edges are half-open."""

    x_min: Pixel
    y_min: Pixel
    x_max: Pixel
    y_max: Pixel

    def to_proto(self) -> types_pb2.Box:
        """As the contract has it."""
        return types_pb2.Box(**self.model_dump())


class PromptBody(Body):
    """One object: points, a box, or both."""

    points: list[PointBody] = Field([], max_length=128)
    box: BoxBody | None = None

    def to_proto(self) -> segment_pb2.Prompt:
        """As the contract has it."""
        return segment_pb2.Prompt(
            points=[point.to_proto() for point in self.points],
            box=None if self.box is None else self.box.to_proto(),
        )


class OnePicture(Body):
    """A picture that is sent along or stored."""

    collection: str = Field("", description="Of a stored image; default when absent.")
    image: Picture | None = Field(None, description="The picture itself.")
    image_id: Id | None = Field(None, description="A stored image instead.")

    @model_validator(mode="after")
    def _one(self) -> OnePicture:
        if (self.image is None) == (self.image_id is None):
            raise ValueError("send either image or image_id")
        return self
