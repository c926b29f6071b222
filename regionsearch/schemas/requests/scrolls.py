"""Regions and images by filter, without a query, and how many there are."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from regionsearch.schemas.requests.records import Page
from regionsearch.schemas.requests.searches import LEVELS, FilterBody, Includes, Level
from regionsearch.schemas.requests.values import INT64, Body, PageSize, PageToken, Tag, either, shaped
from regionsearch.v1 import region_search_pb2, search_pb2

MAX_POINTS = 4000
"""Of a map; the work grows with their square."""


def _read_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


JsonFilter = Annotated[
    FilterBody,
    BeforeValidator(_read_json),
    PlainSerializer(lambda body: body.model_dump_json(exclude_defaults=True)),
    WithJsonSchema({"type": "string", "format": "json-filter", "contentMediaType": "application/json"}),
]


_ORDER = r"^(created_at|name|attributes\.[^\u0000]+)$"


def _an_order(text: str) -> str:
    if not re.match(_ORDER, text):
        raise ValueError(
            f'images are in the order of "created_at", "name" or "attributes.NAME", not of {text!r}'
        )
    return text


ImageOrder = Annotated[
    str, Field(max_length=4107, json_schema_extra={"pattern": _ORDER}), AfterValidator(_an_order)
]
"""What a list of images is in the order of."""


class ImagesPage(Page):
    """Which images are listed."""

    filter: JsonFilter | None = Field(
        None,
        description="The filter of a search, as JSON: only images of which a region, or the whole, passes.",
    )
    order_by: ImageOrder = Field(
        "created_at",
        description='"created_at" (when they were added), "name", or "attributes.NAME" such as '
        '"attributes.taken_at": numbers and times by value, before other texts. Images without a value come '
        "last.",
    )
    ascending: bool = Field(False, description="Whether the lowest or earliest comes first.")

    def to_proto(self, collection: str) -> region_search_pb2.RegionSearchServiceListImagesRequest:
        """As the contract has it."""
        return region_search_pb2.RegionSearchServiceListImagesRequest(
            collection=collection,
            page_size=self.page_size,
            page_token=self.page_token,
            filter=None if self.filter is None else self.filter.to_proto(),
            order_by="" if self.order_by == "created_at" else self.order_by,
            ascending=self.ascending,
        )


class ScrollBody(Body):
    """A page of what passes a filter."""

    level: Level | None = Field(None, description="Regions, whole images, or both; both when absent.")
    filter: FilterBody | None = Field(None, description="What passes; everything when absent.")
    page_size: PageSize = Field(0, description="0 means 100; at most 1000.")
    page_token: PageToken = ""
    min_seq: int | None = Field(None, ge=0, le=INT64, description="See at least this write.")
    include: Includes = Field([], description="mask: the regions' masks.")

    def to_proto(self, collection: str) -> region_search_pb2.RegionSearchServiceScrollRequest:
        """As the contract has it."""
        return region_search_pb2.RegionSearchServiceScrollRequest(
            collection=collection,
            level=LEVELS[self.level],
            filter=None if self.filter is None else self.filter.to_proto(),
            page_size=self.page_size,
            page_token=self.page_token,
            include_masks="mask" in self.include,
            min_seq=self.min_seq,
        )


class MapBody(Body):
    """What is placed on a plane."""

    level: Literal["region", "image"] = Field("region", description="Regions, or whole images.")
    filter: FilterBody | None = Field(None, description="Which images and regions come into question.")
    max_points: int = Field(
        2000, ge=1, le=MAX_POINTS, description="The first ones in the order of scroll: of the newest images."
    )

    def to_proto(self, collection: str) -> region_search_pb2.GetMapRequest:
        """As the contract has it."""
        return region_search_pb2.GetMapRequest(
            collection=collection,
            level=LEVELS[self.level],
            filter=None if self.filter is None else self.filter.to_proto(),
            max_points=self.max_points,
        )


class FacetBody(Body):
    """What to count by: tags, or the values of an attribute."""

    model_config = shaped(either("tags", "attribute"))

    tags: bool = Field(False, description="Each tag of the images.")
    attribute: Tag | None = Field(None, description="Each value of this attribute.")
    limit: PageSize = Field(0, description="The most frequent ones, so many; 0 means 20; at most 1000.")

    @model_validator(mode="after")
    def _one(self) -> FacetBody:
        if self.tags == (self.attribute is not None):
            raise ValueError("a facet has either tags or an attribute")
        return self

    def to_proto(self) -> search_pb2.Facet:
        """As the contract has it."""
        return search_pb2.Facet(tags=self.tags, attribute=self.attribute or "", limit=self.limit)


class CountBody(Body):
    """What to count."""

    level: Level | None = Field(None, description="Regions, whole images, or both; both when absent.")
    filter: FilterBody | None = Field(None, description="What passes; everything when absent.")
    facets: list[FacetBody] = Field([], max_length=16, fail_fast=True, description="What to count by, too.")
    min_seq: int | None = Field(None, ge=0, le=INT64, description="See at least this write.")

    def to_proto(self, collection: str) -> region_search_pb2.RegionSearchServiceCountRequest:
        """As the contract has it."""
        return region_search_pb2.RegionSearchServiceCountRequest(
            collection=collection,
            level=LEVELS[self.level],
            filter=None if self.filter is None else self.filter.to_proto(),
            facets=[facet.to_proto() for facet in self.facets],
            min_seq=self.min_seq,
        )
