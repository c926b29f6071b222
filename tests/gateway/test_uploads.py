"""Uploads are admitted by their size, before they are read."""

from __future__ import annotations

import contextlib
import http.client
import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.http.uploads import ByteQuota, UploadAdmission
from gateway.settings import LimitSettings
from regionsearch.errors import Kind, RegionSearchError
from tests.gateway.conftest import RED, Running, World, add, scene
from tests.gateway.fakes import Script
from tests.waiting import wait_for

LIMITS = LimitSettings(max_upload_bytes=1000, max_body_bytes=100)


def refused(quota: ByteQuota, caller: str, size: int) -> bool:
    try:
        quota.take(caller, size)
    except RegionSearchError:
        return True
    quota.give_back(caller, size)
    return False


def test_one_caller_has_half_of_the_room_and_one_body_at_least() -> None:
    quota = ByteQuota("disk", "max_upload_bytes", 1000)
    assert not refused(quota, "a", 5000), "a body that is larger than all of it is admitted alone"
    quota.take("a", 400)
    assert refused(quota, "a", 200)
    with pytest.raises(RegionSearchError, match="max_upload_bytes") as caught:
        quota.take("a", 200)
    assert (caught.value.kind, caught.value.retry_after_s) == (Kind.OVERLOADED, 2.0)
    assert not refused(quota, "a", 100)
    assert not refused(quota, "b", 600)
    assert refused(quota, "b", 601)
    quota.give_back("a", 400)
    assert not refused(quota, "a", 1000)


class Exchange:
    """One request to an application that reads its body."""

    def __init__(self, path: str, chunks: list[bytes], **headers: str) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            "client": ("10.0.0.1", 1),
            "server": ("localhost", 80),
            "query_string": b"",
        }
        self.chunks = list(chunks)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self.chunks.pop(0), "more_body": bool(self.chunks)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass


async def test_a_declared_body_is_refused_before_anything_of_it_is_read() -> None:
    gate = UploadAdmission(read_all, LIMITS)
    gate._disk.take("10.0.0.1", 900)
    exchange = Exchange("/v1/collections/a/images", [b"x" * 200], content_length="200")
    with pytest.raises(RegionSearchError, match="max_upload_bytes"):
        await gate(exchange.scope, exchange.receive, exchange.send)
    assert exchange.chunks, "it was read"
    other = Exchange("/v1/segment", [b"x" * 90], content_length="90")  # is not held on the disk
    await gate(other.scope, other.receive, other.send)
    assert not other.chunks


async def test_an_undeclared_body_is_counted_as_it_comes_and_forgotten_at_its_end() -> None:
    gate = UploadAdmission(read_all, LIMITS)
    exchange = Exchange("/v1/segment", [b"x" * 60, b"x" * 60, b"x"], transfer_encoding="chunked")
    with pytest.raises(RegionSearchError, match="max_body_bytes"):
        await gate(exchange.scope, exchange.receive, exchange.send)
    exchange = Exchange("/v1/segment", [b"x" * 40, b"x" * 5], transfer_encoding="chunked")
    await gate(exchange.scope, exchange.receive, exchange.send)
    assert gate._memory._total == 0


def test_an_upload_that_does_not_fit_is_refused_at_once_and_taken_once_there_is_room(
    world: World, script: Script
) -> None:
    gateway = world.gateway(limits={"max_upload_bytes": 100_000})
    address = gateway.url.removeprefix("http://")
    with contextlib.closing(begin(address, 90_000)):
        wait_for(lambda: uploading(gateway) == 90_000)
        with contextlib.closing(begin(address, 90_000)) as second:  # sends nothing of the body
            answer = second.getresponse()
            assert (answer.status, answer.headers["retry-after"]) == (429, "2")
            assert json.load(answer)["code"] == "OVERLOADED"
        assert gateway.http.get("/v1/collections").status_code == 200
    wait_for(lambda: uploading(gateway) == 0)
    assert add(gateway, "default", ("a.png", scene(RED)))[0]["outcome"] in ("created", "duplicate")


def begin(address: str, size: int) -> http.client.HTTPConnection:
    """A connection that has sent the headers of an upload."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.putrequest("POST", "/v1/collections/default/images")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    return connection


def uploading(gateway: Running) -> float:
    lines = gateway.http.get("/metrics").text.splitlines()
    return float(
        next(line for line in lines if line.startswith('regionsearch_upload_bytes{place="disk"}')).split()[-1]
    )


def test_metrics_with_a_port_of_their_own_are_not_on_the_public_one(world: World, script: Script) -> None:
    gateway = world.gateway(metrics_port=1)  # which the process opens, not the gateway
    assert gateway.http.get("/metrics").status_code == 404
