"""Proxies of the environment: for the world outside, never before this machine or between our processes."""

from __future__ import annotations

import asyncio
import importlib.util
import socket

import pytest
from typer.testing import CliRunner

from regionsearch import AsyncClient, Client
from regionsearch.cli import app
from regionsearch.cli.terminal import console
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.proxies import environment_proxy, is_this_machine
from regionsearch.rpc.channels import ChannelConfig, channel_options
from tests.client.fakes import FakeGateway
from tests.stack import free_port

DEAD = "http://user:secret@127.0.0.1:9"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy")
REMOTE = "http://gateway.example.org:8000"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxies, and nothing that is exempt from them."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.fixture(params=["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy", "https_proxy"])
def variable(request: pytest.FixtureRequest, environment: pytest.MonkeyPatch) -> str:
    """A variable that names a proxy which does not answer."""
    environment.setenv(request.param, DEAD)
    return str(request.param)


def test_a_gateway_on_this_machine_is_reached_without_the_proxy(url: str, variable: str) -> None:
    with Client(url, retries=0) as client:
        assert len(client.search("mug")) == 1

    async def search() -> int:
        async with AsyncClient(url, retries=0) as client:
            return len(await client.search("mug"))

    assert asyncio.run(search()) == 1


@pytest.mark.parametrize("named", ["socks://127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_proxy_of_any_kind_does_not_matter_to_this_machine(
    url: str, named: str, environment: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES[:-1]:
        environment.setenv(name, named)
    with Client(url, retries=0) as client:
        assert len(client.search("mug")) == 1


def test_the_command_line_reaches_this_machine_too(gateway: FakeGateway, variable: str) -> None:
    result = CliRunner().invoke(app, ["doctor"], env={"REGIONSEARCH_URL": gateway.http, "COLUMNS": "200"})
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("app.localhost", True), ("127.8.9.1", True),
        ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", True), (socket.gethostname(), True),
        ("203.0.113.7", False), ("2001:db8::1", False), ("gateway.example.org", False), ("", False),
        ("notlocalhost", False), ("localhost.example.org", False),
    ],
)  # fmt: skip
def test_what_this_machine_is(host: str, expected: bool) -> None:
    assert is_this_machine(host) is expected


def test_a_remote_gateway_is_reached_through_the_proxy(environment: pytest.MonkeyPatch) -> None:
    assert environment_proxy(REMOTE) is None
    environment.setenv("HTTP_PROXY", "proxy.example.org:3128")
    for url in (REMOTE, "grpc://gateway.example.org:50050"):
        proxy = environment_proxy(url)
        assert (proxy.url, proxy.variable) == ("http://proxy.example.org:3128", "HTTP_PROXY")  # type: ignore[union-attr]
    assert environment_proxy("https://gateway.example.org") is None
    environment.setenv("NO_PROXY", "example.org")
    assert environment_proxy(REMOTE) is None


@pytest.mark.parametrize("url", [REMOTE, "grpc://gateway.example.org:50050"])
def test_a_proxy_that_fails_is_named_without_its_password(url: str, environment: pytest.MonkeyPatch) -> None:
    port = free_port()
    environment.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    with Client(url, retries=0) as client, pytest.raises(RegionSearchError) as caught:
        client.search("mug")
    assert caught.value.kind is Kind.UNAVAILABLE
    assert f"proxy http://127.0.0.1:{port} (http_proxy)" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_refusal_of_the_proxy_names_it(gateway: FakeGateway, environment: pytest.MonkeyPatch) -> None:
    gateway.failures = [RegionSearchError(Kind.UNAVAILABLE, "")]
    environment.setattr("tests.client.fakes.problem", lambda error: b"<html>Bad Gateway</html>")
    environment.setenv("all_proxy", gateway.http)
    with Client(REMOTE, retries=0) as client, pytest.raises(RegionSearchError) as caught:
        client.search("mug")
    assert f"answered 503 through the environment's proxy {gateway.http} (all_proxy)" in caught.value.message


@pytest.mark.skipif(importlib.util.find_spec("socksio") is not None, reason="httpx[socks] is installed")
@pytest.mark.parametrize("named", ["socks://127.0.0.1:9", "socks5://127.0.0.1:9", "socks5h://127.0.0.1:9"])
def test_a_socks_proxy_without_its_package_is_one_sentence(
    named: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ALL_PROXY", named)
    with pytest.raises(
        RegionSearchError, match=r"pip install 'httpx\[socks\]', or unset ALL_PROXY"
    ) as caught:
        Client(REMOTE)
    assert caught.value.kind is Kind.FAILED_PRECONDITION
    environment.setattr(console, "width", 400)
    result = CliRunner().invoke(app, ["doctor"], env={"REGIONSEARCH_URL": REMOTE})
    assert result.exit_code == 1
    assert "pip install 'httpx[socks]'" in result.output


@pytest.mark.parametrize("named", ["gopher://127.0.0.1:9", "http://[::1"])
def test_a_proxy_that_is_not_valid_is_one_sentence(named: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", named)
    with pytest.raises(RegionSearchError, match=r"or unset http_proxy"):
        Client(REMOTE)
    with pytest.raises(RegionSearchError, match=r"or unset http_proxy"):
        Client("grpc://gateway.example.org:50050")


def test_our_own_processes_never_talk_through_a_proxy() -> None:
    assert ("grpc.enable_http_proxy", 0) in channel_options(ChannelConfig())
