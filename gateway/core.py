"""The gateway's use cases, put together, and its health. HTTP and gRPC call these and nothing else."""

from __future__ import annotations

import asyncio
import time

import structlog

from gateway.access import Access
from gateway.catalog import Catalog
from gateway.collection_map import CollectionMap
from gateway.decoder import ImageDecoder, Thumbnails
from gateway.image_store import ImageStore
from gateway.ingest import Ingester
from gateway.prompt_resolver import PromptResolver
from gateway.query import QueryEncoder
from gateway.reindex import Reindexer
from gateway.search import Search
from gateway.service_clients import Services
from gateway.settings import GatewaySettings
from gateway.within import WithinSearch
from regionsearch.errors import RegionSearchError
from regionsearch.rpc.calls import deadline
from regionsearch.schemas.responses.values import ServiceState
from regionsearch.v1 import region_search_pb2, search_pb2, segment_pb2
from services.runtime.health import Health


class Gateway:
    """Everything that a request can ask for. Make it on the event loop that will use it.

    It keeps nothing that others would miss: any number of gateways can work on the same services and image
    store.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.access = Access(settings)
        self.services = Services(settings)
        self.store = ImageStore(settings.image_store)
        self.decoder = ImageDecoder(settings.limits)
        self.thumbnails = Thumbnails(self.store, self.decoder, settings.thumbnail_cache_bytes)
        self.catalog = Catalog(self.services, self.store, settings)
        self.ingester = Ingester(self.services, self.catalog, self.store, self.decoder, settings)
        self.reindexer = Reindexer(self.services, self.catalog, self.ingester)
        self.resolver = PromptResolver(self.services, self.catalog, settings)
        self.encoder = QueryEncoder(self.services, self.catalog, self.resolver, settings)
        self.search = Search(self.services, self.catalog, self.encoder, settings)
        self.map = CollectionMap(self.services)
        self.within = WithinSearch(self.catalog, self.resolver, self.encoder)

    async def models(self) -> region_search_pb2.GetModelsResponse:
        """What the services serve now."""
        services = self.services
        segmenter, embedder, stats = await asyncio.gather(
            services.segmenter.call(services.segment.GetModel, segment_pb2.SegmentServiceGetModelRequest()),
            self.catalog.embedder_model(),
            services.reader.call(services.reader.stub.GetStats, search_pb2.GetStatsRequest()),
        )
        return region_search_pb2.GetModelsResponse(
            segmenter=segmenter, embedder=embedder, engine=stats.engine, disk_bytes=stats.disk_bytes
        )

    async def readiness(self) -> dict[str, ServiceState]:
        """Of the services, and of the default collection once they are ready."""
        found = await self.services.readiness()
        if all(state.ready for state in found.values()):
            try:
                with deadline(self.settings.timeouts.probe_s):
                    await self.catalog.get("")
            except RegionSearchError as error:
                found["searcher"] = ServiceState(ready=False, detail=error.message)
        return found

    async def close(self) -> None:
        """Closes the channels to the services."""
        await self.services.close()


_START_PERIOD_S = 0.25
_SAY_EVERY = 40  # looks between two lines in the log, at the start
_PERIOD_S = 1.0

_log = structlog.get_logger(__name__)


class GatewayHealth:
    """Follows the services behind a gateway.

    gRPC health is SERVING while calls have a chance: from the first time that all services were ready, until
    one has been away for longer than calls wait for it (``timeouts.restart_s``), and again once it is back.

    Args:
        gateway: Asked about its services.
        health: What gRPC clients are told.
    """

    def __init__(self, gateway: Gateway, health: Health) -> None:
        self._gateway = gateway
        self._health = health
        self._patience_s = gateway.settings.timeouts.restart_s
        self._said = ""  # the reason that was given when a service had been away for too long

    @property
    def own(self) -> ServiceState:
        """Of the process alone, for load balancers: up, and not draining, whatever is behind it."""
        health = self._health
        up = health.serving or self._waiting
        return ServiceState(ready=up, detail="serving" if up else health.reason)

    @property
    def _waiting(self) -> bool:
        return bool(self._said) and self._health.reason == self._said

    async def services_ready(self) -> None:
        """Waits until all services have been ready at once."""
        looks = 0
        while missing := await self._missing():
            if looks % _SAY_EVERY == 0:
                _log.info("waiting", **missing)
            looks += 1
            await asyncio.sleep(_START_PERIOD_S)

    async def follow(self) -> None:
        """Keeps gRPC health true until it is cancelled."""
        away_since: float | None = None
        while True:
            await asyncio.sleep(_PERIOD_S)
            missing = await self._missing()
            now = time.monotonic()
            if not missing:
                away_since = None
                if self._waiting:  # and not draining, whose reason is another one
                    _log.info("serving again")
                    self._health.set_serving()
                continue
            away_since = now if away_since is None else away_since
            if self._health.serving and now - away_since >= self._patience_s:
                self._said = f"waiting for {', '.join(missing)}"
                _log.warning("not serving", **missing)
                self._health.set_not_serving(self._said)

    async def _missing(self) -> dict[str, str]:
        found = await self._gateway.readiness()
        return {name: state.detail for name, state in found.items() if not state.ready}
