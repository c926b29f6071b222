"""The cut-off of confident matches: what is counted, what is chosen, where it is written."""

import json

import numpy as np
import pytest

from evaluation.calibration import Pairs, write_cut_off
from regionsearch.errors import RegionSearchError


def pairs(scores, right, image=None):
    return Pairs(np.array(scores), np.array(right, bool), np.array(image or [0] * len(scores)))


def test_the_cut_off_has_the_best_f1():
    # From 0.7 on: 3 of 4 are right, all of 3 are found.
    assert pairs([0.9, 0.8, 0.7, 0.75, 0.2], [1, 1, 1, 0, 0]).cut_off() == 0.7
    # One right match far down is not worth the wrong ones before it.
    assert pairs([0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1], [1, 1, 0, 0, 0, 0, 1]).cut_off() == 0.8
    assert pairs([0.9], [0]).cut_off() is None
    assert pairs([], []).cut_off() is None


def test_only_the_chosen_images_count():
    both = pairs([0.9, 0.8, 0.1], [1, 0, 1], [0, 0, 1])
    assert both.of(np.array([True, False])).cut_off() == 0.9
    assert both.of(np.array([False, True])).cut_off() == 0.1


def test_calibrating_again_changes_one_figure_of_the_manifest(tmp_path):
    manifest = tmp_path / "embedder.json"
    manifest.write_text(json.dumps({"family": "open_clip", "cut_offs": {"bbox": 0.3, "blur": 0.2}}))
    write_cut_off(manifest, "blur", 0.44409)
    assert json.loads(manifest.read_text()) == {
        "family": "open_clip",
        "cut_offs": {"bbox": 0.3, "blur": 0.4441},
    }


def test_the_embedder_reads_it(tmp_path):
    loading = pytest.importorskip("services.embedder.service")
    manifest = tmp_path / "embedder.json"
    assert loading.read_cut_offs(manifest, {}) == {}
    assert loading.read_cut_offs(manifest, {"cut_offs": {"blur": 0.4}}) == {"blur": 0.4}
    for wrong in ({"blur": 2}, {"nosuch": 0.1}, {"blur": "high"}, [0.4]):
        with pytest.raises(RegionSearchError, match="--calibrate"):
            loading.read_cut_offs(manifest, {"cut_offs": wrong})
