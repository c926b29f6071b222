"""Text that no UTF-8 can hold, in every field of every schema and every parameter: 400, and its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from regionsearch.schemas.requests.inference import EmbeddingsBody, SegmentBody
from regionsearch.schemas.requests.records import (
    CollectionBody,
    ImageChangeBody,
    ImageIdsBody,
    ReindexBody,
    TrainCodesBody,
)
from regionsearch.schemas.requests.scrolls import CountBody, MapBody, ScrollBody
from regionsearch.schemas.requests.searches import SearchBody, WithinBody
from regionsearch.schemas.requests.values import Body
from tests.gateway.conftest import Running

HALF = "\\ud800"
BODIES: dict[type[Body], tuple[str, str, str]] = {
    SearchBody: ("POST", "/v1/collections/default/search", '{"query":{"text":"a"}}'),
    WithinBody: ("POST", "/v1/search-within", '{"image_id":"a","text":"a"}'),
    SegmentBody: ("POST", "/v1/segment", '{"image_id":"a","everything":true}'),
    EmbeddingsBody: ("POST", "/v1/embeddings", '{"texts":["a"]}'),
    CollectionBody: ("POST", "/v1/collections", '{"name":"a"}'),
    ImageIdsBody: ("POST", "/v1/collections/default/images:check", '{"image_ids":["a"]}'),
    ImageChangeBody: ("PATCH", "/v1/collections/default/images/a", "{}"),
    ReindexBody: ("POST", "/v1/collections/default/reindex", "{}"),
    ScrollBody: ("POST", "/v1/collections/default/scroll", "{}"),
    CountBody: ("POST", "/v1/collections/default/count", "{}"),
    TrainCodesBody: ("POST", "/v1/collections/default/codes", '{"method":"learned"}'),
    MapBody: ("POST", "/v1/collections/default/map", "{}"),
}


def test_every_model_of_a_body_is_tried() -> None:
    def models(kind: type[Body]) -> Iterator[type[Body]]:
        for model in kind.__subclasses__():
            yield model
            yield from models(model)

    nested = {model for body in BODIES for model in inside(body)}
    assert {m.__name__ for m in models(Body)} - {m.__name__ for m in nested} <= {
        "OneImage",
        "Page",
        "IngestBody",
        "ImagesPage",
        "EverythingDefaults",  # of answers
    }


def inside(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all that its fields are made of."""
    found = {model}

    def look(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.update(inside(kind))
        for argument in getattr(kind, "__args__", ()):
            look(argument)

    for field in model.model_fields.values():
        look(field.annotation)
    return found


def places(schema: dict[str, Any], definitions: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Every place of a schema where a text may be, as a path."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", []):
        yield from places(one, definitions, path)
    if "string" in (schema.get("type") or "") and "enum" not in schema:
        yield path
    if "items" in schema:
        yield from places(schema["items"], definitions, (*path, 0))
    for name, member in schema.get("properties", {}).items():
        yield from places(member, definitions, (*path, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from places(schema["additionalProperties"], definitions, (*path, "key"))
        yield (*path, HALF)


PLACES = [
    (model, place)
    for model in BODIES
    for schema in [model.model_json_schema()]
    for place in dict.fromkeys(places(schema, schema.get("$defs", {})))
]


@pytest.mark.parametrize(("model", "place"), PLACES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_half_a_character_is_refused(gateway: Running, model: type[Body], place: tuple[Any, ...]) -> None:
    value: Any = "HALF"
    for part in reversed(place):
        value = [value] if part == 0 else {part: value}
    method, path, valid = BODIES[model]
    # In a body that is right but for this.
    body = json.dumps(json.loads(valid) | value).replace("HALF", HALF).replace("\\\\ud800", HALF)
    response = gateway.http.request(method, path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    problem = response.json()
    assert problem["code"] == "INVALID_ARGUMENT"
    if HALF not in place:
        assert problem["errors"][0]["pointer"].startswith("/" + str(place[0]))


def test_every_text_and_list_of_a_schema_is_bounded() -> None:
    def check(schema: Any, where: str) -> None:
        if isinstance(schema, dict):
            kind = schema.get("type")
            closed = "enum" in schema or "const" in schema or "contentEncoding" in schema
            closed |= schema.get("pattern", "").endswith("{64}$")
            if kind == "string" and not closed:
                assert "maxLength" in schema, where
            if kind == "array":
                assert "maxItems" in schema, where
            if kind == "object" and "properties" not in schema:
                assert "maxProperties" in schema, where
            for name, member in schema.items():
                check(member, f"{where}.{name}")
        elif isinstance(schema, list):
            for index, member in enumerate(schema):
                check(member, f"{where}[{index}]")

    for model in BODIES:
        check(model.model_json_schema(), model.__name__)


@pytest.mark.parametrize("sent", ["%FF", "%ED%A0%80", "%00"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/collections/?",
        "/v1/collections/?/images",
        "/v1/collections/default/images/?",
        "/v1/collections/default/images/?/thumbnail",
        "/v1/collections/default/images/a/regions/?/mask.png",
        "/v1/collections?page_token=?",
        "/v1/collections/default/images?page_token=?",
        "/v1/collections?page_size=?",
        "/readyz?only=?",
    ],
)
def test_parameters_of_an_address_that_are_not_text(gateway: Running, path: str, sent: str) -> None:
    response = gateway.http.get(
        f"{gateway.url}{path.replace('?', sent) if '=' not in path else path[:-1] + sent}"
    )
    assert response.status_code in (400, 404), response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_an_address_of_thousands_of_parameters(gateway: Running) -> None:
    response = gateway.http.get("/v1/collections?" + "a&" * 7000)
    assert response.status_code in (200, 400, 414)
