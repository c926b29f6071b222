"""The world of the gateway's tests, and a gateway in a process of its own."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import pytest

from tests.gateway.conftest import (
    RED,
    GatewayProcess,
    World,
    collection,
    filled,
    gateway,
    scene,
    script,
    shared_gateway,
    world,
)

__all__ = ["collection", "filled", "gateway", "script", "shared_gateway", "world"]


@pytest.fixture(scope="session")
def process(world: World) -> Iterator[GatewayProcess]:
    """A gateway whose memory is its own, and has answered before."""
    with GatewayProcess(world.settings()) as process:
        warmup = {"query": {"image": base64.b64encode(scene(RED)).decode()}}
        httpx.post(f"{process.url}/v1/collections/default/search", json=warmup, timeout=60)
        yield process
