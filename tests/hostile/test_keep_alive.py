"""Requests on one connection do not inherit from each other, whoever sends them."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.http.middleware import OwnTask
from regionsearch.rpc.calls import deadline, remaining
from tests.gateway.conftest import RED, Running, World, scene
from tests.gateway.fakes import Script

QUERY_S = 1.0
SEARCH = "/v1/collections/default/search"
LARGE = scene(RED) + bytes(1 << 20)  # the file goes on after its end, as no reader minds


def search_by_image() -> dict[str, object]:
    return {"query": {"image": base64.b64encode(LARGE).decode()}}


@pytest.fixture(scope="module")
def impatient(world: World) -> Running:
    return world.gateway(timeouts={"query_s": QUERY_S})


@contextlib.contextmanager
def proxy_with_one_connection(url: httpx.URL) -> Iterator[str]:
    """A proxy whose clients all share a connection to the gateway, one request after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    backend = socket.create_connection((str(url.host), url.port or 80))

    def pump(client: socket.socket) -> None:
        with client:
            while data := client.recv(1 << 16):
                backend.sendall(data)
                client.settimeout(0.05)
                with contextlib.suppress(TimeoutError):  # the request is complete
                    while more := client.recv(1 << 16):
                        backend.sendall(more)
                client.settimeout(None)
                client.sendall(whole_answer(backend))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                pump(listener.accept()[0])

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        backend.close()


def whole_answer(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def test_a_connection_outlives_the_deadline_of_a_request_with_a_large_body(
    impatient: Running, script: Script
) -> None:
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=impatient.url, limits=limits, timeout=60) as http:
        form: dict[str, Any] = {"files": {"image": LARGE}, "data": {"everything": "true"}}
        for path, body in (("/v1/segment", form), (SEARCH, {"json": search_by_image()})):
            for _ in range(3):
                assert http.post(path, **body).status_code == 200
            time.sleep(QUERY_S + 0.1)
            for _ in range(3):
                assert http.get("/v1/models").status_code == 200


def test_callers_behind_a_proxy_do_not_share_a_deadline(impatient: Running, script: Script) -> None:
    with proxy_with_one_connection(httpx.URL(impatient.url)) as url:
        for _ in range(2):  # a client that leaves after its large request, and another one
            with httpx.Client(base_url=url, timeout=60) as http:
                sent = http.post("/v1/segment", files={"image": LARGE}, data={"everything": "true"})
                assert sent.status_code == 200
            time.sleep(QUERY_S + 0.1)
            with httpx.Client(base_url=url, timeout=60) as http:
                assert http.get("/v1/models").status_code == 200


async def test_a_request_begins_without_deadline_log_context_or_trace_of_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = {
            "deadline": remaining(),
            "log": structlog.contextvars.get_contextvars(),
            "span": trace.get_current_span().get_span_context().is_valid,
        }
        await JSONResponse(found)(scope, receive, send)

    tracer = TracerProvider().get_tracer("test")
    transport = httpx.ASGITransport(OwnTask(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        with (
            deadline(5),
            structlog.contextvars.bound_contextvars(request_id="another"),
            tracer.start_as_current_span("another"),
        ):
            found = (await http.get("/")).json()
    assert found == {"deadline": None, "log": {}, "span": False}
