"""Reads requests into checked plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from google.protobuf import json_format

from regionsearch.errors import RegionSearchError, invalid
from regionsearch.masks import check_rle_length, encode_rle, rle_runs
from regionsearch.tensors import mask_from_proto, tensor_from_proto
from regionsearch.texts import MetadataLimits
from regionsearch.v1 import search_pb2, types_pb2
from services.searcher.filter_requests import FilterReader, given, milliseconds, no_nul
from services.searcher.queries import Deletion, Filter, ImageUpdate
from services.searcher.scrolling import NEWEST_FIRST, ImageOrder
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
    Collection,
    Level,
    ModelIdentity,
    Record,
    RleMask,
    StoredImage,
    Upsert,
    Vectors,
    check_bits,
)

_MAX_HOLD_MS = 30_000
_MAX_WEIGHT = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HEAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
POLICY_PREFIX = "CROP_POLICY_"
_MAX_IMAGE_ID = 128
_MAX_RECORD_ID = 160
_BLOCK = 256  # rows
_DEFAULT_BITS = 256
_DEFAULT_RERANK = 10
METHODS = {
    search_pb2.BinaryCodes.METHOD_PCA_ROTATION: CodeMethod.PCA_ROTATION,
    search_pb2.BinaryCodes.METHOD_ITQ: CodeMethod.ITQ,
    search_pb2.BinaryCodes.METHOD_LEARNED: CodeMethod.LEARNED,
}


class Reader(FilterReader):
    """Reads requests within limits.

    Args:
        limits: What a call may ask for.

    Every method raises INVALID_ARGUMENT or TOO_LARGE, naming the field.
    """

    def collection(self, request: search_pb2.CreateCollectionRequest) -> Collection:
        """Reads a collection to create."""
        _check_name("name", request.name)
        model = self.model(request.model)
        if model.dimension < 1:
            raise invalid("model.dimension", "model.dimension is missing: say how long the vectors are")
        self.at_most("model.dimension", model.dimension, "max_dimension")
        codes = None
        if request.HasField("binary_codes") and request.binary_codes.method:
            codes = self._codes(request.binary_codes, model.dimension)
        everything = ""
        if request.HasField("everything"):
            everything = json_format.MessageToJson(request.everything, indent=None)
        if not 0.0 <= request.recall_target <= 1.0:  # NaN fails too
            raise invalid(
                "recall_target", "recall_target is above 0 and at most 1; leave it out for the default"
            )
        return Collection(
            request.name,
            model,
            codes,
            replaces=request.replaces,
            everything=everything,
            recall_target=request.recall_target,
        )

    def codes_to_train(self, request: search_pb2.TrainCodesRequest) -> CodeSpec:
        """The codes to learn from a collection's vectors."""
        wanted = request.binary_codes
        if wanted.head:
            raise invalid(
                "binary_codes.head", "a head from a file is not trained: leave binary_codes.head out"
            )
        if not wanted.method:
            raise invalid(
                "binary_codes.method", "binary_codes.method is missing: say how the codes are learned"
            )
        return self._codes(wanted, None)

    def renaming(self, request: search_pb2.ReplaceCollectionRequest) -> tuple[str, str, str, float]:
        """The name to give away, what gets it, where the other one is kept, and seconds to hold writes."""
        names = (request.name, request.by, request.keep_as)
        if len(set(names)) != len(names):
            raise invalid("keep_as", "name, by and keep_as must be three different names")
        _check_name("keep_as", request.keep_as)
        if not 0 <= request.hold_ms <= _MAX_HOLD_MS:
            raise invalid("hold_ms", f"hold_ms is between 0 and {_MAX_HOLD_MS}, not {request.hold_ms}")
        return *names, request.hold_ms / 1000

    def _codes(self, message: search_pb2.BinaryCodes, dimension: int | None) -> CodeSpec:
        method = METHODS.get(message.method)
        if method is None:
            raise invalid("binary_codes.method", f"{message.method} is not a method of making binary codes")
        bits = message.bits or _DEFAULT_BITS
        if bits % 8 or bits < 8:
            raise invalid("binary_codes.bits", f"a code has a multiple of 8 bits, not {bits}")
        if dimension is not None:
            check_bits(method, bits, dimension)
        if message.head and not (method is CodeMethod.LEARNED and _HEAD.fullmatch(message.head)):
            raise invalid(
                "binary_codes.head",
                "binary_codes.head is the file name, without folder, of a head for METHOD_LEARNED",
            )
        if message.rerank_factor < 0:
            raise invalid("binary_codes.rerank_factor", "binary_codes.rerank_factor cannot be negative")
        return CodeSpec(method, bits, message.rerank_factor or _DEFAULT_RERANK, message.head)

    def model(self, message: types_pb2.ModelInfo) -> ModelIdentity:
        """The identity of a model."""
        try:
            policy = types_pb2.CropPolicy.Name(message.crop_policy).removeprefix(POLICY_PREFIX)
        except ValueError:
            raise invalid("model.crop_policy", f"{message.crop_policy} is not a crop policy") from None
        if message.dimension < 0:
            raise invalid("model.dimension", "model.dimension cannot be negative")
        self.texts("model", [message.family, message.variant, message.weights_digest])
        features = ""
        if message.HasField("features"):
            part = message.features
            if not 0 < part.model.dimension < message.dimension:
                raise invalid(
                    "model.features.model.dimension",
                    f"{part.model.dimension} of the {message.dimension} dimensions cannot be features: give "
                    "the features' part of model.dimension, which counts both",
                )
            if not 0 < part.weight <= _MAX_WEIGHT:
                raise invalid(
                    "model.features.weight", f"model.features.weight is above 0, at most {_MAX_WEIGHT}"
                )
            features = json_format.MessageToJson(part, indent=None, sort_keys=True)
        return ModelIdentity(
            message.family,
            message.variant,
            message.weights_digest,
            message.dimension,
            "" if policy == "UNSPECIFIED" else policy,
            features,
        )

    def upsert(self, request: search_pb2.UpsertRequest) -> Upsert:
        """A write with unit vectors."""
        self.at_most("images", len(request.images), "max_images")
        self.at_most("records", len(request.records), "max_records")
        if not request.images and not request.records:
            raise invalid("images", "the request holds neither images nor records")
        images = [self._image(message, f"images[{i}]") for i, message in enumerate(request.images)]
        if request.keep_create_time:
            images = [
                replace(image, created_ms=milliseconds(message.create_time, f"images[{i}].create_time"))
                for i, (image, message) in enumerate(zip(images, request.images, strict=True))
            ]
        records = [self._record(message, f"records[{i}]") for i, message in enumerate(request.records)]
        _unique("images", "image_id", [image.image_id for image in images])
        _unique("records", "record_id", [record.record_id for record in records])
        dimension = request.model.dimension
        if records:
            vectors = self.vectors(request.vectors, "vectors", dimension)
        else:
            vectors = np.empty((0, dimension), np.float32)
        if len(vectors) != len(records):
            raise invalid("vectors.shape", f"{len(records)} records need as many vectors, not {len(vectors)}")
        return Upsert(
            images, records, vectors, request.skip_existing, check_key=request.check_idempotency_key
        )

    def image_order(self, by: str, ascending: bool) -> ImageOrder:
        """The order of a list of images."""
        order = ImageOrder(by or NEWEST_FIRST.by, ascending)
        if order.by not in ("created_at", "name") and not order.attribute:
            raise invalid("order_by", f'order_by is "created_at", "name" or "attributes.NAME", not {by!r}')
        self.texts("order_by", [by])
        return order

    def vectors(self, message: types_pb2.Tensor, field: str, dimension: int) -> Vectors:
        """Vectors, scaled to unit length, shape (rows, dimension)."""
        if message.dtype not in (types_pb2.DATA_TYPE_FLOAT32, types_pb2.DATA_TYPE_FLOAT16):
            raise invalid(f"{field}.dtype", f"{field}.dtype must be FLOAT32 or FLOAT16")
        array = tensor_from_proto(message, field, ndim=2)
        if array.shape[1] != dimension:
            raise invalid(
                f"{field}.shape",
                f"{field} has {array.shape[1]} columns; the model's dimension is {dimension}",
            )
        unit: Vectors = np.empty(array.shape, np.float32)
        for start in range(0, len(array), _BLOCK):  # in double precision, which is not to be held of all rows
            block = array[start : start + _BLOCK].astype(np.float64)
            norms = np.linalg.norm(block, axis=1, keepdims=True)
            if not (norms > 0).all():
                row = start + int(np.argmin(norms))
                raise invalid(f"{field}[{row}]", f"{field} holds a vector of length zero")
            unit[start : start + _BLOCK] = block / norms
        return unit

    def deletion(self, request: search_pb2.DeleteRequest) -> Deletion:
        """Reads what to delete."""
        for name in ("image_ids", "record_ids"):
            count = len(getattr(request, name))
            self.at_most(name, count, "max_filter_values")
        chosen = self.filter(request.filter) if request.HasField("filter") else None
        if not request.image_ids and not request.record_ids and chosen is None:
            raise invalid("image_ids", "say what to delete: image_ids, record_ids or a filter")
        if chosen == Filter():
            raise invalid("filter", "an empty filter would delete everything: delete the collection instead")
        as_read = _as_read(request.as_read, "as_read") if request.HasField("as_read") else None
        return Deletion(tuple(request.image_ids), tuple(request.record_ids), chosen, as_read)

    def updates(self, request: search_pb2.UpdateImagesRequest) -> list[ImageUpdate]:
        """Reads changes of images."""
        if not request.updates:
            raise invalid("updates", "say what to change: the request holds no updates")
        self.at_most("updates", len(request.updates), "max_images")
        updates = [self._update(message, f"updates[{i}]") for i, message in enumerate(request.updates)]
        _unique("updates", "image_id", [update.image_id for update in updates])
        return updates

    def _update(self, message: search_pb2.ImageUpdate, field: str) -> ImageUpdate:
        _identifier(f"{field}.image_id", message.image_id, _MAX_IMAGE_ID)
        for name in ("remove_tags", "remove_attributes"):
            self.at_most(f"{field}.{name}", len(getattr(message, name)), "max_filter_values")
        self.texts(f"{field}.name", [message.name])
        added = dict.fromkeys([*message.tags.values, *message.add_tags])
        self.metadata.check(added, message.set_attributes, f"{field}.")
        return ImageUpdate(
            image_id=message.image_id,
            **given(message, "name"),
            tags=tuple(message.tags.values) if message.HasField("tags") else None,
            remove_tags=tuple(message.remove_tags),
            add_tags=tuple(message.add_tags),
            remove_attributes=tuple(message.remove_attributes),
            set_attributes=dict(message.set_attributes),
            as_read=_as_read(message.as_read, f"{field}.as_read") if message.HasField("as_read") else None,
        )

    @property
    def metadata(self) -> MetadataLimits:
        """The limits on tags and attributes of one image or record."""
        limits = self.limits
        return MetadataLimits(
            limits.max_tags, limits.max_attributes, limits.max_text_bytes, limits.max_metadata_bytes
        )

    def page_size(self, asked: int, default: int, field: str = "page_size") -> int:
        """A page's size; 0 means the default."""
        if asked < 0:
            raise invalid(field, f"{field} cannot be negative")
        self.at_most(field, asked, "max_page_size")
        return asked or default

    def level(self, value: int, field: str = "level") -> Level | None:
        """A level to search; None is both."""
        if value in (search_pb2.LEVEL_UNSPECIFIED, search_pb2.LEVEL_BOTH):
            return None
        if value not in tuple(Level):
            raise invalid(field, f"{value} is not a level")
        return Level(value)

    def _image(self, message: search_pb2.StoredImage, field: str) -> StoredImage:
        _identifier(f"{field}.image_id", message.image_id, _MAX_IMAGE_ID)
        for name in ("width", "height", "size_bytes"):
            if getattr(message, name) < 0:
                raise invalid(f"{field}.{name}", f"{field}.{name} cannot be negative")
        self.texts(field, [message.name, message.content_type])
        tags = tuple(dict.fromkeys(message.tags))
        self.metadata.check(tags, message.attributes, f"{field}.")
        return StoredImage(
            image_id=message.image_id,
            name=message.name,
            width=message.width,
            height=message.height,
            content_type=message.content_type,
            size_bytes=message.size_bytes,
            tags=tags,
            attributes=dict(message.attributes),
        )

    def _record(self, message: search_pb2.Record, field: str) -> Record:
        _identifier(f"{field}.record_id", message.record_id, _MAX_RECORD_ID)
        _identifier(f"{field}.image_id", message.image_id, _MAX_IMAGE_ID)
        level = self.level(message.level, f"{field}.level")
        if level is None:
            raise invalid(f"{field}.level", f"{field}.level is missing: say LEVEL_IMAGE or LEVEL_REGION")
        box = None
        if message.HasField("box"):
            box = (message.box.x_min, message.box.y_min, message.box.x_max, message.box.y_max)
            if not all(map(math.isfinite, box)):
                raise invalid(f"{field}.box", f"{field}.box holds NaN or infinity")
        if not (math.isfinite(message.predicted_iou) and math.isfinite(message.stability_score)):
            raise invalid(f"{field}.predicted_iou", f"{field} holds a score that is NaN or infinity")
        if message.area < 0:
            raise invalid(f"{field}.area", f"{field}.area cannot be negative")
        self.metadata.check((), message.attributes, f"{field}.")
        return Record(
            record_id=message.record_id,
            image_id=message.image_id,
            level=level,
            box=box,
            mask=_mask(message.mask, f"{field}.mask") if message.HasField("mask") else None,
            area=message.area,
            predicted_iou=message.predicted_iou,
            stability_score=message.stability_score,
            attributes=dict(message.attributes),
        )


def _as_read(message: search_pb2.StoredImage, field: str) -> StoredImage:
    """The state in which the caller last read an image; nothing of it is written."""
    return StoredImage(
        image_id=message.image_id,
        name=message.name,
        tags=tuple(message.tags),
        attributes=dict(message.attributes),
        created_ms=milliseconds(message.create_time, f"{field}.create_time"),
    )


def write_bytes(request: search_pb2.UpsertRequest) -> int:
    """Memory that an upsert needs while it is processed: message, unit vectors, stored and indexed copies."""
    itemsize = 2 if request.vectors.dtype == types_pb2.DATA_TYPE_FLOAT16 else 4
    components = len(request.vectors.data) // itemsize
    return request.ByteSize() + components * (4 + 2 + 4)


def _mask(message: types_pb2.Mask, field: str) -> RleMask:
    if message.WhichOneof("encoding") == "coco_rle":
        if message.height < 1 or message.width < 1:
            raise invalid(field, f"{field} needs a height and a width of at least 1")
        rle_runs(message.coco_rle, message.height, message.width, f"{field}.coco_rle")
        return RleMask(message.height, message.width, message.coco_rle.encode("ascii"))
    counts = encode_rle(mask_from_proto(message, field))
    check_rle_length(counts, field)
    return RleMask(message.height, message.width, counts.encode("ascii"))


def _identifier(field: str, value: str, limit: int) -> None:
    if not value or len(value) > limit:
        raise invalid(field, f"{field} must have 1 to {limit} characters, not {len(value)}")
    no_nul(field, value)


def _check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise invalid(
            field,
            "a collection's name has 1 to 64 of a-z, 0-9, '-' and '_'; the first is a letter or digit",
        )


def _unique(field: str, name: str, values: Sequence[str]) -> None:
    if len(set(values)) < len(values):
        seen: set[str] = set()
        for index, value in enumerate(values):
            if value in seen:
                raise _duplicate(f"{field}[{index}].{name}", value)
            seen.add(value)


def _duplicate(field: str, value: str) -> RegionSearchError:
    return invalid(field, f"{field}: {value!r} comes twice in one request")
