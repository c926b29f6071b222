"""The Python client of the gateway's HTTP API: `Client` and its asynchronous twin `AsyncClient`."""

from regionsearch.client.clients import AsyncClient, Client
from regionsearch.client.results import (
    Box,
    Collection,
    Hit,
    Image,
    IngestResult,
    Mask,
    Region,
    ScoredRegion,
    SearchResult,
    SegmentResult,
    WithinResult,
)

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "Collection",
    "Hit",
    "Image",
    "IngestResult",
    "Mask",
    "Region",
    "ScoredRegion",
    "SearchResult",
    "SegmentResult",
    "WithinResult",
]
