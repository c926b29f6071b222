"""The OpenAPI document, tried with generated requests: every answer is one that it describes, none a 500."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.conftest import RED, Running, add, scene

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
def test_generated_requests(gateway: Running, mode: schemathesis.GenerationMode) -> None:
    add(gateway, "default", ("a.png", scene(RED)))
    document = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    tried = 0
    for result in document.get_all_operations():
        operation = result.ok()
        cases = operation.as_strategy(generation_mode=mode)

        @given(cases)
        @settings(
            max_examples=5,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        def try_one(case: schemathesis.Case) -> None:
            if mode is schemathesis.GenerationMode.POSITIVE and "collection" in (case.path_parameters or {}):
                case.path_parameters["collection"] = "default"  # a made-up one would only ever be not found
            case.call_and_validate(checks=CHECKS, timeout=120)

        try:
            try_one()
        except Unsatisfiable:  # nothing that is wrong can be made for it
            continue
        tried += 1
    assert tried >= 10


def test_lists_repeat_their_field_in_a_form(gateway: Running) -> None:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    content = paths["/v1/search-within"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]["properties"]
    for name in ("texts", "negatives", "include"):
        assert form[name]["type"] == "array"
    assert form["text"]["type"] == "string"
