"""Numeric precision of a backend."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from services.segmenter.backends.base import ModelIdentity

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(identity: ModelIdentity) -> AbstractContextManager[Any]:
    """The context that a model computes in: nothing for fp32, torch's autocast for the others."""
    dtype = _DTYPES.get(identity.precision)
    if dtype is None:
        return nullcontext()
    return torch.autocast(torch.device(identity.device).type, dtype=dtype)
