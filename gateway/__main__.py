"""``python -m gateway``."""

from __future__ import annotations

from gateway.server import lifespan
from gateway.settings import GatewaySettings
from regionsearch.v1 import region_search_pb2
from services.runtime.server import run

if __name__ == "__main__":
    settings = GatewaySettings.load()
    run(settings, [region_search_pb2.DESCRIPTOR.services_by_name["RegionSearchService"]], lifespan(settings))
