"""The command line of a backfill into the image store and the searcher of a stack."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.stack import Stack

# Not by its import, which takes seconds in runs that leave these tests out.
WITH_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


def command(stack: Stack, source: str | os.PathLike[str], collection: str, outcomes: Path) -> list[str]:
    """Starts a small local Ray."""
    return [
        *(sys.executable, "-m", "regionsearch.cli", "backfill", os.fspath(source), "-c", collection),
        *("--searcher", stack.services["searcher"]),
        *("--image-store", os.fspath(stack.folder / "data" / "images")),
        *("--cpus", "2", "--object-store-mib", "100", "--outcomes", os.fspath(outcomes)),
    ]
