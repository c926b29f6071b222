"""Where weights live."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

VARIABLE = "REGIONSEARCH_MODELS_DIR"


def models_dir() -> Path:
    """The folder of downloaded weights: REGIONSEARCH_MODELS_DIR, or else in the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "regionsearch" / "models"


def pocket_dir() -> Path:
    """The folder of the bundled models: inside the installed package, or models/pocket of a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "pocket"
    return packaged if packaged.is_dir() else here.parents[1] / "models" / "pocket"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
