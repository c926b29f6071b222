"""A collection on a plane: what is alike lies together."""

from __future__ import annotations

import asyncio

import numpy as np

from gateway.projection import Floats, project
from gateway.records import check_filter, hide_key
from gateway.service_clients import Services
from regionsearch.defaults import COLLECTION
from regionsearch.errors import invalid
from regionsearch.lru import LruCache
from regionsearch.schemas.requests.scrolls import MAX_POINTS
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import region_search_pb2, search_pb2

DEFAULT_POINTS = 2000
_KEPT = 8  # maps
_PAGE = 1000


class CollectionMap:
    """Makes maps, one at a time, and keeps a few of them for as long as nothing is written.

    Args:
        services: The searcher is asked for vectors.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._kept: LruCache[bytes, tuple[int, region_search_pb2.GetMapResponse]] = LruCache(_KEPT)
        self._one = asyncio.Lock()  # the work of many at once would take all cores

    async def get(self, request: region_search_pb2.GetMapRequest) -> region_search_pb2.GetMapResponse:
        """Places what passes the filter.

        Raises:
            RegionSearchError: NOT_FOUND without the collection, INVALID_ARGUMENT for both levels at once or a
                number of points below 0.
        """
        check_filter(request.filter)
        if request.level == search_pb2.LEVEL_BOTH:
            raise invalid("level", "a map shows regions or whole images; their vectors lie apart")
        if request.max_points < 0:
            raise invalid("max_points", f"max_points is {request.max_points}; it must be 0 to {MAX_POINTS}")
        key = request.SerializeToString(deterministic=True)
        async with self._one:
            seq = await self._seq(request)
            kept = self._kept.get(key)
            if kept is None or kept[0] != seq:
                kept = (seq, await self._make(request))
                self._kept.put(key, kept)
            return kept[1]

    async def _seq(self, request: region_search_pb2.GetMapRequest) -> int:
        return (await self._page(request, 1)).seq

    async def _page(
        self, request: region_search_pb2.GetMapRequest, size: int, token: str = "", *, vectors: bool = False
    ) -> search_pb2.ScrollResponse:
        message = search_pb2.ScrollRequest(
            collection=request.collection or COLLECTION,
            level=request.level or search_pb2.LEVEL_REGION,
            filter=request.filter if request.HasField("filter") else None,
            page_size=size,
            page_token=token,
            include_vectors=vectors,
        )
        return await self._services.reader.call(self._services.reader.stub.Scroll, message)

    async def _make(self, request: region_search_pb2.GetMapRequest) -> region_search_pb2.GetMapResponse:
        wanted = min(request.max_points or DEFAULT_POINTS, MAX_POINTS)
        records: list[search_pb2.Record] = []
        images: dict[str, search_pb2.StoredImage] = {}
        vectors: list[Floats] = []
        token = ""
        while len(records) < wanted:
            page = await self._page(request, min(_PAGE, wanted - len(records)), token, vectors=True)
            if page.records:
                vectors.append(tensor_from_proto(page.vectors, "vectors", ndim=2))
                records += page.records
                images |= {image.image_id: image for image in page.images}
            token = page.next_page_token
            if not token:
                break
        for image in images.values():
            hide_key(image)
        found = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
        places = await asyncio.to_thread(project, found)
        regions = request.level != search_pb2.LEVEL_IMAGE
        points = [
            region_search_pb2.GetMapResponse.Point(
                region_id=record.record_id if regions else "",
                image_id=record.image_id,
                box=record.box,
                x=x,
                y=y,
            )
            for record, (x, y) in zip(records, places.tolist(), strict=True)
        ]
        return region_search_pb2.GetMapResponse(points=points, images=images.values(), truncated=bool(token))
