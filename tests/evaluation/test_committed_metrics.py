"""The committed weights still reach the metrics committed with them.

A part of the fixture is measured with the engines and compared with what `python -m evaluation.committed`
wrote. Whoever changes the weights measures again; whoever changes an engine has to reach the same.
"""

import json

import pytest

from evaluation.committed import GUARDED, METRICS, part_of_fixture
from evaluation.engines import engine_system
from evaluation.run import run

TOLERANCE = 0.02  # other processors round differently, and a mask on the edge of a threshold may fall


@pytest.fixture(scope="module")
def committed():
    return json.loads(METRICS.read_text())


@pytest.fixture(scope="module")
def measured():
    dataset = part_of_fixture()
    return run(engine_system(), dataset, draws=2).as_json()


def test_the_metrics_were_measured_with_the_committed_weights_and_images(committed, measured):
    part = committed["part_of_fixture"]
    for model in ("segmenter", "embedder"):
        assert part["system"][model]["sha256"] == measured["system"][model]["sha256"]
        assert committed["fixture"]["system"][model]["sha256"] == measured["system"][model]["sha256"]
    assert part["dataset"]["digest"] == measured["dataset"]["digest"]


@pytest.mark.parametrize("key", GUARDED)
def test_the_weights_reach_their_metrics(committed, measured, key):
    promised = committed["part_of_fixture"]["metrics"][key]["value"]
    assert measured["metrics"][key]["value"] >= promised - TOLERANCE


def test_the_bundled_models_are_far_better_than_chance(measured):
    """Against metrics that were committed by mistake: far below what the models are for."""
    reached = {key: value["value"] for key, value in measured["metrics"].items()}
    assert reached["click.miou"] > 0.7
    assert reached["text_region.r@1"] > 0.75
    assert reached["absence.auroc"] > 0.9
