"""Collections, and whether the gateway can do its work."""

from __future__ import annotations

import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from regionsearch.client.operations.base import (
    PAGE_SIZE,
    GrpcCall,
    HttpCall,
    HttpRequest,
    Operation,
    nothing,
    path_of,
)
from regionsearch.schemas.responses import Collection, Collections, Ready


def list_collections(*, page_size: int = PAGE_SIZE, page_token: str = "") -> Operation[Collections]:
    """One page of collections, by name."""
    page = {"page_size": page_size, "page_token": page_token}
    return Operation(
        "list_collections",
        HttpCall(
            lambda: HttpRequest("GET", "/v1/collections", params=page),
            lambda response: Collections.model_validate(response.json()),
        ),
    )


def create_collection(name: str, *, crop_policy: str = "default") -> Operation[Collection]:
    """Makes a collection for the model that is served now."""
    body = {"name": name, "crop_policy": crop_policy}
    return Operation(
        "create_collection",
        HttpCall(
            lambda: HttpRequest("POST", "/v1/collections", json=body),
            lambda response: Collection.model_validate(response.json()),
        ),
    )


def delete_collection(name: str) -> Operation[None]:
    """Deletes a collection with all that is in it; `default` is empty afterwards."""
    return Operation("delete_collection", HttpCall(lambda: HttpRequest("DELETE", path_of(name)), nothing))


def ready() -> Operation[Ready]:
    """Whether the gateway can do its work, and if not, what it waits for."""
    return Operation(
        "ready",
        HttpCall(
            lambda: HttpRequest("GET", "/readyz"),
            lambda response: Ready.model_validate(response.json()),
            answers=(httpx.codes.SERVICE_UNAVAILABLE,),
        ),
        GrpcCall(
            lambda channel: health_pb2_grpc.HealthStub(channel).Check,
            health_pb2.HealthCheckRequest,
            lambda answer: Ready(ready=answer.status == health_pb2.HealthCheckResponse.SERVING, services={}),
        ),
        retry_overload=False,
    )
