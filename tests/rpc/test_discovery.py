"""Replicas come and go behind one name: real gRPC name resolution, against a small name server of our own."""

import asyncio
import struct

import pytest

from regionsearch.rpc.calls import CallPolicy, acall
from regionsearch.rpc.channels import ChannelConfig, open_aio_channel
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from tests.runtime.conftest import EMBED, echo_server
from tests.stack import free_port

REQUEST = embed_pb2.EmbedTextsRequest(texts=["a"])
CONFIG = ChannelConfig(service=EMBED.full_name)
TYPE_A = 1


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for addresses with `addresses`, and every other one with nothing."""

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, sender):
        end = data.index(b"\0", 12) + 5  # the question: a name, a type and a class
        question = data[12:end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        found = self.addresses if kind == TYPE_A else []
        header = data[:2] + struct.pack("!5H", 0x8180, 1, len(found), 0, 0)
        records = [b"\xc0\x0c" + struct.pack("!HHIH", TYPE_A, 1, 0, 4) + _bytes(ip) for ip in found]
        self.transport.sendto(header + question + b"".join(records), sender)


def _bytes(address):
    return bytes(map(int, address.split(".")))


@pytest.fixture
async def names():
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, ("127.0.0.1", 0))
    yield server
    transport.close()


def counting(counts, index):
    async def count(request, context):
        counts[index] += 1

    return count


async def test_new_replicas_are_found_when_connections_are_renewed(names):
    counts, port = [0, 0], free_port()
    async with echo_server(counting(counts, 0), port=port, max_connection_age_s=0.5):
        dns = names.transport.get_extra_info("sockname")[1]
        target = f"dns://127.0.0.1:{dns}/embedder.test:{port}"
        async with open_aio_channel(target, CONFIG) as channel:
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            await acall(stub.EmbedTexts, REQUEST)
            async with echo_server(counting(counts, 1), host="127.0.0.2", port=port):
                names.addresses = ["127.0.0.1", "127.0.0.2"]
                async with asyncio.timeout(60):
                    while not counts[1]:
                        await acall(stub.EmbedTexts, REQUEST)  # and none of them fails meanwhile
                        await asyncio.sleep(0.02)


async def test_replicas_that_moved_are_found_again(names):
    """All replicas are replaced at other addresses, as in a rolling restart of containers."""
    counts, port = [0, 0], free_port()
    async with echo_server(counting(counts, 1), host="127.0.0.2", port=port):
        async with echo_server(counting(counts, 0), port=port):
            dns = names.transport.get_extra_info("sockname")[1]
            channel = open_aio_channel(f"dns://127.0.0.1:{dns}/embedder.test:{port}", CONFIG)
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            await acall(stub.EmbedTexts, REQUEST)
            names.addresses = ["127.0.0.2"]
        async with channel:
            await acall(stub.EmbedTexts, REQUEST, CallPolicy(unavailable_s=60))
    assert counts == [1, 1]


async def test_a_call_longer_than_its_connection_may_live_is_answered():
    connections = set()
    renewed = asyncio.Event()

    async def wait(request, context):
        connections.add(context.peer())
        if request.texts[0] == "long":
            await renewed.wait()

    async with (
        echo_server(wait, max_connection_age_s=0.3, grace_s=0.1) as (server, _, _),
        open_aio_channel(f"127.0.0.1:{server.port}", CONFIG) as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        long = asyncio.ensure_future(acall(stub.EmbedTexts, embed_pb2.EmbedTextsRequest(texts=["long"])))
        async with asyncio.timeout(60):
            while len(connections) < 3:
                await acall(stub.EmbedTexts, REQUEST)
                await asyncio.sleep(0.02)
        assert not long.done()
        renewed.set()
        assert len((await long).truncated) == 1
