"""Families of segmenters. A new one is a module in this package and a line in :data:`FAMILIES`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from services.segmenter.backends.base import Backend, ModelFiles

# Family -> module with `load(files, device, precision, compile_model)`; imported when it is asked for.
FAMILIES = {
    "sam": "services.segmenter.backends.sam",
    "sam2": "services.segmenter.backends.sam2",
    "sam3": "services.segmenter.backends.sam3",
    "sam_hq": "services.segmenter.backends.sam_hq",
    "fastsam": "services.segmenter.backends.fastsam",
}


def load_backend(files: ModelFiles, device: str, precision: str, compile_model: bool = False) -> Backend:
    """Loads a model.

    Args:
        files: What to load.
        device: As torch names it.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``; of a FastSAM, ``auto`` or that of its file.
        compile_model: Whether image encoder and refiner go through ``torch.compile``.

    Raises:
        RegionSearchError: DATA_LOSS when the weights do not fit the family, FAILED_PRECONDITION when its
            package is not installed, or when it cannot be compiled.
    """
    load = cast(
        "Callable[[ModelFiles, str, str, bool], Backend]",
        importlib.import_module(FAMILIES[files.family]).load,
    )
    return load(files, device, precision, compile_model)
