"""The command line against a fake gateway: what is printed, what is written, which code it ends with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from regionsearch.cli import app, models
from regionsearch.cli.exporting import merged
from regionsearch.client import Box, Client, Hit, HitImage, IngestResult, Mask
from regionsearch.client.clients import OnResult
from regionsearch.client.drawing import COLOUR, outline
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import ImageLimits, Pixels
from regionsearch.masks import encode_rle
from regionsearch.models.catalog import PROFILES, WEIGHTS
from tests.client.conftest import gateway
from tests.client.fakes import FakeGateway

__all__ = ["gateway"]  # the fixture


def run(gateway: FakeGateway, *arguments: object) -> Result:
    """Runs a command; a typed error comes out as the result's exception."""
    environment = {"REGIONSEARCH_URL": gateway.http, "COLUMNS": "200", "REGIONSEARCH_API_KEY": ""}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def png(colour: str = "white", size: tuple[int, int] = (3, 2)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders, and what is none."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.PNG").write_bytes(png("red"))
    (tmp_path / "deep" / "a.jpg").write_bytes(png("blue"))
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in (
        "up", "ingest", "search", "within", "export", "images", "doctor", "evaluate", "collections", "models",
    ):  # fmt: skip
        assert f" {command} " in result.output


def test_ingest_a_folder(gateway: FakeGateway, folder: Path) -> None:
    result = run(gateway, "ingest", folder, "--tag", "holiday", "-c", "things")
    assert result.exit_code == 0
    assert "2 added with 2 regions, 0 there already, 0 failed" in result.output
    assert {path for _, path, _ in gateway.requests} == {
        "/v1/collections/things/images", "/v1/collections/things/images:check",
    }  # fmt: skip
    again = run(gateway, "ingest", folder)
    assert "0 added with 0 regions, 2 there already, 0 failed" in again.output


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
    assert "2 added with 2 regions, 0 there already, 1 failed" in result.output
    assert f"failed: {folder / 'broken.png'}: image is not an image" in result.output


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
    assert "stopped after 1 of 2: 1 added with 3 regions, 0 there already, 0 failed" in result.output
    assert "the same command goes on" in result.output


def test_ingest_into_no_collection_is_one_error(gateway: FakeGateway, folder: Path) -> None:
    gateway.failures = [RegionSearchError(Kind.NOT_FOUND, "there is no collection 'x'")] * 2
    result = run(gateway, "ingest", folder, "-c", "x", "--jobs", 1)
    assert isinstance(result.exception, RegionSearchError)
    assert "stopped after 0 of 2" in result.output


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


def test_errors_are_one_line_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regionsearch.cli.app import main

    missing = tmp_path / "[bold]" / "x"
    monkeypatch.setattr("sys.argv", ["regionsearch", "ingest", str(missing)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    line = f"error: {missing} is neither a file nor a folder, and no pattern matches it"
    assert capsys.readouterr().err.splitlines() == [line]


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


def test_images_are_listed_with_their_ids_and_shown(gateway: FakeGateway) -> None:
    lines = run(gateway, "images", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id", "a" * 64, "b" * 64, "c" * 64]
    assert len(run(gateway, "images", "list", "-n", "1", "--json").stdout.splitlines()) == 1
    assert run(gateway, "images", "list", "--tag", "other").stdout.splitlines() == [
        "id\tname\tsize\tregions\ttags"
    ]
    shown = run(gateway, "images", "show", "a" * 64)
    assert "r1\t0,0,2,2\t3" in shown.stdout.splitlines()
    assert json.loads(run(gateway, "images", "show", "a" * 64, "--json").stdout)["regions"][0]["area"] == 3
    gateway.known = {"a" * 64}
    assert run(gateway, "images", "tag", "a" * 64, "--add", "x", "--remove", "y").exit_code == 0
    assert gateway.requests[-1][2]["add_tags"] == ["x"]


def test_answers_for_programs(gateway: FakeGateway) -> None:
    assert json.loads(run(gateway, "collections", "list", "--json").stdout)[0]["name"] == "default"
    assert {"check", "found", "well", "advice"} == json.loads(run(gateway, "doctor", "--json").stdout)[
        0
    ].keys()
    assert "pocket" in {
        one["profile"] for one in json.loads(run(gateway, "models", "list", "--json").stdout)["profiles"]
    }
    assert run(gateway, "--version").stdout.startswith("regionsearch ")
    assert run(gateway, "search", "-h").exit_code == 0


def test_a_collection_that_is_not_there_needs_no_advice_to_create_it(gateway: FakeGateway) -> None:
    gateway.failures = [RegionSearchError(Kind.NOT_FOUND, "there is no collection 'x': create it first")]
    result = run(gateway, "collections", "delete", "x", "--yes")
    assert isinstance(result.exception, RegionSearchError)
    assert result.exception.message == "there is no collection 'x'"


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


def test_an_outline_has_no_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may let larger images in than this client's default."""
    seen: list[ImageLimits] = []

    def decode(data: bytes, limits: ImageLimits) -> Pixels:
        seen.append(limits)
        return np.zeros((9, 9, 3), np.uint8)

    monkeypatch.setattr("regionsearch.client.drawing.decode_image", decode)
    hit = Hit(
        rank=1, score=1, image_id="a", region_id=None, label=None, level="image", area=81,
        box=Box(x_min=0, y_min=0, x_max=9, y_max=9),
        image=HitImage(width=9, height=9, name="a", tags=()),
    )  # fmt: skip
    assert outline(b"an image", hit)
    assert min(seen[0].max_bytes, seen[0].max_pixels) > 10**12


def test_an_outline_surrounds_the_mask_and_leaves_it_alone() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 15:30] = True
    hit = Hit(
        rank=1,
        score=1,
        image_id="a",
        region_id="a-r000",
        label=None,
        area=150,
        level="region",
        box=Box(x_min=15, y_min=10, x_max=30, y_max=20),
        mask=Mask(size=(40, 60), counts=encode_rle(mask)),
        image=HitImage(width=60, height=40, name="a", tags=()),
    )
    for one in (hit, hit.model_copy(update={"mask": None})):
        with Image.open(io.BytesIO(outline(png("black", (60, 40)), one))) as image:
            drawn = np.asarray(image)
        assert not drawn[mask].any()
        assert (drawn[10:20, 14] == COLOUR).all()
        assert (drawn[9, 15:30] == COLOUR).all()
        assert (drawn[10:20, 30] == COLOUR).all()
        assert not drawn[:5].any()


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


def test_known_files_are_not_sent_again_and_get_the_tags(gateway: FakeGateway, folder: Path) -> None:
    run(gateway, "ingest", folder, "--tag", "a")
    gateway.requests.clear()
    again = run(gateway, "ingest", folder, "--tag", "a", "--tag", "b")
    assert again.exit_code == 0
    assert "2 there already, 0 failed, tags added to 2 known images" in again.output
    assert [method for method, *_ in gateway.requests] == ["POST", "PATCH", "PATCH"]
    third = run(gateway, "ingest", folder, "--tag", "b")
    assert "tags added" not in third.output
    gateway.requests.clear()
    assert "2 there already" in run(gateway, "ingest", folder, "--resend").output
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


@pytest.mark.parametrize("command", [("delete",), ("edit", "--add-tag", "t")])
def test_each_of_several_images_has_its_own_outcome(gateway: FakeGateway, command: tuple[str, ...]) -> None:
    a, missing, b = "a" * 64, "f" * 64, "b" * 64
    gateway.known = {a, b}
    gateway.failures = [None, RegionSearchError(Kind.NOT_FOUND, "there is no image"), None]
    result = run(gateway, *command, a, missing, b, a)
    assert result.exit_code == 1
    assert [path[-64:] for _, path, _ in gateway.requests] == [a, b]
    assert f"failed: {missing}: there is no image" in result.output
    assert [line.split()[-1] for line in result.output.splitlines() if "ed " in line][-1] == b
    assert run(gateway, *command, a).exit_code == 0
    gateway.failures = [RegionSearchError(Kind.UNAVAILABLE, "away")] * 3
    assert isinstance(run(gateway, *command, a, b).exception, RegionSearchError)


def test_edit_sends_what_is_to_change(gateway: FakeGateway) -> None:
    gateway.known = {"a" * 64}
    arguments = [
        "--add-tag",
        "x",
        "--remove-tag",
        "y",
        "--attribute",
        "place=Oslo=N",
        "--remove-attribute",
        "z",
    ]
    assert run(gateway, "edit", "a" * 64, "--name", "new.jpg", *arguments).exit_code == 0
    assert gateway.requests[-1][2] == {
        "name": "new.jpg", "add_tags": ["x"], "remove_tags": ["y"],
        "attributes": {"place": "Oslo=N", "z": None},
    }  # fmt: skip
    for wrong in (["a"], ["a", "b", "--name", "x"], ["a", "--attribute", "x"]):
        assert isinstance(run(gateway, "edit", *wrong).exception, RegionSearchError)


def test_a_query_that_was_cut_off_is_said(gateway: FakeGateway) -> None:
    gateway.truncated = [True]
    for command in (["search", "mug " * 300], ["within", "a" * 64, "mug " * 300]):
        result = run(gateway, *command, "--json")
        assert "the query is longer than the model reads" in result.stderr
        assert json.loads(result.stdout)


def test_models_say_whether_they_fit_into_the_memory_of_the_machine_or_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("4000000000\n")
    monkeypatch.setattr(models, "CONTAINER_LIMIT", tmp_path / "memory.max")
    memory = models.machine_memory()
    assert memory == 4_000_000_000
    assert models.memory_fit(WEIGHTS["sam_vit_b"].memory_bytes, memory) == "1.8 GB"
    assert models.memory_fit(WEIGHTS["ViT-H-14"].memory_bytes, memory) == "9.0 GB, too much"
    assert models.memory_fit(PROFILES["base"].memory_bytes, memory) == "4.1 GB, too much"
    (tmp_path / "memory.max").write_text("max\n")
    assert models.machine_memory() > 0


def test_models(gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
    listed = run(gateway, "models", "list")
    assert listed.exit_code == 0
    words = ("pocket", "base", "large", "sam_vit_h", "sam2.1_hiera_tiny", "Apache-2.0", "GB of memory")
    for word in (*words, str(tmp_path)):
        assert word in listed.output
    assert run(gateway, "models", "verify").exit_code == 0
    missing = run(gateway, "models", "verify", "base")
    assert missing.exit_code == 1
    assert "regionsearch models pull ViT-B-32" in missing.output
    assert "bundled" in run(gateway, "models", "pull", "pocket").output
    assert isinstance(run(gateway, "models", "pull", "huge").exception, RegionSearchError)
    unknown = str(run(gateway, "models", "pull", "open_clip:ViT-B-32:huge").exception)
    assert "open_clip:ViT-B-32:openai" in unknown
    assert "ViT-X-99" in str(run(gateway, "models", "pull", "open_clip:ViT-X-99").exception)


def test_doctor_tells_what_is_wrong(gateway: FakeGateway) -> None:
    well = run(gateway, "doctor")
    assert well.exit_code == 0, well.output
    assert "\tok" in well.output
    gateway.http = "http://127.0.0.1:9"
    ill = run(gateway, "doctor")
    assert ill.exit_code == 1
    assert "start it with: regionsearch up" in ill.output
