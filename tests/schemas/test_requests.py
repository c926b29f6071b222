"""Requests are declared once: client, HTTP and gRPC have the same names, defaults and messages."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from google.protobuf.message import Message

from regionsearch.client import NegativeExample
from regionsearch.client.operations import collections, images, queries, scrolls
from regionsearch.client.operations.base import Operation
from regionsearch.errors import RegionSearchError
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.requests.records import (
    BinaryCodesBody,
    CollectionBody,
    ImageChangeBody,
    ImageIdsBody,
    IngestBody,
)
from regionsearch.schemas.requests.scrolls import CountBody, FacetBody, ImagesPage, ScrollBody
from regionsearch.schemas.requests.searches import FilterBody, NegativeBody, QueryBody, SearchBody, WithinBody
from regionsearch.schemas.requests.values import Body
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import search_pb2, segment_pb2

IMAGE_ID = "a" * 64
EVERYTHING: dict[str, Any] = {
    "image": b"file",
    "region_id": "r1",
    "region_ids": ["r3", "r4"],
    "image_ids": ["b" * 64],
    "points": [(1, 2), (3, 4, 0)],
    "box": (0, 0, 5, 6),
    "negatives": ["plate", NegativeExample(region_id="r2"), NegativeExample(image=b"file")],
    "level": "image",
    "group_by": "image",
    "filter": {
        "tags": ["t"],
        "attributes": {"place": "Oslo"},
        "created_after": "2026-01-01T00:00:00Z",
        "conditions": [
            {"attribute": "place", "near": {"latitude": 59.9, "longitude": 10.7, "radius_m": 500.0}},
            {"attribute": "place", "inside": {"south": -30.0, "west": 170.0, "north": 10.0, "east": -170.0}},
        ],
    },
    "min_score": 0.25,
    "relative_cutoff": 0.5,
    "min_relevancy": 0.75,
    "page_size": 7,
    "page_token": "token",
    "min_seq": 9,
    "exact": True,
    "effort": 2.0,
    "fold_similarity": 0.875,
    "diversity": 0.25,
    "codes_only": True,
    "include": ["mask"],
}
THRESHOLDS = {
    name: EVERYTHING[name] for name in ("negatives", "min_score", "relative_cutoff", "min_relevancy")
}
QUESTIONS: dict[str, tuple[Operation[Any], type[Body], tuple[str, ...]]] = {
    "search, nothing said": (queries.search("mug"), SearchBody, ("default",)),
    "search, everything said": (
        queries.search(["mug", "cup"], "things", **EVERYTHING),
        SearchBody,
        ("things",),
    ),
    "within, nothing said": (queries.within("mug", image_id=IMAGE_ID), WithinBody, ()),
    "within, everything said": (
        queries.within("mug", image=b"file", collection="things", include=[], **THRESHOLDS),
        WithinBody,
        (),
    ),
    "check": (images.check_images([IMAGE_ID]), ImageIdsBody, ("default",)),
    "scroll": (
        scrolls.scroll(
            "things", level="image", filter=EVERYTHING["filter"], page_size=3, min_seq=4, include=["mask"]
        ),
        ScrollBody,
        ("things",),
    ),
    "count": (
        scrolls.count(
            "things", filter=EVERYTHING["filter"], facets=[{"tags": True}, {"attribute": "room", "limit": 3}]
        ),
        CountBody,
        ("things",),
    ),
}
"""What a client asks over both transports, the class that the gateway reads, and what the path says."""


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_gateway_reads_from_json_the_message_that_the_client_sends_over_grpc(question: str) -> None:
    operation, body, path = QUESTIONS[question]
    request = operation.request()
    assert request.body is not None
    assert operation.grpc is not None
    read: Any = body.read(json.loads(request.body.to_json()))
    assert read.to_proto(*path) == operation.grpc.message()


@pytest.mark.parametrize(
    ("operation", "bare"),
    [
        (
            queries.search("mug", "things"),
            pb.RegionSearchServiceSearchRequest(collection="things", query=pb.Query(texts=["mug"])),
        ),
        (
            queries.within("mug", collection="things", image_id=IMAGE_ID),
            pb.SearchWithinRequest(collection="things", texts=["mug"], image_id=IMAGE_ID),
        ),
        (images.list_images("things"), pb.RegionSearchServiceListImagesRequest(collection="things")),
        (
            images.update_image(IMAGE_ID, "things", tags=["t"]),
            pb.UpdateImageRequest(
                collection="things", update={"image_id": IMAGE_ID, "tags": {"values": ["t"]}}
            ),
        ),
    ],
    ids=["search", "within", "list_images", "update_image"],
)
def test_what_is_not_said_means_the_same_over_http_grpc_and_in_the_client(
    operation: Operation[Any], bare: Message
) -> None:
    assert operation.grpc is not None
    assert operation.grpc.message() == bare


@pytest.mark.parametrize(
    ("method", "bodies", "apart"),
    [
        # One argument says one phrase or several, and the collection is in the path.
        (queries.search, [SearchBody, QueryBody], {"texts", "query", "collection"}),
        (queries.within, [WithinBody], {"text", "image_name", "render", "image_format"}),
        (collections.create_collection, [CollectionBody], set()),
        (images.update_image, [ImageChangeBody], {"image_id", "collection"}),
        (images.check_images, [ImageIdsBody], {"collection"}),
        (images.ingest_one, [IngestBody], {"source", "collection"}),
        (images.list_images, [ImagesPage], {"collection"}),
        (scrolls.scroll, [ScrollBody], {"collection"}),
        (scrolls.count, [CountBody], {"collection"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_client_has_an_argument_for_every_field_under_its_name(
    method: Any, bodies: list[type[Body]], apart: set[str]
) -> None:
    fields = {name for body in bodies for name in body.model_fields}
    assert fields ^ set(inspect.signature(method).parameters) == apart


@pytest.mark.parametrize(
    ("body", "message", "apart"),
    [
        (QueryBody, pb.Query, {"text"}),
        (NegativeBody, pb.Negative, set()),
        (FilterBody, search_pb2.Filter, set()),
        # The collection is in the path, and lists say what else comes along.
        (
            SearchBody,
            pb.RegionSearchServiceSearchRequest,
            {"collection", "include", "include_masks", "include_others", "include_weak"},
        ),
        # A rendering is an answer of HTTP alone.
        (
            WithinBody,
            pb.SearchWithinRequest,
            {"text", "include", "include_masks", "render", "image_format", "image_name"},
        ),
        (ScrollBody, pb.RegionSearchServiceScrollRequest, {"collection", "include", "include_masks"}),
        (CountBody, pb.RegionSearchServiceCountRequest, {"collection"}),
        (FacetBody, search_pb2.Facet, set()),
        (ImagesPage, pb.RegionSearchServiceListImagesRequest, {"collection"}),
        (BinaryCodesBody, search_pb2.BinaryCodes, {"trained_seq"}),
        # What an ingest would keep is said by these two; the rest is the gateway's settings.
        (EverythingOptions, segment_pb2.EverythingOptions, {"selection", "max_regions", "rank_by"}),
        (IngestBody, pb.IngestImageRequest, {"collection", "image", "name"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_can_be_said_over_grpc_can_be_said_over_http(
    body: type[Body], message: type[Message], apart: set[str]
) -> None:
    assert set(body.model_fields) ^ set(message.DESCRIPTOR.fields_by_name) == apart


def test_a_mistake_is_named_by_its_field_before_anything_is_sent() -> None:
    with pytest.raises(Exception, match=r"query\.points\[1\]\.x: .*finite") as caught:
        queries.search("mug", image=b"x", points=[(1, 2), (float("nan"), 2)]).request()
    assert getattr(caught.value, "field", None) == "query.points[1].x"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("2024-05-01", "2024-05-01T00:00:00Z"),
        ("2024-05-01 12:30", "2024-05-01T12:30:00Z"),
        ("2024-05-01T12:30:05.25", "2024-05-01T12:30:05.250Z"),
        ("2024-05-01T12:30:05+02:00", "2024-05-01T10:30:05Z"),
    ],
)
def test_times_are_days_too_and_utc_unless_they_say_otherwise(given: str, read: str) -> None:
    test = {"attribute": "taken_at", "time": {"gte": given}}
    body = SearchBody.read({"query": {"text": "x"}, "filter": {"conditions": [test]}})
    assert body.to_proto("c").filter.conditions[0].time.gte.ToJsonString() == read
    with pytest.raises(RegionSearchError, match="is not a time such as"):
        SearchBody.read({"query": {"text": "x"}, "filter": {"created_after": "2024-13-01"}})
