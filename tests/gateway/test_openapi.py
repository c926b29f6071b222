"""The OpenAPI document, tried with generated requests: what it allows is taken, what it does not is refused.

Every answer is one that it describes, none a 500.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
    use_after_free,
)

from regionsearch.schemas.requests.values import PHRASE
from regionsearch.schemas.responses.records import IngestResult
from regionsearch.schemas.responses.regions import Region
from regionsearch.schemas.responses.searches import Hit
from regionsearch.texts import visible_text
from tests.gateway.conftest import RED, Running, World, add, scene

CHECKS = [
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    not_a_server_error,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
    use_after_free,
]
# What is there, and in which state, no schema says.
TAKEN = ["2xx", "3xx", "401", "403", "404", "409", "412", "429"]
REFUSED = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415"]
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

FILE = scene(RED)
FORMATS: dict[str, Any] = {
    "byte": base64.b64encode(FILE).decode(),
    "binary": FILE,
    "page-token": "",
    "json-points": json.dumps([{"x": 20, "y": 30}]),
    "json-box": json.dumps({"x_min": 10, "y_min": 20, "x_max": 50, "y_max": 60}),
    "json-prompts": json.dumps([{"points": [{"x": 20, "y": 30}]}]),
    "json-everything": json.dumps({"mode": "grid", "crop_n_layers": 1}),
    "json-filter": json.dumps({"tags": ["a"]}),
    "json-attributes": json.dumps({"place": "Oslo"}),
}
"""Formats of the document, of which only images that are images and tokens that were given are right."""


def make_real(case: schemathesis.Case[Any], image_id: str) -> None:
    """Leads a generated request to what is there: made-up names would only ever be not found."""
    real = {"collection": "default", "image_id": image_id, "region_id": f"{image_id}-r000"}
    for name in case.path_parameters or {}:
        case.path_parameters[name] = real[name]
    if isinstance(case.body, dict):
        case.body.pop("binary_codes", None)  # whose limit is the dimension of the embedder's model
        if "method" in case.body:
            case.body["method"] = "learned"  # codes that have no such limit
        for name in ("segment_features", "features_level"):  # whose limit is the segmenter's model
            case.body.pop(name, None)
        if isinstance(case.body.get("filter"), dict):
            case.body["filter"].pop("conditions", None)  # of which no schema says how many there are in all
        if case.body.get("among") == "stored":
            (case.query or {}).pop("format", None)  # which only goes with the other value


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
def test_generated_requests(gateway: Running, mode: schemathesis.GenerationMode) -> None:
    for name, value in FORMATS.items():
        schemathesis.openapi.format(name, st.just(value))
    image_id = add(gateway, "default", ("a.png", FILE))[0]["image_id"]
    expected = {
        "positive_data_acceptance": {"expected-statuses": TAKEN},
        "negative_data_rejection": {"expected-statuses": REFUSED},
    }
    document = schemathesis.openapi.from_url(
        f"{gateway.url}/openapi.json", config=schemathesis.Config.from_dict({"checks": expected})
    )
    tried = 0
    for result in document.get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]  # the document is valid
        if mode is schemathesis.GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # no name in a path is wrong; trying to make one takes a second
        cases = operation.as_strategy(generation_mode=mode)

        @given(cases)
        @settings(
            max_examples=4,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        def try_one(case: schemathesis.Case[Any]) -> None:
            checks = list(CHECKS)
            if mode is schemathesis.GenerationMode.POSITIVE:
                make_real(case, image_id)
            elif case.media_type == "multipart/form-data":
                checks.remove(negative_data_rejection)  # in a form everything is text
            case.call_and_validate(checks=checks, timeout=120)

        try:
            try_one()
        except Unsatisfiable:  # nothing that is wrong can be made for it
            continue
        tried += 1
    assert tried >= 10


@pytest.fixture(scope="module")
def document(shared_gateway: Running) -> dict[str, Any]:
    found: dict[str, Any] = shared_gateway.http.get("/openapi.json").json()
    return found


def form_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    properties: dict[str, Any] = content["multipart/form-data"]["schema"]["properties"]
    return properties


def test_lists_repeat_their_field_in_a_form(document: dict[str, Any]) -> None:
    form = form_of(document, "/v1/search-within")
    for name in ("texts", "negatives", "include"):
        assert form[name]["type"] == "array"
    assert form["text"]["type"] == "string"


def test_files_of_forms_have_a_format_that_tools_know(document: dict[str, Any]) -> None:
    files = [
        form_of(document, "/v1/collections/{collection}/images")["files"]["items"],
        form_of(document, "/v1/embeddings")["images"]["items"],
        form_of(document, "/v1/segment")["image"],
        form_of(document, "/v1/search-within")["image"],
    ]
    for file in files:
        assert file["type"] == "string"
        assert file["format"] == "binary"
        assert file["contentMediaType"] == "application/octet-stream"


def test_operations_have_short_names_of_their_own(document: dict[str, Any]) -> None:
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names)
    assert {"search", "segment", "embeddings", "add_images"} <= set(names)
    assert max(map(len, names)) < 24


def test_a_json_answer_is_of_one_kind(document: dict[str, Any]) -> None:
    """So that generated clients need not tell two apart; COCO documents have a media type of their own."""
    answers = [
        about
        for path in document["paths"].values()
        for operation in path.values()
        for status, about in operation["responses"].items()
        if status.startswith("2")
    ]
    contents = [about.get("content", {}) for about in answers]
    schemas = [one["application/json"]["schema"] for one in contents if "application/json" in one]
    assert len(schemas) > 15
    assert not [schema for schema in schemas if "anyOf" in schema or "oneOf" in schema]
    coco = "application/vnd.coco+json"
    assert sum(coco in one for one in contents) == 4
    assert "CocoDocument" in document["components"]["schemas"]


def test_every_field_and_parameter_is_described(document: dict[str, Any]) -> None:
    fields = [
        (f"{name}.{field}", about)
        for name, schema in document["components"]["schemas"].items()
        for field, about in schema.get("properties", {}).items()
    ]
    parameters = [
        (f"{operation['operationId']} {about['name']}", about)
        for path in document["paths"].values()
        for operation in path.values()
        for about in operation["parameters"]
        if "$ref" not in about
    ]
    assert len(fields) > 200
    bare = [
        name
        for name, about in fields + parameters
        if "description" not in about and "description" not in about.get("schema", {})
    ]
    assert bare == []


def test_examples_of_answers_are_answers(document: dict[str, Any]) -> None:
    for model in (Hit, Region, IngestResult):
        (example,) = document["components"]["schemas"][model.__name__]["examples"]
        assert (
            model.model_validate(example, extra="forbid").model_dump(mode="json", exclude_unset=True)
            == example
        )


def test_answers_that_are_images_are_described(document: dict[str, Any]) -> None:
    answers = document["paths"]["/v1/search-within"]["post"]["responses"]["200"]["content"]
    assert answers["image/png"]["schema"] == {"type": "string", "format": "binary"}


def test_the_document_declares_the_security_of_the_gateway(world: World, document: dict[str, Any]) -> None:
    with_keys = world.gateway(api_keys="read:r").http.get("/openapi.json").json()
    for name, path in with_keys["paths"].items():
        for method, operation in path.items():
            expected: list[dict[str, list[str]]] = (
                [{"bearer": []}, {"apiKey": []}] if name.startswith("/v1/") else []
            )
            assert operation["security"] == expected
            assert document["paths"][name][method]["security"] == []


def test_the_schema_of_a_phrase_refuses_what_the_gateway_finds_empty() -> None:
    rule = re.compile(str(PHRASE["pattern"]))
    for character in map(chr, [*range(0xD800), *range(0xE000, 0x10000)]):
        assert bool(rule.search(character)) == bool(visible_text(character).strip()), hex(ord(character))
