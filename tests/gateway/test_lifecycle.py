"""Time and death: deadlines, clients that leave, replicas that die, a gateway that stops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.server import _listen
from regionsearch.v1 import region_search_pb2, types_pb2
from tests.gateway.conftest import RED, EmbedderProcess, GatewayProcess, Running, World, add, scene
from tests.gateway.fakes import Script
from tests.waiting import wait_for


def test_a_query_that_takes_too_long_is_ended(world: World, script: Script) -> None:
    gateway = world.gateway(timeouts={"query_s": 3})
    script.hold["EmbedTexts"] = world.call(asyncio.Event)
    response = gateway.http.post("/v1/collections/default/search", json={"query": {"text": "red"}})
    assert (response.status_code, response.json()["code"]) == (504, "DEADLINE_EXCEEDED")
    assert "embedder" in response.json()["detail"]
    wait_for(lambda: script.cancelled["EmbedTexts"] == 1)


def test_a_failure_of_one_part_ends_the_others(gateway: Running, script: Script, world: World) -> None:
    script.hold["Segment"] = world.call(asyncio.Event)
    response = gateway.http.post(
        "/v1/search-within", files={"image": ("a.png", scene(RED))}, data={"text": ["red", " "]}
    )
    assert response.status_code == 400
    wait_for(lambda: script.cancelled["Segment"] == script.calls["Segment"])


def test_a_client_that_leaves_its_events_ends_the_work(
    gateway: Running, collection: str, script: Script, world: World
) -> None:
    script.hold["Segment"] = world.call(asyncio.Event)
    files = [("files", (f"{i}.png", scene(("red", (i, 0, i + 9, 9))))) for i in range(3)]
    with gateway.http.stream(
        "POST", f"/v1/collections/{collection}/images", files=files, headers={"Accept": "text/event-stream"}
    ) as response:
        lines = response.iter_lines()  # dropping it would close the connection
        assert next(lines) == "event: progress"
        wait_for(lambda: script.calls["Segment"] == 3)
    wait_for(lambda: script.cancelled["Segment"] == 3)


def test_a_gateway_that_stops_ends_what_it_has_begun(world: World, script: Script) -> None:
    gateway = world.gateway(grace_s=120)
    script.hold["Segment"] = world.call(asyncio.Event)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sent = pool.submit(add, gateway, "default", ("slow.png", scene(("red", (1, 2, 30, 40)))))
        wait_for(lambda: script.calls["Segment"] == 1)
        world.call(gateway.server.stop)
        wait_for(lambda: refuses(gateway.url))
        assert not sent.done()
        world.call(script.hold.pop("Segment").set)
        assert sent.result(60)[0]["outcome"] == "created"


def test_http_and_grpc_drain_at_the_same_time(world: World, script: Script) -> None:
    """A call over gRPC that takes long does not eat the time that requests over HTTP have to end."""
    gateway = world.gateway(grace_s=120)
    script.hold["Segment"] = world.call(asyncio.Event)
    request = region_search_pb2.SearchWithinRequest(image=types_pb2.Image(encoded=scene(RED)), texts=["red"])
    slow = gateway.grpc.SearchWithin.future(request, timeout=300)
    wait_for(lambda: script.calls["Segment"] == 1)
    world.call(gateway.server.stop)
    wait_for(lambda: refuses(gateway.url))
    assert not slow.done()
    world.call(script.hold.pop("Segment").set)
    assert len(slow.result(60).regions) == 1


def test_small_answers_on_a_kept_connection_do_not_wait_for_acknowledgements() -> None:
    """asyncio asks for TCP_NODELAY only of sockets that say that they are TCP."""
    with _listen("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=5)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # it came just before the port was closed
        return False
    return False


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[EmbedderProcess]:
    with EmbedderProcess(tmp_path) as process:
        yield process


def test_a_replica_that_is_killed_fails_no_request(
    world: World, script: Script, replica: EmbedderProcess
) -> None:
    targets = f"127.0.0.1:{world.embedder.port},127.0.0.1:{replica.port}"
    gateway = world.gateway(embedder=targets, embed_chunk=1)

    def send(number: int) -> str:
        if number == 10:
            replica.kill()
        drawn = scene(("red", (number, 0, number + 9, 9)), ("blue", (number, 50, number + 9, 70)))
        return str(add(gateway, "default", (f"{number}.png", drawn))[0]["outcome"])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(send, range(40)))
    assert outcomes == ["created"] * 40
    assert 0 < script.calls["EmbedRegions"] <= 80


def test_gateways_side_by_side_while_one_of_them_dies(world: World, script: Script, tmp_path: Path) -> None:
    """Two processes on the same services and images: what one took in the other serves, and goes on."""
    settings = world.settings()
    assert settings.http_port_file is not None
    other = world.gateway(image_store=settings.image_store)
    with GatewayProcess(settings) as process, httpx.Client(base_url=process.url, timeout=120) as http:

        def send(number: int) -> str:
            drawn = scene(("red", (number, 30, number + 9, 39)), ("blue", (number, 60, number + 9, 75)))
            if number % 2 == 0:
                with contextlib.suppress(httpx.TransportError):
                    http.post(
                        "/v1/collections/default/images", files=[("files", (f"{number}.png", drawn))]
                    ).raise_for_status()
                if number == 10:
                    process.kill()
            # What the first one was asked, or was not able to answer any more, the other one finishes.
            return str(add(other, "default", (f"{number}.png", drawn))[0]["outcome"])

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(send, range(30)))
    assert set(outcomes) == {"created", "duplicate"}
    images = other.http.get("/v1/collections/default/images?page_size=1000").json()["images"]
    for image in images[:30]:
        content = other.http.get(f"/v1/collections/default/images/{image['image_id']}/content")
        assert content.status_code == 200 or image["name"] not in {f"{n}.png" for n in range(30)}
