"""The tables of a collection in Milvus.

Three Milvus collections: one registry for all, and per collection its records and its images. Milvus wants
a vector in every collection, so registry and images carry a constant one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from pymilvus import DataType, MilvusClient, MilvusException

from services.searcher.milvus.access import Access
from services.searcher.settings import MilvusSettings
from services.searcher.types import (
    Collection,
)

NO_VECTOR = [1.0, 0.0]
_PAYLOAD = [
    "record_id", "image_id", "level", "area", "predicted_iou", "stability_score", "created_ms", "seq", "body",
]  # fmt: skip
_IMAGE_ID = 512  # bytes: 128 characters
_RECORD_ID = 640
MAX_TAG = 4096
MAX_TAGS = 4096
MASK_CHUNK = 32_768  # bytes; COCO's strings are ASCII
MASK_CHUNKS = 1024
LAYOUT = 4  # of new collections
_INDEXED = {
    "image_id": "INVERTED",
    "created_ms": "INVERTED",
    "seq": "INVERTED",
    "level": "BITMAP",
    "tags": "BITMAP",
}
"""Fields that filters name, with the index that suits them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a collection lies in Milvus.

    Collections of the first layout have tables named by the collection alone, and masks in a record's body;
    those of the first two have no numbers and times of attributes, those of the first three no places.

    Attributes:
        collection: The collection, without counts.
        records: Name of the table of its records.
        images: Name of the table of its images.
        masks_apart: Whether masks have a field of their own, in chunks.
        typed: Whether attributes that are numbers or times are stored as such too.
        places: Whether those that are places are.
    """

    collection: Collection
    records: str
    images: str
    masks_apart: bool
    typed: bool
    places: bool

    @property
    def generation(self) -> str:
        """See `UpsertResult.generation`."""
        return str(self.collection.created_ms)

    @property
    def payload(self) -> list[str]:
        """What a hit needs of its record, without the mask."""
        return _PAYLOAD

    @property
    def whole(self) -> list[str]:
        """What a record needs, with its mask."""
        return [*_PAYLOAD, "mask"] if self.masks_apart else _PAYLOAD

    @property
    def every_field(self) -> list[str]:
        """All of a record's row."""
        return [*self.whole, "vector", "tags", "attributes", *(["typed"] if self.typed else [])]


def placement_of(prefix: str, collection: Collection, layout: int) -> Placement:
    """Where a collection lies. A collection that is made again gets other tables, so that a searcher that
    remembers the old ones notices.
    """
    # Milvus knows no hyphen, our names no capitals: so no two names become one.
    name = collection.name.replace("-", "H")
    if layout > 1:
        name = f"{name}_G{collection.created_ms}"
    tables = (f"{prefix}records_{name}", f"{prefix}images_{name}")
    return Placement(collection, *tables, layout > 1, layout > 2, layout > 3)


def create_plain_table(access: Access, table: str, key: str) -> None:
    """A table with a key, a time and a body."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=_IMAGE_ID)
    schema.add_field("created_ms", DataType.INT64)
    schema.add_field("body", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(NO_VECTOR))
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    access.call(
        access.client.create_collection, table, schema=schema, index_params=index, consistency_level="Strong"
    )


def create_records_table(access: Access, table: str, dimension: int, settings: MilvusSettings) -> None:
    """A table of vectors and of what filters read."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("record_id", DataType.VARCHAR, is_primary=True, max_length=_RECORD_ID)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    schema.add_field("image_id", DataType.VARCHAR, max_length=_IMAGE_ID)
    schema.add_field("level", DataType.INT8)
    schema.add_field("area", DataType.INT64)
    schema.add_field("predicted_iou", DataType.DOUBLE)
    schema.add_field("stability_score", DataType.DOUBLE)
    schema.add_field("created_ms", DataType.INT64)
    schema.add_field("seq", DataType.INT64)
    schema.add_field(
        "tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MAX_TAGS, max_length=MAX_TAG
    )
    schema.add_field("attributes", DataType.JSON)
    schema.add_field("typed", DataType.JSON)
    schema.add_field("body", DataType.JSON)
    schema.add_field(
        "mask", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MASK_CHUNKS,
        max_length=MASK_CHUNK,
    )  # fmt: skip
    access.call(access.client.create_collection, table, schema=schema, consistency_level="Strong")
    for field, kind in _INDEXED.items():
        _index_scalar(access, table, field, kind)
    index = MilvusClient.prepare_index_params()
    index.add_index(
        "vector", index_type=settings.index_type, metric_type="IP", params=dict(settings.index_params)
    )
    access.call(access.client.create_index, table, index, sync=False)
    access.call(access.client.load_collection, table)


def _index_scalar(access: Access, table: str, field: str, kind: str) -> None:
    """An index for filters: of the kind that suits the field, or else the server's own choice, or else none,
    as servers before 2.4 have no such kinds, and none at all for arrays.
    """
    for index_type in (kind, ""):
        index = MilvusClient.prepare_index_params()
        index.add_index(field, index_type=index_type, index_name=f"{field}_index")
        with contextlib.suppress(MilvusException):
            access.client.create_index(table, index, timeout=access.timeout_s, sync=False)
            return
