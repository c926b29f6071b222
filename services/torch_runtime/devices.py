"""Devices and precision, and which of torch's errors mean what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from regionsearch.errors import invalid
from services.runtime.batcher import Failure

LEAST_MATCH_RATE = 0.99
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device that a setting names.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the default GPU, or the CPU without one.

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
            without any.

    Raises:
        RegionSearchError: See :func:`find_device`.
    """
    if names == "auto":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [
            torch.device("cpu")
        ]
    return [find_device(name.strip()) for name in names.split(",")]


def choose_precision(
    precision: str, device: torch.device, match_rates: Mapping[str, float] | None = None
) -> str:
    """The precision on a device: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    ``auto`` means fp32 on a CPU, where none of the others is faster. On a GPU it means the fastest one that
    the GPU has and that is known to give the model's answer: by its `match_rates`, if it has any, else bf16
    or fp16.

    Args:
        precision: The setting.
        device: Where the model runs.
        match_rates: For a model whose answers are compared one by one, the measured share of answers that
            equal those of fp32, by precision; a missing one is unknown. None for models such as image towers,
            whose answers vary continuously.
    """
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    if match_rates is None:
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    newer = torch.cuda.is_bf16_supported(including_emulation=False)
    reduced = ("bf16", "fp16", "tf32") if newer else ("fp16",)
    return next((name for name in reduced if match_rates.get(name, 0) >= LEAST_MATCH_RATE), "fp32")


def allow_tf32(allowed: bool) -> None:
    """Sets whether GPUs may compute products of float32 in TF32, in the whole process.

    torch's own default is to do so in convolutions, and not in matrix products.
    """
    mode = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = mode
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]


def staged(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host, ready for a copy that does not wait: in pinned memory if a GPU will read it."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, by a copy that does not wait.

    One from memory that is not pinned may wait for all that its stream has queued.
    """
    return staged(tensor, device).to(device, non_blocking=True)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a model computes: none for fp32, else torch's autocast or products in TF32."""
    if precision == "tf32":
        return _tf32()
    dtype = _DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextmanager
def _tf32() -> Iterator[None]:
    allow_tf32(True)
    try:
        yield
    finally:
        allow_tf32(False)


# Messages of other allocators: the host's, CUDA's for pinned memory, its libraries', ONNX Runtime's.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "Failed to allocate memory",
)


def classify(error: Exception) -> Failure:
    """What an exception of a batch means for the batch and for the device.

    Out of memory also empties torch's cache: fragments of the wrong size may be enough for half a batch.
    """
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        part in message for part in _OUT_OF_MEMORY
    ):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Failure.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "CUDA error" in message:
        return Failure.FATAL  # sticky: every later call in this CUDA context fails too
    return Failure.POISON
