"""The health check of the containers, asked of real servers."""

import asyncio
import os
import subprocess
import sys

from services.runtime.probe import probe
from tests.runtime.conftest import EchoSettings, echo_server


async def test_the_probe_follows_the_health_of_the_process():
    async with echo_server() as (server, _, _):
        settings = EchoSettings(port=server.port)
        assert await asyncio.to_thread(probe, settings)
        server.health.set_not_serving("a test says so")
        assert not await asyncio.to_thread(probe, settings)
    assert not await asyncio.to_thread(probe, settings)  # no process listens


async def test_the_probe_command_reads_the_settings_of_the_process():
    async with echo_server() as (server, _, _):
        for port, code in ((server.port, 0), (1, 1)):
            command = [sys.executable, "-m", "services.runtime.probe", "embedder"]
            environment = os.environ | {"REGIONSEARCH_EMBEDDER_PORT": str(port)}
            result = await asyncio.to_thread(subprocess.run, command, env=environment, check=False)
            assert result.returncode == code


async def test_the_probe_ignores_proxies_of_the_environment(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with echo_server() as (server, _, _):
        assert await asyncio.to_thread(probe, EchoSettings(port=server.port))
