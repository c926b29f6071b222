"""The Python client of a gateway, over HTTP and gRPC: `Client`, and its asynchronous twin `AsyncClient`.

with Client("http://localhost:8000") as client:
    client.ingest(["cat.jpg"])
    for hit in client.search("cat"):
        print(hit.score, hit.image.name, hit.box)
"""

from regionsearch.client.clients import AsyncClient, Client
from regionsearch.client.image_inputs import NegativeExample
from regionsearch.schemas.requests import EverythingBody as EverythingOptions
from regionsearch.schemas.responses import (
    BinaryCodes,
    Box,
    Collection,
    Hit,
    HitImage,
    Image,
    IngestProgress,
    IngestResult,
    Mask,
    Model,
    Region,
    Reindex,
    ScoredRegion,
    UpdatedImage,
)
from regionsearch.schemas.responses import Collections as CollectionPage
from regionsearch.schemas.responses import Images as ImagePage
from regionsearch.schemas.responses import IngestError as Problem
from regionsearch.schemas.responses import Ready as Readiness
from regionsearch.schemas.responses import SearchAnswer as SearchResult
from regionsearch.schemas.responses import SegmentAnswer as SegmentResult
from regionsearch.schemas.responses import WithinAnswer as WithinResult

__all__ = [
    "AsyncClient",
    "BinaryCodes",
    "Box",
    "Client",
    "Collection",
    "CollectionPage",
    "EverythingOptions",
    "Hit",
    "HitImage",
    "Image",
    "ImagePage",
    "IngestProgress",
    "IngestResult",
    "Mask",
    "Model",
    "NegativeExample",
    "Problem",
    "Readiness",
    "Region",
    "Reindex",
    "ScoredRegion",
    "SearchResult",
    "SegmentResult",
    "UpdatedImage",
    "WithinResult",
]
