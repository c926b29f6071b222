"""A call whose masks take long to read is read in pieces, between which others have their turn."""

import threading

import grpc
import pytest

from regionsearch.errors import from_rpc_error
from regionsearch.tensors import tensor_from_proto
from services.embedder import request_parsing, servicer
from tests.embedder.test_service import COUNT, HEIGHT, WIDTH, pixels, region_request, regions
from tests.waiting import until

__all__ = ["pixels", "regions"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def three_at_a_time(monkeypatch):
    monkeypatch.setattr(request_parsing, "READ_PIXELS", 3 * HEIGHT * WIDTH)


async def test_split_requests_give_the_same_vectors(service, pixels, regions, monkeypatch):
    request = region_request(pixels, *regions, include_image=True)
    whole = tensor_from_proto((await service.EmbedRegions(request)).vectors, "vectors", ndim=2)
    monkeypatch.setattr(request_parsing, "READ_PIXELS", 3 * HEIGHT * WIDTH)
    assert [len(places) for places in request_parsing.split_by_memory(request)] == [3, 3, 3, 2]
    parts = tensor_from_proto((await service.EmbedRegions(request)).vectors, "vectors", ndim=2)
    assert parts.shape == whole.shape == (COUNT, 64)
    assert abs(parts - whole).max() < 1e-5


async def test_an_error_in_a_later_range_names_the_region(service, pixels, regions, three_at_a_time):
    request = region_request(pixels, *regions)
    request.regions[7].mask.height += 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.EmbedRegions(request)
    assert from_rpc_error(caught.value).field == "regions[7].mask"


async def test_other_calls_run_between_ranges_and_a_cancelled_call_reads_no_more(
    service, pixels, regions, monkeypatch
):
    monkeypatch.setattr(request_parsing, "READ_PIXELS", 1)  # one region in each piece
    reads, go_on = [], threading.Semaphore(0)

    def slowly(request, limits, places):
        reads.append((len(request.regions), places))
        if len(request.regions) > 1:
            assert go_on.acquire(timeout=60)
        return request_parsing.read_regions(request, limits, places)

    monkeypatch.setattr(servicer, "read_regions", slowly)
    boxes, masks = regions
    long = service.EmbedRegions(region_request(pixels, boxes, masks))
    await until(lambda: reads)
    short = service.EmbedRegions(region_request(pixels, boxes[:1], masks[:1]))
    go_on.release(2)
    await short
    assert not long.done()
    long.cancel()
    await service.EmbedRegions(region_request(pixels, boxes[:1], masks[:1]))
    go_on.release(COUNT)
    await service.EmbedRegions(region_request(pixels, boxes[:1], masks[:1]))
    assert sum(count > 1 for count, _ in reads) < COUNT
