"""Bodies that ask for much work before a limit: refused at once, in little memory, while others are answered.

The gateway runs in a process of its own, whose peak memory is the kernel's word for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx
import pytest

from tests.gateway.conftest import GatewayProcess
from tests.hostile.measuring import MIB, SLOWEST_HEALTH_S, SPARE_BYTES, HealthProbe, forget_peak, peak_bytes

SEARCH = "/v1/collections/default/search"


def list_of(item: bytes, size: int) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def inside(template: bytes, item: bytes, size: int) -> bytes:
    return template.replace(b"?", list_of(item, size))


def members(size: int) -> bytes:
    names = (b'"%x":0' % number for number in range(size // 10))
    return b"{" + b",".join(names) + b"}"


BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "tags that are numbers": (
        SEARCH,
        lambda: inside(b'{"query":{"text":"a"},"filter":{"tags":?}}', b"0", 4 * MIB),
    ),
    "negatives that are empty": (
        SEARCH,
        lambda: inside(b'{"query":{"text":"a"},"negatives":?}', b"{}", 4 * MIB),
    ),
    "wrong tags within the cap": (
        SEARCH,
        lambda: inside(b'{"query":{"text":"a"},"filter":{"tags":?}}', b"0", 95_000),
    ),
    "wrong negatives within the cap": (
        SEARCH,
        lambda: inside(b'{"query":{"text":"a"},"negatives":?}', b"{}", 70_000),
    ),
    "too many phrases": (SEARCH, lambda: inside(b'{"query":{"texts":?}}', b'"a"', 16 * MIB)),
    "too many ids": (
        SEARCH,
        lambda: inside(b'{"query":{"text":"a"},"filter":{"image_ids":?}}', b'"a"', 190_000),
    ),
    "too many points": (
        "/v1/segment",
        lambda: inside(b'{"image_id":"a","points":?}', b'{"x":1,"y":1}', 220_000),
    ),
    "empty lists": (SEARCH, lambda: inside(b'{"x":?}', b"[]", 30 * MIB)),
    "a megabyte of empty lists": (SEARCH, lambda: inside(b'{"x":?}', b"[]", MIB - 100)),
    "unknown names": (SEARCH, lambda: members(MIB)),
    "unknown names in a filter": (
        SEARCH,
        lambda: b'{"query":{"text":"a"},"filter":' + members(MIB // 2) + b"}",
    ),
    "attributes": (
        SEARCH,
        lambda: b'{"query":{"text":"a"},"filter":{"attributes":' + members(MIB // 2) + b"}}",
    ),
    "nested lists": (SEARCH, lambda: b"[" * (30 * MIB)),
    "an endless text": (SEARCH, lambda: b'{"query":{"text":"' + b"a" * (30 * MIB) + b'"}}'),
    "an endless text with one wide character": (
        SEARCH,
        lambda: b'{"query":{"text":"' + b"a" * (30 * MIB) + "😀".encode() + b'"}}',
    ),
    "an image of escapes": (
        SEARCH,
        lambda: b'{"query":{"image":"' + b"\\u0041" * (5 * MIB) + b'"}}',
    ),
    "an image of quotes": (SEARCH, lambda: b'{"query":{"image":"' + b'\\"' * (15 * MIB) + b'"}}'),
    "an image of wide characters": (
        SEARCH,
        lambda: b'{"query":{"image":"' + "😀".encode() * (7 * MIB) + b'"}}',
    ),
    "an image of spaces": (SEARCH, lambda: b'{"query":{"image":"' + b" " * (30 * MIB) + b'"}}'),
    "a million small images": (SEARCH, lambda: inside(b'{"negatives":?}', b'{"image":"QUJD"}', 16 * MIB)),
    "a list of a million small images": (
        "/v1/embeddings",
        lambda: inside(b'{"images":?}', b'"QUJD"', 8 * MIB),
    ),
    "names that look like images": (SEARCH, lambda: inside(b'{"x":?}', b'"image"', 16 * MIB)),
    "a number of a million digits": (SEARCH, lambda: b'{"page_size":' + b"9" * (MIB - 100) + b"}"),
}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_while_others_are_answered(process: GatewayProcess, name: str) -> None:
    path, make = BODIES[name]
    body = make()
    before = forget_peak(process.process.pid)
    with HealthProbe(process.url, process.process.pid) as probe:
        response = httpx.post(
            f"{process.url}{path}", content=body, headers={"content-type": "application/json"}, timeout=60
        )
    assert response.status_code in (400, 413, 415), response.text[:300]
    assert len(response.content) < 2_000
    assert probe.slowest_s < SLOWEST_HEALTH_S
    grown = peak_bytes(process.process.pid) - before
    assert grown < 3 * len(body) + SPARE_BYTES


def test_as_many_points_as_a_body_may_have_leave_others_their_answers(process: GatewayProcess) -> None:
    prompt = b'{"points":' + list_of(b'{"x":1,"y":1}', 14 * 15) + b"}"
    body = b'{"image_id":"a","prompts":' + list_of(prompt, 1000 * (len(prompt) + 1)) + b"}"
    with HealthProbe(process.url, process.process.pid) as probe:
        response = httpx.post(
            f"{process.url}/v1/segment",
            content=body,
            headers={"content-type": "application/json"},
            timeout=60,
        )
    assert response.status_code == 404, response.text[:300]  # it is right, but there is no such image
    assert probe.slowest_s < SLOWEST_HEALTH_S
