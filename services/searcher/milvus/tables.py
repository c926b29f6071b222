"""How collections, images and records lie in Milvus, and filters as Milvus expressions.

Three Milvus collections: one registry for all, and per collection its records and its images. Milvus wants
a vector in every collection, so registry and images carry a constant one.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

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

Row = dict[str, Any]
NO_VECTOR = [1.0, 0.0]
RECORD_FIELDS = [
    "record_id", "vector", "image_id", "level", "area", "predicted_iou", "stability_score", "created_ms",
    "seq", "tags", "attributes", "body",
]  # fmt: skip
"""All of a record's row."""
_KEY_FIELD = "name"
_NO_COLLECTION = ""  # where the registry keeps what belongs to no collection
_IMAGE_ID = 512  # bytes: 128 characters
_RECORD_ID = 640
_TAG = 4096
_TAGS = 4096


def registry_table(prefix: str) -> str:
    """Name of the Milvus collection that lists our collections."""
    return f"{prefix}registry"


def records_table(prefix: str, name: str) -> str:
    """Name of the Milvus collection with a collection's records."""
    return f"{prefix}records_{_plain(name)}"


def images_table(prefix: str, name: str) -> str:
    """Name of the Milvus collection with a collection's images."""
    return f"{prefix}images_{_plain(name)}"


def _plain(name: str) -> str:
    """Milvus knows no hyphen, our names no capitals: so no two names become one."""
    return name.replace("-", "H")


def create_plain_table(client: MilvusClient, table: str, key: str) -> None:
    """A table with a key, a time and a body."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(key, DataType.VARCHAR, is_primary=True, max_length=_IMAGE_ID)
    schema.add_field("created_ms", DataType.INT64)
    schema.add_field("body", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(NO_VECTOR))
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(table, schema=schema, index_params=index, consistency_level="Strong")


def token_key(client: MilvusClient, registry: str) -> bytes:
    """The key that signs page tokens; made by the first searcher that needs one.

    Should two make one at the same time, the later one counts, and the other searcher reads it again.
    """
    term = listed(_KEY_FIELD, [_NO_COLLECTION])
    rows = client.query(registry, filter=term, output_fields=["body"], consistency_level="Strong")
    if not rows:
        made = {_KEY_FIELD: _NO_COLLECTION, "created_ms": 0, "body": {"token_key": secrets.token_hex(32)}}
        client.upsert(registry, [{**made, "vector": NO_VECTOR}])
        rows = client.query(registry, filter=term, output_fields=["body"], consistency_level="Strong")
    return bytes.fromhex(rows[0]["body"]["token_key"])


def create_records_table(client: MilvusClient, table: str, dimension: int, index_type: str) -> None:
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
    index = client.prepare_index_params()
    index.add_index("vector", index_type=index_type, metric_type="IP")
    client.create_collection(table, schema=schema, index_params=index, consistency_level="Strong")


def collection_row(collection: Collection) -> Row:
    """A collection for the registry."""
    codes = collection.codes
    body = {
        "model": asdict(collection.model),
        "codes": None if codes is None else {**asdict(codes), "method": codes.method.value},
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


def record_row(record: Record, image: StoredImage, vector: np.ndarray, seq: int) -> Row:
    """A record with what its filters need of its image."""
    mask = record.mask
    body = {
        "box": record.box,
        "attributes": dict(record.attributes),
        "mask": None if mask is None else [mask.height, mask.width, mask.counts.decode("ascii")],
    }
    return {
        "record_id": record.record_id,
        "vector": vector.tolist(),
        "image_id": record.image_id,
        "level": int(record.level),
        "area": record.area,
        "predicted_iou": float(np.float32(record.predicted_iou)),
        "stability_score": float(np.float32(record.stability_score)),
        "created_ms": image.created_ms,
        "seq": seq,
        "tags": list(image.tags),
        "attributes": {**image.attributes, **record.attributes},
        "body": body,
    }


def relabelled(row: Row, image: StoredImage) -> Row:
    """A record's row with the present tags and attributes of its image."""
    attributes = {**image.attributes, **row["body"]["attributes"]}
    return {name: row[name] for name in RECORD_FIELDS} | {"tags": list(image.tags), "attributes": attributes}


def record_of(row: Row, *, masks: bool) -> Record:
    """A record from its table."""
    body = row["body"]
    box = tuple(body["box"]) if body["box"] else None
    mask = body["mask"]
    return Record(
        record_id=row["record_id"],
        image_id=row["image_id"],
        level=Level(row["level"]),
        box=box,
        mask=RleMask(mask[0], mask[1], mask[2].encode("ascii")) if masks and mask else None,
        area=row["area"],
        predicted_iou=row["predicted_iou"],
        stability_score=row["stability_score"],
        attributes=body["attributes"],
    )


def quoted(text: str) -> str:
    """A string in an expression."""
    return json.dumps(text, ensure_ascii=False)


def listed(field: str, values: Any, *, inside: bool = True) -> str:
    """Field is, or is not, one of the values."""
    return f"{field} {'in' if inside else 'not in'} {json.dumps(list(values), ensure_ascii=False)}"


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
