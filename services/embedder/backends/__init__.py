"""Families of embedders. A new one is a module in this package and a line in :data:`FAMILIES`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

import torch

from services.embedder.backends.base import Backend, ModelFiles

# Family -> module with `load(files, device, precision, compile)`; imported when it is asked for.
FAMILIES = {"open_clip": "services.embedder.backends.open_clip"}


def load_backend(files: ModelFiles, device: torch.device, precision: str, compile_model: bool) -> Backend:
    """Loads a model onto a device.

    Args:
        files: What to load.
        device: Where to.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        compile_model: Whether the image tower goes through ``torch.compile``.

    Raises:
        RegionSearchError: DATA_LOSS when the weights do not fit the architecture.
    """
    load = cast(
        "Callable[[ModelFiles, torch.device, str, bool], Backend]",
        importlib.import_module(FAMILIES[files.family]).load,
    )
    return load(files, device, precision, compile_model)
