"""Searches of a collection, and inside one image."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, model_validator

from regionsearch.schemas.requests.values import (
    INT64,
    MAX_TEXT,
    ONE_IMAGE,
    PHRASE,
    Base64Image,
    Body,
    BoxBody,
    Id,
    Ids,
    Number,
    OneImage,
    PageSize,
    PageToken,
    Points,
    Tag,
    Tags,
    Text,
    Texts,
    Value,
    absent,
    combined,
    constant,
    either,
    given,
    shaped,
)
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2

_NEGATIVES = ("text", "image", "region_id", "image_id")
_KINDS = ("text", "texts", "image", "region_id", "image_id", "region_ids", "image_ids")
Level = Literal["region", "image", "both"]
Style = Literal["outline", "boxes", "mask"]
Include = Literal["mask"]
SearchInclude = Literal["mask", "weak", "others"]
Includes = Annotated[list[Include], Field(max_length=8, fail_fast=True)]
Bound = Annotated[FiniteFloat, Field(ge=-1e300, le=1e300)]


_NO_OFFSET = re.compile(r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(:\d\d(?:\.\d+)?)?)?", re.ASCII)


def _a_time(text: str) -> str:
    """A time after RFC 3339. A day is its beginning, and without an offset it is UTC, as in stored values."""
    if found := _NO_OFFSET.fullmatch(text):
        day, minute, rest = found.groups()
        text = f"{day}T{minute or '00:00'}{rest or ':00'}Z"
    try:
        Timestamp().FromJsonString(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time such as 2024-05-01T12:00:00Z, or a day such as 2024-05-01"
        ) from None
    return text


Time = Annotated[
    str, Field(max_length=64, json_schema_extra={"format": "date-time"}), AfterValidator(_a_time)
]


Examples = Annotated[list[Id], Field(max_length=1000, fail_fast=True)]


class QueryBody(Body):
    """What to look for; words, examples and pointing combine."""

    model_config = shaped(
        [
            *(combined(given(name), absent("points", "box")) for name in _KINDS),
            *either("image", "image_id"),  # points and box belong to one of them
        ]
    )

    text: Text | None = Field(None, description="One phrase.")
    texts: Texts = Field([], description="Several phrases; each region goes to its best one.")
    image: Base64Image | None = Field(
        None, description="An image of it; with points or box the object there."
    )
    region_id: Id | None = Field(None, description="A stored region: more like this.")
    image_id: Id | None = Field(None, description="A stored image; with points or box the object there.")
    region_ids: Examples = Field([], description="Several stored regions: like all of them, on average.")
    image_ids: Examples = Field([], description="Several stored images, as a whole, likewise.")
    points: Points = Field([], description="Clicks in the image: the object there, and what is not it.")
    box: BoxBody | None = Field(None, description="In the image, around the object.")

    def to_proto(self) -> region_search_pb2.Query:
        """As the contract has it."""
        return region_search_pb2.Query(
            texts=([] if self.text is None else [self.text]) + self.texts,
            image=None if self.image is None else types_pb2.Image(encoded=self.image),
            region_id=self.region_id or "",
            image_id=self.image_id or "",
            region_ids=self.region_ids,
            image_ids=self.image_ids,
            points=[point.to_proto() for point in self.points],
            box=None if self.box is None else self.box.to_proto(),
        )


def _or_a_phrase(schema: dict[str, Any]) -> None:
    one = [{"type": "string", "maxLength": MAX_TEXT} | PHRASE]
    schema |= {"type": ["string", "object"], "allOf": [{"anyOf": [*one, *either(*_NEGATIVES)]}]}


class NegativeBody(Body):
    """What is not meant: a phrase, or an example."""

    # A phrase may stand for itself, and in a form a file is an image.
    model_config = ConfigDict(json_schema_extra=_or_a_phrase)

    text: Text | None = Field(None, description="A phrase.")
    image: Base64Image | None = Field(None, description="An image of it.")
    region_id: Id | None = Field(None, description="A stored region.")
    image_id: Id | None = Field(None, description="A stored image.")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        if isinstance(value, str):
            return {"text": value}
        return {"image": value} if isinstance(value, bytes) else value

    @model_validator(mode="after")
    def _one(self) -> NegativeBody:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("a negative is a phrase, or one of text, image, region_id and image_id")
        return self

    def to_proto(self) -> region_search_pb2.Negative:
        """As the contract has it."""
        if self.image is not None:
            return region_search_pb2.Negative(image=types_pb2.Image(encoded=self.image))
        return region_search_pb2.Negative(**self.model_dump(exclude_none=True))


Negatives = Annotated[
    list[NegativeBody],
    Field(
        max_length=1000,
        fail_fast=True,
        description="What is not meant: phrases, images, stored regions or images. Cosines between two "
        "images are higher than those between a phrase and an image: against examples, look for examples, "
        "or lower min_relevancy.",
    ),
]


class NumbersBody(Body):
    """The bounds that are set must hold; at least one is."""

    gte: Bound | None = Field(None, description="At least.")
    gt: Bound | None = Field(None, description="More than.")
    lte: Bound | None = Field(None, description="At most.")
    lt: Bound | None = Field(None, description="Less than.")


class TimesBody(Body):
    """The bounds that are set must hold; at least one is."""

    gte: Time | None = Field(None, description="At this time, or later.")
    gt: Time | None = Field(None, description="Later.")
    lte: Time | None = Field(None, description="At this time, or before.")
    lt: Time | None = Field(None, description="Before.")


Latitude = Annotated[FiniteFloat, Field(ge=-90, le=90)]
Longitude = Annotated[FiniteFloat, Field(ge=-180, le=180)]


class CircleBody(Body):
    """All places within a distance on the earth; degrees and meters."""

    latitude: Latitude = Field(description="Of the centre, in degrees.")
    longitude: Longitude = Field(description="Of the centre, in degrees.")
    radius_m: FiniteFloat = Field(gt=0, le=1e9, description="Meters.")


class GeoBoxBody(Body):
    """Between two parallels and two meridians, in degrees; over the date line where west is above east."""

    south: Latitude = Field(description="Degrees of latitude.")
    west: Longitude = Field(description="Degrees of longitude.")
    north: Latitude = Field(description="Degrees of latitude.")
    east: Longitude = Field(description="Degrees of longitude.")


class ConditionTestBody(Body):
    """A test of a tag, or of an attribute: that there is one, or of its value."""

    tag: Tag | None = Field(None, description="The image has this tag.")
    attribute: Tag | None = Field(None, description="The region, or else its image, has this attribute.")
    values: Tags = Field([], description="Its value is one of these.")
    prefix: Tag | None = Field(None, description="It begins so.")
    number: NumbersBody | None = Field(None, description="It is a decimal number, and in this range.")
    time: TimesBody | None = Field(None, description="It is a time after ISO 8601, and in this range.")
    near: CircleBody | None = Field(
        None,
        description='It is a place, written as latitude and longitude like "59.91,10.75", in this circle.',
    )
    inside: GeoBoxBody | None = Field(None, description="It is a place in this box.")
    negate: bool = Field(False, description="It must not pass.")


class ConditionBody(ConditionTestBody):
    """A test, or several tests of which one must pass."""

    any_of: list[ConditionTestBody] = Field(
        [], max_length=64, fail_fast=True, description="At least one passes; with negate none does."
    )


class FilterBody(Body):
    """Every condition that is set must hold."""

    image_ids: Ids = Field([], description="In one of these images.")
    exclude_image_ids: Ids = Field([], description="In none of these images.")
    region_ids: Ids = Field([], description="One of these regions.")
    exclude_region_ids: Ids = Field([], description="None of these regions.")
    tags: Tags = Field([], description="The image has at least one of these.")
    exclude_tags: Tags = Field([], description="The image has none of these.")
    min_area: int | None = Field(None, ge=0, le=INT64, description="Pixels.")
    max_area: int | None = Field(None, ge=0, le=INT64, description="Pixels.")
    min_predicted_iou: Number | None = Field(
        None, description="Lowest estimate of the segmenter of how well a mask fits."
    )
    min_stability_score: Number | None = Field(None, description="Lowest stability score of a mask.")
    attributes: dict[Tag, Value] = Field({}, max_length=64, description="The image has exactly these.")
    created_after: Time | None = Field(None, description="The image was added at this time, or later.")
    created_before: Time | None = Field(None, description="The image was added before this time.")
    conditions: list[ConditionBody] = Field(
        [],
        max_length=64,
        fail_fast=True,
        description="Tests of tags and attributes; each must pass.",
    )

    def to_proto(self) -> search_pb2.Filter:
        """As the contract has it."""
        return json_format.ParseDict(self.model_dump(exclude_defaults=True), search_pb2.Filter())


LEVELS = {
    None: search_pb2.LEVEL_UNSPECIFIED,
    "region": search_pb2.LEVEL_REGION,
    "image": search_pb2.LEVEL_IMAGE,
    "both": search_pb2.LEVEL_BOTH,
}


class SearchBody(Body):
    """A search of a collection."""

    query: QueryBody = Field(description="What to look for.")
    negatives: Negatives = Field([])
    level: Level | None = Field(
        None,
        description="What is compared with the query. When absent: whole images if the query is a whole "
        "image with which nothing is pointed at, else regions.",
    )
    group_by: Literal["image"] | None = Field(None, description="One hit an image, its best.")
    all_phrases: bool = Field(
        False, description="Grouped by image: only images in which every phrase is found; with their others."
    )
    filter: FilterBody | None = Field(None, description="Which images and regions come into question.")
    min_score: Number | None = Field(
        None, description="Lowest cosine that is kept, in place of the model's cut-off."
    )
    relative_cutoff: Number | None = Field(None, ge=0, le=1, description="Part of the best score.")
    min_relevancy: Number | None = Field(
        None, description="With negatives; 0.5 when absent. Looked for among the 16,384 nearest records."
    )
    page_size: PageSize = Field(0, description="0 means 20; at most 1000.")
    page_token: PageToken = ""
    min_seq: int | None = Field(None, ge=0, le=INT64, description="See at least this write.")
    exact: bool = Field(False, description="Look at every record, whatever index there is.")
    effort: Number | None = Field(
        None, gt=0, le=1000, description="How far an approximate index looks, as a multiple of the usual."
    )
    fold_similarity: Number | None = Field(
        None,
        gt=0,
        le=1,
        description="Folds near duplicates, such as a burst of photographs: hits whose cosine with a better "
        "one is at least this are left out, and counted in that one's `folded_count`.",
    )
    diversity: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="Mixes hits (maximal marginal relevance): the weight of likeness to earlier hits against "
        "the score. With it or `fold_similarity`, the best 2,048 hits are looked at and pages end there.",
    )
    codes_only: bool = Field(
        False,
        description="Compares binary codes and nothing else: scores are 1 - 2 × Hamming distance / bits, and "
        "no hit is judged. 409 where the collection's codes have not been trained.",
    )
    include: Annotated[list[SearchInclude], Field(max_length=8, fail_fast=True)] = Field(
        [],
        description="mask: the regions' masks. weak: also hits below the model's cut-off, which are left out "
        "unless min_score or relative_cutoff says what to keep. others: grouped by image with several "
        "phrases, the best region of each other phrase that is found in the image.",
    )

    def to_proto(self, collection: str) -> region_search_pb2.RegionSearchServiceSearchRequest:
        """As the contract has it."""
        by_image = self.group_by == "image"
        return region_search_pb2.RegionSearchServiceSearchRequest(
            collection=collection,
            query=self.query.to_proto(),
            negatives=[negative.to_proto() for negative in self.negatives],
            level=LEVELS[self.level],
            group_by=search_pb2.GROUP_BY_IMAGE if by_image else search_pb2.GROUP_BY_UNSPECIFIED,
            filter=None if self.filter is None else self.filter.to_proto(),
            min_score=self.min_score,
            relative_cutoff=self.relative_cutoff,
            min_relevancy=self.min_relevancy,
            page_size=self.page_size,
            page_token=self.page_token,
            min_seq=self.min_seq,
            exact=self.exact,
            effort=self.effort,
            include_masks="mask" in self.include,
            include_weak="weak" in self.include,
            include_others="others" in self.include,
            all_phrases=self.all_phrases,
            fold_similarity=self.fold_similarity,
            diversity=self.diversity,
            codes_only=self.codes_only,
        )


Finder = Literal["embedder", "segmenter"]
FINDERS: dict[Finder | None, region_search_pb2.FindBy.ValueType] = {
    None: region_search_pb2.FIND_BY_UNSPECIFIED,
    "embedder": region_search_pb2.FIND_BY_EMBEDDER,
    "segmenter": region_search_pb2.FIND_BY_SEGMENTER,
}

_FINDING = [
    combined(constant("find_by", "segmenter"), absent("negatives", "relative_cutoff", "min_relevancy")),
    constant("find_by", "embedder"),
    absent("find_by"),
]


class WithinBody(OneImage):
    """A search inside one image."""

    model_config = shaped(ONE_IMAGE, [given("text"), given("texts")], _FINDING)

    text: Text | None = Field(None, description="One phrase.")
    texts: Texts = Field([], description="Several phrases; each region goes to its best one.")
    negatives: Negatives = Field([])
    min_score: Number | None = Field(
        None, description="Lowest cosine that makes a hit, in place of the model's cut-off."
    )
    relative_cutoff: Number | None = Field(None, ge=0, le=1, description="Part of a phrase's best score.")
    min_relevancy: Number | None = Field(None, description="With negatives; 0.5 when absent.")
    include: Includes = Field(["mask"], description="An empty list leaves the regions' masks out.")
    find_by: Finder | None = Field(
        None,
        description="embedder: all regions, compared with the phrases. segmenter: all objects that it "
        "finds for the phrases, all of them hits, with min_score (0.5 when absent) for its score; 409 if it "
        "does not take phrases. When absent: the segmenter if it takes phrases and an image is sent along "
        "with nothing but phrases, else the embedder.",
    )
    render: Style | None = Field(None, description="Answers with the image and the hits drawn into it.")
    image_format: Literal["png", "webp"] = Field("png", description="Of a rendered image.")

    @property
    def phrases(self) -> list[str]:
        """All phrases."""
        return ([] if self.text is None else [self.text]) + self.texts

    def to_proto(self) -> region_search_pb2.SearchWithinRequest:
        """As the contract has it."""
        request = region_search_pb2.SearchWithinRequest(
            collection=self.collection,
            texts=self.phrases,
            negatives=[negative.to_proto() for negative in self.negatives],
            min_score=self.min_score,
            relative_cutoff=self.relative_cutoff,
            min_relevancy=self.min_relevancy,
            include_masks=None if "mask" in self.include else False,
            find_by=FINDERS[self.find_by],
        )
        if self.image is not None:
            request.image.encoded = self.image
        else:
            request.image_id = self.image_id or ""
        return request
