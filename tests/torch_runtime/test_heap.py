"""Memory that a batch has freed is there for the next one."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, sys
import numpy as np
from services.torch_runtime.heap import reuse_freed_memory
if sys.argv[1] == "keep":
    reuse_freed_memory()
def run_batch():
    tensors = [np.ones(size << 17) for size in (3, 8, 15)]  # up to 15 MiB
run_batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run_batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of ten batches that allocate what the one before them has freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_second_batch_needs_no_new_pages() -> None:
    assert faults("keep") < faults("default") / 4
