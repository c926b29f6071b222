"""One caller asks for many things at once; others hardly notice. Over gRPC, with the real models' stages."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np

from regionsearch.images import encode_image
from regionsearch.rpc.calls import CALLER_HEADER
from regionsearch.v1 import segment_pb2, segment_pb2_grpc, types_pb2
from services.runtime.server import serving
from services.segmenter.service import segmenter
from services.segmenter.settings import SegmenterSettings

SEGMENT = segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]
CLICKS = 24


async def click(stub: Any, number: int, caller: str) -> None:
    pixels = np.full((96, 128, 3), 200, np.uint8)
    pixels[20:70, 30:90] = number  # each its own image: nothing is in the cache
    prompts = segment_pb2.Prompts(prompts=[segment_pb2.Prompt(points=[types_pb2.Point(x=60, y=45)])])
    request = segment_pb2.SegmentRequest(image=types_pb2.Image(encoded=encode_image(pixels)), prompts=prompts)
    await stub.Segment(request, timeout=300, metadata=((CALLER_HEADER, caller),))


async def test_clicks_one_by_one_do_not_wait_for_the_24_that_another_caller_wants_at_once() -> None:
    settings = SegmenterSettings(port=0, drain_delay_s=0, threads=1)
    async with (
        serving(settings, [SEGMENT], segmenter(settings)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        flood = [asyncio.create_task(click(stub, number, "flood")) for number in range(CLICKS)]
        await asyncio.sleep(0.2)
        answered = []
        for number in range(100, 103):
            await click(stub, number, "person")
            answered.append(sum(one.done() for one in flood))
        await asyncio.gather(*flood)
    # In one line all of the flood would have been answered first. Its stages go first come, first served:
    # nothing of it is finished before all of its images are encoded.
    assert answered[-1] < CLICKS / 2, answered
