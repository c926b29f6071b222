"""Collections, images and records as rows of Milvus, within what its fields hold."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from regionsearch.errors import too_large
from services.searcher.conditions import number_of, time_of
from services.searcher.geo import place_of
from services.searcher.milvus.access import Row
from services.searcher.milvus.tables import (
    LAYOUT,
    MASK_CHUNK,
    MASK_CHUNKS,
    MAX_TAG,
    MAX_TAGS,
    NO_VECTOR,
    Placement,
)
from services.searcher.types import Collection, Level, Record, RleMask, StoredImage

_JSON_BYTES = 65_536  # of one field, as Milvus has it


def collection_row(collection: Collection) -> Row:
    """A collection for the registry."""
    return {
        "name": collection.name,
        "created_ms": collection.created_ms,
        "body": {**collection.spec, "layout": LAYOUT},
        "vector": NO_VECTOR,
    }


def collection_of(row: Row) -> Collection:
    """A collection from the registry, without counts."""
    return Collection.from_spec(row["name"], row["body"], row["created_ms"])


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
    chunks = [counts[i : i + MASK_CHUNK] for i in range(0, len(counts), MASK_CHUNK)]
    if len(chunks) > MASK_CHUNKS:
        raise too_large(
            "records.mask",
            f"the mask of record {record.record_id!r} has {len(counts)} bytes, Milvus holds "
            f"{MASK_CHUNK * MASK_CHUNKS}: simplify it",
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
    row |= {"mask": chunks, "typed": _typed(attributes)}
    return {name: row[name] for name in placement.every_field}


def relabelled(row: Row, image: StoredImage, placement: Placement) -> Row:
    """A record's row with the present tags and attributes of its image."""
    attributes = {**image.attributes, **row["body"]["attributes"]}
    _check_json(attributes, "set_attributes", f"record {row['record_id']!r}")
    row = {**row, "tags": _tags(image), "attributes": attributes, "typed": _typed(attributes)}
    return {name: row[name] for name in placement.every_field}


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


def _typed(attributes: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The attributes that are numbers, those that are times, and where those that are places are."""
    typed = {
        kind: {name: number for name, value in attributes.items() if (number := read(value)) is not None}
        for kind, read in (("number", number_of), ("time", time_of))
    }
    places = {name: place for name, value in attributes.items() if (place := place_of(value)) is not None}
    for number, kind in enumerate(("latitude", "longitude")):
        typed[kind] = {name: place[number] for name, place in places.items()}
    return typed


def _tags(image: StoredImage) -> list[str]:
    for tag in image.tags:
        if len(tag.encode()) > MAX_TAG:
            raise too_large(
                "images.tags",
                f"a tag of image {image.image_id!r} has {len(tag.encode())} bytes, Milvus holds {MAX_TAG}: "
                "shorten it",
            )
    if len(image.tags) > MAX_TAGS:
        raise too_large(
            "images.tags",
            f"image {image.image_id!r} has {len(image.tags)} tags, Milvus holds {MAX_TAGS}: leave some out",
        )
    return list(image.tags)


def _check_json(value: object, field: str, of_what: str) -> None:
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    if size > _JSON_BYTES:
        raise too_large(
            field, f"{of_what} needs {size} bytes there, Milvus holds {_JSON_BYTES}: send less of it"
        )
