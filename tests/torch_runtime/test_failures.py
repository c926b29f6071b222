from __future__ import annotations

import pytest
import torch

from services.runtime.stages import Failure
from services.torch_runtime.devices import classify


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.OUT_OF_MEMORY),
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (Exception("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory"), Failure.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), Failure.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory"), Failure.OUT_OF_MEMORY),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            Failure.OUT_OF_MEMORY,
        ),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), Failure.FATAL),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), Failure.FATAL),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), Failure.POISON),
        (RuntimeError("CUDA error: device-side assert triggered"), Failure.FATAL),
        (ValueError("mean of empty slice"), Failure.POISON),
    ],
)
def test_torch_errors_are_out_of_memory_fatal_or_of_one_request(error: Exception, failure: Failure) -> None:
    assert classify(error) is failure
