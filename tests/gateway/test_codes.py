"""Binary codes of a collection: trained over HTTP, gRPC and by command; searches by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from regionsearch.cli import app
from regionsearch.client import Client
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import embed_pb2
from services.searcher.embedded.index import code_training
from tests.gateway.conftest import Running, World, add, scene
from tests.gateway.fakes import Script

NAME = "coded"
STRIPES = [(f"rgb(255,{7 * i},0)", (4 * i, 10, 4 * i + 4, 110)) for i in range(35)]


@pytest.fixture
def stripes(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A collection of 72 vectors; heads are trained for a moment, however good they are."""
    monkeypatch.setattr(code_training, "_STEPS", 20)
    assert gateway.http.post("/v1/collections", json={"name": NAME}).status_code == 201
    add(gateway, NAME, ("a", scene(*STRIPES)), ("b", scene(*STRIPES, size=(160, 130))))
    yield NAME
    gateway.http.delete(f"/v1/collections/{NAME}")


def search(gateway: Running, **body: Any) -> Any:
    asked = {"query": {"text": "red"}, "level": "region", "codes_only": True} | body
    return gateway.http.post(f"/v1/collections/{NAME}/search", json=asked)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_codes_are_trained_and_searched(gateway: Running, stripes: str, transport: str) -> None:
    untrained = search(gateway)
    assert (untrained.status_code, untrained.json()["code"]) == (409, "FAILED_PRECONDITION")
    assert "regionsearch codes train" in untrained.json()["detail"]
    url = gateway.url if transport == "http" else f"grpc://127.0.0.1:{gateway.server.port}"
    with Client(url) as client:
        trained = client.train_codes(NAME, bits=16)
        assert trained.binary_codes is not None
        assert (trained.binary_codes.bits, trained.binary_codes.trained) == (16, True)
        hits = client.search("red", NAME, codes_only=True, page_size=100)
        assert len(hits) == 70
        assert {hit.score * 8 % 1 for hit in hits} == {0.0}, "a distance of 16 bits"
        with pytest.raises(RegionSearchError, match="at most 4 bits") as caught:
            client.train_codes(NAME, method="itq")
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID_ARGUMENT, "binary_codes.bits")


def test_no_hit_is_judged_by_its_code(world: World, script: Script, stripes: str) -> None:
    script.cut_offs = [embed_pb2.CutOff(crop_policy=script.model.crop_policy, score=0.9)]
    calibrated = world.gateway()
    with Client(calibrated.url) as client:
        client.train_codes(NAME, bits=16)
    found = search(calibrated, page_size=100).json()
    assert found["cut_off"] is None
    assert len(found["hits"]) == 70
    assert search(calibrated, codes_only=False).json()["cut_off"] == pytest.approx(0.9)


def test_codes_are_trained_by_command(gateway: Running, stripes: str) -> None:
    command = ["codes", "train", NAME, "--bits", "24", "--url", gateway.url]
    trained = CliRunner().invoke(app, command)
    assert trained.exit_code == 0, trained.output
    assert "coded has 24-bit codes, learned from its 72 vectors" in trained.output
    asked = CliRunner().invoke(app, ["search", "red", "-c", NAME, "--codes-only", "--url", gateway.url])
    assert asked.exit_code == 0, asked.output
