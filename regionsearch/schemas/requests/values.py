"""What bodies are made of: images in base64, points, boxes, limits; and which fields go together."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from regionsearch.errors import RegionSearchError, invalid
from regionsearch.v1 import segment_pb2, types_pb2

Shape = dict[str, Any]

_NOTHING: list[JsonValue] = [None, [], False]


def given(*names: str) -> Shape:
    """Objects in which all of these fields say something."""
    return {"required": list(names), "properties": {name: {"not": {"enum": _NOTHING}} for name in names}}


def absent(*names: str) -> Shape:
    """Objects in which none of these fields says anything."""
    return {"properties": {name: {"enum": _NOTHING} for name in names}}


def constant(name: str, value: str, *, default: bool = False) -> Shape:
    """Objects with this value in a field, or without the field where the value is its default."""
    return {"required": [] if default else [name], "properties": {name: {"const": value}}}


def combined(*shapes: Shape) -> Shape:
    """Objects that have all of these shapes, which are of different fields."""
    return {
        "required": [name for shape in shapes for name in shape.get("required", [])],
        "properties": {name: rule for shape in shapes for name, rule in shape["properties"].items()},
    }


def either(*names: str) -> list[Shape]:
    """Objects in which exactly one of these fields says something."""
    return [combined(given(name), absent(*(other for other in names if other != name))) for name in names]


def shaped(*choices: list[Shape]) -> ConfigDict:
    """The configuration of a model whose objects have one shape of each choice."""
    # Inside of allOf, where generators of clients that know less of schemas do not trip over it.
    all_of: list[JsonValue] = [{"anyOf": list[JsonValue](choice)} for choice in choices]
    return ConfigDict(json_schema_extra={"allOf": all_of})


INT32 = 2**31 - 1
INT64 = 2**63 - 1
_MAX_PART = 100  # characters of a name in an error, which the caller may have made up


def _image(value: object) -> object:
    if isinstance(value, str):  # in a form, or one that cannot be right
        value = memoryview(value.encode(errors="replace"))
    if not isinstance(value, memoryview):
        return value  # a file of a form
    try:
        return decode_base64(value)
    except ValueError:
        message = "is not valid base64; send the image's file in base64, or as a part of a form"
        raise ValueError(message) from None


Base64Image = Annotated[
    bytes,
    BeforeValidator(_image),
    PlainSerializer(lambda data: base64.b64encode(data).decode("ascii"), when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "format": "byte",
            "minLength": 1,
            "contentEncoding": "base64",
            "description": "An image's file in base64.",
        }
    ),
]
Number = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]
"""A pixel or a threshold; numbers far beyond any are infinite in a message."""
_INVISIBLE = (
    r"\s\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
)  # as `regionsearch.texts.visible_text` has it, but for characters beyond U+FFFF
PHRASE: dict[str, JsonValue] = {"minLength": 1, "pattern": f"[^{_INVISIBLE}]"}
"""Rules of a phrase's schema; those that are not are refused where they are cleaned, in `gateway.query`."""
MAX_TEXT = 10_000
Text = Annotated[str, Field(max_length=MAX_TEXT, json_schema_extra=PHRASE)]
Id = Annotated[str, Field(min_length=1, max_length=160)]
Tag = Annotated[str, Field(min_length=1, max_length=4096)]
Value = Annotated[str, Field(max_length=4096)]
CollectionName = Annotated[str, Field(max_length=64)]
MAX_TOKEN = 1 << 20
PageToken = Annotated[
    str,
    Field(
        max_length=MAX_TOKEN,
        description="`next_page_token` of the page before.",
        json_schema_extra={"format": "page-token"},
    ),
]
PageSize = Annotated[int, Field(ge=0, le=INT32)]
# Every list says how long it may be, and stops at its first mistake: a caller could send a million of them.
Ids = Annotated[list[Id], Field(max_length=10_000, fail_fast=True)]
Tags = Annotated[list[Tag], Field(max_length=10_000, fail_fast=True)]
Texts = Annotated[list[Text], Field(max_length=1000, fail_fast=True)]


def field_error(path: Sequence[int | str], message: str) -> RegionSearchError:
    """The error of a value that does not fit, named by its place: ``query.points[1].x``."""
    name = ""
    for part in path:
        short = str(part)[:_MAX_PART]
        name += f"[{part}]" if isinstance(part, int) else f".{short}" if name else short
    return invalid(name or "body", f"{name or 'body'}: {message.removeprefix('Value error, ')}")


class Body(BaseModel):
    """Base of all requests: unknown names are mistakes."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Self:
        """Checks values by their names.

        Raises:
            RegionSearchError: INVALID_ARGUMENT that names the first field that does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            half = first["type"] == "string_unicode"
            message = "it has characters that UTF-8 has not; write it as UTF-8" if half else first["msg"]
            raise field_error(first["loc"], message) from None

    def to_json(self) -> bytes:
        """A JSON document of the fields that were set."""
        return self.model_dump_json(exclude_unset=True).encode()


class PointBody(Body):
    """A click, in pixels of the image as a viewer shows it."""

    x: Number = Field(description="From the left, in pixels.")
    y: Number = Field(description="From the top, in pixels.")
    label: Literal[0, 1] = Field(1, description="1: the object is here; 0: it is not here.")

    def to_proto(self) -> types_pb2.Point:
        """As the contract has it."""
        return types_pb2.Point(x=self.x, y=self.y, label=self.label)


class BoxBody(Body):
    """A box in pixels; the edges are half-open."""

    x_min: Number = Field(description="Left edge.")
    y_min: Number = Field(description="Top edge.")
    x_max: Number = Field(description="Right edge, the first column that is outside.")
    y_max: Number = Field(description="Bottom edge, the first row that is outside.")

    def to_proto(self) -> types_pb2.Box:
        """As the contract has it."""
        return types_pb2.Box(**self.model_dump())


Points = Annotated[list[PointBody], Field(max_length=128, fail_fast=True)]


class PromptBody(Body):
    """One object: points, a box, or both."""

    model_config = shaped([given("points"), given("box")])

    points: Points = Field([], description="Clicks on the object, and next to it.")
    box: BoxBody | None = Field(None, description="Around the object.")

    @model_validator(mode="after")
    def _some(self) -> PromptBody:
        if not self.points and self.box is None:
            raise ValueError("a prompt has points, a box, or both")
        return self

    def to_proto(self) -> segment_pb2.Prompt:
        """As the contract has it."""
        return segment_pb2.Prompt(
            points=[point.to_proto() for point in self.points],
            box=None if self.box is None else self.box.to_proto(),
        )


ONE_IMAGE = either("image", "image_id")


class OneImage(Body):
    """An image that is sent along or stored."""

    model_config = shaped(ONE_IMAGE)

    collection: CollectionName = Field("", description="Of a stored image; default when absent.")
    image: Base64Image | None = Field(None, description="The image itself.")
    image_id: Id | None = Field(None, description="A stored image instead.")
    image_name: Text | None = Field(
        None,
        description="What the image is called in a COCO document; in a form, the file's name by default.",
    )

    @model_validator(mode="after")
    def _one(self) -> OneImage:
        if (self.image is None) == (self.image_id is None):
            raise ValueError("send either image or image_id")
        return self


_SLICE = 1 << 20  # bytes that are decoded at once: no other thread runs meanwhile


def decode_base64(text: memoryview | bytes) -> bytes:
    """The bytes that a JSON string of base64 stands for.

    Args:
        text: What stands between the quotes, escapes and all. Line breaks and spaces mean nothing, and it may
            begin with ``data:…,``.

    Raises:
        ValueError: It is not valid base64.
    """
    view = memoryview(text)
    parts: list[bytes] = []
    left = b""  # characters that are not a group of four yet
    ended = False
    start = 0
    while start < len(view):
        piece = bytes(view[start : start + _SLICE])
        if start + _SLICE < len(view) and (escape := piece.rfind(b"\\", len(piece) - 5)) > 0:
            piece = piece[:escape]  # the next slice begins with this escape
        first, start = start == 0, start + len(piece)
        if b"\\" in piece:
            piece = json.loads(b'"' + piece + b'"').encode("ascii")
        if first and piece.startswith(b"data:"):
            piece = piece.partition(b",")[2]
        piece = left + piece.translate(None, b" \t\r\n")
        if ended and piece:
            raise ValueError("something follows the padding")
        whole = len(piece) // 4 * 4
        parts.append(binascii.a2b_base64(piece[:whole], strict_mode=True))
        left, ended = piece[whole:], piece.endswith(b"=")
    if left:
        raise ValueError("the last group of four characters is not complete")
    return b"".join(parts)
