"""The command line against a fake gateway: help, errors, images, collections, models, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regionsearch.cli import app, models
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.catalog import PROFILES, WEIGHTS
from tests.cli.conftest import run
from tests.client.fakes import FakeGateway


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in (
        "up", "ingest", "search", "within", "export", "images", "doctor", "evaluate", "collections", "models",
    ):  # fmt: skip
        assert f" {command} " in result.output


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


def test_defaults_come_from_a_file_and_options_go_first(
    gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    monkeypatch.setenv("REGIONSEARCH_CLI_CONFIG", str(file))
    monkeypatch.delenv("REGIONSEARCH_URL", raising=False)
    file.write_text(f'url = "{gateway.http}"\ncollection = "holiday"\n')

    def asked(*options: str) -> str:
        result = CliRunner().invoke(app, ["images", "list", "-n", "1", *options])
        assert result.exit_code == 0, result.exception
        return str(gateway.requests[-1][1])

    assert "/collections/holiday/" in asked()
    assert "/collections/other/" in asked("-c", "other")
    reindex = CliRunner().invoke(app, ["reindex"])
    assert "Missing argument" in reindex.output, "what is done to a collection names it"
    for text, problem in (("colection = 'x'", "colection is not one of"), ("url", "not a valid TOML file")):
        file.write_text(text)
        failed = CliRunner().invoke(app, ["images", "list"])
        assert problem in str(failed.exception)
        assert str(file) in str(failed.exception)


def test_images_are_listed_with_their_ids_and_shown(gateway: FakeGateway) -> None:
    lines = run(gateway, "images", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id", "a" * 64, "b" * 64, "c" * 64]
    assert len(run(gateway, "images", "list", "-n", "1", "--json").stdout.splitlines()) == 1
    assert run(gateway, "images", "list", "--tag", "other", "-n", "1").exit_code == 0
    assert "%22other%22" in gateway.requests[-1][2]  # the server filters
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


def test_a_collection_is_created_with_options_of_everything_mode(gateway: FakeGateway) -> None:
    result = run(gateway, "collections", "create", "drawings", "--points-per-side", 9, "--max-regions", 5)
    assert result.exit_code == 0
    assert gateway.requests[-1][2]["everything"] == {"points_per_side": 9, "max_regions": 5}
    assert run(gateway, "collections", "create", "sure", "--recall-target", 0.995).exit_code == 0
    assert gateway.requests[-1][2] == {"name": "sure", "crop_policy": "default", "recall_target": 0.995}


def test_a_collection_that_is_not_there_needs_no_advice_to_create_it(gateway: FakeGateway) -> None:
    gateway.failures = [RegionSearchError(Kind.NOT_FOUND, "there is no collection 'x': create it first")]
    result = run(gateway, "collections", "delete", "x", "--yes")
    assert isinstance(result.exception, RegionSearchError)
    assert result.exception.message == "there is no collection 'x'"


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


def test_models_are_listed_and_verified(
    gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.stack  # imports open_clip, which knows them
def test_a_model_that_open_clip_does_not_have_is_refused_with_the_names_of_those_it_has(
    gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path))
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
