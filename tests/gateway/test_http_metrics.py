"""What a caller sends does not decide how many series there are."""

from __future__ import annotations

import httpx
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse

from gateway.access import Access
from gateway.http.middleware import RequestContext
from gateway.settings import GatewaySettings


def methods() -> set[str]:
    return {
        sample.labels["method"]
        for family in REGISTRY.collect()
        if family.name == "regionsearch_http_requests"
        for sample in family.samples
    }


async def test_invented_methods_share_one_series() -> None:
    app = RequestContext(PlainTextResponse("ok"), Access(GatewaySettings()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        await http.get("/")
        before = methods()
        for number in range(5):
            await http.request(f"INVENTED{number}", "/")
    assert "GET" in before
    assert methods() - before <= {"other"}
