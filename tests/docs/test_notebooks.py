"""The notebooks run from top to bottom against a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stack import ROOT, Stack

FOLDER = ROOT / "examples" / "notebooks"


def executed(path: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of all cells; a cell that fails raises."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel")
    monkeypatch.setenv("REGIONSEARCH_URL", stack.http)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_a_notebook_runs(name: str, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = executed(FOLDER / f"{name}.ipynb", stack, monkeypatch)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "text/html" in kinds or any("named rightly" in output.get("text", "") for output in outputs)
    if name == "first_steps":
        assert "image/png" in kinds  # a hit, outlined in its image


def test_notebooks_are_committed_without_outputs() -> None:
    for path in FOLDER.glob("*.ipynb"):
        assert '"outputs": []' in path.read_text()
        assert "output_type" not in path.read_text(), path.name
