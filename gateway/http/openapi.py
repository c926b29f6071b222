"""What the OpenAPI document says about bodies that routes read by themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gateway.http.body_parser import NESTED, query_of
from gateway.http.problems import MEDIA_TYPE, STATUS
from regionsearch.errors import Kind
from regionsearch.schemas.requests.values import MAX_TEXT, PHRASE
from regionsearch.schemas.responses.regions import CocoDocument

FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
"""A file of a form: ``format`` for tools that know OpenAPI 3.0, the media type for those that know 3.1."""
IMAGE = {"schema": {"type": "string", "format": "binary"}}
"""An answer that is an image."""
COCO = "application/vnd.coco+json"
"""Media type of answers with `format=coco`, which so are not a variant of the usual answer's JSON."""

_REFERENCE = "#/components/schemas/{model}"
_models: dict[str, type[BaseModel]] = {"CocoDocument": CocoDocument}
COCO_CONTENT = {COCO: {"schema": {"$ref": _REFERENCE.format(model="CocoDocument")}}}
"""An answer with `format=coco`."""

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `code` is one of a closed list.",
    "required": ["type", "title", "status", "detail", "code", "instance", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "Names the kind of problem."},
        "title": {"type": "string", "description": "The kind of problem in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong and what helps."},
        "code": {"enum": [kind.value for kind in Kind], "description": "The kind of problem, for programs."},
        "instance": {"type": "string", "description": "Path of the request."},
        "request_id": {"type": "string", "description": "Also in the header X-Request-Id and in the log."},
        "retry_after_s": {"type": "number", "description": "Seconds after which it may work."},
        "errors": {
            "type": "array",
            "description": "The fields at fault.",
            "items": {"$ref": _REFERENCE.format(model="FieldError")},
        },
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Facts for programs, such as a limit.",
        },
    },
}

_PATH = {
    "collection": "Name of the collection; `default` is there from the start.",
    "image_id": "SHA-256 of the image's file.",
    "region_id": "As searches and lists of regions name it.",
}
"""What stands in paths."""
_BOX = {"x_min": 412, "y_min": 180, "x_max": 530, "y_max": 310}
_IMAGE_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
EXAMPLES: dict[str, dict[str, Any]] = {
    "Hit": {
        "rank": 1,
        "score": 0.317,
        "confident": True,
        "image_id": _IMAGE_ID,
        "region_id": f"{_IMAGE_ID}-r004",
        "level": "region",
        "box": _BOX,
        "area": 9871,
        "image": {"width": 1024, "height": 768, "name": "kitchen.jpg", "tags": ["home"]},
        "label": "red mug",
        "text_index": 0,
    },
    "Region": {
        "region_id": f"{_IMAGE_ID}-r004",
        "box": _BOX,
        "area": 9871,
        "predicted_iou": 0.94,
        "stability_score": 0.97,
    },
    "IngestResult": {
        "name": "kitchen.jpg",
        "outcome": "created",
        "image_id": _IMAGE_ID,
        "regions": 17,
        "tags": ["home"],
        "seq": 42,
    },
}
"""Of answers, by schema."""

_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Up to 64 printable characters by which the log and the answer name this request.",
}


def body_of(model: type[BaseModel], example: dict[str, Any], *, form: bool = False) -> dict[str, Any]:
    """The description of a body that `read_body` reads.

    Args:
        model: Its model.
        example: A body that works.
        form: Whether it may be a form too, which is how images are best sent.
    """
    _models[model.__name__] = model
    content: dict[str, Any] = {
        "application/json": {
            "schema": {"$ref": _REFERENCE.format(model=model.__name__)},
            "example": example,
        }
    }
    if form:
        content["multipart/form-data"] = {"schema": _form_schema(model)}
    return {"requestBody": {"required": True, "content": content}}


def form_of(model: type[BaseModel]) -> dict[str, Any]:
    """The description of a form of image files and what is said about them."""
    schema = _form_schema(model)
    files = {
        "type": "array",
        "minItems": 1,
        "items": FILE,
        "description": "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF.",
    }
    schema |= {"required": ["files"], "properties": {"files": files} | schema["properties"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _form_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The same names; images are files, lists repeat their field, what is an object is JSON."""
    schema = model.model_json_schema(ref_template=_REFERENCE)
    properties: dict[str, Any] = {}
    if inner := query_of(model):
        del schema["properties"]["query"]
        query = _form_schema(inner)
        properties |= query.pop("properties")
        schema |= query
    for name, member in schema["properties"].items():
        described = {"description": member["description"]} if "description" in member else {}
        values = [one for one in member.get("anyOf", [member]) if one.get("type") != "null"]
        if name == "image":
            properties[name] = FILE | described
        elif name == "images":
            properties[name] = member | {"items": FILE}
        elif name == "negatives":
            properties[name] = member | {"items": {"type": "string", "maxLength": MAX_TEXT} | PHRASE}
        elif name in NESTED:
            json_of = {"type": "string", "format": f"json-{name}", "contentMediaType": "application/json"}
            properties[name] = json_of | {"contentSchema": member} | described
        else:
            properties[name] = values[0] | described
    shapes = {"allOf": schema["allOf"]} if "allOf" in schema else {}
    return {"type": "object", "additionalProperties": False, "properties": properties} | shapes


def install(app: FastAPI, *, keys: bool) -> None:
    """Completes the document: the bodies' models, problem answers, keys.

    Args:
        app: The application.
        keys: Whether callers of the API need one.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    tags=app.openapi_tags,
                ),
                keys,
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any], keys: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name, model in _models.items():
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    components["parameters"] = {"RequestId": _REQUEST_ID}
    needed: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}] if keys else []
    problem = {"content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}}
    codes: dict[int, list[str]] = {}
    for kind, status in STATUS.items():
        codes.setdefault(status, []).append(kind.value)
    for name, path in document["paths"].items():
        for operation in path.values():
            operation["security"] = needed if name.startswith("/v1/") else []
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["description"] = _PATH[parameter["name"]]
            operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/RequestId"})
            operation["responses"].pop("422", None)
            for status, kinds in sorted(codes.items()):
                if status != 499:  # nobody is there to read it
                    description = {"description": ", ".join(kinds), **problem}
                    operation["responses"].setdefault(str(status), description)
    return document
