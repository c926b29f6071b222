"""What the clients make of errors: of the server, of proxies, of addresses, of arguments that cannot be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from regionsearch import AsyncClient, Client
from regionsearch.client import NegativeExample
from regionsearch.client.transports import error_of
from regionsearch.errors import Kind, RegionSearchError, overloaded
from tests.client.fakes import FakeGateway, HttpHandler

BUSY = overloaded("too busy", 0.01)


def test_an_overloaded_server_is_asked_again(use: Callable[..., Any], gateway: FakeGateway) -> None:
    gateway.failures = [BUSY, BUSY]
    assert len(use("search", "mug")) == 1
    gateway.failures = [BUSY] * 3
    with pytest.raises(RegionSearchError) as caught:
        use("search", "mug", retries=1)
    assert caught.value.kind is Kind.OVERLOADED
    gateway.failures = [BUSY]
    (result,) = use("ingest", [b"an image that has to wait"])
    assert result.outcome == "created"


def test_other_errors_are_raised_at_once_with_their_field(
    use: Callable[..., Any], gateway: FakeGateway
) -> None:
    gateway.failures = [RegionSearchError(Kind.INVALID_ARGUMENT, "is empty", field="query.texts")]
    with pytest.raises(RegionSearchError, match="is empty") as caught:
        use("search", "")
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, "query.texts")
    assert gateway.failures == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_score": math.nan}, "min_score"),
        ({"relative_cutoff": math.inf}, "relative_cutoff"),
        ({"min_relevancy": np.float32("nan")}, "min_relevancy"),
        ({"image": b"x", "points": [(1, 2), (math.nan, 2)]}, "query.points[1].x"),
        ({"filter": {"min_predicted_iou": math.nan}}, "filter.min_predicted_iou"),
        ({"filter": {"tags": 5}}, "filter.tags"),
    ],
)
def test_what_json_cannot_say_is_refused_by_its_field(
    gateway: FakeGateway, options: dict[str, Any], field: str
) -> None:
    with (
        Client(gateway.http) as client,
        pytest.raises(RegionSearchError, match=r"should be a") as caught,
    ):
        client.search("mug", **options)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, field)
    assert gateway.requests == []


def test_an_item_of_a_list_is_named_the_same_over_http_and_grpc() -> None:
    problem = {"code": "INVALID_ARGUMENT", "errors": [{"pointer": "/query/points/2/x"}]}
    assert error_of(problem).field == "query.points[2].x"


def test_zero_images_at_once_is_an_error(use: Callable[..., Any], gateway: FakeGateway) -> None:
    with pytest.raises(RegionSearchError, match="at least 1") as caught:
        use("ingest", [b"one"], at_once=0)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, "at_once")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "grpc://127.0.0.1:9"])
def test_a_gateway_that_is_not_there(address: str) -> None:
    with (
        Client(address, retries=0) as client,
        pytest.raises(RegionSearchError, match="is not ready after 0 s") as caught,
    ):
        client.wait_ready(0)
    assert caught.value.kind is Kind.UNAVAILABLE


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "ftp://x",
        "",
        "http://",
        "http://x:port",
        "grpc://localhost",
        "http://[::1",
        "http://a\0b",
    ],
)
def test_invalid_urls_are_refused(address: str) -> None:
    with pytest.raises(RegionSearchError, match="is not an address") as caught:
        Client(address)
    assert caught.value.kind is Kind.INVALID_ARGUMENT


def test_a_garbled_answer_is_an_error_too(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    end_headers = HttpHandler.end_headers

    def compressed(handler: HttpHandler) -> None:
        handler.send_header("Content-Encoding", "gzip")  # which it is not
        end_headers(handler)

    monkeypatch.setattr(HttpHandler, "end_headers", compressed)
    with Client(gateway.http, retries=0) as client, pytest.raises(RegionSearchError) as caught:
        client.search("mug")
    assert caught.value.kind is Kind.UNAVAILABLE


@pytest.mark.parametrize("given", [{}, {"region_id": "r", "image_id": "i"}])
def test_an_example_is_one_thing(given: dict[str, str]) -> None:
    with pytest.raises(RegionSearchError, match="one of image, region_id and image_id"):
        NegativeExample(**given)


def test_a_proxys_answer_is_an_error_too(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.client.fakes.problem", lambda error: b"<html>Bad Gateway</html>")
    gateway.failures = [RegionSearchError(Kind.UNAVAILABLE, "")]
    with Client(gateway.http, retries=0) as client, pytest.raises(RegionSearchError, match="503") as caught:
        client.search("mug")
    assert caught.value.kind is Kind.UNAVAILABLE


def test_another_server_is_recognised(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (b"<html>hello</html>", {"hits": "many"}, []):
        monkeypatch.setattr("tests.client.fakes.HttpHandler._route", lambda self, body, a=answer: (200, a))
        with Client(gateway.http) as client, pytest.raises(RegionSearchError, match="is the address right"):
            client.search("mug")


def test_names_cannot_leave_their_place_in_the_path(gateway: FakeGateway) -> None:
    with Client(gateway.http) as client:
        client.delete_image("../../x?y#z", "a/b")
    assert gateway.requests[-1][1] == "/v1/collections/a%2Fb/images/..%2F..%2Fx%3Fy%23z"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_closed_client_says_so(gateway: FakeGateway, scheme: str) -> None:
    address = gateway.http if scheme == "http" else gateway.grpc
    with Client(address) as client:
        assert repr(client) == f"<Client {address}>"
    assert repr(client) == f"<Client {address} (closed)>"
    calls: list[Callable[[], object]] = [
        lambda: client.search("x"),
        lambda: client.ingest(b"x"),
        lambda: list(client.ingest_stream([b"x"])),
    ]
    for call in calls:
        with pytest.raises(RegionSearchError, match="is closed"):
            call()

    async def asked() -> None:
        async with AsyncClient(address) as later:
            pass
        await later.search("x")

    with pytest.raises(RegionSearchError, match="is closed"):
        asyncio.run(asked())
