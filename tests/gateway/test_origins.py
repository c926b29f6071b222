"""What web pages may do to a gateway without keys: only its own page changes anything, under its own name."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from starlette.types import Receive, Scope, Send

from gateway.http.origins import OriginCheck, host_name
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import region_search_pb2
from tests.gateway.conftest import Running, World
from tests.gateway.fakes import Script
from tests.waiting import wait_for

EVIL = "https://evil.example"


async def passes(
    settings: dict[str, Any], method: str = "GET", path: str = "/v1/models", **headers: str
) -> bool:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: Scope = {"type": "http", "method": method, "path": path, "headers": raw}
    try:
        await OriginCheck(app, GatewaySettings(**settings))(scope, None, None)  # type: ignore[arg-type]
    except RegionSearchError as error:
        assert error.kind is Kind.PERMISSION_DENIED  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:8000", "localhost"),
        ("LOCALHOST.", "localhost"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("10.0.0.1", "10.0.0.1"),
        ("", ""),
    ],
)
def test_the_name_of_a_host_is_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    "host",
    ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "gateway", "nas.local", "a.localhost", ""],
)
async def test_names_that_no_stranger_can_point_here_are_answered(host: str) -> None:
    assert await passes({}, host=host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"]
)
async def test_other_names_are_not_unless_they_are_allowed(host: str) -> None:
    assert not await passes({}, host=host)
    assert not await passes({"allowed_hosts": "search.example.org"}, host=host)
    assert not await passes({"allowed_hosts": "search.example.org", "api_keys": "secret"}, host=host)
    assert await passes({"allowed_hosts": "*"}, host=host)
    assert await passes({"allowed_hosts": f"other.example, {host_name(host)}"}, host=host)
    assert await passes({"allowed_hosts": "*.example"}, host=host)
    assert await passes({"http_host": host_name(host)}, host=host)
    assert await passes({"api_keys": "secret"}, host=host), "who comes by such a name has no key"


async def test_health_is_answered_under_any_name() -> None:
    for path in ("/healthz", "/readyz"):
        assert await passes({}, path=path, host="evil.example")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_pages_of_other_sites_may_not_write_unless_they_are_allowed(method: str) -> None:
    host = "localhost:8000"
    for headers in (
        {"origin": EVIL},
        {"origin": EVIL, "sec_fetch_site": "cross-site"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "http://localhost:9000", "sec_fetch_site": "same-site"},
    ):
        assert not await passes({}, method, host=host, **headers), headers
    for headers in (
        {},  # not a browser
        {"origin": "http://localhost:8000"},
        {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"},
        {
            "origin": "https://search.example.org",
            "sec_fetch_site": "same-origin",
        },  # a proxy that changes the host
        {"sec_fetch_site": "none"},
    ):
        assert await passes({}, method, host=host, **headers), headers
    assert await passes({"cors_origins": EVIL}, method, host=host, origin=EVIL)
    assert await passes({"cors_origins": "*"}, method, host=host, origin=EVIL)
    assert not await passes({"cors_origins": EVIL}, method, host=host, origin="https://other.example")


async def test_pages_of_other_sites_may_ask() -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        assert await passes({}, method, host="localhost", origin=EVIL, sec_fetch_site="cross-site")


def test_a_foreign_page_changes_nothing(gateway: Running) -> None:
    """The two requests that browsers send without asking first: a form, and a body without a type."""
    before = gateway.http.get("/v1/collections").json()
    form = gateway.http.post(
        "/v1/collections/default/images", files=[("files", ("a.png", b"x"))], headers={"Origin": EVIL}
    )
    typeless = {"content": b'{"name": "mine"}', "headers": {"Origin": EVIL}}
    for answer in (form, gateway.http.post("/v1/collections", **typeless)):
        assert (answer.status_code, answer.json()["code"]) == (403, "PERMISSION_DENIED")
        assert "cors_origins" in answer.json()["detail"]
    answer = gateway.http.get("/v1/collections", headers={"Host": "evil.example:8000"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (403, "/host")
    assert gateway.http.get("/v1/collections").json() == before


def test_a_json_body_says_so(gateway: Running) -> None:
    answer = gateway.http.post("/v1/collections", content=b'{"name": "typeless"}')
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/content-type")
    assert gateway.http.get("/v1/collections/typeless").status_code == 404


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/collections", "/healthz", "/nowhere"])
def test_every_answer_tells_browsers_what_not_to_do(gateway: Running, path: str) -> None:
    headers = gateway.http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_the_log_tells_who_asked_and_never_a_key(world: World, script: Script) -> None:
    gateway = world.gateway(api_keys="read:secret", trusted_proxies="127.0.0.1")
    headers = {"Authorization": "bearer read:secret", "X-Forwarded-For": "198.51.100.7"}
    metadata = (("x-api-key", "read:secret"), ("x-forwarded-for", "198.51.100.7"))
    with structlog.testing.capture_logs() as lines:
        assert gateway.http.get("/v1/collections", headers=headers).status_code == 200
        gateway.grpc.ListImages(
            region_search_pb2.RegionSearchServiceListImagesRequest(), metadata=metadata, timeout=60
        )
        wait_for(lambda: {"request", "call"} <= {line["event"] for line in lines})
    found = [line for line in lines if line["event"] in ("request", "call")]
    assert {line["address"] for line in found} == {"198.51.100.7"}
    (caller,) = {line["caller"] for line in found}
    assert caller.startswith("key-")
    assert "secret" not in str(lines)
