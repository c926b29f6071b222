"""HEAD wherever GET is, an Allow that names every method, and no redirects to wherever the caller says."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.conftest import RED, Running, add, scene


@pytest.fixture(scope="module")
def paths(shared_gateway: Running) -> list[tuple[str, set[str]]]:
    """Every path of the API, of an image that is there, with its methods."""
    (image,) = add(shared_gateway, "default", ("a.png", scene(RED)))
    document = shared_gateway.http.get("/openapi.json").json()
    values = {
        "collection": "default",
        "image_id": image["image_id"],
        "region_id": f"{image['image_id']}-r000",
    }
    described = [(path.format(**values), set(item)) for path, item in document["paths"].items()]
    pages = ("/", "/docs", "/docs/start.js", "/openapi.json", "/metrics", "/static/index.html")
    return described + [(path, {"get"}) for path in pages]


def test_head_is_get_without_a_body(gateway: Running, paths: list[tuple[str, set[str]]]) -> None:
    tried = 0
    for path, methods in paths:
        if "get" in methods:
            got, head = gateway.http.get(path), gateway.http.head(path)
            # No reindex was started.
            assert head.status_code == got.status_code == (404 if path.endswith("/reindex") else 200), path
            assert head.content == b""
            for name in ("content-type", "content-length", "etag"):
                if path != "/metrics" or name != "content-length":  # there is one request more each time
                    assert head.headers.get(name) == got.headers.get(name), (path, name)
            tried += 1
    assert tried > 12


def test_allow_names_every_method(gateway: Running, paths: list[tuple[str, set[str]]]) -> None:
    for path, methods in paths:
        expected = {method.upper() for method in methods} | {"OPTIONS"}
        if "GET" in expected:
            expected.add("HEAD")
        refused = gateway.http.request("TRACE", path)
        assert refused.status_code == 405, path
        assert set(refused.headers["allow"].split(", ")) == expected, path
        options = gateway.http.options(path)
        assert (options.status_code, options.content) == (204, b""), path
        assert options.headers["allow"] == refused.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/collections/", "/v1/segment/", "/healthz/", "/static", "/docs/"])
def test_a_slash_too_many_is_not_redirected(gateway: Running, path: str) -> None:
    response = gateway.http.get(path, headers={"Host": "elsewhere"}, follow_redirects=False)
    assert response.status_code == 404
    assert "location" not in response.headers


def test_an_unknown_path_has_no_options(gateway: Running) -> None:
    assert gateway.http.options("/nowhere").status_code == 404


def test_heads_are_counted_as_such(gateway: Running) -> None:
    httpx.head(f"{gateway.url}/v1/models")
    found = gateway.http.get("/metrics").text
    assert 'regionsearch_http_requests_total{method="HEAD",route="/v1/models",status="200"}' in found


@pytest.mark.parametrize("wanted", ["bytes=0-1", "bytes=5-1", "lines=1", "bytes=" + "0-0," * 2000 + "0-0"])
def test_ranges_are_not_served_and_change_nothing(gateway: Running, wanted: str) -> None:
    for path in ("/", "/static/index.html"):
        answer = gateway.http.get(path, headers={"Range": wanted})
        assert answer.status_code == 200
        assert answer.content == gateway.http.get(path).content
