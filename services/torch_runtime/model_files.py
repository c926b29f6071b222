"""Manifests and weights files of models that are given by path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from regionsearch.errors import Kind, RegionSearchError, not_found
from regionsearch.models.store import file_digest


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
        path: Path of the manifest.
        service: ``segmenter`` or ``embedder``; its manifest is usually named so, with ``.json``.
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


def verified_digest(file: Path, manifest: Path, expected: str) -> str:
    """SHA-256 of a model's file, hexadecimal, once it is the one that its manifest names.

    Raises:
        RegionSearchError: NOT_FOUND when the file is missing, DATA_LOSS when its digest is another.
    """
    digest = file_digest(existing_file(file, "model", f"it belongs next to {manifest.name}"))
    if digest != expected:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{file} is not the one that {manifest.name} describes (SHA-256 {digest[:12]}…, "
            f"not {expected[:12]}…); restore both files together, or reinstall regionsearch for the bundled "
            "model",
            field="model",
        )
    return digest


SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PARALLEL = "module."  # what DataParallel puts before the name of every tensor


def read_tensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name, on the CPU; nothing in the file is executed.

    What training loops wrap around them is taken off: a ``model`` or ``state_dict`` next to an optimiser's
    state, and the prefix of parallel training.

    Args:
        path: A file in the format of safetensors or of ``torch.save``.
        remedy: What to do about a file that cannot be read; ends the message.

    Raises:
        RegionSearchError: DATA_LOSS when the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpicklers and readers raise whatever a damaged file leads them to
        raise _unreadable(path, "cannot be read: it is damaged or of another format", remedy) from error
    while isinstance(content, dict) and not _is_tensors(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not _is_tensors(content):
        kind = (
            f"a dictionary of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else ""
        )
        raise _unreadable(path, f"holds {kind or type(content).__name__}, not tensors by name", remedy)
    tensors: dict[str, torch.Tensor] = content
    if all(name.startswith(_PARALLEL) for name in tensors):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def only_weights_file(folder: Path) -> Path:
    """The one file of weights in a folder.

    Raises:
        RegionSearchError: NOT_FOUND naming those that are there, when it is not exactly one.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise not_found(
            "model", f"{folder} should hold one file of weights, and holds {names}; give the path of one"
        )
    return found[0]


def _is_tensors(content: dict[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )


def _unreadable(path: Path, problem: str, remedy: str) -> RegionSearchError:
    return RegionSearchError(Kind.DATA_LOSS, f"{path} {problem}; {remedy}", field="model")
