"""Errors name services, limits and settings; not addresses, and not paths on the gateway's disk."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from gateway.image_store import ImageStore
from regionsearch.errors import Kind, RegionSearchError
from tests.gateway.conftest import RED, Running, World, scene
from tests.gateway.fakes import Script
from tests.stack import free_port

KEY = {"X-API-Key": "read:r"}


@pytest.fixture
def waiting(world: World) -> Iterator[tuple[httpx.Client, int]]:
    """A gateway with keys whose segmenter is away, and the segmenter's port."""
    port = free_port()
    settings = world.settings(segmenter=f"127.0.0.1:{port}", api_keys="read:r")
    assert settings.http_port_file is not None
    starting = world.submit(world.start_gateway(settings))
    while not settings.http_port_file.exists():
        time.sleep(0.01)
    url = f"http://127.0.0.1:{settings.http_port_file.read_text().strip()}"
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http, port
    segmenter = world.run(world.start_segmenter(port))
    starting.result(60)
    world.call(segmenter.stop)


def test_readiness_tells_addresses_to_callers_with_a_key_only(
    waiting: tuple[httpx.Client, int], script: Script
) -> None:
    http, port = waiting
    for headers in ({}, {"X-API-Key": "read:wrong"}, {"Authorization": "Bearer wrong"}):
        found = http.get("/readyz", headers=headers)
        assert found.status_code == 503
        assert found.json()["services"]["segmenter"] == {"ready": False, "detail": "not serving"}
        assert "127.0.0.1" not in found.text
    assert f"127.0.0.1:{port}" in http.get("/readyz", headers=KEY).json()["services"]["segmenter"]["detail"]


def test_an_error_names_the_service_that_is_away_not_its_address(
    waiting: tuple[httpx.Client, int], script: Script
) -> None:
    http, port = waiting
    form = {"files": {"image": ("a.png", scene(RED))}, "data": {"everything": "true"}}
    answer = http.post("/v1/segment", headers=KEY, **form)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert "segmenter" in answer.json()["detail"]
    assert str(port) not in answer.text
    assert "127.0.0.1" not in answer.text


async def test_the_image_store_does_not_tell_its_path(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("secret")
    store = ImageStore(str(folder))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(folder / "images"))

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    with pytest.raises(RegionSearchError) as caught:
        await store.put("c", "0" * 64, scene(RED))
    assert caught.value.kind is Kind.UNAVAILABLE
    assert "Read-only file system" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_write_that_nobody_was_told_of_is_not_waited_for(gateway: Running) -> None:
    begin = time.monotonic()
    body = {"query": {"text": "red"}, "min_seq": 2**62}
    answer = gateway.http.post("/v1/collections/default/search", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "FAILED_PRECONDITION")
    assert answer.json()["errors"][0]["pointer"] == "/min_seq"
    assert time.monotonic() - begin < 10
