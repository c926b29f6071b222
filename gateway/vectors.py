"""Vectors as a collection has them: embeddings, and behind them a segmenter's features where it has these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gateway.service_clients import Services, describe, same_weights
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import search_pb2, segment_pb2, types_pb2

Vectors: TypeAlias = NDArray[np.float32]


async def features_of(
    services: Services,
    collection: search_pb2.Collection,
    image: types_pb2.Image,
    masks: Sequence[types_pb2.Mask],
    priority: types_pb2.Priority.ValueType = types_pb2.PRIORITY_INTERACTIVE,
) -> Vectors:
    """The features of an image and of regions of it, shape (1 + masks, channels).

    The regions have been found already: where the segmenter is full this waits. Without features in the
    collection's vectors there are no channels, and nobody is asked.

    Raises:
        RegionSearchError: MODEL_MISMATCH, when the segmenter is not the one of the collection.
    """
    if not collection.model.HasField("features"):
        return np.empty((1 + len(masks), 0), np.float32)
    request = segment_pb2.SegmentRequest(
        image=image,
        known=segment_pb2.KnownRegions(masks=masks),
        output=features_output(collection),
        priority=priority,
    )
    answer = await services.segmenter.call(services.segment.Segment, request, retry_overload=True)
    return read_features(answer, collection)


def features_output(collection: search_pb2.Collection) -> segment_pb2.OutputOptions:
    """What the segmenter is asked for besides masks."""
    features = collection.model.features
    return segment_pb2.OutputOptions(
        features=collection.model.HasField("features"), features_level=features.level
    )


def read_features(answer: segment_pb2.SegmentResponse, collection: search_pb2.Collection) -> Vectors:
    """The features in an answer that was asked for `features_output`, shape (1 + regions, channels).

    Raises:
        RegionSearchError: MODEL_MISMATCH, when they are of another model than the collection's.
    """
    if not collection.model.HasField("features"):
        return np.empty((1 + len(answer.regions), 0), np.float32)
    expected, actual = types_pb2.ModelInfo(), answer.model
    expected.CopyFrom(collection.model.features.model)
    expected.dimension = 0  # how a segmenter itself is described
    if not same_weights(expected, actual):
        raise RegionSearchError(
            Kind.MODEL_MISMATCH,
            f"collection {collection.name!r} was made with features of {describe(expected)}, the segmenter "
            f"now serves {describe(actual)}; start the segmenter with the former or make a new collection",
            field="collection",
            metadata={"expected": describe(expected), "actual": describe(actual)},
        )
    rows = [answer.image_features, *(region.features for region in answer.regions)]
    return np.stack([tensor_from_proto(row, "features", ndim=1) for row in rows])


def joined(embeddings: Vectors, features: Vectors, collection: search_pb2.Collection) -> Vectors:
    """Embeddings with their features behind them, of unit length.

    Args:
        embeddings: Shape (rows, embedding's dimension), of unit length.
        features: Shape (rows, channels), of unit length.
        collection: Says how much features weigh.
    """
    if not features.shape[1]:
        return embeddings
    share = embedding_share(collection.model)
    weighted = features * np.float32(collection.model.features.weight)
    return np.concatenate([embeddings, weighted], axis=1) * np.float32(share)


def joined_texts(embeddings: Vectors, collection: search_pb2.Collection) -> Vectors:
    """Embeddings of texts, which have no features: zeros stand in their place."""
    channels = collection.model.features.model.dimension
    return np.pad(embeddings, ((0, 0), (0, channels))) if channels else embeddings


def embedding_share(model: types_pb2.ModelInfo) -> float:
    """The length of the embedding in a collection's vectors of unit length.

    So much of the cosine of a text and a region's embedding is their score.
    """
    return 1.0 / math.hypot(1.0, model.features.weight)
