"""Where weights live, and whether they are what they should be."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from regionsearch.bundled import bundled
from regionsearch.errors import Kind, RegionSearchError, not_found
from regionsearch.models.catalog import HUB, Weights

VARIABLE = "REGIONSEARCH_MODELS_DIR"
POCKET = ("segmenter", "embedder")


def models_dir() -> Path:
    """The folder of downloaded weights: REGIONSEARCH_MODELS_DIR, or else in the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return _cache() / "regionsearch" / "models"


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache) if cache else Path.home() / ".cache"


def pocket_dir() -> Path:
    """The folder of the bundled models."""
    return bundled("models/pocket")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_file(target: Path) -> Path:
    """The file next to a downloaded one with its digest, as `sha256sum --check` reads it."""
    return target.with_name(target.name + ".sha256")


def find(weights: Weights) -> Path:
    """The file of weights on this machine: pulled, or in the cache of the Hugging Face hub or of torch.

    Raises:
        RegionSearchError: NOT_FOUND when it is not there; says how to get it.
    """
    found = look_up(weights)
    if found is None:
        raise not_found(
            "model",
            f"{models_dir() / weights.file} is not there; get it with: "
            f"regionsearch models pull {weights.model}",
        )
    return found


def look_up(weights: Weights) -> Path | None:
    """The file of weights as :func:`find` looks for it; None when it is not there."""
    pulled = models_dir() / weights.file
    if pulled.is_file():
        return pulled
    published = re.fullmatch(f"{re.escape(HUB)}/(.+)/resolve/[^/]+/(.+)", weights.url)
    if published is not None:
        cached = find_hub_file(published[1], published[2])
    else:
        cached = torch_cache() / weights.file
    if cached is not None and cached.is_file() and weights.size in (None, cached.stat().st_size):
        return cached
    return None if weights.fallback is None else look_up(weights.fallback)


def find_hub_file(repository: str, file: str) -> Path | None:
    """A file of a repository of the Hugging Face hub, pulled or in the hub's own cache; else None."""
    folder = f"models--{repository.replace('/', '--')}"
    for cache in (models_dir() / "hub", hub_cache()):
        found = list((cache / folder / "snapshots").glob(f"*/{file}"))
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
    return None


def find_repository(weights: Weights) -> Path:
    """The folder with the configuration that belongs to weights of the Hugging Face hub.

    Raises:
        RegionSearchError: NOT_FOUND when it is not there; says how to get it.
    """
    [repository] = weights.repositories
    found = find_hub_file(repository, weights.repository_file)
    if found is None:
        raise not_found(
            "model",
            f"{weights.repository_file} of {repository} is not there; get it with: "
            f"regionsearch models pull {weights.model}",
        )
    return found.parent


def hub_cache() -> Path:
    """Where the tools of the Hugging Face hub keep what they have downloaded."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else _cache() / "huggingface") / "hub"


def torch_cache() -> Path:
    """Where torch keeps the checkpoints that it has downloaded."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home) if home else _cache() / "torch") / "hub" / "checkpoints"


def checked_digest(weights: Weights) -> str:
    """SHA-256 of a downloaded file, hexadecimal, once it is the published one, or else that of its download.

    Raises:
        RegionSearchError: NOT_FOUND when it is not there, DATA_LOSS when it has changed.
    """
    target = find(weights)
    digest = file_digest(target)
    expected = weights.sha256
    if expected is None and digest_file(target).is_file():
        expected = digest_file(target).read_text().partition(" ")[0]
    if expected is not None and digest != expected:
        remedy = f"remove it and run: regionsearch models pull {weights.model}"
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{target} is damaged: its SHA-256 is {digest[:12]}…, not {expected[:12]}…; {remedy}",
            field="model",
        )
    return digest


def verify(weights: Weights) -> Path:
    """The file of downloaded weights, compared as by :func:`checked_digest`, which says what is raised."""
    checked_digest(weights)
    return find(weights)


def verify_pocket(part: str) -> Path:
    """Compares a bundled file with the digest in its manifest.

    Args:
        part: One of `POCKET`.

    Returns:
        The file.

    Raises:
        RegionSearchError: NOT_FOUND when it is not there, DATA_LOSS when it has changed.
    """
    weights = pocket_dir() / f"{part}.safetensors"
    manifest = weights.with_suffix(".json")
    if not weights.is_file() or not manifest.is_file():
        raise not_found("model", f"{weights} or its manifest is not there; install regionsearch again")
    if file_digest(weights) != json.loads(manifest.read_text())["sha256"]:
        message = f"{weights} is not what {manifest.name} says; install regionsearch again"
        raise RegionSearchError(Kind.DATA_LOSS, message, field="model")
    return weights
