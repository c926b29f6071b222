"""Files that travel with the package: a wheel has them inside, a checkout next to it."""

from __future__ import annotations

from pathlib import Path


def bundled(path: str) -> Path:
    """Returns a bundled folder, such as ``models/pocket`` or ``examples``."""
    package = Path(__file__).resolve().parent
    inside = package / path
    return inside if inside.is_dir() else package.parent / path
