"""What the gateway answers, over HTTP and gRPC: the same classes on both ends.

The gateway makes them from the contract's messages (`from_proto`), and they describe its JSON in the OpenAPI
document. The client reads them from JSON or from messages, and ignores fields that a newer server adds.
"""

from regionsearch.schemas.responses.ingest import (
    FieldError,
    IngestError,
    IngestProgress,
    IngestResult,
    IngestResults,
)
from regionsearch.schemas.responses.records import (
    BinaryCodes,
    Collection,
    Collections,
    Image,
    Images,
    Reindex,
    StoredImages,
    UpdatedImage,
)
from regionsearch.schemas.responses.regions import (
    CocoDocument,
    EmbeddingsAnswer,
    PromptAnswer,
    Region,
    Regions,
    SegmentAnswer,
)
from regionsearch.schemas.responses.searches import (
    Hit,
    HitImage,
    ScoredRegion,
    SearchAnswer,
    SearchPage,
    WithinAnswer,
)
from regionsearch.schemas.responses.service import Models, Ready, ServiceState
from regionsearch.schemas.responses.values import Box, Mask, Model, Response

__all__ = [
    "BinaryCodes",
    "Box",
    "CocoDocument",
    "Collection",
    "Collections",
    "EmbeddingsAnswer",
    "FieldError",
    "Hit",
    "HitImage",
    "Image",
    "Images",
    "IngestError",
    "IngestProgress",
    "IngestResult",
    "IngestResults",
    "Mask",
    "Model",
    "Models",
    "PromptAnswer",
    "Ready",
    "Region",
    "Regions",
    "Reindex",
    "Response",
    "ScoredRegion",
    "SearchAnswer",
    "SearchPage",
    "SegmentAnswer",
    "ServiceState",
    "StoredImages",
    "UpdatedImage",
    "WithinAnswer",
]
