"""The Python client of a gateway, over HTTP and gRPC: `Client`, and its asynchronous twin `AsyncClient`.

with Client("http://localhost:8000") as client:
    client.ingest(["cat.jpg"])
    for hit in client.search("cat"):
        print(hit.score, hit.image.name, hit.box)
"""

from regionsearch.client.clients import AsyncClient, Client
from regionsearch.client.image_inputs import NegativeExample
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

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "Collection",
    "CollectionPage",
    "Hit",
    "HitImage",
    "Image",
    "ImagePage",
    "IngestProgress",
    "IngestResult",
    "Mask",
    "NegativeExample",
    "Problem",
    "Readiness",
    "Region",
    "ScoredRegion",
    "SearchResult",
    "SegmentResult",
    "UpdatedImage",
    "WithinResult",
]
