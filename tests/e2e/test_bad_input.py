"""What people really send. Every answer is right or says clearly what is wrong; nothing is half-written."""

from __future__ import annotations

import io
from collections.abc import Callable

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import region_search_pb2, region_search_pb2_grpc, types_pb2
from tests.e2e.scenes import held_out_scenes
from tests.stack import Stack

COLLECTION = "bad-input"


@pytest.fixture(scope="module")
def http(stack: Stack) -> httpx.Client:
    client = httpx.Client(base_url=stack.http, timeout=120)
    client.post("/v1/collections", json={"name": COLLECTION})
    return client


def send(http: httpx.Client, data: bytes, name: str = "image.jpg") -> httpx.Response:
    return http.post(f"/v1/collections/{COLLECTION}/images", files=[("files", (name, data))])


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def scene_image() -> Image.Image:
    return Image.open(io.BytesIO(held_out_scenes(1)[0].data)).convert("RGB")


def truncated() -> bytes:
    data = saved(scene_image(), "JPEG")
    return data[: len(data) // 2]


def bomb() -> bytes:
    return saved(Image.new("1", (20_000, 20_000)), "PNG")


@pytest.mark.parametrize(
    "make",
    [lambda: b"", lambda: b"just some words", truncated, bomb],
    ids=["empty", "text", "truncated", "bomb"],
)
def test_refused_by_name_and_nothing_is_stored(http: httpx.Client, make: Callable[[], bytes]) -> None:
    before = http.get(f"/v1/collections/{COLLECTION}").json()
    response = send(http, make(), "broken.jpg")
    if response.status_code < 300:
        (result,) = response.json()["results"]
        assert result["outcome"] == "failed"
        assert result["error"]
    else:
        assert response.headers["content-type"].startswith("application/problem+json")
        assert response.status_code in (400, 413, 415)
    assert http.get(f"/v1/collections/{COLLECTION}").json() == before


def sixteen_bit() -> bytes:
    grey = np.asarray(scene_image().convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(grey), "PNG")


def transparent_palette() -> bytes:
    return saved(scene_image().quantize(64), "PNG", transparency=0)


def animation() -> bytes:
    frames = [scene_image().resize((96, 96)), Image.new("RGB", (96, 96), "red")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved(Image.new("RGB", (1, 1), "red"), "PNG"),
        lambda: saved(scene_image().convert("CMYK"), "JPEG"),
        sixteen_bit,
        transparent_palette,
        animation,
        lambda: saved(scene_image().resize((600, 30)), "PNG"),
        lambda: saved(Image.new("RGB", (64, 64), "white"), "PNG"),
    ],
    ids=["1x1", "cmyk", "16 bit", "palette", "gif", "extreme aspect", "one colour"],
)
def test_unusual_images_are_taken(http: httpx.Client, make: Callable[[], bytes]) -> None:
    data = make()
    (result,) = send(http, data, "unusual").json()["results"]
    assert result["outcome"] in ("created", "duplicate"), result
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
    stored = http.get(f"/v1/collections/{COLLECTION}/images/{result['image_id']}").json()
    assert (stored["width"], stored["height"]) == size


def test_one_bad_file_fails_alone(http: httpx.Client) -> None:
    good = saved(scene_image().resize((200, 150)), "PNG")
    files = [("files", ("a.txt", b"not an image")), ("files", ("b.png", good))]
    results = http.post(f"/v1/collections/{COLLECTION}/images", files=files).json()["results"]
    assert [result["outcome"] for result in results] == ["failed", "created"]


def test_a_rotated_phone_image_fits_what_the_viewer_shows(http: httpx.Client) -> None:
    """The same scene, stored sideways with an EXIF note: regions must come out the same."""
    upright = scene_image().resize((320, 200))
    exif = Image.Exif()
    exif[274] = 6  # the viewer turns it clockwise
    sideways = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    regions = []
    for data in (saved(upright, "PNG"), sideways):
        image_id = send(http, data).json()["results"][0]["image_id"]
        image = http.get(f"/v1/collections/{COLLECTION}/images/{image_id}").json()
        assert (image["width"], image["height"]) == (320, 200)
        answer = http.get(f"/v1/collections/{COLLECTION}/images/{image_id}/regions").json()["regions"]
        regions.append([region["box"] for region in answer])
    assert regions[0]
    assert regions[0] == regions[1]


@pytest.mark.parametrize(
    "name", ["../../evil.html", "/etc/passwd", "..\\..\\x.py", "a\0b.png", "CON", "x" * 5000]
)
def test_file_names_are_only_names(http: httpx.Client, stack: Stack, name: str) -> None:
    data = saved(Image.new("RGB", (40, 40), (len(name) % 255, 7, 7)), "PNG")
    before = {path for path in stack.folder.rglob("*") if path.is_file()}
    response = send(http, data, name)
    assert response.status_code < 500
    new = {path for path in stack.folder.rglob("*") if path.is_file()} - before
    for path in new:
        assert "evil" not in path.name
        assert "passwd" not in path.name


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/collections/nowhere"),
        ("GET", "/v1/collections/nowhere/images"),
        ("GET", f"/v1/collections/{COLLECTION}/images/{'0' * 64}"),
        ("GET", f"/v1/collections/{COLLECTION}/images/..%2f..%2fetc%2fpasswd"),
        ("GET", f"/v1/collections/{COLLECTION}/images/{'0' * 64}/content"),
        ("GET", f"/v1/collections/{COLLECTION}/images/{'0' * 64}/regions/nothing/mask.png"),
        ("DELETE", f"/v1/collections/{COLLECTION}/images/{'0' * 64}"),
        ("DELETE", "/v1/collections/nowhere"),
    ],
)
def test_what_does_not_exist_is_not_found(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert response.status_code in (400, 404)
    assert response.headers["content-type"].startswith("application/problem+json")
    assert response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": {}},
        {"query": {"text": ""}},
        {"query": {"text": "   "}},
        {"query": {"image": "%%%"}},
        {"query": {"image": "AAAA"}},
        {"query": {"region_id": "nothing"}},
        {"query": {"image_id": "0" * 64}},
        {"query": {"text": "a"}, "page_size": -1},
        {"query": {"text": "a"}, "page_token": "made up"},
        {"query": {"text": "a"}, "level": "universe"},
        {"query": {"text": "a"}, "min_score": "NaN"},
        {"query": {"text": "a"}, "filter": {"min_area": "big"}},
    ],
)
def test_a_bad_search_names_the_field(http: httpx.Client, body: dict) -> None:
    response = http.post(f"/v1/collections/{COLLECTION}/search", json=body)
    assert response.status_code in (400, 404, 415, 422), response.text
    assert response.headers["content-type"].startswith("application/problem+json")
    assert response.json()["detail"]


@pytest.mark.parametrize("page_size", [0, 10**9])
def test_page_sizes_beyond_the_limits(http: httpx.Client, page_size: int) -> None:
    """0 means the default, too many means the most that is allowed; or a clear error."""
    response = http.post(
        f"/v1/collections/{COLLECTION}/search", json={"query": {"text": "a"}, "page_size": page_size}
    )
    assert response.status_code in (200, 400, 422)
    if response.status_code == 200:
        assert len(response.json()["hits"]) <= 1000


def test_long_texts_are_cut_and_the_answer_says_so(http: httpx.Client, stack: Stack) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        answer = region_search_pb2_grpc.RegionSearchServiceStub(channel).Search(
            region_search_pb2.RegionSearchServiceSearchRequest(
                collection=COLLECTION, query=region_search_pb2.Query(texts=["guitar " * 200])
            ),
            timeout=120,
        )
    assert list(answer.truncated) == [True]


def test_grpc_errors_are_typed(stack: Stack, http: httpx.Client) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        stub = region_search_pb2_grpc.RegionSearchServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.IngestImage(
                region_search_pb2.IngestImageRequest(
                    collection=COLLECTION, image=types_pb2.Image(encoded=b"not an image")
                ),
                timeout=120,
            )
        error = from_rpc_error(caught.value)
        assert error.kind is Kind.UNSUPPORTED_IMAGE
        assert error.field is not None
        assert error.field.startswith("image")
