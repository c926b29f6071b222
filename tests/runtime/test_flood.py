"""Twenty times more calls than fit, over real gRPC."""

import asyncio
import contextlib
import resource
import threading
import time

import grpc

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from services.runtime.batch import BatchSettings
from services.runtime.batcher import Batcher
from services.runtime.server import serving
from tests.runtime.conftest import EMBED, EchoServicer, EchoSettings

# Few enough to be looked at within 30 s: gRPC cancels calls that a server has not taken up by then.
CAPACITY, TIMES, BYTES, WAVES = 16, 20, 200_000, 6
FLOODED = threading.Event()  # most of a wave has come: however slowly, the device does not keep up with it


def device(parts):
    assert FLOODED.wait(500)
    time.sleep(0.01)
    return [part.prepared for part in parts]


async def test_a_flood_over_grpc_is_refused_politely_and_memory_stays_bounded():
    batchers = []

    async def through_the_batcher(request, context):
        await batchers[0].submit(len(request.texts[0]), 1)

    @contextlib.asynccontextmanager
    async def lifespan(server):
        settings = BatchSettings(max_batch=8, max_queue=CAPACITY)
        batchers.append(Batcher("flood", settings, device=[device], on_fatal=server.fail))
        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, EchoServicer(through_the_batcher))
        yield
        await batchers[0].close()

    answered, refused = [], []
    request = embed_pb2.EmbedTextsRequest(texts=["x" * BYTES])
    async with (
        serving(EchoSettings(), [EMBED], lifespan) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)

        async def caller():
            try:
                answered.append(await stub.EmbedTexts(request))
            except grpc.aio.AioRpcError as error:
                refused.append(from_rpc_error(error))
                if len(refused) >= enough:
                    FLOODED.set()

        peaks = []
        for _ in range(WAVES):
            enough = len(refused) + CAPACITY * TIMES // 2
            FLOODED.clear()
            await asyncio.gather(*(caller() for _ in range(CAPACITY * TIMES)))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        assert len((await stub.EmbedTexts(request)).truncated) == 1
    assert len(answered) + len(refused) == WAVES * CAPACITY * TIMES
    assert len(answered) >= WAVES * CAPACITY
    assert {error.kind: error.message for error in refused}.keys() == {Kind.OVERLOADED}
    assert all(error.retry_after_s > 0 for error in refused)
    # What refused calls leave behind would grow the peak (in KiB) by a wave's bytes with every wave.
    assert (peaks[-1] - peaks[1]) * 1024 < 2 * CAPACITY * TIMES * BYTES
