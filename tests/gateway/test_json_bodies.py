"""JSON bodies are read as the json module reads them, but for their images, and within bounds."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.json_bodies import parse_json
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.schemas.requests import values as body_values
from regionsearch.schemas.requests.values import decode_base64
from tests.gateway.conftest import RED, Running, scene

FILE = scene(RED)
ENCODED = base64.b64encode(FILE).decode()

names = st.sampled_from(["image", "images", "image_id", "text", 'an "image', "\\"]) | st.text(max_size=5)
texts = st.text(max_size=20) | st.sampled_from(["image", '"image":"', '\\"image\\":', "images"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=5),
    max_leaves=20,
)


def plain(value: Any) -> Any:
    """The same with the text of every image."""
    if isinstance(value, memoryview):
        return json.loads(b'"' + bytes(value) + b'"')
    if isinstance(value, list):
        return [plain(one) for one in value]
    return {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value


@settings(max_examples=150, deadline=None)
@given(values, st.sampled_from([None, 1]), st.booleans())
def test_a_document_is_read_as_by_the_json_module(value: Any, indent: int | None, ascii_only: bool) -> None:
    document = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert plain(parse_json(document)) == value


@settings(max_examples=150, deadline=None)
@given(st.text('{}[]:,"\\imagesu0 \n', max_size=40))
def test_what_is_not_json_is_refused_as_by_the_json_module(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(RegionSearchError):
            parse_json(text.encode())
    else:
        assert plain(parse_json(text.encode())) == expected


def test_images_are_left_as_they_were_sent() -> None:
    found = parse_json(json.dumps({"image": ENCODED, "x": [{"images": [ENCODED, "QQ=="]}]}).encode())
    assert isinstance(found["image"], memoryview)
    assert decode_base64(found["image"]) == FILE
    assert [decode_base64(one) for one in found["x"][0]["images"]] == [FILE, b"A"]


WRITTEN = {
    "plain": ENCODED,
    "lines": base64.encodebytes(FILE).decode(),
    "lines of Windows": base64.encodebytes(FILE).decode().replace("\n", "\r\n"),
    "spaces": f"  {ENCODED}\n",
    "data address": f"data:image/png;base64,{ENCODED}",  # whose prefix is within the first slice
}


@pytest.mark.parametrize(
    ("slice_bytes", "kind"),
    [
        (slice_bytes, kind)
        for slice_bytes in (7, 600, 1 << 20)
        for kind in WRITTEN
        if slice_bytes > 7 or kind != "data address"
    ],
)
@pytest.mark.parametrize("escape", ["none", "slashes", "all"])
def test_base64_as_clients_write_it(
    monkeypatch: pytest.MonkeyPatch, kind: str, slice_bytes: int, escape: str
) -> None:
    text = WRITTEN[kind]
    monkeypatch.setattr(body_values, "_SLICE", slice_bytes)
    written = json.dumps(text)
    if escape == "slashes":
        written = written.replace("/", "\\/")
    elif escape == "all":
        written = '"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"'
    found = parse_json(f'{{"image": {written}}}'.encode())
    assert decode_base64(found["image"]) == FILE


@pytest.mark.parametrize("slice_bytes", [4, 1 << 20])
@pytest.mark.parametrize("text", ["Q", "QQ", "QQ=", "QQ==QQ==", "QUJD=", "QQ==\\u00e9", "é", "\\q", "Q-_="])
def test_what_is_not_base64_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, slice_bytes: int) -> None:
    monkeypatch.setattr(body_values, "_SLICE", slice_bytes)
    with pytest.raises(ValueError, match=r"\w"):
        decode_base64(text.encode())


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (b'{"a":1,"a":2}', Kind.INVALID_ARGUMENT),
        (b'{"a":NaN}', Kind.INVALID_ARGUMENT),
        (b'{"a":-Infinity}', Kind.INVALID_ARGUMENT),
        (b'{"\\ud800":1}', Kind.INVALID_ARGUMENT),
        (b'{"' + b"a" * 5000 + b'":1}', Kind.INVALID_ARGUMENT),
        (b"[" * 40_000, Kind.INVALID_ARGUMENT),
        (b"[" + b"0," * 50_000 + b"0]", Kind.TOO_LARGE),
        (b'"' + b"a" * (1 << 20) + b'"', Kind.TOO_LARGE),
        (b"{" + b",".join(b'"%d":0' % i for i in range(257)) + b"}", Kind.TOO_LARGE),
    ],
)
def test_bounds_of_a_document(document: bytes, kind: Kind) -> None:
    with pytest.raises(RegionSearchError) as caught:
        parse_json(document, "points")
    assert (caught.value.kind, caught.value.field) == (kind, "points")


@pytest.mark.parametrize("text", [base64.encodebytes(FILE).decode(), f"data:image/png;base64,{ENCODED}"])
def test_an_image_in_json_may_have_line_breaks(gateway: Running, text: str) -> None:
    response = gateway.http.post("/v1/segment", json={"image": text, "everything": True})
    assert response.status_code == 200, response.text
    images = gateway.http.post("/v1/embeddings", json={"images": [text, ENCODED]})
    assert len(images.json()["vectors"]) == 2


def test_the_place_of_a_wrong_image_is_named(gateway: Running) -> None:
    response = gateway.http.post("/v1/embeddings", json={"images": [ENCODED, "no base64!"]})
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "/images/1"
