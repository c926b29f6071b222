"""Collections, and whether the gateway can do its work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from regionsearch.client.operations.base import (
    GrpcCall,
    HttpRequest,
    Operation,
    answer,
    given,
    nothing,
    path_of,
)
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.requests.records import CollectionBody, Page, ReindexBody, TrainCodesBody
from regionsearch.schemas.responses.records import Collection, CollectionPage, Reindex
from regionsearch.schemas.responses.values import AccessRights, Models, Readiness
from regionsearch.v1 import region_search_pb2
from regionsearch.v1.region_search_pb2_grpc import RegionSearchServiceStub


def list_collections(*, page_size: int | None = None, page_token: str = "") -> Operation[CollectionPage]:
    """One page of collections, by name; 100 of them when `page_size` is absent."""
    page = Page.read(given(page_size=page_size, page_token=page_token))
    return Operation(
        "list_collections",
        lambda: HttpRequest("GET", "/v1/collections", params=page.model_dump()),
        answer(CollectionPage),
    )


def create_collection(
    name: str,
    *,
    crop_policy: str | None = None,
    binary_codes: Mapping[str, Any] | None = None,
    everything: EverythingOptions | None = None,
    segment_features: Mapping[str, Any] | None = None,
    recall_target: float | None = None,
) -> Operation[Collection]:
    """Makes a collection for the model that is served now.

    Args:
        name: 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.
        crop_policy: How regions are cut out; the gateway's when absent.
        binary_codes: As in the HTTP API: method, bits, rerank_factor, head.
        everything: How regions of its images are looked for where an ingest does not say.
        segment_features: As in the HTTP API: level and weight of the segmenter's features in its vectors.
        recall_target: Share of the best 10 that a search of very many regions finds at least; the searcher's
            setting when absent.
    """
    body = CollectionBody.read(
        given(
            name=name,
            crop_policy=crop_policy,
            binary_codes=binary_codes,
            everything=everything,
            segment_features=segment_features,
            recall_target=recall_target,
        )
    )
    return Operation(
        "create_collection",
        lambda: HttpRequest("POST", "/v1/collections", body=body),
        answer(Collection),
    )


def delete_collection(name: str) -> Operation[None]:
    """Deletes a collection with all that is in it; `default` is empty afterwards."""
    return Operation("delete_collection", lambda: HttpRequest("DELETE", path_of(name)), nothing)


def train_codes(
    name: str, *, method: str = "learned", bits: int = 256, rerank_factor: int = 10
) -> Operation[Collection]:
    """Learns binary codes from the vectors of a collection, in place of those that it has.

    Args:
        name: Name of the collection.
        method: `learned`, `itq` or `pca_rotation`.
        bits: Of each code, a multiple of 8; at most the vectors' dimension unless `learned`.
        rerank_factor: How many times as many candidates are scored again as are asked for, where codes are
            the first pass of a search.
    """
    body = TrainCodesBody.read({"method": method, "bits": bits, "rerank_factor": rerank_factor})
    return Operation(
        "train_codes",
        lambda: HttpRequest("POST", path_of(name, "codes"), body=body),
        answer(Collection),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).TrainCodes,
            lambda: region_search_pb2.RegionSearchServiceTrainCodesRequest(
                collection=name, binary_codes=body.to_proto()
            ),
            lambda answer: Collection.from_proto(answer.collection),
        ),
    )


def start_reindex(name: str, *, embedder: str = "") -> Operation[Reindex]:
    """Starts moving a collection to the model of the gateway's other embedder, or resumes it.

    Args:
        name: Name of the collection.
        embedder: Variant of the model to move to; empty for the one that the collection does not have.
    """
    body = ReindexBody.read(given(embedder=embedder))
    return Operation(
        "start_reindex",
        lambda: HttpRequest("POST", path_of(name, "reindex"), body=body),
        answer(Reindex),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).StartReindex,
            lambda: region_search_pb2.StartReindexRequest(collection=name, embedder=embedder),
            lambda answer: Reindex.from_proto(answer.reindex),
        ),
    )


def get_reindex(name: str) -> Operation[Reindex]:
    """How far the last move of a collection to another model is."""
    return Operation(
        "get_reindex",
        lambda: HttpRequest("GET", path_of(name, "reindex")),
        answer(Reindex),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).GetReindex,
            lambda: region_search_pb2.GetReindexRequest(collection=name),
            lambda answer: Reindex.from_proto(answer.reindex),
        ),
    )


def cancel_reindex(name: str) -> Operation[None]:
    """Gives a move up; the collection stays as it is."""
    return Operation(
        "cancel_reindex",
        lambda: HttpRequest("DELETE", path_of(name, "reindex")),
        nothing,
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).CancelReindex,
            lambda: region_search_pb2.CancelReindexRequest(collection=name),
            nothing,
        ),
    )


def models() -> Operation[Models]:
    """What the services serve now."""
    return Operation(
        "models",
        lambda: HttpRequest("GET", "/v1/models"),
        answer(Models),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).GetModels,
            region_search_pb2.GetModelsRequest,
            Models.from_proto,
        ),
    )


def access() -> Operation[AccessRights]:
    """What the client's API key allows."""
    return Operation(
        "access",
        lambda: HttpRequest("GET", "/v1/access"),
        answer(AccessRights),
        GrpcCall(
            lambda channel: RegionSearchServiceStub(channel).GetAccess,
            region_search_pb2.GetAccessRequest,
            AccessRights.from_proto,
        ),
    )


def ready() -> Operation[Readiness]:
    """Whether the gateway can do its work, and if not, what it waits for."""
    return Operation(
        "ready",
        lambda: HttpRequest("GET", "/readyz"),
        answer(Readiness),
        GrpcCall(
            lambda channel: health_pb2_grpc.HealthStub(channel).Check,
            health_pb2.HealthCheckRequest,
            lambda answer: Readiness(
                ready=answer.status == health_pb2.HealthCheckResponse.SERVING, services={}
            ),
        ),
        answers=(httpx.codes.SERVICE_UNAVAILABLE,),
        retry_overload=False,
    )
