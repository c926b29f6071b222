"""A server from inside: what callers see while it loads, serves, drains and dies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import shutil
import socket
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from regionsearch.errors import Kind, from_rpc_error, overloaded
from regionsearch.rpc.channels import ChannelConfig, TlsFiles, open_aio_channel
from regionsearch.v1 import embed_pb2, embed_pb2_grpc, segment_pb2, segment_pb2_grpc
from services.runtime import metrics
from services.runtime.server import Server, announce, serving
from tests.runtime.conftest import (
    EMBED,
    NOT_SERVING,
    REQUEST,
    SERVING,
    EchoServicer,
    EchoSettings,
    echo_server,
)
from tests.waiting import until


async def test_a_call_is_answered_with_its_request_id(echo):
    _, stub, _ = echo
    call = stub.EmbedTexts(REQUEST, metadata=(("x-request-id", "mine"),))
    assert list((await call).truncated) == [True, True]
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


async def test_a_server_with_as_many_connections_as_it_may_have_closes_further_ones():
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    async with (
        asyncio.timeout(120),
        echo_server(max_grpc_connections=2) as (server, stub, _),
        contextlib.AsyncExitStack() as others,
    ):

        async def is_taken() -> bool:
            """Opens a connection of HTTP/2; whether the server answers on it."""
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            others.callback(writer.close)
            try:
                writer.write(preface)
                return bool(await reader.read(9))
            except ConnectionError:
                return False

        await stub.EmbedTexts(REQUEST, timeout=60)
        assert await is_taken()
        assert not await is_taken()
        await stub.EmbedTexts(REQUEST, timeout=60)
        await others.aclose()
        while not await is_taken():
            pass  # the server has yet to notice that the others are closed


def ipv6_is_there() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:  # containers often have none
        return False
    return True


@pytest.mark.skipif(not ipv6_is_there(), reason="listens on an IPv6 address")
async def test_a_server_listens_on_an_ipv6_address_too():
    async with (
        echo_server(host="::1") as (server, _, _),
        grpc.aio.insecure_channel(f"[::1]:{server.port}") as channel,
    ):
        answer = await embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(REQUEST, timeout=60)
    assert len(answer.truncated) == 2


def test_a_server_serves_even_if_its_port_cannot_be_announced(tmp_path, monkeypatch):
    """A full disk: neither the port file nor the log on stdout has room."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    written = tmp_path / "port"
    announce(EchoSettings(), "serving", "127.0.0.1", 1, written)
    assert written.read_text() == "1\n"
    announce(EchoSettings(), "serving", "127.0.0.1", 2, tmp_path / "nowhere" / "port")
    monkeypatch.setattr("sys.stdout", Full())
    announce(EchoSettings(), "serving", "127.0.0.1", 3, written)
    assert written.read_text() == "3\n"


async def test_while_loading_health_is_not_serving_and_calls_are_unavailable():
    loaded = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(server: Server):
        await loaded.wait()
        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, EchoServicer())
        yield

    server = Server(EchoSettings(), [EMBED])
    life = asyncio.create_task(server.serve(lifespan))
    while not server.port:  # noqa: ASYNC110 - binding has no event of its own
        await asyncio.sleep(0.01)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=EMBED.full_name))
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(REQUEST)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "starting" in error.value.details()
        refused = metrics.handled(EMBED.full_name, "EmbedImages", "UNAVAILABLE")
        before = refused._value.get()
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(channel).EmbedImages(embed_pb2.EmbedImagesRequest())
        async with asyncio.timeout(60):  # counted under its own name, when its answer is on its way
            await until(lambda: refused._value.get() == before + 1)
        loaded.set()
        assert (await watch.read()).status == SERVING
        await embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(REQUEST)
        server.stop()
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
    assert await life == 0


async def test_health_knows_its_services(echo):
    server, _, _ = echo
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", EMBED.full_name):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(echo):
    server, _, _ = echo
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        await call.done_writing()
    assert {EMBED.full_name, "grpc.health.v1.Health"} <= names


async def test_typed_errors_arrive_with_their_details():
    async def refuse(request, context):
        raise overloaded("the queue is full", 0.25)

    async with echo_server(refuse) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.EmbedTexts(REQUEST)
    typed = from_rpc_error(error.value)
    assert (typed.kind, typed.retry_after_s) == (Kind.OVERLOADED, 0.25)


async def test_unexpected_errors_are_logged_and_leak_nothing(caplog):
    async def fall(request, context):
        raise ZeroDivisionError("secret path /home/someone")

    async with echo_server(fall) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.EmbedTexts(REQUEST, metadata=(("x-request-id", "r-1"),))
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.value.details()
    assert "r-1" in error.value.details()


async def test_health_checks_need_no_api_key():
    async with echo_server(api_keys=("one", "two")) as (server, stub, _):
        for metadata in ((), (("x-api-key", "three"),), (("authorization", "Bearer on"),)):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.EmbedTexts(REQUEST, metadata=metadata)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await stub.EmbedTexts(REQUEST, metadata=(("x-api-key", "two"),))
        await stub.EmbedTexts(REQUEST, metadata=(("authorization", "Bearer one"),))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == SERVING


async def test_an_oversized_message_is_refused_and_the_next_call_works():
    async with echo_server(max_message_bytes=1000) as (_, stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=["x" * 2000]))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_rpc_error(error.value).kind is Kind.TOO_LARGE  # not to be tried again
        await stub.EmbedTexts(REQUEST)


async def test_an_expired_deadline_and_a_cancelled_call_reach_the_handler():
    begun = asyncio.Event()

    async def hang(request, context):
        begun.set()
        await asyncio.Event().wait()

    async with echo_server(hang) as (_, stub, servicer):
        for timeout_s in (0.5, 5, 50):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.EmbedTexts(REQUEST, timeout=timeout_s)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if begun.is_set():  # on a busy machine the first ones may end before they reach it
                break
        await asyncio.wait_for(servicer.cancelled.wait(), 60)
        servicer.cancelled.clear()
        begun.clear()
        call = stub.EmbedTexts(REQUEST)
        await asyncio.wait_for(begun.wait(), 60)
        call.cancel()
        await asyncio.wait_for(servicer.cancelled.wait(), 60)


async def test_a_cancelled_stream_is_closed_in_its_own_context_and_counted_as_cancelled(caplog):
    closed = asyncio.Event()

    class Endless(segment_pb2_grpc.SegmentServiceServicer):
        async def SegmentStream(self, requests, context):
            try:
                while True:
                    yield segment_pb2.SegmentStreamResponse(key="x" * 100_000)
            finally:
                closed.set()

    @contextlib.asynccontextmanager
    async def lifespan(server: Server):
        server.add(segment_pb2_grpc.add_SegmentServiceServicer_to_server, Endless())
        yield

    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    service = segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]
    ended = metrics.handled(service.full_name, "SegmentStream", "CANCELLED")
    before = ended._value.get()
    async with (
        serving(EchoSettings(), [service], lifespan) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call = segment_pb2_grpc.SegmentServiceStub(channel).SegmentStream()
        assert (await call.read()).key
        await asyncio.sleep(0.2)  # the client does not read: the server waits for it in the middle of a write
        call.cancel()
        await asyncio.wait_for(closed.wait(), 60)
    assert ended._value.get() == before + 1
    assert not complaints
    assert "detach" not in caplog.text


def make_certificates(folder: Path) -> None:
    """A certificate of 127.0.0.1 that is its own authority, and one of a client."""
    for name, subject in (("server", "/CN=127.0.0.1"), ("client", "/CN=client")):
        command = (
            f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj {subject} -addext "
            f"subjectAltName=IP:127.0.0.1 -keyout {name}.key -out {name}.pem"
        )
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")
async def test_tls_and_mutual_tls(tmp_path):
    await asyncio.to_thread(make_certificates, tmp_path)
    files = {name: tmp_path / name for name in ("server.pem", "server.key", "client.pem", "client.key")}
    servers = {"certificate": files["server.pem"], "key": files["server.key"]}
    known = TlsFiles(files["server.pem"], files["client.pem"], files["client.key"])
    stranger = TlsFiles(files["server.pem"])
    for tls, accepted in ((servers, stranger), (servers | {"client_ca": files["client.pem"]}, known)):
        async with echo_server(tls=tls) as (server, plain, _):
            target = f"127.0.0.1:{server.port}"
            async with open_aio_channel(target, ChannelConfig(tls=accepted)) as channel:
                await embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(REQUEST)
            with pytest.raises(grpc.aio.AioRpcError):
                await plain.EmbedTexts(REQUEST)
            if "client_ca" in tls:
                async with open_aio_channel(target, ChannelConfig(tls=stranger)) as channel:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(REQUEST, timeout=60)


def test_settings_come_from_the_environment_and_a_file(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.toml"
    config.write_text('[echo]\nport = 5000\nlog_level = "debug"\napi_keys = ["a"]\n[other]\nport = 1\n')
    monkeypatch.setenv("REGIONSEARCH_CONFIG", str(config))
    monkeypatch.setenv("REGIONSEARCH_ECHO_API_KEYS", "b, c")
    settings = EchoSettings.load(["--grace-s", "7"])
    assert (settings.port, settings.log_level, settings.grace_s) == (5000, "debug", 7)
    assert [key.get_secret_value() for key in settings.api_keys] == ["b", "c"]
    assert "b" not in repr(settings.api_keys)
    monkeypatch.setenv("REGIONSEARCH_ECHO_TLS__KEY", "only-half")
    for content in ("[echo]\nprot = 1", "[echo", "echo = 3"):
        config.write_text(content)
        with pytest.raises(SystemExit) as stop:
            EchoSettings.load([])
        assert stop.value.code == 2
    assert "prot" in capsys.readouterr().err
