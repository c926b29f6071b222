"""Regions and images by filter, without a query, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from regionsearch import defaults
from regionsearch.client.operations.base import GrpcCall, HttpRequest, Operation, answer, given, path_of
from regionsearch.schemas.requests.scrolls import CountBody, MapBody, ScrollBody
from regionsearch.schemas.requests.searches import Include, Level
from regionsearch.schemas.responses.scrolls import CountResult, MapResult, ScrollResult
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub


def scroll(
    collection: str = defaults.COLLECTION,
    *,
    level: Level | None = None,
    filter: Mapping[str, Any] | None = None,
    page_size: int | None = None,
    page_token: str = "",
    min_seq: int | None = None,
    include: Sequence[Include] = (),
) -> Operation[ScrollResult]:
    """One page of the regions and whole images that pass a filter; `records` of a client walks all pages.

    Args:
        collection: Where to look.
        level: Regions, whole images, or both; both when absent.
        filter: Conditions as of `search`.
        page_size: Most records of a page, at most 1000; 100 when absent.
        page_token: From an earlier result.
        min_seq: See at least this write.
        include: `mask` adds the regions' masks.
    """
    options = given(level=level, filter=filter, page_size=page_size, min_seq=min_seq)
    body = ScrollBody.read(options | {"page_token": page_token, "include": include})
    return Operation(
        "scroll",
        lambda: HttpRequest("POST", path_of(collection, "scroll"), body=body),
        answer(ScrollResult),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).Scroll,
            lambda: body.to_proto(collection),
            ScrollResult.from_proto,
        ),
    )


def count(
    collection: str = defaults.COLLECTION,
    *,
    level: Level | None = None,
    filter: Mapping[str, Any] | None = None,
    facets: Sequence[Mapping[str, Any]] = (),
    min_seq: int | None = None,
) -> Operation[CountResult]:
    """How many regions and images pass a filter, and how many of them have each tag or attribute value.

    Args:
        collection: Where to look.
        level: Regions, whole images, or both; both when absent.
        filter: Conditions as of `search`.
        facets: `{"tags": True}` or `{"attribute": name}`, each perhaps with a `limit`: of the most frequent.
        min_seq: See at least this write.
    """
    options = given(level=level, filter=filter, min_seq=min_seq)
    body = CountBody.read(options | {"facets": facets})
    return Operation(
        "count",
        lambda: HttpRequest("POST", path_of(collection, "count"), body=body),
        answer(CountResult),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).Count,
            lambda: body.to_proto(collection),
            CountResult.from_proto,
        ),
    )


def map(
    collection: str = defaults.COLLECTION,
    *,
    level: Literal["region", "image"] = "region",
    filter: Mapping[str, Any] | None = None,
    max_points: int | None = None,
) -> Operation[MapResult]:
    """Places regions, or whole images, on the unit square so that what is alike lies together.

    Args:
        collection: Where to look.
        level: Regions, or whole images.
        filter: Conditions as of `search`.
        max_points: The first ones in the order of `scroll`, so many, at most 4000; 2000 when absent.
    """
    body = MapBody.read(given(level=level, filter=filter, max_points=max_points))
    return Operation(
        "map",
        lambda: HttpRequest("POST", path_of(collection, "map"), body=body),
        answer(MapResult),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).GetMap,
            lambda: body.to_proto(collection),
            MapResult.from_proto,
        ),
    )
