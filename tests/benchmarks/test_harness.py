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
    assert len(measure(case(ours=range(9)), quick=True).runs) == 3


def test_the_command_writes_and_keeps_results(monkeypatch, tmp_path, capsys):
    path = tmp_path / "latest.json"

    def run(*arguments):
        monkeypatch.setattr(
            command, "discover", lambda: [("a", [case("one"), case("two", target=99.0)]), ("b", "no")]
        )
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--output", str(path), *arguments])
        return command.main()

    assert run() == 0
    entries = json.loads(path.read_text())
    assert [entry["name"] for entry in entries] == ["one", "two"]
    assert {"name", "ratio", "ours", "reference", "unit", "runs"} <= entries[0].keys()
    path.write_text(json.dumps([*entries, {"name": "other"}]))
    assert run("--only", "two", "--check") == 1  # its target is missed
    assert [entry["name"] for entry in json.loads(path.read_text())] == ["one", "two", "other"]
    assert run("--only", "none") == 1


def test_a_case_that_fails_costs_no_other_its_result(monkeypatch, tmp_path):
    path = tmp_path / "latest.json"
    cases = [case("one"), case("two", ours=()), case("three")]
    monkeypatch.setattr(command, "discover", lambda: [("a", cases)])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--output", str(path)])
    assert command.main() == 1
    assert [entry["name"] for entry in json.loads(path.read_text())] == ["one", "three"]


def test_a_difference_that_is_lost_in_noise_has_no_ratio():
    assert measure(case(ours=(1, -0.1))).ratio is None
