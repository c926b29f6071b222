"""The Python client of a gateway, over HTTP and gRPC: `Client`, and its asynchronous twin `AsyncClient`.

with Client("http://localhost:8000") as client:
    client.ingest(["cat.jpg"])
    for hit in client.search("cat"):
        print(hit.score, hit.image.name, hit.box)
"""

from regionsearch.client.clients import AsyncClient, Client
from regionsearch.client.results import (
    Box,
    Collection,
    CollectionPage,
    Hit,
    HitImage,
    Image,
    ImagePage,
    IngestProgress,
    IngestResult,
    Mask,
    Problem,
    Readiness,
    Region,
    ScoredRegion,
    SearchResult,
    SegmentResult,
    UpdatedImage,
    WithinResult,
)
from regionsearch.client.sources import Example

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "Collection",
    "CollectionPage",
    "Example",
    "Hit",
    "HitImage",
    "Image",
    "ImagePage",
    "IngestProgress",
    "IngestResult",
    "Mask",
    "Problem",
    "Readiness",
    "Region",
    "ScoredRegion",
    "SearchResult",
    "SegmentResult",
    "UpdatedImage",
    "WithinResult",
]
