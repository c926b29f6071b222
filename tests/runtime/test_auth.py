"""Keys: how they are sent, and what wrong ones lead to."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.v1 import embed_pb2
from services.runtime import auth
from services.runtime.auth import ApiKeys, RateLimit
from tests.runtime.conftest import EchoSettings, echo_server


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER  secret ", "secret"])
def test_the_scheme_of_a_key_may_be_written_in_any_case(header: str) -> None:
    assert ApiKeys(["other", "secret"]).check(header) == "secret"
    assert ApiKeys(["secret"]).check("Basic x", "secret") == "secret"


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer other", "Basic secret", "Bearer secret secret", "", None]
)
def test_other_keys_are_unknown_or_missing(header: str | None) -> None:
    with pytest.raises(RegionSearchError) as caught:
        ApiKeys(["secret"]).check(header)
    assert caught.value.kind is Kind.UNAUTHENTICATED


@pytest.mark.parametrize("keys", ["schlüssel", "a b", "good,ключ", "tab\tkey"])
def test_an_api_key_that_a_header_cannot_carry_is_refused_at_startup(keys: str) -> None:
    with pytest.raises(ValidationError, match="a header cannot carry") as caught:
        EchoSettings(api_keys=keys)
    for key in keys.split(","):
        assert f"key {key}" not in str(caught.value), "secrets are not repeated"


class Log:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})


def failures(reason: str) -> float:
    return REGISTRY.get_sample_value("regionsearch_auth_failures_total", {"reason": reason}) or 0.0


def test_wrong_keys_are_counted_logged_and_limited_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(auth, "_log", log)
    monkeypatch.setattr(auth.time, "monotonic", lambda: 0.0)
    keys = ApiKeys(["secret"])
    before = failures("unknown")
    kinds = []
    for number in range(100):
        with pytest.raises(RegionSearchError) as caught:
            keys.check(f"Bearer guess{number}", address="10.0.0.1")
        kinds.append(caught.value.kind)
    assert kinds == [Kind.UNAUTHENTICATED] * 20 + [Kind.OVERLOADED] * 80
    assert failures("unknown") - before == 100
    assert len(log.lines) == 20, "whoever guesses must not fill the log"
    assert {line["address"] for line in log.lines} == {"10.0.0.1"}
    assert "guess" not in str(log.lines), "a wrong key may be a right one elsewhere"
    with pytest.raises(RegionSearchError) as caught:
        keys.check("Bearer guess", address="10.0.0.2")
    assert caught.value.kind is Kind.UNAUTHENTICATED
    assert keys.check("Bearer secret", address="10.0.0.1") == "secret", "others there are not locked out"


async def test_wrong_keys_are_limited_over_grpc_too() -> None:
    async with echo_server(api_keys=("right",)) as (_, stub, _):
        kinds = set()
        for _ in range(30):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.EmbedTexts(embed_pb2.EmbedTextsRequest(), metadata=(("x-api-key", "wrong"),))
            kinds.add(from_rpc_error(caught.value).kind)
        assert kinds == {Kind.UNAUTHENTICATED, Kind.OVERLOADED}
        await stub.EmbedTexts(embed_pb2.EmbedTextsRequest(), metadata=(("authorization", "bearer right"),))


def test_a_rate_limit_bucket_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    rate = RateLimit(rate=2.0, burst=3)
    for _ in range(3):
        rate.take("a")
    with pytest.raises(RegionSearchError) as caught:
        rate.take("a")
    assert caught.value.kind is Kind.OVERLOADED
    assert caught.value.retry_after_s == pytest.approx(0.5)
    rate.take("b")
    now = 0.5
    rate.take("a")
    now = 1000.0
    for _ in range(3):
        rate.take("a")
    with pytest.raises(RegionSearchError):
        rate.take("a")


def test_rate_limit_buckets_of_idle_callers_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_CALLERS", 10)
    rate = RateLimit(rate=0.001, burst=1)
    for number in range(50):
        rate.take(str(number))
    with pytest.raises(RegionSearchError):
        rate.take("49")
    rate.take("0")
