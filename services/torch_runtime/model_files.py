"""Manifests and weights files of models that are given by path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionsearch.errors import Kind, RegionSearchError, not_found
from regionsearch.models import file_digest


def existing_file(path: Path, field: str, remedy: str) -> Path:
    """The path, if it is a file.

    Args:
        path: To look at.
        field: Setting that names the file.
        remedy: What to do when it is missing; ends the message.

    Raises:
        RegionSearchError: NOT_FOUND when there is no such file.
    """
    if not path.is_file():
        raise not_found(field, f"{path} does not exist or is not a file; {remedy}")
    return path


def read_manifest(path: Path, service: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Reads the JSON manifest of a model.

    Args:
        path: Of the manifest.
        service: ``segmenter`` or ``embedder``; the usual name of its manifest is that with ``.json``.
        keys: Required keys.

    Raises:
        RegionSearchError: NOT_FOUND when there is no such file, DATA_LOSS when it is not a JSON object with
            these keys.
    """
    remedy = f"give the path of {service}.json, or reinstall regionsearch for the bundled model"
    try:
        manifest = json.loads(existing_file(path, "model", remedy).read_text())
        reason = "it is not a JSON object" if not isinstance(manifest, dict) else None
        reason = reason or ", ".join(f"{key} is missing" for key in keys if key not in manifest)
    except ValueError as error:
        reason = str(error)
    if reason:
        raise RegionSearchError(
            Kind.DATA_LOSS, f"{path} is not a manifest of the {service} ({reason}); {remedy}", field="model"
        )
    return dict(manifest)


def verified_digest(weights: Path, manifest: Path, expected: str) -> str:
    """SHA-256 of a weights file, hexadecimal, once it is the one that its manifest names.

    Raises:
        RegionSearchError: NOT_FOUND when the file is missing, DATA_LOSS when its digest is another.
    """
    digest = file_digest(existing_file(weights, "model", f"it belongs next to {manifest.name}"))
    if digest != expected:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"the weights in {weights} are not those that {manifest.name} describes (SHA-256 {digest[:12]}…, "
            f"not {expected[:12]}…); restore both files together, or reinstall regionsearch for the bundled "
            "model",
            field="model",
        )
    return digest
