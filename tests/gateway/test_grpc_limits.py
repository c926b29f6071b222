"""The gRPC API at its limits: callers who do not read, answers and requests over the cap of a message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gateway.access import Caller
from gateway.grpc_api import RegionSearchServicer
from gateway.rights import UNLIMITED
from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import region_search_pb2, types_pb2
from services.runtime.requests import Load
from tests.gateway.conftest import World, scene
from tests.gateway.searching import COLLECTION

IN_WORK = 2


class InstantIngester:
    """Takes every image in at once, but those of a name that fails."""

    def __init__(self, **failures: BaseException) -> None:
        self.done = 0
        self.failures = failures

    @contextlib.contextmanager
    def admit(self, images: int) -> Iterator[None]:
        yield

    async def ingest(self, request: Any, **options: Any) -> region_search_pb2.IngestImageResponse:
        self.done += 1
        if request.name in self.failures:
            raise self.failures[request.name]
        return region_search_pb2.IngestImageResponse(image_id=request.name)


def ingest_stream(
    ingester: InstantIngester, *names: str
) -> AsyncIterator[region_search_pb2.IngestImagesResponse]:
    settings = SimpleNamespace(limits=SimpleNamespace(max_images_in_work=IN_WORK))
    access = SimpleNamespace(check=lambda *_: Caller("", UNLIMITED), address=lambda *_: "")
    gateway = SimpleNamespace(ingester=ingester, settings=settings, access=access)
    servicer = RegionSearchServicer(gateway, Load(10, 1 << 20))  # type: ignore[arg-type]
    context = SimpleNamespace(
        invocation_metadata=lambda: (), peer=lambda: "ipv4:127.0.0.1:1", time_remaining=lambda: None
    )

    async def requests() -> AsyncIterator[region_search_pb2.IngestImagesRequest]:
        for name in names:
            request = region_search_pb2.IngestImageRequest(name=name)
            yield region_search_pb2.IngestImagesRequest(key=name, request=request)

    return servicer.IngestImages(requests(), context)


async def test_a_stream_whose_answers_are_not_read_takes_no_more_images() -> None:
    ingester = InstantIngester()
    answers = ingest_stream(ingester, *map(str, range(100)))
    first = await anext(answers)
    for _ in range(1000):  # all that can happen, happens
        await asyncio.sleep(0)
    assert ingester.done <= 2 * IN_WORK
    keys = {first.key} | {answer.key async for answer in answers}
    assert keys == {str(number) for number in range(100)}


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), asyncio.CancelledError("secret")])
async def test_an_unexpected_error_is_reported_for_its_image_only(error: BaseException) -> None:
    answers = [answer async for answer in ingest_stream(InstantIngester(b=error), "a", "b", "c")]
    errors = {answer.key: answer.error.code for answer in answers if answer.HasField("error")}
    assert errors == {"b": grpc.StatusCode.INTERNAL.value[0]}
    assert {answer.key for answer in answers} == {"a", "b", "c"}
    assert "secret" not in str(answers)


def test_an_answer_over_the_cap_names_the_field_and_the_remedy(world: World, filled: dict[str, str]) -> None:
    """What the searcher answers fits; what the gateway adds to it, a page token here, does not."""
    request = region_search_pb2.RegionSearchServiceSearchRequest(
        collection=COLLECTION, query=region_search_pb2.Query(texts=["red"]), page_size=1
    )
    whole = world.gateway().grpc.Search(request)
    assert whole.next_page_token
    gateway = world.gateway(max_message_bytes=whole.ByteSize() - 1)
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.Search(request)
    error = from_rpc_error(caught.value)
    assert (error.kind, error.field) == (Kind.TOO_LARGE, "page_size")
    assert "fewer hits" in error.message


def test_the_answer_of_a_search_within_an_image_is_bounded_too(world: World) -> None:
    """The scores and the union of the masks do not fit in addition to the segmenter's answer."""
    stripes = [((9 * i, 0, 255 - 9 * i), (8 * i, 0, 8 * i + 8, 120)) for i in range(20)]
    image = types_pb2.Image(encoded=scene(*stripes))
    request = region_search_pb2.SearchWithinRequest(image=image, texts=["red"])
    size = world.gateway().grpc.SearchWithin(request).ByteSize()
    with pytest.raises(grpc.RpcError) as caught:
        world.gateway(max_message_bytes=size - 1).grpc.SearchWithin(request)
    error = from_rpc_error(caught.value)
    assert (error.kind, error.field) == (Kind.TOO_LARGE, "image")
    assert "smaller image" in error.message


def test_a_request_over_the_cap_of_a_service_says_what_to_do(world: World) -> None:
    gateway = world.gateway(max_message_bytes=2000)
    answer = gateway.http.post("/v1/embeddings", json={"texts": ["a" * 3000]})
    assert answer.status_code == 413
    assert "max_message_bytes" in answer.json()["detail"]
