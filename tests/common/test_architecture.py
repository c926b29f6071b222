"""Who may import whom, and which process starts without which library."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import ROOT


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_contracts_hold() -> None:
    result = run(Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("gateway.__main__", "torch,torchvision,faiss,open_clip,segment_anything"),
        ("services.searcher.__main__", "torch,torchvision,open_clip,segment_anything,fastapi"),
        ("services.segmenter.__main__", "torch,cv2"),  # --help, and refusing settings, takes no time
        ("services.embedder.__main__", "torch,open_clip"),
        ("services.segmenter.service", "faiss,open_clip,fastapi"),
        ("services.embedder.service", "faiss,segment_anything,fastapi"),
        ("regionsearch.cli", "torch,faiss,fastapi,services,gateway"),
        ("regionsearch.client", "torch,faiss,fastapi,services,gateway,typer,rich"),
    ],
)
def test_a_process_starts_without_what_it_does_not_use(module: str, banned: str) -> None:
    """Import linter reads the source; this one proves it for what libraries import at run time."""
    code = f"""
import sys
for name in {banned.split(",")!r}:
    sys.modules[name] = None  # importing it raises ImportError
import {module}
"""
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
