"""`regionsearch ingest` against a fake gateway: what is sent, what is printed, the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regionsearch.client import Client, IngestResult
from regionsearch.client.importing import OnResult
from regionsearch.errors import Kind, RegionSearchError
from tests.cli.conftest import run
from tests.client.fakes import FakeGateway


def test_ingest_a_folder(gateway: FakeGateway, folder: Path) -> None:
    result = run(gateway, "ingest", folder, "--tag", "holiday", "-c", "things")
    assert result.exit_code == 0
    assert "2 added (2 regions), 0 already stored, 0 failed" in result.output
    assert {path for _, path, _ in gateway.requests} == {
        "/v1/collections/things/images", "/v1/collections/things/images:check",
    }  # fmt: skip
    again = run(gateway, "ingest", folder)
    assert "0 added (0 regions), 2 already stored, 0 failed" in again.output


def test_ingest_takes_options_of_everything_mode(gateway: FakeGateway, folder: Path) -> None:
    result = run(gateway, "ingest", folder, "--points-per-side", 10, "--crop-layers", 1, "--max-regions", 9)
    assert result.exit_code == 0
    assert gateway.everything == [{"points_per_side": 10, "crop_n_layers": 1, "max_regions": 9}] * 2
    refused = run(gateway, "ingest", folder, "--points-per-side", 10, "--mode", "proposals")
    assert isinstance(refused.exception, RegionSearchError)
    assert "send one of them" in str(refused.exception)


def test_ingest_tells_each_failure_and_ends_with_1(gateway: FakeGateway, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"bad")
    result = run(gateway, "ingest", folder)
    assert result.exit_code == 1
    assert "2 added (2 regions), 0 already stored, 1 failed" in result.output
    assert f"failed: {folder / 'broken.png'} is not an image" in result.output


def test_ingest_of_nothing_is_an_error(gateway: FakeGateway, folder: Path) -> None:
    for path in (folder / "nowhere", folder / "*.tiff"):
        result = run(gateway, "ingest", path)
        assert isinstance(result.exception, RegionSearchError)
        assert result.exception.kind is Kind.INVALID_ARGUMENT
    assert gateway.requests == []


def test_ingest_that_is_stopped_says_how_far_it_came(
    gateway: FakeGateway, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(client: Client, files: object, *args: object, on_result: OnResult, **options: object) -> None:
        on_result(IngestResult(name="b.PNG", outcome="created", image_id="b" * 64, regions=3))
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "ingest", stopped)
    result = run(gateway, "ingest", folder)
    assert result.exit_code == 130
    assert "stopped after 1 of 2: 1 added (3 regions), 0 already stored, 0 failed" in result.output
    assert "the same command goes on" in result.output


def test_ingest_into_no_collection_is_one_error(gateway: FakeGateway, folder: Path) -> None:
    gateway.failures = [RegionSearchError(Kind.NOT_FOUND, "there is no collection 'x'")] * 2
    result = run(gateway, "ingest", folder, "-c", "x", "--jobs", 1)
    assert isinstance(result.exception, RegionSearchError)
    assert "stopped after 0 of 2" in result.output


def test_known_files_are_not_sent_again_and_get_the_tags(gateway: FakeGateway, folder: Path) -> None:
    run(gateway, "ingest", folder, "--tag", "a")
    gateway.requests.clear()
    again = run(gateway, "ingest", folder, "--tag", "a", "--tag", "b")
    assert again.exit_code == 0
    assert "2 already stored, 0 failed, tags added to 2 known images" in again.output
    assert [method for method, *_ in gateway.requests] == ["POST", "PATCH", "PATCH"]
    third = run(gateway, "ingest", folder, "--tag", "b")
    assert "tags added" not in third.output
    gateway.requests.clear()
    assert "2 already stored" in run(gateway, "ingest", folder, "--resend").output
    assert [path.split("/")[-1] for _, path, _ in gateway.requests] == ["images", "images"]


def test_ingest_prints_json_lines(gateway: FakeGateway, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"bad")
    result = run(gateway, "ingest", folder, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["path"], line["name"], line["outcome"]) for line in lines] == [
        (str(folder / "b.PNG"), "b.PNG", "created"),
        (str(folder / "broken.png"), "broken.png", "failed"),
        (str(folder / "deep" / "a.jpg"), "deep/a.jpg", "created"),
    ]
    assert lines[1]["error"]["code"] == "UNSUPPORTED_IMAGE"
    assert "1 failed (1 UNSUPPORTED_IMAGE)" in result.stderr
