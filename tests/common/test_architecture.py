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


def starts(modules: dict[str, str], imported: str = "sys") -> None:
    """Imports each module in a process of its own, without what is banned; all begin with `imported`."""
    code = f"""
import os, {imported}
for module, banned in {modules!r}.items():
    if (child := os.fork()) == 0:
        for name in banned.split(","):
            assert name not in sys.modules, name
            sys.modules[name] = None  # importing it raises ImportError
        __import__(module)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("gateway.__main__", "torch,torchvision,faiss,open_clip,segment_anything"),
        ("services.searcher.__main__", "torch,torchvision,open_clip,segment_anything,fastapi"),
        ("services.segmenter.__main__", "torch,cv2"),  # --help, and refusing settings, takes no time
        ("services.embedder.__main__", "torch,open_clip"),
        ("regionsearch.cli", "torch,faiss,fastapi,services,gateway"),
        ("regionsearch.client", "torch,faiss,fastapi,services,gateway,typer,rich"),
    ],
)
def test_a_process_starts_without_what_it_does_not_use(module: str, banned: str) -> None:
    """Import linter reads the source; this one proves it for what libraries import at run time."""
    starts({module: banned})


def test_the_services_of_models_start_without_what_they_do_not_use() -> None:
    """The same for those that need PyTorch, which is imported once: it takes longer than all else."""
    modules = {
        "services.segmenter.service": "faiss,open_clip,fastapi",
        "services.embedder.service": "faiss,segment_anything,fastapi",
    }
    starts(modules, "sys, torchvision")
