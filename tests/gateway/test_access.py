"""Keys, scopes and rates by themselves."""

from __future__ import annotations

import pytest

from gateway import access
from gateway.access import Access, RateLimit, Scope, scope_of
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError


@pytest.mark.parametrize(
    ("key", "scope"),
    [("read:x", Scope.READ), ("write:x", Scope.WRITE), ("x", Scope.ADMIN), ("admin:x", Scope.ADMIN)],
)
def test_the_prefix_of_a_key_is_its_scope(key: str, scope: Scope) -> None:
    assert scope_of(key) is scope


def test_a_prefix_cannot_be_added_or_taken_away() -> None:
    gate = Access(GatewaySettings(api_keys="read:secret,write:other"))
    for forged in ("secret", "write:secret", "admin:secret", "other", "read:other", "", "Bearer"):
        with pytest.raises(RegionSearchError) as caught:
            gate.check(Scope.READ, f"Bearer {forged}", None, "here")
        assert caught.value.kind is Kind.UNAUTHENTICATED
    gate.check(Scope.WRITE, None, "write:other", "here")


def test_without_keys_everything_is_open() -> None:
    Access(GatewaySettings()).check(Scope.ADMIN, None, None, "here")


def test_a_bucket_fills_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
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


def test_buckets_of_silent_callers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MAX_CALLERS", 10)
    rate = RateLimit(rate=0.001, burst=1)
    for number in range(50):
        rate.take(str(number))
    with pytest.raises(RegionSearchError):
        rate.take("49")
    rate.take("0")
