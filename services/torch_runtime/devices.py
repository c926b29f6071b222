"""Devices and numeric precision of a model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from regionsearch.errors import invalid

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device that a setting names.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the default GPU, or the CPU where there is none.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a device that does not exist or is of another kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.empty(1, device=name).device.type
    except (RuntimeError, AssertionError) as error:
        raise invalid("device", f"{name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if kind not in ("cpu", "cuda"):
        raise invalid("device", f"{name!r} cannot be used; give auto, cpu, cuda or cuda:N")
    return torch.device(name)


def find_devices(names: str) -> list[torch.device]:
    """The devices that a setting names.

    Args:
        names: Devices as for :func:`find_device`, separated by commas; ``auto`` means every GPU, or the CPU
            where there is none.

    Raises:
        RegionSearchError: See :func:`find_device`.
    """
    if names == "auto":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [
            torch.device("cpu")
        ]
    return [find_device(name.strip()) for name in names.split(",")]


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision on a device: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` means fp32 on a CPU, and on a GPU bf16 where the GPU supports it, else fp16.
    """
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a model computes: none for fp32, torch's autocast for bf16 and fp16."""
    dtype = _DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
