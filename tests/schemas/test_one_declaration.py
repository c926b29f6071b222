"""Answers are declared once: the gateway's response models are the classes that the client returns."""

from __future__ import annotations

import typing
from unittest.mock import MagicMock

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.http import routes_collections, routes_images, routes_ingest, routes_query, routes_service
from regionsearch import client
from regionsearch.schemas import responses
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.requests.values import Body
from regionsearch.schemas.responses.records import Collection, Image, IngestError, IngestResult
from regionsearch.schemas.responses.searches import Hit
from regionsearch.v1 import search_pb2, types_pb2


def _models(annotation: object) -> set[type[BaseModel]]:
    """The models of a response annotation and all that they contain."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = {annotation}
        for field in annotation.model_fields.values():
            if field.annotation is not None and annotation.__name__ not in str(field.annotation):
                found |= _models(field.annotation)
        return found
    return {model for one in typing.get_args(annotation) for model in _models(one)}


def test_gateway_and_client_use_the_same_response_classes() -> None:
    gateway = MagicMock()
    routers: list[APIRouter] = [
        module.router(gateway) for module in (routes_collections, routes_images, routes_ingest, routes_query)
    ]
    routers.append(routes_service.router(gateway, MagicMock()))
    answered = {
        model
        for router in routers
        for route in router.routes
        for model in _models(getattr(route, "response_model", None))
    }
    assert {model.__module__.rpartition(".")[0] for model in answered} == {responses.__name__}
    exported = {getattr(client, name) for name in client.__all__}
    models = {one for one in exported if isinstance(one, type) and issubclass(one, BaseModel)}
    returned = {model for model in models if not issubclass(model, Body)}
    assert models - returned == {EverythingOptions}
    assert {model.__module__.rpartition(".")[0] for model in returned} == {responses.__name__}
    assert {
        Hit,
        Image,
        Collection,
        IngestResult,
    } <= answered & returned


def test_json_of_the_gateway_is_what_grpc_gives_the_client() -> None:
    record = search_pb2.Record(
        record_id="r1",
        image_id="a" * 64,
        level=search_pb2.LEVEL_REGION,
        box=types_pb2.Box(x_max=2, y_max=2),
        mask=types_pb2.Mask(height=2, width=3, coco_rle="132"),
        area=3,
    )
    image = search_pb2.StoredImage(name="a", width=3, height=2, tags=["t"])
    hit = search_pb2.Hit(rank=1, score=0.5, record=record, image=image, query_index=1)
    made = client.Hit.from_proto(hit, ["mug", "cup"])
    assert (made.area, made.text_index, made.label) == (3, 1, "cup")
    sent = made.model_dump(mode="json") | {"added_by_a_newer_server": 1}
    assert client.Hit.model_validate(sent) == made


def test_a_failed_file_has_no_facts_of_a_stored_image() -> None:
    error = IngestError(code="UNSUPPORTED_IMAGE", detail="Unsupported or corrupt image")
    failed = IngestResult(name="a.png", outcome="failed", error=error)
    assert failed.to_json() == {
        "name": "a.png",
        "outcome": "failed",
        "error": {"code": "UNSUPPORTED_IMAGE", "detail": "Unsupported or corrupt image"},
    }
    assert failed.tags == ()
