"""Regions and images by filter, and how many there are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regionsearch.schemas.responses.records import Image
from regionsearch.schemas.responses.regions import Region, region_fields
from regionsearch.schemas.responses.values import Box, Response
from regionsearch.v1 import region_search_pb2, search_pb2


class StoredRecord(Region):
    """A stored region, or a whole image."""

    image_id: str = Field(description="The image that it belongs to.")
    level: Literal["image", "region"] = Field(description="Whether it is the whole image or a region.")
    image: Image = Field(description="What is known of that image.")

    @classmethod
    def from_record(cls, record: search_pb2.Record, image: Image) -> StoredRecord:
        """Converts the contract's message."""
        region = record.level == search_pb2.LEVEL_REGION
        return cls(
            **region_fields(record) | {"region_id": record.record_id if region else None},
            image_id=record.image_id,
            level="region" if region else "image",
            image=image,
        )


class ScrollResult(Response):
    """A page of what passes a filter."""

    records: tuple[StoredRecord, ...] = Field(description="In the order of images, the whole image first.")
    next_page_token: str = Field(description="For the next page; empty on the last one.")
    seq: int = Field(description="Of the last write that was seen.")

    @classmethod
    def from_proto(
        cls, page: search_pb2.ScrollResponse | region_search_pb2.RegionSearchServiceScrollResponse
    ) -> ScrollResult:
        """Converts the contract's message."""
        images = {image.image_id: Image.from_proto(image) for image in page.images}
        return cls(
            records=tuple(
                StoredRecord.from_record(record, images[record.image_id]) for record in page.records
            ),
            next_page_token=page.next_page_token,
            seq=page.seq,
        )


class MapPoint(Response):
    """The place of a region or a whole image on the unit square."""

    region_id: str | None = Field(description="Null for a whole image.")
    image_id: str = Field(description="Of its image.")
    box: Box = Field(description="Where it is in its image.")
    x: float = Field(description="0 to 1, from the left; the axes mean nothing.")
    y: float = Field(description="0 to 1, from the top.")


class MapResult(Response):
    """Regions or whole images on a plane: what is alike lies together."""

    points: tuple[MapPoint, ...] = Field(description="In the order of scroll.")
    images: tuple[Image, ...] = Field(description="The images of these points, each once.")
    truncated: bool = Field(description="Whether more pass the filter than there are points.")

    @classmethod
    def from_proto(cls, found: region_search_pb2.GetMapResponse) -> MapResult:
        """Converts the contract's message."""
        return cls(
            points=tuple(
                MapPoint(
                    region_id=point.region_id or None,
                    image_id=point.image_id,
                    box=Box.from_proto(point.box),
                    x=point.x,
                    y=point.y,
                )
                for point in found.points
            ),
            images=tuple(map(Image.from_proto, found.images)),
            truncated=found.truncated,
        )

    def __repr__(self) -> str:
        more = ", more" if self.truncated else ""
        return f"<{len(self.points)} points of {len(self.images)} images{more}>"


class FacetValue(Response):
    """A tag, or a value of an attribute, and how many have it."""

    value: str = Field(description="The tag or value.")
    record_count: int = Field(description="Regions and whole images that have it.")
    image_count: int = Field(description="Images of these.")


class FacetCounts(Response):
    """The most frequent values, most frequent first."""

    values: tuple[FacetValue, ...] = Field(description="By record_count, then by value.")
    value_count: int = Field(description="How many different values there are.")

    @classmethod
    def from_proto(cls, counts: search_pb2.FacetCounts) -> FacetCounts:
        """Converts the contract's message."""
        return cls(
            values=tuple(
                FacetValue(value=one.value, record_count=one.record_count, image_count=one.image_count)
                for one in counts.values
            ),
            value_count=counts.value_count,
        )


class CountResult(Response):
    """How many pass a filter."""

    record_count: int = Field(description="Regions and whole images, as far as `level` lets them.")
    image_count: int = Field(description="Images of which a region, or the whole, passes.")
    facets: tuple[FacetCounts, ...] = Field((), description="In the order of the request.")
    seq: int = Field(description="Of the last write that was seen.")

    @classmethod
    def from_proto(
        cls, counts: search_pb2.CountResponse | region_search_pb2.RegionSearchServiceCountResponse
    ) -> CountResult:
        """Converts the contract's message."""
        return cls(
            record_count=counts.record_count,
            image_count=counts.image_count,
            facets=tuple(FacetCounts.from_proto(one) for one in counts.facets),
            seq=counts.seq,
        )
