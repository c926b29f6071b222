"""`regionsearch search`, `within` and `export` against a fake gateway: what is asked, printed and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionsearch.cli.exporting import merged
from regionsearch.client.drawing import COLOUR
from regionsearch.errors import Kind, RegionSearchError
from tests.cli.conftest import png, run
from tests.client.fakes import FakeGateway


@pytest.mark.parametrize(
    "command", [("search", "mug", "--save"), ("within", "a" * 64, "mug", "--save"), ("export", "mug", "-o")]
)
def test_a_target_that_cannot_be_written_is_refused_first(
    gateway: FakeGateway, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for target in (tmp_path, tmp_path / "nowhere" / "x.png"):
        result = run(gateway, *command, target)
        assert isinstance(result.exception, RegionSearchError)
        assert result.exception.field == "target"
    assert gateway.requests == []


def test_search_prints_a_table_or_json(gateway: FakeGateway) -> None:
    result = run(
        gateway, "search", "red", "mug", "--without", "plate", "--unlike", "r9", "--tag", "t", "-n", "3"
    )
    assert result.exit_code == 0
    assert "0.500" in result.output
    assert "0,0 – 2,2" in result.output
    assert "regionsearch search --region r1" in result.output
    body = gateway.requests[-1][2]
    assert body["query"]["texts"] == ["red mug"]
    assert body["negatives"] == [{"text": "plate"}, {"region_id": "r9"}]
    assert (body["filter"], body["page_size"]) == ({"tags": ["t"]}, 3)
    condition = {"attribute": "price", "number": {"lt": 20}}
    run(gateway, "search", "mug", "--where", json.dumps(condition))
    assert gateway.requests[-1][2]["filter"] == {"conditions": [condition]}
    for wrong in ("price < 20", "[1]"):
        result = run(gateway, "search", "mug", "--where", wrong)
        assert result.exit_code != 0
        assert "--where must be" in result.output + str(result.exception)
    (hit,) = json.loads(run(gateway, "search", "mug", "--json").output)
    assert (hit["region_id"], hit["box"]["x_max"], hit["label"]) == ("r1", 2.0, "mug")


def test_commas_separate_phrases(gateway: FakeGateway) -> None:
    for command in (("search",), ("within", "a" * 64), ("export", "-o", "-")):
        assert run(gateway, *command, "red", "mug,", "dog").exit_code == 0
        asked = gateway.requests[-1][2]
        assert asked.get("texts") or asked["query"]["texts"] == ["red mug", "dog"]
    result = run(gateway, "search", "mug, dog", "--all-phrases")
    assert result.exit_code == 0
    body = gateway.requests[-1][2]
    assert (body["group_by"], body["all_phrases"], body["include"]) == ("image", True, ["weak", "others"])


def test_weaker_matches_are_counted_and_shown_when_asked_for(gateway: FakeGateway) -> None:
    gateway.confident = [True, False, False]
    result = run(gateway, "search", "mug")
    assert [line.split("\t")[:3] for line in result.stdout.splitlines()[1:]] == [["1", "0.500", "confident"]]
    assert "2 weaker matches: --all shows them" in result.stderr
    for option in (["--all"], ["--min-score", "0.1"], ["--cutoff", "0.5"]):
        result = run(gateway, "search", "mug", *option)
        assert [line.split("\t")[2] for line in result.stdout.splitlines()[1:]] == [
            "confident",
            "weak",
            "weak",
        ]
        assert "weaker" not in result.stderr
    assert len(json.loads(run(gateway, "search", "mug", "--json").stdout)) == 1
    gateway.confident = [False]
    result = run(gateway, "search", "mug")
    assert "no confident match for mug" in result.stdout
    assert "1 weaker match: --all shows it" in result.stderr


def test_export_keeps_confident_matches_unless_told_otherwise(gateway: FakeGateway) -> None:
    result = run(gateway, "export", "mug", "-o", "-")
    assert json.loads(result.stdout)["annotations"] == []
    assert "0 annotations of 0 images" in result.stderr
    assert gateway.requests[-1][2].get("include", []) == []
    run(gateway, "export", "mug", "-o", "-", "--all", "--min-score", "0.2")
    body = gateway.requests[-1][2]
    assert (body["include"], body["min_score"]) == (["weak"], 0.2)


def test_hints_name_the_collection_and_the_server(gateway: FakeGateway) -> None:
    result = run(gateway, "search", "mug", "-c", "things")
    assert f"regionsearch search --region r1 -c things --url {gateway.http}" in result.stderr


def test_errors_name_the_file(gateway: FakeGateway, folder: Path) -> None:
    gateway.failures = [RegionSearchError(Kind.UNSUPPORTED_IMAGE, "not an image", field="query.image")]
    result = run(gateway, "search", "--image", folder / "notes.txt")
    assert str(result.exception) == "not an image"
    assert isinstance(result.exception, RegionSearchError)
    assert result.exception.message == f"{folder / 'notes.txt'}: not an image"
    field = "query.image.encoded"
    gateway.failures = [RegionSearchError(Kind.UNSUPPORTED_IMAGE, f"{field} is not an image", field=field)]
    result = run(gateway, "search", "--image", folder / "notes.txt")
    assert isinstance(result.exception, RegionSearchError)
    assert result.exception.message == f"{folder / 'notes.txt'} is not an image"


def test_search_needs_something_to_look_for(gateway: FakeGateway) -> None:
    result = run(gateway, "search")
    assert isinstance(result.exception, RegionSearchError)
    assert result.exception.field == "words"


def test_search_saves_the_best_hit_outlined(
    gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = "tests.client.fakes.HttpHandler._route"
    from tests.client.fakes import HttpHandler

    usual = HttpHandler._route
    monkeypatch.setattr(
        route, lambda self, body: (200, png()) if self.path.endswith("/content") else usual(self, body)
    )
    result = run(gateway, "search", "mug", "--save", tmp_path / "found.png")
    assert result.exit_code == 0
    with Image.open(tmp_path / "found.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2, 3, 3)
    assert tuple(pixels[0, 0]) == COLOUR  # outside the mask
    assert tuple(pixels[0, 1]) == (255, 255, 255)  # inside of it


def test_within_a_file_and_within_a_stored_image(gateway: FakeGateway, folder: Path) -> None:
    result = run(gateway, "within", folder / "b.PNG", "mug", "--save", folder / "found.png")
    assert result.exit_code == 0
    assert "mug" in result.output
    assert (folder / "found.png").read_bytes() == b"\x89PNG"
    assert "image" in gateway.requests[-1][2]
    missing = run(gateway, "within", folder / "missing.png", "mug")
    assert "neither a file nor the id of an image" in str(missing.exception)
    assert run(gateway, "within", "a" * 64, "mug", "--json").exit_code == 0
    assert gateway.requests[-1][2]["image_id"] == "a" * 64


def test_coco_documents_merge_with_new_numbers() -> None:
    def document(name: str, sha256: str) -> dict[str, object]:
        return {
            "info": {},
            "categories": [{"id": 1, "name": "object"}],
            "images": [{"id": 1, "file_name": name, "sha256": sha256}],
            "annotations": [{"id": 1, "image_id": 1}, {"id": 2, "image_id": 1}],
        }

    whole = merged(iter([document("t/a.png", "1" * 64), document("t/a.png", "2" * 64)]))
    names = [(image["id"], image["file_name"]) for image in whole["images"]]
    assert names == [(1, "t/a.png"), (2, "t/22222222-a.png")]
    assert [(one["id"], one["image_id"]) for one in whole["annotations"]] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert whole["categories"] == [{"id": 1, "name": "object"}]


def test_a_truncated_query_is_reported(gateway: FakeGateway) -> None:
    gateway.truncated = [True]
    for command in (["search", "mug " * 300], ["within", "a" * 64, "mug " * 300]):
        result = run(gateway, *command, "--json")
        assert "the query is longer than the model reads" in result.stderr
        assert json.loads(result.stdout)
