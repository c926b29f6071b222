"""A collection on a plane: what is alike lies together, and what has a place stays there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from gateway.projection import Floats, placed_among, project
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


@dataclass(frozen=True)
class _Kept:
    """A map as it was made.

    Attributes:
        seq: The write after which it shows the collection.
        response: The map.
        laid_out: How many points it had when all of them were placed anew.
    """

    seq: int
    response: region_search_pb2.GetMapResponse
    laid_out: int

    @property
    def places(self) -> dict[tuple[str, str], tuple[float, float]]:
        """By ids of region and image."""
        return {(one.region_id, one.image_id): (one.x, one.y) for one in self.response.points}


class CollectionMap:
    """Makes maps, one at a time, and keeps a few of them.

    After a write what is new is placed among the rest, which stays where it was; all are placed anew once
    half of them are new.

    Args:
        services: The searcher is asked for vectors.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._kept: LruCache[bytes, _Kept] = LruCache(_KEPT)
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
            if kept is None or kept.seq != seq:
                kept = await self._make(request, seq, kept)
                self._kept.put(key, kept)
            return kept.response

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

    async def _make(self, request: region_search_pb2.GetMapRequest, seq: int, before: _Kept | None) -> _Kept:
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
        regions = request.level != search_pb2.LEVEL_IMAGE
        ids = [(record.record_id if regions else "", record.image_id) for record in records]
        earlier = {} if before is None else before.places
        known = np.array([earlier.get(one, (np.nan, np.nan)) for one in ids], np.float32).reshape(-1, 2)
        count = int((~np.isnan(known[:, 0])).sum())
        stays = before is not None and 0 < len(ids) <= 2 * count and len(ids) <= 2 * before.laid_out
        places = await asyncio.to_thread(lambda: placed_among(found, known) if stays else project(found))
        points = [
            region_search_pb2.GetMapResponse.Point(
                region_id=region_id, image_id=image_id, box=record.box, x=x, y=y
            )
            for record, (region_id, image_id), (x, y) in zip(records, ids, places.tolist(), strict=True)
        ]
        response = region_search_pb2.GetMapResponse(
            points=points, images=images.values(), truncated=bool(token)
        )
        return _Kept(seq, response, before.laid_out if stays and before else len(points))
