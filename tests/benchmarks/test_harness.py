"""Ratios, medians and the file that keeps them."""

import contextlib
import json
import sys

import pytest
import structlog

from benchmarks import __main__ as command
from benchmarks.harness import Case, Pair, constant, measure


@pytest.fixture(autouse=True)
def own_logging():
    """The command configures the process's log; the tests after these have theirs."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def case(name="x", ours=(9, 1, 2, 3), reference=6.0, **options):
    """A case whose measurements are given; the first is the warm-up."""
    values = iter(ours)

    @contextlib.contextmanager
    def prepare():
        yield Pair(lambda: next(values), None if reference is None else constant(reference))

    return Case(name, "s", prepare, runs=len(ours) - 1, **options)


def test_medians_and_direction():
    lower = measure(case())
    assert (lower.ours, lower.reference, lower.ratio) == (2, 6, 3)
    assert measure(case(better="higher")).ratio == pytest.approx(1 / 3)
    assert measure(case(target=3.0)).reached is True
    assert measure(case(target=3.1)).reached is False
    alone = measure(case(reference=None))
    assert (alone.ratio, alone.reached) == (None, None)
    assert len(measure(case(ours=range(9)), quick=True).runs) == 2


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command over given cases; returns its exit status and what it wrote last."""
    monkeypatch.setattr("benchmarks.history.commit", lambda: "abc")

    def run(cases, *arguments):
        monkeypatch.setattr(command, "discover", lambda: [("a", cases), ("b", "no")])
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--output", str(tmp_path), *arguments])
        status = command.main()
        latest = tmp_path / "latest.json"
        return status, json.loads(latest.read_text()) if latest.exists() else None

    return run


def test_the_command_writes_and_keeps_results(run):
    def cases():
        return [case("one"), case("two", target=99.0)]

    status, entries = run(cases())
    assert status == 0
    assert [entry["name"] for entry in entries] == ["one", "two"]
    assert {"name", "ratio", "ours", "reference", "unit", "runs", "time", "machine"} <= entries[0].keys()
    status, entries = run([case("two", target=99.0), case("three")], "--only", "two", "--check")
    assert status == 1  # its target is missed
    assert [entry["name"] for entry in entries] == ["one", "two"]
    assert run(cases(), "--only", "none")[0] == 1


def test_a_case_that_fails_costs_no_other_its_result(run):
    status, entries = run([case("one"), case("two", ours=()), case("three")])
    assert status == 1
    assert [entry["name"] for entry in entries] == ["one", "three"]


def test_a_run_that_was_broken_off_is_resumed(run, capsys):
    @contextlib.contextmanager
    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        run([case("one"), Case("two", "s", interrupted)])
    status, entries = run([case("one", ours=()), case("two")])  # "one" cannot be measured again
    assert status == 0
    assert [entry["name"] for entry in entries] == ["one", "two"]
    assert "one" in capsys.readouterr().out
    assert run([case("one", ours=()), case("two")])[0] == 1, "an ended run is not resumed"


def test_a_ratio_that_fell_by_more_than_a_tenth_is_named(run, capsys):
    run([case("one"), case("two")])
    run([case("one", reference=5.0), case("two", reference=5.9)])
    told = capsys.readouterr().err
    assert "one: 2.50, on this machine it was 3.00" in told
    assert "two:" not in told


def test_a_difference_that_is_lost_in_noise_has_no_ratio():
    assert measure(case(ours=(1, -0.1))).ratio is None
