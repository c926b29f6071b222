"""What can be asked, declared once: the bodies and forms of the HTTP API.

The gateway checks JSON and forms with these classes and goes on with the contract's messages (`to_proto`).
The client makes the same objects of its arguments, and sends them as JSON (`to_json`) or as those messages.
"""

from regionsearch.schemas.requests.everything import EverythingBody
from regionsearch.schemas.requests.inference import EmbeddingsBody, SegmentBody
from regionsearch.schemas.requests.records import (
    BinaryCodesBody,
    CollectionBody,
    ImageChangeBody,
    ImageIdsBody,
    IngestBody,
    Page,
    ReindexBody,
)
from regionsearch.schemas.requests.searches import FilterBody, NegativeBody, QueryBody, SearchBody, WithinBody
from regionsearch.schemas.requests.values import Body, BoxBody, OneImage, PointBody, PromptBody

__all__ = [
    "BinaryCodesBody",
    "Body",
    "BoxBody",
    "CollectionBody",
    "EmbeddingsBody",
    "EverythingBody",
    "FilterBody",
    "ImageChangeBody",
    "ImageIdsBody",
    "IngestBody",
    "NegativeBody",
    "OneImage",
    "Page",
    "PointBody",
    "PromptBody",
    "QueryBody",
    "ReindexBody",
    "SearchBody",
    "SegmentBody",
    "WithinBody",
]
