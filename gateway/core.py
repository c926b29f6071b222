"""The gateway's use cases, put together. HTTP routes and the gRPC servicer call these and nothing else."""

from __future__ import annotations

from gateway.access import Access
from gateway.catalog import Catalog
from gateway.decoder import ImageDecoder
from gateway.image_store import ImageStore
from gateway.ingest import Ingester
from gateway.prompt_resolver import PromptResolver
from gateway.query import QueryEncoder
from gateway.reindex import Reindexer
from gateway.search import Search
from gateway.service_clients import Readiness, Services
from gateway.settings import GatewaySettings
from gateway.thumbnails import Thumbnails
from regionsearch.errors import RegionSearchError
from regionsearch.rpc import deadline


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
        self.search = Search(self.services, self.catalog, self.resolver, self.encoder, settings)

    async def readiness(self) -> dict[str, Readiness]:
        """Of the services, and of the default collection once they are ready."""
        found = await self.services.readiness()
        if all(state.ready for state in found.values()):
            try:
                with deadline(self.settings.timeouts.probe_s):
                    await self.catalog.get("")
            except RegionSearchError as error:
                found["searcher"] = Readiness(False, error.message)
        return found

    async def close(self) -> None:
        """Closes the channels to the services."""
        await self.services.close()
