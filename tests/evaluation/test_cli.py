import csv
import json

import pytest
from typer.testing import CliRunner

from evaluation import cli
from evaluation.cli import app
from evaluation.system import InProcess
from tests.evaluation.synthetic_data import ColourEmbedder, TruthSegmenter

runner = CliRunner()


@pytest.fixture
def perfect(world, monkeypatch):
    """The command line with a system that knows the truth in place of the engines."""

    def build(models, policy, reference):
        return InProcess(TruthSegmenter(world), ColourEmbedder(world.categories), policy)

    monkeypatch.setattr(cli, "_load", build)
    return world.samples[0].path.parent


def test_a_run_writes_numbers_and_a_page(perfect, tmp_path):
    out = tmp_path / "out"
    answer = runner.invoke(app, ["--data", str(perfect), "--out", str(out), "--limit", "5", "--seed", "3"])
    assert answer.exit_code == 0, answer.output
    assert "class_mask.miou" in answer.output
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["dataset"]["pictures"] == 5
    assert numbers["seed"] == 3
    assert numbers["metrics"]["text_region.r@1"]["value"] == 1.0
    assert "<html" in (out / "report.html").read_text()
    images = [json.loads(line) for line in (out / "per_image.jsonl").read_text().splitlines()]
    assert len(images) == 5
    for image in images:
        assert image["ar@100"] == 1.0
        assert all(name["rank"] == 1 for name in image["names"].values())
    with (out / "per_class.csv").open() as table:
        names = list(csv.DictReader(table))
    assert sum(int(name["things"]) for name in names) == sum(image["things"] for image in images)
    assert {name["r@1"] for name in names} == {"1.0"}


def test_a_log_says_how_far_a_run_is(perfect, tmp_path):
    """Without a terminal there is no bar."""
    answer = runner.invoke(app, ["--data", str(perfect), "--out", str(tmp_path), "--limit", "3"])
    assert any(line.endswith(", 3") for line in answer.output.splitlines())


def test_a_run_is_compared_with_an_earlier_one(perfect, tmp_path):
    first = ["--data", str(perfect), "--limit", "3", "--out", str(tmp_path / "first")]
    assert runner.invoke(app, first).exit_code == 0
    path = tmp_path / "first" / "metrics.json"
    numbers = json.loads(path.read_text())
    numbers["metrics"]["click.miou"] = {"value": 0.25, "low": 0.2, "high": 0.3, "items": 9}
    path.write_text(json.dumps(numbers))
    again = ["--data", str(perfect), "--limit", "3", "--out", str(tmp_path), "--against"]
    answer = runner.invoke(app, [*again, str(path.parent)])
    assert answer.exit_code == 0, answer.output
    (changed,) = [line for line in answer.output.splitlines() if "click.miou" in line]
    assert "+0.7" in changed and "*" in changed
    (same,) = [line for line in answer.output.splitlines() if "proposals.ar@100 " in line]
    assert "+0.000" in same and "*" not in same
    numbers["dataset"]["digest"] = "another"
    path.write_text(json.dumps(numbers))
    refused = runner.invoke(app, [*again, str(path)])
    assert refused.exit_code == 2
    assert "was measured on other images" in " ".join(refused.output.split())


def test_all_policies_and_the_baselines_are_compared(perfect, tmp_path):
    arguments = [
        "--data",
        str(perfect),
        "--out",
        str(tmp_path),
        "--policies",
        "all",
        "--baselines",
        "--limit",
        "3",
    ]
    assert runner.invoke(app, arguments).exit_code == 0
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["system"]["crop_policy"] == "blur"
    assert {"crop policy bbox", "crop policy ensemble", "whole image", "grid of crops"} <= set(
        numbers["comparisons"]
    )
    assert "crop policy blur" not in numbers["comparisons"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "is not a data set"),
        (["--data", "nowhere", "--fixture"], "exclude each other"),
        (["--policies", "blurr"], "no crop policy is called blurr"),
        (["--url", "http://127.0.0.1:1", "--baselines"], "measured alone"),
        (["--against", "nowhere", "--data", "nowhere"], "is not a data set"),
    ],
)
def test_errors_are_one_sentence_without_a_traceback(arguments, message):
    answer = runner.invoke(app, arguments)
    assert answer.exit_code == 2
    assert message in " ".join(answer.output.split())
    assert "Traceback" not in answer.output
