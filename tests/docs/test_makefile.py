"""What `make` would do; nothing is done."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stack import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def plan(target: str, **variables: Path | str | int) -> str:
    given = [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target, *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_an_environment_that_broke_off_is_made_again(tmp_path: Path) -> None:
    """Without Debian's python3-venv, venv leaves a Python behind that has no pip."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").touch()
    assert f"-m venv {tmp_path}" in plan("run", VENV=tmp_path)
    (programs / "pip").touch()
    assert f"-m venv {tmp_path}" not in plan("run", VENV=tmp_path)


def test_run_pulls_the_models_of_a_profile_first() -> None:
    pulled, started = [line for line in plan("run", PROFILE="base").splitlines() if "regionsearch " in line]
    assert pulled.endswith("regionsearch models pull base")
    assert started.endswith("regionsearch up --demo --profile base")
    assert "models pull" not in plan("run")


def test_training_takes_its_steps_and_arguments_and_ends_with_the_graph() -> None:
    *_, training, graph = plan("train-pocket", STEPS=20, ARGS="--batch 2").splitlines()
    assert training.endswith("-m training --steps 20 --batch 2")
    assert graph.endswith("-m training graph")


def test_clean_removes_what_git_ignores_but_data_and_training() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    folders = {name.strip("/") for name in ignored if name.endswith("/") and "*" not in name}
    kept = {"data", "training/out", "__pycache__"}
    assert folders - kept <= set(plan("clean").split())
