"""The run for a GPU goes through on a CPU, at sizes that prove nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_every_case_is_measured_or_says_why_not(tmp_path: Path) -> None:
    output = tmp_path / "out" / "gpu.md"
    assert gpu.run("cpu", True, 600, output) == 0
    rows = [line for line in output.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(gpu.cases("cpu", True))
    left_out = [row for row in rows if "left out" in row]
    assert all("faiss" in row for row in left_out)
    assert "failed" not in output.read_text()
    measured = json.loads(output.with_suffix(".json").read_text())
    assert len(measured) == len(rows) - len(left_out)
    assert all(entry["ours"] > 0 for entry in measured)


def test_nothing_begins_after_the_budget(tmp_path: Path) -> None:
    output = tmp_path / "gpu.md"
    assert gpu.run("cpu", True, -1.0, output) == 0
    assert output.read_text().count("not begun") == len(gpu.cases("cpu", True))
