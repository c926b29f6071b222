"""How collections, images and records lie in Milvus, and filters as Milvus expressions.

Three Milvus collections: one registry for all, and per collection its records and its images. Milvus wants
a vector in every collection, so registry and images carry a constant one.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass

import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from regionsearch.errors import too_large
from services.searcher.milvus.access import STRONG, Access, Row, listed
from services.searcher.settings import MilvusSettings
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
    Collection,
    Filter,
    Level,
    ModelIdentity,
    Record,
    RleMask,
    StoredImage,
)

NO_VECTOR = [1.0, 0.0]
_PAYLOAD = [
    "record_id", "image_id", "level", "area", "predicted_iou", "stability_score", "created_ms", "seq", "body",
]  # fmt: skip
_KEY_FIELD = "name"
_NO_COLLECTION = ""  # where the registry keeps what belongs to no collection
_IMAGE_ID = 512  # bytes: 128 characters
_RECORD_ID = 640
_TAG = 4096
_TAGS = 4096
_JSON_BYTES = 65_536  # of one field, as Milvus has it
_MASK_CHUNK = 32_768  # bytes; COCO's strings are ASCII
_MASK_CHUNKS = 1024
LAYOUT = 2  # of new collections
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

    Collections of the first layout have tables named by the collection alone, and masks in a record's body.

    Attributes:
        collection: The collection, without counts.
        records: Name of the table of its records.
        images: Name of the table of its images.
        masks_apart: Whether masks have a field of their own, in chunks.
    """

    collection: Collection
    records: str
    images: str
    masks_apart: bool

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
        return [*self.whole, "vector", "tags", "attributes"]


def registry_table(prefix: str) -> str:
    """Name of the Milvus collection that lists our collections."""
    return f"{prefix}registry"


def placement_of(prefix: str, collection: Collection, layout: int) -> Placement:
    """Where a collection lies. A collection that is made again gets other tables, so that a searcher that
    remembers the old ones notices.
    """
    # Milvus knows no hyphen, our names no capitals: so no two names become one.
    name = collection.name.replace("-", "H")
    if layout > 1:
        name = f"{name}_G{collection.created_ms}"
    return Placement(collection, f"{prefix}records_{name}", f"{prefix}images_{name}", layout > 1)


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


def token_key(access: Access, registry: str) -> bytes:
    """The key that signs page tokens; made by the first searcher that needs one.

    Should two make one at the same time, the later one counts, and the other searcher reads it again.
    """
    term = listed(_KEY_FIELD, [_NO_COLLECTION])
    rows = access.query(registry, term, ["body"], STRONG)
    if not rows:
        made = {_KEY_FIELD: _NO_COLLECTION, "created_ms": 0, "body": {"token_key": secrets.token_hex(32)}}
        access.upsert(registry, [{**made, "vector": NO_VECTOR}], 1)
        rows = access.query(registry, term, ["body"], STRONG)
    return bytes.fromhex(rows[0]["body"]["token_key"])


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
        "tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=_TAGS, max_length=_TAG
    )
    schema.add_field("attributes", DataType.JSON)
    schema.add_field("body", DataType.JSON)
    schema.add_field(
        "mask", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=_MASK_CHUNKS,
        max_length=_MASK_CHUNK,
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


def collection_row(collection: Collection) -> Row:
    """A collection for the registry."""
    codes = collection.codes
    body = {
        "model": asdict(collection.model),
        "codes": None if codes is None else {**asdict(codes), "method": codes.method.value},
        "layout": LAYOUT,
    }
    return {
        "name": collection.name,
        "created_ms": collection.created_ms,
        "body": body,
        "vector": NO_VECTOR,
    }


def collection_of(row: Row) -> Collection:
    """A collection from the registry, without counts."""
    body = row["body"]
    codes = body["codes"]
    return Collection(
        row["name"],
        ModelIdentity(**body["model"]),
        CodeSpec(**{**codes, "method": CodeMethod(codes["method"])}) if codes else None,
        row["created_ms"],
    )


def image_row(image: StoredImage) -> Row:
    """An image for its table."""
    body = {
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "content_type": image.content_type,
        "size_bytes": image.size_bytes,
        "tags": list(image.tags),
        "attributes": dict(image.attributes),
        "region_count": image.region_count,
    }
    _check_json(body, "images", f"image {image.image_id!r}")
    return {
        "image_id": image.image_id,
        "created_ms": image.created_ms,
        "body": body,
        "vector": NO_VECTOR,
    }


def image_of(row: Row) -> StoredImage:
    """An image from its table."""
    body = {**row["body"], "tags": tuple(row["body"]["tags"])}
    return StoredImage(image_id=row["image_id"], created_ms=row["created_ms"], **body)


def record_row(record: Record, image: StoredImage, vector: np.ndarray, seq: int, placement: Placement) -> Row:
    """A record with what its filters need of its image.

    Raises:
        RegionSearchError: TOO_LARGE when Milvus cannot hold a field of it.
    """
    mask = record.mask
    counts = "" if mask is None else mask.counts.decode("ascii")
    chunks = [counts[i : i + _MASK_CHUNK] for i in range(0, len(counts), _MASK_CHUNK)]
    if len(chunks) > _MASK_CHUNKS:
        raise too_large(
            "records.mask",
            f"the mask of record {record.record_id!r} has {len(counts)} bytes, Milvus holds "
            f"{_MASK_CHUNK * _MASK_CHUNKS}: simplify it",
        )
    shape = None if mask is None else [mask.height, mask.width]
    body = {
        "box": record.box,
        "attributes": dict(record.attributes),
        "mask": shape if shape is None or placement.masks_apart else [*shape, counts],
    }
    attributes = {**image.attributes, **record.attributes}
    of_record = f"record {record.record_id!r}"
    _check_json(body, "records.mask" if not placement.masks_apart else "records.attributes", of_record)
    _check_json(attributes, "records.attributes", of_record)
    row = {
        "record_id": record.record_id,
        "vector": vector.tolist(),
        "image_id": record.image_id,
        "level": int(record.level),
        "area": record.area,
        "predicted_iou": float(np.float32(record.predicted_iou)),
        "stability_score": float(np.float32(record.stability_score)),
        "created_ms": image.created_ms,
        "seq": seq,
        "tags": _tags(image),
        "attributes": attributes,
        "body": body,
    }
    return {**row, "mask": chunks} if placement.masks_apart else row


def relabelled(row: Row, image: StoredImage, placement: Placement) -> Row:
    """A record's row with the present tags and attributes of its image."""
    attributes = {**image.attributes, **row["body"]["attributes"]}
    _check_json(attributes, "set_attributes", f"record {row['record_id']!r}")
    return {name: row[name] for name in placement.every_field} | {
        "tags": _tags(image),
        "attributes": attributes,
    }


def record_of(row: Row, *, masks: bool) -> Record:
    """A record from its table."""
    body = row["body"]
    box = tuple(body["box"]) if body["box"] else None
    mask = None
    if masks and body["mask"]:
        height, width, *counts = body["mask"]
        mask = RleMask(height, width, "".join(counts or row["mask"]).encode("ascii"))
    return Record(
        record_id=row["record_id"],
        image_id=row["image_id"],
        level=Level(row["level"]),
        box=box,
        mask=mask,
        area=row["area"],
        predicted_iou=row["predicted_iou"],
        stability_score=row["stability_score"],
        attributes=body["attributes"],
    )


def _tags(image: StoredImage) -> list[str]:
    for tag in image.tags:
        if len(tag.encode()) > _TAG:
            raise too_large(
                "images.tags",
                f"a tag of image {image.image_id!r} has {len(tag.encode())} bytes, Milvus holds {_TAG}: "
                "shorten it",
            )
    if len(image.tags) > _TAGS:
        raise too_large(
            "images.tags",
            f"image {image.image_id!r} has {len(image.tags)} tags, Milvus holds {_TAGS}: leave some out",
        )
    return list(image.tags)


def _check_json(value: object, field: str, of_what: str) -> None:
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    if size > _JSON_BYTES:
        raise too_large(
            field, f"{of_what} needs {size} bytes there, Milvus holds {_JSON_BYTES}: send less of it"
        )


def quoted(text: str) -> str:
    """A string in an expression."""
    return json.dumps(text, ensure_ascii=False)


def expression(wanted: Filter, level: Level | None = None, seq: int | None = None) -> str:
    """A filter in Milvus' words; "" for none."""
    terms: list[str] = []
    if seq is not None:
        terms.append(f"seq <= {seq}")
    if level is not None:
        terms.append(f"level == {int(level)}")
    if wanted.image_ids:
        terms.append(listed("image_id", wanted.image_ids))
    if wanted.exclude_image_ids:
        terms.append(listed("image_id", wanted.exclude_image_ids, inside=False))
    if wanted.record_ids:
        terms.append(listed("record_id", wanted.record_ids))
    if wanted.exclude_record_ids:
        terms.append(listed("record_id", wanted.exclude_record_ids, inside=False))
    if wanted.tags:
        terms.append(f"ARRAY_CONTAINS_ANY(tags, {json.dumps(list(wanted.tags), ensure_ascii=False)})")
    if wanted.exclude_tags:
        terms.append(
            f"not ARRAY_CONTAINS_ANY(tags, {json.dumps(list(wanted.exclude_tags), ensure_ascii=False)})"
        )
    bounds = (
        ("area", ">=", wanted.min_area),
        ("area", "<=", wanted.max_area),
        ("created_ms", ">=", wanted.created_after_ms),
        ("created_ms", "<", wanted.created_before_ms),
    )
    terms += [f"{field} {sign} {bound}" for field, sign, bound in bounds if bound is not None]
    scores = (
        ("predicted_iou", wanted.min_predicted_iou),
        ("stability_score", wanted.min_stability_score),
    )
    terms += [f"{field} >= {float(np.float32(bound))!r}" for field, bound in scores if bound is not None]
    for name, value in wanted.attributes:
        key, text = json.dumps(name, ensure_ascii=False), json.dumps(value, ensure_ascii=False)
        terms.append(f"attributes[{key}] == {text}")
    return " and ".join(f"({term})" for term in terms)
