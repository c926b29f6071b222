"""Converts plain values to protobuf messages."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, types_pb2
from services.searcher.queries import Hit
from services.searcher.requests import METHODS, POLICY_PREFIX
from services.searcher.scrolling import Counts
from services.searcher.types import Collection, CollectionStats, ModelIdentity, Record, Stored, StoredImage

_KINDS = {"region": search_pb2.QUERY_KIND_REGION, "word": search_pb2.QUERY_KIND_WORD}


def collection_to_proto(collection: Collection) -> search_pb2.Collection:
    """A collection as a message."""
    message = search_pb2.Collection(
        name=collection.name,
        model=model_to_proto(collection.model),
        create_time=_timestamp(collection.created_ms),
        image_count=collection.image_count,
        record_count=collection.record_count,
        replaces=collection.replaces,
        recall_target=collection.recall_target,
    )
    if collection.everything:
        json_format.Parse(collection.everything, message.everything, ignore_unknown_fields=True)
    if collection.codes is not None:
        codes = collection.codes
        method = next(number for number, method in METHODS.items() if method is codes.method)
        message.binary_codes.CopyFrom(
            search_pb2.BinaryCodes(
                method=method,
                bits=codes.bits,
                rerank_factor=codes.rerank_factor,
                head=codes.head,
                trained_seq=codes.trained_seq,
            )
        )
    return message


def model_to_proto(model: ModelIdentity) -> types_pb2.ModelInfo:
    """A model's identity as a message."""
    message = types_pb2.ModelInfo(
        family=model.family,
        variant=model.variant,
        weights_digest=model.weights_digest,
        dimension=model.dimension,
        crop_policy=types_pb2.CropPolicy.Value(POLICY_PREFIX + (model.crop_policy or "UNSPECIFIED")),
    )
    if model.features:
        json_format.Parse(model.features, message.features, ignore_unknown_fields=True)
    return message


def image_to_proto(image: StoredImage) -> search_pb2.StoredImage:
    """An image as a message."""
    return search_pb2.StoredImage(
        image_id=image.image_id,
        name=image.name,
        width=image.width,
        height=image.height,
        content_type=image.content_type,
        size_bytes=image.size_bytes,
        tags=image.tags,
        attributes=image.attributes,
        create_time=_timestamp(image.created_ms),
        region_count=image.region_count,
    )


def record_to_proto(record: Record) -> search_pb2.Record:
    """A record as a message."""
    message = search_pb2.Record(
        record_id=record.record_id,
        image_id=record.image_id,
        level=search_pb2.Level.ValueType(record.level),
        area=record.area,
        predicted_iou=record.predicted_iou,
        stability_score=record.stability_score,
        attributes=record.attributes,
    )
    if record.box is not None:
        x_min, y_min, x_max, y_max = record.box
        message.box.CopyFrom(types_pb2.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    if record.mask is not None:
        mask = record.mask
        message.mask.CopyFrom(
            types_pb2.Mask(height=mask.height, width=mask.width, coco_rle=mask.counts.decode("ascii"))
        )
    return message


def hit_to_proto(hit: Hit) -> search_pb2.Hit:
    """A hit as a message."""
    return search_pb2.Hit(
        rank=hit.rank,
        score=hit.score,
        relevancy=hit.relevancy,
        record=record_to_proto(hit.record),
        image=image_to_proto(hit.image),
        query_index=hit.query_index,
        best_region=None if hit.best_region is None else hit_to_proto(hit.best_region),
        folded_count=hit.folded,
    )


def stored_to_proto(stored: Stored) -> dict[str, Any]:
    """The fields of an answer that holds records, by name."""
    return {
        "records": [record_to_proto(record) for record in stored.records],
        "images": [image_to_proto(image) for image in stored.images],
        "vectors": None if stored.vectors is None else tensor_to_proto(stored.vectors),
        "seq": stored.seq,
    }


def counts_to_proto(counts: Counts) -> search_pb2.CountResponse:
    """How many records there are."""
    answer = search_pb2.CountResponse(
        record_count=counts.record_count, image_count=counts.image_count, seq=counts.seq
    )
    for facet in counts.facets:
        message = answer.facets.add(value_count=facet.value_count)
        for one in facet.values:
            message.values.add(value=one.value, record_count=one.record_count, image_count=one.image_count)
    return answer


def stats_to_proto(stats: CollectionStats) -> search_pb2.CollectionStats:
    """Statistics as a message."""
    return search_pb2.CollectionStats(
        collection=stats.collection,
        seq=stats.seq,
        image_count=stats.image_count,
        record_count=stats.record_count,
        tombstone_count=stats.tombstone_count,
        memory_bytes=stats.memory_bytes,
        segments=[
            search_pb2.SegmentStats(
                record_count=segment.record_count,
                tombstone_count=segment.tombstone_count,
                index=segment.index,
                recall=segment.recall,
            )
            for segment in stats.segments
        ],
        binary_recall=stats.binary_recall,
        recalls=[
            search_pb2.QueryRecall(kind=_KINDS[kind], recall=recall) for kind, recall in stats.recalls.items()
        ],
    )


def _timestamp(milliseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMilliseconds(milliseconds)
    return timestamp
