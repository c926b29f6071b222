"""Forms that ask for much work before a limit."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import structlog

from tests.gateway.conftest import RED, GatewayProcess, Running, scene
from tests.hostile.measuring import MIB, SLOWEST_HEALTH_S, SPARE_BYTES, HealthProbe, forget_peak, peak_bytes

WITHIN = "/v1/search-within"
SEGMENT = "/v1/segment"
IMAGES = "/v1/collections/default/images"
IMAGE = ("image", scene(RED))


def form(*fields: tuple[str, bytes], charset: str = "") -> tuple[dict[str, str], bytes]:
    body = bytearray()
    for name, value in fields:
        file = '; filename="a.png"' if name in ("image", "files") else ""
        body += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += value + b"\r\n"
    return {"content-type": f"multipart/form-data; boundary=x{charset}"}, bytes(body) + b"--x--\r\n"


FORMS: dict[str, tuple[str, Callable[[], tuple[dict[str, str], bytes]]]] = {
    "a thousand phrases": (WITHIN, lambda: form(IMAGE, *[("texts", b"a")] * 999)),
    "more fields than a form may have": (WITHIN, lambda: form(IMAGE, *[("texts", b"a")] * 50_000)),
    "fields that are too much together": (WITHIN, lambda: form(IMAGE, *[("texts", b"a" * 900_000)] * 30)),
    "unknown fields": (WITHIN, lambda: form(IMAGE, *((f"f{i}", b"a") for i in range(900)))),
    "a list of numbers for points": (SEGMENT, lambda: form(IMAGE, ("points", b"[" + b"0," * 49_000 + b"0]"))),
    "empty lists for points": (SEGMENT, lambda: form(IMAGE, ("points", b"[" + b"[]," * 300_000 + b"0]"))),
    "nested lists for a box": (SEGMENT, lambda: form(IMAGE, ("box", b"[" * 900_000))),
    "an image in points": (
        SEGMENT,
        lambda: form(IMAGE, ("points", b'[{"image":"' + b"A" * 900_000 + b'"}]')),
    ),
    "many attributes": (
        IMAGES,
        lambda: form(
            ("files", scene(RED)), ("attributes", b'{"a":"' + b'","a":"'.join([b"b"] * 90_000) + b'"}')
        ),
    ),
    "an unknown field of an upload": (IMAGES, lambda: form(("files", scene(RED)), ("tag", b"a"))),
    "many unknown fields of an upload": (
        IMAGES,
        lambda: form(("files", scene(RED)), *((f"f{i}", b"a" * 100) for i in range(900))),
    ),
    "fields of an upload that are too much together": (
        IMAGES,
        lambda: form(("files", scene(RED)), *[("tags", b"a" * 900_000)] * 30),
    ),
    "text whose characters take quadratic time": (
        WITHIN,
        lambda: form(IMAGE, ("text", b"a" * 900_000), charset="; charset=punycode"),
    ),
    "an upload that is not multipart": (
        IMAGES,
        lambda: ({"content-type": "application/x-www-form-urlencoded"}, b"a=b&" * (4 * MIB)),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_hostile_form_is_refused_while_others_are_answered(process: GatewayProcess, name: str) -> None:
    path, make = FORMS[name]
    headers, body = make()
    before = forget_peak(process.process.pid)
    with HealthProbe(process.url, process.process.pid) as probe:
        response = httpx.post(f"{process.url}{path}", content=body, headers=headers, timeout=60)
    assert response.status_code in (400, 413), response.text[:300]
    assert len(response.content) < 2_000
    assert probe.slowest_s < SLOWEST_HEALTH_S
    assert peak_bytes(process.process.pid) - before < 3 * len(body) + SPARE_BYTES


@pytest.mark.parametrize(
    ("code", "status", "kind"), [(errno.ENOSPC, 507, "STORAGE_FULL"), (errno.EMFILE, 503, "UNAVAILABLE")]
)
@pytest.mark.parametrize("path", [IMAGES, WITHIN])
def test_no_room_for_temporary_files_is_not_an_unexpected_error(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, path: str, code: int, status: int, kind: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(code, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    headers, body = form(("files" if path == IMAGES else "image", bytes(2 * MIB)))
    with structlog.testing.capture_logs() as logs:
        response = gateway.http.post(path, content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, kind)
    assert int(response.headers["retry-after"]) >= 1
    assert not any("exc_info" in line for line in logs)
