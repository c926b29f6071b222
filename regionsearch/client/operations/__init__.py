"""Every operation of a gateway, said once: its arguments, its requests, and how the answers are read.

The functions send nothing and read no file: they answer with an `Operation`, and a transport does the rest.
`Client` and `AsyncClient` have them all as methods.
"""

from regionsearch.client.operations.base import GrpcCall, HttpCall, HttpRequest, Operation
from regionsearch.client.operations.collections import (
    cancel_reindex,
    create_collection,
    delete_collection,
    get_reindex,
    list_collections,
    ready,
    start_reindex,
)
from regionsearch.client.operations.images import (
    check_images,
    content,
    crop,
    delete_image,
    export_regions,
    image,
    ingest_one,
    list_images,
    mask_png,
    regions,
    thumbnail,
    update_image,
)
from regionsearch.client.operations.queries import embed, export_hits, render, search, segment, within

__all__ = [
    "GrpcCall",
    "HttpCall",
    "HttpRequest",
    "Operation",
    "cancel_reindex",
    "check_images",
    "content",
    "create_collection",
    "crop",
    "delete_collection",
    "delete_image",
    "embed",
    "export_hits",
    "export_regions",
    "get_reindex",
    "image",
    "ingest_one",
    "list_collections",
    "list_images",
    "mask_png",
    "ready",
    "regions",
    "render",
    "search",
    "segment",
    "start_reindex",
    "thumbnail",
    "update_image",
    "within",
]
