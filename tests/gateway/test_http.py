"""What holds for every request: problems, ids, keys, rates, sizes, documentation, readiness."""

from __future__ import annotations

import re
import time
from typing import Any

import grpc
import httpx
import pytest
import structlog

from gateway.http.problems import STATUS, pointer
from regionsearch.client import Client
from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import region_search_pb2, region_search_pb2_grpc
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, scene
from tests.gateway.fakes import Script
from tests.stack import free_port


def test_every_kind_of_error_has_a_status() -> None:
    assert STATUS.keys() == set(Kind)


@pytest.mark.parametrize(
    ("field", "expected"),
    [("query", "/query"), ("query.points[2].x", "/query/points/2/x"), ("files", "/files")],
)
def test_fields_become_json_pointers(field: str, expected: str) -> None:
    assert pointer(field) == expected


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/nowhere", 404),
        ("PUT", "/v1/collections", 405),
        ("GET", "/v1/segment", 405),
    ],
)
def test_the_frameworks_own_errors_are_problems_too(
    gateway: Running, method: str, path: str, status: int
) -> None:
    response = gateway.http.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["instance"] == path
    assert problem["type"].startswith("urn:regionsearch:problem:")
    if status == 405:
        assert response.headers["allow"]
    assert problem["status"] == status


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"content-type": "application/json"}, b"{"),
        ({"content-type": "application/json"}, b"[1]"),
        ({"content-type": "application/json"}, b"\xff\xfe"),
        ({"content-type": "application/json"}, b"[" * 40_000),
        ({"content-type": "text/plain"}, b"red mug"),
        ({"content-type": "multipart/form-data"}, b"no boundary"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\nrubbish"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/segment", "/v1/collections/default/search", "/v1/collections"])
def test_bodies_that_cannot_be_read(
    gateway: Running, path: str, headers: dict[str, str], content: bytes
) -> None:
    response = gateway.http.post(path, headers=headers, content=content)
    assert response.status_code == 400
    assert response.json()["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("content", [b"", b"--x\r\nrubbish", b"--x--\r\n"])
def test_uploads_that_cannot_be_read(gateway: Running, content: bytes) -> None:
    response = gateway.http.post(
        "/v1/collections/default/images",
        headers={"content-type": "multipart/form-data; boundary=x"},
        content=content,
    )
    assert response.status_code == 400
    assert response.json()["code"] == "INVALID_ARGUMENT"


def test_an_unexpected_error_tells_nothing_but_its_request_id(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.catalog import Catalog

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret path /etc/shadow")

    monkeypatch.setattr(Catalog, "list", broken)
    with structlog.testing.capture_logs() as logs:
        response = gateway.http.get("/v1/collections", headers={"X-Request-Id": "abc123"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "abc123"
    assert any(isinstance(line.get("exc_info"), ZeroDivisionError) for line in logs)
    assert response.json()["code"] == "INTERNAL"
    assert "abc123" in response.json()["detail"]
    assert "secret" not in response.text


def test_request_ids_are_kept_or_made(gateway: Running) -> None:
    assert gateway.http.get("/healthz", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    made = {gateway.http.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    problem = gateway.http.get("/nowhere", headers={"X-Request-Id": "p-1"})
    assert problem.json()["request_id"] == "p-1"
    assert (
        gateway.http.get("/healthz", headers={"X-Request-Id": "x" * 65}).headers["x-request-id"] != "x" * 65
    )


def test_json_is_compressed_and_images_are_not(gateway: Running, collection: str) -> None:
    (result,) = add(gateway, collection, ("a.png", scene(RED, BLUE, GREEN, size=(640, 480))))
    url = f"/v1/collections/{collection}/images/{result['image_id']}"
    answer = gateway.http.get(f"{url}/regions?include=mask", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()["regions"]) == 3
    content = gateway.http.get(f"{url}/content", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in content.headers


def test_health_models_and_metrics(gateway: Running) -> None:
    assert gateway.http.get("/healthz").text == "ok\n"
    ready = gateway.http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert ready.json()["services"].keys() == {"segmenter", "embedder", "searcher", "gateway"}
    models = gateway.http.get("/v1/models").json()
    assert models["segmenter"]["variant"] == "flat"
    assert models["segmenter"]["prompts_choose"] is True
    assert models["segmenter"]["everything_mode"] == "proposals"
    assert models["embedder"]["variant"] == "colours"
    assert models["searcher"]["engine"] == "faiss-cpu"
    with Client(f"grpc://127.0.0.1:{gateway.server.port}") as client:
        assert client.models().model_dump(exclude_none=True) == models
    metrics = gateway.http.get("/metrics").text
    found = re.search(
        r'regionsearch_http_requests_total\{method="GET",route="/v1/models",status="200"\} (\S+)', metrics
    )
    assert found is not None
    assert float(found.group(1)) >= 1


def test_documentation_needs_nothing_from_elsewhere(gateway: Running) -> None:
    page = gateway.http.get("/docs")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "://" not in page.text
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert not link.startswith("/"), "a proxy may serve it below a path"
        assert gateway.http.get(link).status_code == 200, link
    document = gateway.http.get("/openapi.json").json()
    for name in ("SearchBody", "SegmentBody", "Problem", "SearchResult"):
        assert name in document["components"]["schemas"]
    operation = document["paths"]["/v1/collections/{collection}/search"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["example"]["query"]
    assert operation["responses"]["409"]["content"]["application/problem+json"]
    references = re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', gateway.http.get("/openapi.json").text)
    assert set(references) <= document["components"]["schemas"].keys()


def test_the_page_comes_with_a_strict_policy(gateway: Running) -> None:
    page = gateway.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert gateway.http.get("/static/../settings.py").status_code == 404
    assert gateway.http.get("/static/%2e%2e/settings.py").status_code == 404


def test_keys_and_scopes(world: World, script: Script) -> None:
    gateway = world.gateway(api_keys="read:r,write:w,admin-key")
    url = "/v1/collections/default/images"
    files = [("files", ("a.png", scene(RED)))]

    def status(method: str, path: str, key: str | None, **options: Any) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return gateway.http.request(method, path, headers=headers, **options).status_code

    assert status("GET", url, None) == 401
    assert status("GET", url, "r") == 401
    assert status("GET", url, "read:r") == 200
    assert status("POST", url, "read:r", files=files) == 403
    assert status("POST", url, "write:w", files=files) == 200
    assert status("POST", "/v1/collections", "write:w", json={"name": "scoped"}) == 403
    assert status("POST", "/v1/collections", "admin-key", json={"name": "scoped"}) == 201
    assert status("DELETE", "/v1/collections/scoped", "read:r") == 403
    assert (
        gateway.http.delete("/v1/collections/scoped", headers={"X-API-Key": "admin-key"}).status_code == 204
    )
    assert status("POST", "/v1/collections/default/search", "read:r", json={"query": {"text": "red"}}) == 200
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/"):
        assert status("GET", path, None) == 200, path
    refused = gateway.http.get(url)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["code"] == "UNAUTHENTICATED"

    request = region_search_pb2.RegionSearchServiceListImagesRequest()
    delete = region_search_pb2.DeleteImageRequest(image_id="0" * 64)

    def kind(call: Any, message: Any, key: str | None) -> Kind | None:
        try:
            call(message, metadata=[] if key is None else [("authorization", f"Bearer {key}")])
        except grpc.RpcError as error:
            return from_rpc_error(error).kind
        return None

    assert kind(gateway.grpc.ListImages, request, None) is Kind.UNAUTHENTICATED
    assert kind(gateway.grpc.ListImages, request, "read:r") is None
    assert kind(gateway.grpc.DeleteImage, delete, "read:r") is Kind.PERMISSION_DENIED
    assert kind(gateway.grpc.DeleteImage, delete, "write:w") is Kind.NOT_FOUND


def test_rates_are_limited_by_caller(world: World, script: Script) -> None:
    gateway = world.gateway(api_keys="one,two", limits={"requests_per_s": 0.001, "requests_burst": 2})

    def get(key: str) -> Any:
        return gateway.http.get("/v1/collections", headers={"X-API-Key": key})

    assert [get("one").status_code for _ in range(3)] == [200, 200, 429]
    assert get("one").headers["retry-after"].isdigit()
    assert get("two").status_code == 200
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.ListImages(
            region_search_pb2.RegionSearchServiceListImagesRequest(), metadata=[("x-api-key", "one")]
        )
    error = from_rpc_error(caught.value)
    assert error.kind is Kind.OVERLOADED
    assert error.retry_after_s


def test_rates_without_keys_are_of_addresses_not_of_connections(world: World, script: Script) -> None:
    gateway = world.gateway(limits={"requests_per_s": 0.001, "requests_burst": 1})
    request = region_search_pb2.RegionSearchServiceListImagesRequest()
    gateway.grpc.ListImages(request)
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    with grpc.insecure_channel(f"127.0.0.1:{gateway.server.port}", options) as another:
        with pytest.raises(grpc.RpcError) as caught:
            region_search_pb2_grpc.RegionSearchServiceStub(another).ListImages(request)
        assert from_rpc_error(caught.value).kind is Kind.OVERLOADED
    assert gateway.http.get("/v1/collections").status_code == 429


def test_uploads_beyond_the_limits_of_size_are_refused(world: World, script: Script) -> None:
    gateway = world.gateway(
        limits={"max_request_bytes": 50_000, "max_image_bytes": 2_000, "max_image_pixels": 160 * 120}
    )
    url = "/v1/collections/default/images"
    image = scene(RED)
    assert add(gateway, "default", ("a.png", image))[0]["outcome"] in ("created", "duplicate")
    for data in (image + b"\0" * 2_000, scene(size=(161, 120))):
        (result,) = add(gateway, "default", ("a.png", data))
        assert result["error"]["code"] == "TOO_LARGE"
    response = gateway.http.post(url, files=[("files", ("a.png", image + b"\0" * 60_000))])
    assert (response.status_code, response.json()["code"]) == (413, "TOO_LARGE")

    def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1_000

    response = gateway.http.post(
        "/v1/segment", content=chunks(), headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (413, "TOO_LARGE")


def test_cors_is_off_unless_it_is_asked_for(gateway: Running, world: World) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in gateway.http.get("/healthz", headers=headers).headers
    other = world.gateway(cors_origins="https://app.example,https://b.example")
    allowed = other.http.options("/v1/segment", headers=headers)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    stranger = other.http.get("/healthz", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_readiness_says_what_it_waits_for(world: World, script: Script) -> None:
    """A gateway whose segmenter is away: alive, not ready, clear about it, and well once it is there."""
    port = free_port()
    settings = world.settings(segmenter=f"127.0.0.1:{port}")
    starting = world.submit(world.start_gateway(settings))
    assert settings.http_port_file is not None
    while not settings.http_port_file.exists():
        time.sleep(0.01)
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{settings.http_port_file.read_text().strip()}", timeout=60
    )
    response = http.get("/readyz")
    assert response.status_code == 503
    services = response.json()["services"]
    assert services["segmenter"]["ready"] is False
    assert f"127.0.0.1:{port}" in services["segmenter"]["detail"]
    assert services["embedder"]["ready"] is True
    assert http.get("/healthz").status_code == 200
    answer = http.post("/v1/segment", files={"image": ("a.png", scene(RED))}, data={"everything": "true"})
    assert answer.status_code == 503
    assert answer.json()["code"] == "UNAVAILABLE"
    assert "segmenter" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"
    assert not starting.done()
    assert http.get("/readyz?only=gateway").status_code == 503
    segmenter = world.run(world.start_segmenter(port))
    starting.result(60)
    assert http.get("/readyz").status_code == 200
    world.call(lambda: segmenter.health.set_not_serving("a restart, say"))
    assert http.get("/readyz").status_code == 503
    assert http.get("/readyz?only=gateway").json()["ready"] is True  # it is up, and waits for the segmenter


def test_a_form_holds_no_more_than_json(world: World, script: Script) -> None:
    """What is asked about images is in memory as a whole, however it is sent."""
    gateway = world.gateway(limits={"max_image_bytes": 100_000})
    image = ("image", ("a.png", scene(RED)))
    many = [("negatives", (f"{i}.png", bytes(300_000))) for i in range(4)]
    for body in (
        {"files": [image, *many], "data": {"texts": "red"}},
        {"json": {"texts": ["x" * 1_200_000]}},
    ):
        response = gateway.http.post("/v1/search-within", **body)
        assert (response.status_code, response.json()["code"]) == (413, "TOO_LARGE")
        assert "max_image_bytes" in response.json()["detail"]
    fine = gateway.http.post("/v1/search-within", files=[image], data={"texts": "red"})
    assert fine.status_code == 200
