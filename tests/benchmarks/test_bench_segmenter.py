"""The segmenter's benchmarks run to their end, at sizes that prove nothing else."""

from __future__ import annotations

import functools
import math

import pytest

from benchmarks import bench_segmenter as bench
from benchmarks import segmenter_memory
from benchmarks import segmenter_rig as rig
from benchmarks.harness import Case, Outcome, measure
from services.segmenter.options import Mode

tiny = functools.partial(rig.pocket, points_per_side=2)
image = functools.partial(rig.scene, 64, 96)


def outcome(prepare, **options) -> Outcome:
    result = measure(Case("tiny", "s", prepare, runs=1, **options))
    assert math.isfinite(result.ours)
    return result


def test_everything_mode_is_measured_and_compared(monkeypatch):
    assert outcome(lambda: bench.everything(tiny, image)).ratio > 0
    real = bench.segment_everything
    monkeypatch.setattr(bench, "segment_everything", lambda *args: real(*args)[1:])
    with pytest.raises(ValueError, match="zip"):
        outcome(lambda: bench.everything(tiny, image))


def test_the_profile_runs_once_for_all_stages(monkeypatch):
    profile = bench.Profile(tiny, image)
    results = [outcome(functools.partial(profile.stage, stage)) for stage in bench.STAGES]
    assert all(result.ours > 0 and result.reference > 0 for result in results)
    assert profile._ours.cache_info().misses == profile._theirs.cache_info().misses == 2  # one warms up


@pytest.mark.slow
def test_callers_clicks_and_match_rate():
    assert outcome(functools.partial(bench.callers, 1)).ratio > 0
    assert outcome(lambda: bench.second_click(tiny)).ratio > 0
    rate = outcome(lambda: bench.match_rate("bf16", Mode.GRID, 1, tiny), better="higher")
    assert 0 <= rate.ours <= 1


@pytest.mark.slow
def test_memory_is_that_of_the_side_and_stops_at_the_cap():
    assert 0 < segmenter_memory.peak("ours", 200, 300) < segmenter_memory.CAP
    assert segmenter_memory.peak("reference", 3000, 3000, 300) == 300


def test_every_case_has_its_own_name():
    names = [case.name for case in bench.cases()]
    assert len(set(names)) == len(names) >= 12
