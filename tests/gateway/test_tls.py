"""TLS and mutual TLS on both of the gateway's ports, and towards a service behind it."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from gateway.service_clients import Services
from regionsearch.rpc.channels import ChannelConfig, TlsFiles, open_channel
from regionsearch.v1 import region_search_pb2, region_search_pb2_grpc, segment_pb2, segment_pb2_grpc
from tests.gateway.conftest import RED, Running, World, scene, service
from tests.gateway.fakes import FakeSegmenter, FakeSettings, Script, lifespan
from tests.runtime.test_server import make_certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return {path.name: path for path in folder.iterdir()}


def https(gateway: Running, files: dict[str, Path], *, known: bool) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(files["server.pem"]))
    if known:
        context.load_cert_chain(files["client.pem"], files["client.key"])
    return httpx.Client(base_url=gateway.url.replace("http:", "https:"), verify=context, timeout=60)


def list_images(gateway: Running, tls: TlsFiles) -> None:
    with open_channel(f"127.0.0.1:{gateway.server.port}", ChannelConfig(tls=tls)) as channel:
        stub = region_search_pb2_grpc.RegionSearchServiceStub(channel)
        stub.ListImages(region_search_pb2.RegionSearchServiceListImagesRequest(), timeout=60)


def test_a_gateway_with_a_certificate_answers_tls_alone(
    world: World, script: Script, files: dict[str, Path]
) -> None:
    gateway = world.gateway(tls={"certificate": files["server.pem"], "key": files["server.key"]})
    with https(gateway, files, known=False) as client:
        assert client.get("/readyz").status_code == 200
        upload = client.post("/v1/collections/default/images", files=[("files", ("a.png", scene(RED)))])
        assert upload.json()["results"][0]["outcome"] in ("created", "duplicate")
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):  # by which `regionsearch up` tells it
        gateway.http.get("/healthz")  # in plain text
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        # who does not know its certificate
        httpx.get(f"{gateway.url.replace('http:', 'https:')}/healthz", timeout=60)
    list_images(gateway, TlsFiles(files["server.pem"]))
    with pytest.raises(grpc.RpcError):
        gateway.grpc.ListImages(region_search_pb2.RegionSearchServiceListImagesRequest(), timeout=60)


def test_mutual_tls(world: World, script: Script, files: dict[str, Path]) -> None:
    tls = {name: files[f"server.{end}"] for name, end in (("certificate", "pem"), ("key", "key"))}
    gateway = world.gateway(tls=tls | {"client_ca": files["client.pem"]})
    with https(gateway, files, known=True) as client:
        assert client.get("/v1/collections/default").status_code == 200
    with https(gateway, files, known=False) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")
    list_images(gateway, TlsFiles(files["server.pem"], files["client.pem"], files["client.key"]))
    with pytest.raises(grpc.RpcError):
        list_images(gateway, TlsFiles(files["server.pem"]))


@pytest.fixture
def secret_segmenter(world: World, script: Script, files: dict[str, Path]) -> Iterator[str]:
    """A segmenter that talks only to those whose certificate it knows; its address."""
    tls: dict[str, Any] = {"certificate": files["server.pem"], "key": files["server.key"]}
    server = world.run(
        world.start(
            FakeSettings(tls=tls | {"client_ca": files["client.pem"]}),
            service(segment_pb2, "SegmentService"),
            lifespan(segment_pb2_grpc.add_SegmentServiceServicer_to_server, FakeSegmenter(script)),
        )
    )
    yield f"127.0.0.1:{server.port}"
    world.call(server.stop)


def test_mutual_tls_towards_the_services(
    world: World, script: Script, files: dict[str, Path], secret_segmenter: str
) -> None:
    """With its certificate the gateway is let in; without it, or in plain text, it is not."""
    tls = {"enabled": True, "ca": files["server.pem"]}
    identity = {"certificate": files["client.pem"], "key": files["client.key"]}

    async def ready(options: dict[str, Any]) -> bool:
        services = Services(world.settings(segmenter=secret_segmenter, backend_tls=options))
        try:
            if (await services.segmenter.readiness()).ready:
                stub = segment_pb2_grpc.SegmentServiceStub(services.segmenter.channel)
                request = segment_pb2.SegmentServiceGetModelRequest()
                await services.segmenter.call(stub.GetModel, request)
                return True
            return False
        finally:
            await services.close()

    assert world.run(ready(tls | identity))
    assert not world.run(ready(tls))
    assert not world.run(ready({}))
