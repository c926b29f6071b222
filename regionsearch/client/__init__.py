"""The Python client of a gateway, over HTTP and gRPC: `Client`, and its asynchronous twin `AsyncClient`.

with Client("http://localhost:8000") as client:
    client.ingest(["cat.jpg"])
    for hit in client.search("cat"):
        print(hit.score, hit.image.name, hit.box)
"""

from regionsearch.client.clients import AsyncClient, Client
from regionsearch.client.image_inputs import NegativeExample
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.responses.records import (
    BinaryCodes,
    Collection,
    CollectionPage,
    Image,
    ImagePage,
    IngestError,
    IngestProgress,
    IngestResult,
    Reindex,
    UpdatedImage,
)
from regionsearch.schemas.responses.regions import Region, SegmentResult
from regionsearch.schemas.responses.scrolls import (
    CountResult,
    FacetCounts,
    FacetValue,
    MapPoint,
    MapResult,
    ScrollResult,
    StoredRecord,
)
from regionsearch.schemas.responses.searches import Hit, HitImage, ScoredRegion, SearchResult, WithinResult
from regionsearch.schemas.responses.values import (
    AccessRights,
    Box,
    Mask,
    Model,
    Models,
    Readiness,
    SegmenterModel,
)

__all__ = [
    "AccessRights",
    "AsyncClient",
    "BinaryCodes",
    "Box",
    "Client",
    "Collection",
    "CollectionPage",
    "CountResult",
    "EverythingOptions",
    "FacetCounts",
    "FacetValue",
    "Hit",
    "HitImage",
    "Image",
    "ImagePage",
    "IngestError",
    "IngestProgress",
    "IngestResult",
    "MapPoint",
    "MapResult",
    "Mask",
    "Model",
    "Models",
    "NegativeExample",
    "Readiness",
    "Region",
    "Reindex",
    "ScoredRegion",
    "ScrollResult",
    "SearchResult",
    "SegmentResult",
    "SegmenterModel",
    "StoredRecord",
    "UpdatedImage",
    "WithinResult",
]
