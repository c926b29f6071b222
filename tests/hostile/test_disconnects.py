"""Clients that leave, servers that stop, and bodies that announce too much: none of it is a 500."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from prometheus_client import REGISTRY

from tests.gateway.conftest import GatewayProcess, Running, World, wait_for
from tests.gateway.fakes import Script


@contextlib.contextmanager
def connected(gateway: Running) -> Iterator[socket.socket]:
    url = httpx.URL(gateway.url)
    with socket.create_connection((str(url.host), url.port or 80), timeout=30) as connection:
        yield connection


def requests_with(status: int) -> float:
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "regionsearch_http_requests_total" and sample.labels["status"] == str(status)
    )


FORM = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\nabc'


@pytest.mark.parametrize(
    ("path", "media_type", "begin"),
    [
        ("/v1/segment", b"application/json", b'{"image":"'),
        ("/v1/segment", b"multipart/form-data; boundary=x", FORM % b"image"),
        ("/v1/collections/default/images", b"multipart/form-data; boundary=x", FORM % b"files"),
    ],
)
def test_a_client_that_leaves_in_the_middle_of_its_body_is_not_an_error(
    gateway: Running, path: str, media_type: bytes, begin: bytes
) -> None:
    left, failed = requests_with(499), requests_with(500)
    with structlog.testing.capture_logs() as logs:
        with connected(gateway) as connection:
            head = b"POST %s HTTP/1.1\r\nHost: gateway\r\nContent-Type: %s\r\nContent-Length: 100000\r\n\r\n"
            connection.sendall(head % (path.encode(), media_type) + begin)
            time.sleep(0.2)
        wait_for(lambda: requests_with(499) == left + 1, 30)
    assert requests_with(500) == failed
    # Other gateways of the session log as well.
    assert {line["log_level"] for line in logs if line.get("path") == path} <= {"info"}


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/collections/default/images", "/v1/collections"])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(gateway: Running, path: str) -> None:
    with connected(gateway) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
            f"Content-Length: {900 << 20}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b"application/problem+json" in answer


def test_work_that_outlasts_the_grace_is_unavailable_not_a_bare_500(
    world: World, script: Script, tmp_path: Path
) -> None:
    """The answer of a gateway that is told to stop while it waits for the embedder."""
    settings = world.settings()
    script.hold["EmbedTexts"] = world.call(asyncio.Event)
    log = tmp_path / "log"
    with GatewayProcess(settings, log, REGIONSEARCH_GATEWAY_GRACE_S="1") as process:
        with contextlib.closing(httpx.Client(base_url=process.url, timeout=60)) as http:
            search = http.build_request(
                "POST", "/v1/collections/default/search", json={"query": {"text": "red"}}
            )
            answers: list[httpx.Response] = []
            thread = threading.Thread(target=lambda: answers.append(http.send(search)))
            thread.start()
            wait_for(lambda: script.calls["EmbedTexts"] > 0)
            process.process.send_signal(signal.SIGTERM)
            thread.join(60)
        process.process.wait(60)
    (answer,) = answers
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["code"] == "UNAVAILABLE"
    logged = log.read_text()
    assert '"status": 503' in logged
    assert "Traceback" not in logged, logged
