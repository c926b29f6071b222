"""Requests are declared once: client, HTTP and gRPC have the same names, defaults and messages."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from google.protobuf.message import Message

from regionsearch.client import NegativeExample, operations
from regionsearch.client.operations import Operation
from regionsearch.schemas import requests
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import search_pb2, segment_pb2

IMAGE_ID = "a" * 64
EVERYTHING: dict[str, Any] = {
    "image": b"file",
    "region_id": "r1",
    "points": [(1, 2), (3, 4, 0)],
    "box": (0, 0, 5, 6),
    "negatives": ["plate", NegativeExample(region_id="r2"), NegativeExample(image=b"file")],
    "level": "image",
    "group_by": "image",
    "filter": {"tags": ["t"], "attributes": {"place": "Oslo"}, "created_after": "2026-01-01T00:00:00Z"},
    "min_score": 0.25,
    "relative_cutoff": 0.5,
    "min_relevancy": 0.75,
    "page_size": 7,
    "page_token": "token",
    "min_seq": 9,
    "exact": True,
    "effort": 2.0,
    "include": ["mask"],
}
THRESHOLDS = {
    name: EVERYTHING[name] for name in ("negatives", "min_score", "relative_cutoff", "min_relevancy")
}
QUESTIONS: dict[str, tuple[Operation[Any], type[requests.Body], tuple[str, ...]]] = {
    "search, nothing said": (operations.search("mug"), requests.SearchBody, ("default",)),
    "search, everything said": (
        operations.search(["mug", "cup"], "things", **EVERYTHING),
        requests.SearchBody,
        ("things",),
    ),
    "within, nothing said": (operations.within("mug", image_id=IMAGE_ID), requests.WithinBody, ()),
    "within, everything said": (
        operations.within("mug", image=b"file", collection="things", include=[], **THRESHOLDS),
        requests.WithinBody,
        (),
    ),
    "check": (operations.check_images([IMAGE_ID]), requests.ImageIdsBody, ("default",)),
}
"""What a client asks over both transports, the class that the gateway reads, and what the path says."""


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_gateway_reads_from_json_the_message_that_the_client_sends_over_grpc(question: str) -> None:
    operation, body, path = QUESTIONS[question]
    request = operation.http.request()
    assert request.body is not None
    assert operation.grpc is not None
    read: Any = body.read(json.loads(request.body.to_json()))
    assert read.to_proto(*path) == operation.grpc.message()


@pytest.mark.parametrize(
    ("operation", "bare"),
    [
        (
            operations.search("mug", "things"),
            pb.RegionSearchServiceSearchRequest(collection="things", query=pb.Query(texts=["mug"])),
        ),
        (
            operations.within("mug", collection="things", image_id=IMAGE_ID),
            pb.SearchWithinRequest(collection="things", texts=["mug"], image_id=IMAGE_ID),
        ),
        (operations.list_images("things"), pb.RegionSearchServiceListImagesRequest(collection="things")),
        (
            operations.update_image(IMAGE_ID, "things", tags=["t"]),
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
        (operations.search, [requests.SearchBody, requests.QueryBody], {"texts", "query", "collection"}),
        (operations.within, [requests.WithinBody], {"text", "image_name", "render", "image_format"}),
        (operations.create_collection, [requests.CollectionBody], set()),
        (operations.update_image, [requests.ImageChangeBody], {"image_id", "collection"}),
        (operations.check_images, [requests.ImageIdsBody], {"collection"}),
        (operations.ingest_one, [requests.IngestBody], {"source", "collection"}),
        (operations.list_images, [requests.Page], {"collection"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_client_has_an_argument_for_every_field_under_its_name(
    method: Any, bodies: list[type[requests.Body]], apart: set[str]
) -> None:
    fields = {name for body in bodies for name in body.model_fields}
    assert fields ^ set(inspect.signature(method).parameters) == apart


@pytest.mark.parametrize(
    ("body", "message", "apart"),
    [
        (requests.QueryBody, pb.Query, {"text"}),
        (requests.NegativeBody, pb.Negative, set()),
        (requests.FilterBody, search_pb2.Filter, set()),
        # The collection is in the path, and lists say what else comes along.
        (
            requests.SearchBody,
            pb.RegionSearchServiceSearchRequest,
            {"collection", "include", "include_masks", "include_others", "include_weak"},
        ),
        # A rendering is an answer of HTTP alone.
        (
            requests.WithinBody,
            pb.SearchWithinRequest,
            {"text", "include", "include_masks", "render", "image_format", "image_name"},
        ),
        (requests.BinaryCodesBody, search_pb2.BinaryCodes, set()),
        # What an ingest would keep is said by one number; the rest is the gateway's settings.
        (requests.EverythingBody, segment_pb2.EverythingOptions, {"selection", "max_regions"}),
        (requests.IngestBody, pb.IngestImageRequest, {"collection", "image", "name", "selection"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_can_be_said_over_grpc_can_be_said_over_http(
    body: type[requests.Body], message: type[Message], apart: set[str]
) -> None:
    assert set(body.model_fields) ^ set(message.DESCRIPTOR.fields_by_name) == apart


def test_a_mistake_is_named_by_its_field_before_anything_is_sent() -> None:
    with pytest.raises(Exception, match=r"query\.points\[1\]\.x: .*finite") as caught:
        operations.search("mug", image=b"x", points=[(1, 2), (float("nan"), 2)]).http.request()
    assert getattr(caught.value, "field", None) == "query.points[1].x"
