"""Keys, scopes, rates and addresses by themselves."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.access import Access, scopes_of
from gateway.rights import Rights, Scope
from gateway.server import _warn_if_open
from gateway.settings import GatewaySettings
from regionsearch.errors import Kind, RegionSearchError


@pytest.mark.parametrize(
    ("key", "scopes"),
    [
        ("read:x", {Scope.SEARCH}),
        ("write:x", {Scope.SEARCH, Scope.WRITE, Scope.DELETE}),
        ("x", set(Scope)),
        ("admin:x", set(Scope)),
    ],
)
def test_the_prefix_of_a_key_is_its_scope(key: str, scopes: set[Scope]) -> None:
    assert scopes_of(key) == scopes


def test_a_declared_key_has_the_scopes_that_it_is_given() -> None:
    keys = [{"key": "camera", "scopes": ["write"]}, {"key": "boss", "scopes": ["admin"]}]
    gate = Access(GatewaySettings(keys=keys, api_keys="read:r"))
    for key, allowed in (
        ("camera", {Scope.WRITE}),
        ("boss", set(Scope)),
        ("read:r", {Scope.SEARCH}),
    ):
        for scope in Scope:
            if scope in allowed:
                gate.check(scope, None, key, "here")
                continue
            with pytest.raises(RegionSearchError, match=f"with the scope {scope};") as caught:
                gate.check(scope, None, key, "here")
            assert caught.value.kind is Kind.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('[{"key": "a", "scopes": []}]', "scopes"),
        ('[{"key": "a", "scopes": ["fly"]}]', "scopes"),
        ('[{"key": "a b", "scopes": ["search"]}]', "header"),
        ('[{"key": "read:r", "scopes": ["search"]}]', "twice"),
        ('[{"key": "a", "scopes": ["search"], "collection": "b"}]', "collection"),
    ],
)
def test_a_wrong_declaration_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, keys: str, problem: str
) -> None:
    monkeypatch.setenv("REGIONSEARCH_GATEWAY_KEYS", keys)
    monkeypatch.setenv("REGIONSEARCH_GATEWAY_API_KEYS", "read:r")
    with pytest.raises(ValueError, match=problem):
        GatewaySettings()


def test_a_key_is_limited_to_its_collections_whatever_becomes_of_them() -> None:
    limited = Rights(collections=frozenset({"a", "default"}))
    assert [
        name for name in ("a", "", "a--next", "a--previous", "b", "ab", "b--next") if limited.show(name)
    ] == [
        "a",
        "",
        "a--next",
        "a--previous",
    ]
    assert Rights().show("anything")


def test_a_prefix_cannot_be_added_or_taken_away() -> None:
    gate = Access(GatewaySettings(api_keys="read:secret,write:other"))
    for forged in ("secret", "write:secret", "admin:secret", "other", "read:other", "", "Bearer"):
        with pytest.raises(RegionSearchError) as caught:
            gate.check(Scope.SEARCH, f"Bearer {forged}", None, "here")
        assert caught.value.kind is Kind.UNAUTHENTICATED
    gate.check(Scope.WRITE, None, "write:other", "here")


def test_without_keys_everything_is_open() -> None:
    Access(GatewaySettings()).check(Scope.ADMIN, None, None, "here")


def ask(gate: Access, times: int, address: str, key: str | None = None) -> int:
    """How many of so many requests are let through."""
    passed = 0
    for _ in range(times):
        try:
            gate.check(Scope.SEARCH, None, key, address)
            passed += 1
        except RegionSearchError as error:
            assert error.kind is Kind.OVERLOADED and error.retry_after_s  # noqa: PT017
    return passed


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.auth.time.monotonic", lambda: 0.0)


def test_callers_without_keys_have_a_rate_by_default_each_their_own(still: None) -> None:
    gate = Access(GatewaySettings())
    assert ask(gate, 2500, "10.0.0.1") == 2000
    assert ask(gate, 10, "10.0.0.2") == 10
    assert ask(Access(GatewaySettings(limits={"anonymous_requests_per_s": 0})), 2500, "a") == 2500
    limits = {"requests_per_s": 1, "requests_burst": 5}
    assert ask(Access(GatewaySettings(limits=limits)), 10, "a") == 5


def test_keys_have_a_rate_only_where_it_is_set(still: None) -> None:
    gate = Access(GatewaySettings(api_keys="secret"))
    assert ask(gate, 2500, "10.0.0.1", "secret") == 2500
    limits = {"requests_per_s": 1, "requests_burst": 5}
    assert ask(Access(GatewaySettings(api_keys="secret", limits=limits)), 10, "a", "secret") == 5


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # says so itself
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # what came before may be made up
        ("10.0.0.1", "198.51.100.1, 10.2.2.2", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "nonsense, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
    ],
)
def test_forwarded_addresses_of_untrusted_proxies_are_ignored(
    peer: str, forwarded: str, address: str
) -> None:
    gate = Access(GatewaySettings(trusted_proxies="10.0.0.0/8, fd00::/8"))
    assert gate.address(peer, forwarded) == address
    assert Access(GatewaySettings()).address(peer, forwarded) == peer


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"http_host": "::"}, True),
        ({"host": "192.168.1.5"}, True),
        ({"host": "0.0.0.0", "api_keys": "secret"}, False),
    ],
    ids=str,
)
def test_a_gateway_that_is_open_to_others_says_so(
    settings: dict[str, Any], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Log:
        def warning(self, event: str, **_: object) -> None:
            said.append(event)

    monkeypatch.setattr("gateway.server._log", Log())
    _warn_if_open(GatewaySettings(**settings))
    assert bool(said) is warned
