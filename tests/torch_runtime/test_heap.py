"""Memory that a batch has freed is there for the next one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


ARENAS = """
import ctypes, threading
from services.torch_runtime.heap import reuse_freed_memory
reuse_freed_memory()
go = threading.Barrier(5)
def allocate():
    go.wait()
    kept = [bytearray(5000) for _ in range(1000)]
    go.wait()
    go.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
go.wait()
go.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(out := libc.fdopen(1, b"w")))
libc.fflush(ctypes.c_void_p(out))
go.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(("asked", "arenas"), [(None, 1), ("3", 3)])
def test_threads_share_one_arena_unless_others_are_asked_for(asked: str | None, arenas: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if asked:
        environment["MALLOC_ARENA_MAX"] = asked
    command = [sys.executable, "-c", ARENAS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("<heap nr=") == arenas
