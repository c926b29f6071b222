"""The stack that tests share, and ports of their own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import psutil

from loadtests.launch import PORTS, ROOT, STOP_S, Stack, free_ports
from tests.waiting import wait_for

__all__ = ["ROOT", "Stack", "free_port", "new_stack", "shared_stack"]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "REGIONSEARCH_GATEWAY_TIMEOUTS__PROBE_S": "30",  # what answers slowly, on a busy machine, is not away
}

# Processes of pytest-xdist that run side by side have ports of their own, each in a block with the three
# after it, which `regionsearch up` takes for the services behind its gRPC port.
_BLOCK = 4
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_OWN_PORTS = PORTS[_WORKER * _BLOCK :: _WORKERS * _BLOCK]
_own_ports = iter(random.sample(_OWN_PORTS, len(_OWN_PORTS)))


def free_port() -> int:
    """A port that no one listens on, never the same twice."""
    return free_ports(1, _own_ports)[0]


def new_stack(folder: Path, **environment: str) -> Stack:
    """All four processes with the pocket models, which the test starts and stops."""
    return Stack(folder, free_port(), free_port(), ENVIRONMENT | environment)


@contextlib.contextmanager
def shared_stack(folder: Path) -> Iterator[Stack]:
    """The stack of all test processes that share the folder: the first starts it, the last one stops it."""
    with _locked(folder) as shared:
        if shared:
            stack = Stack(folder, shared["http_port"], shared["grpc_port"])
            stack.process = psutil.Process(shared["supervisor"])  # type: ignore[assignment]  # of another process
        else:
            stack = new_stack(folder).__enter__()
            assert stack.process is not None
            shared |= {"http_port": stack.http_port, "grpc_port": stack.grpc_port, "users": 0}
            shared["supervisor"] = stack.process.pid
        shared["users"] += 1
    try:
        yield stack
    finally:
        with _locked(folder) as shared:
            shared["users"] -= 1
            if not shared["users"]:
                supervisor = psutil.Process(shared["supervisor"])
                shared.clear()
                supervisor.terminate()
                wait_for(lambda: _ended(supervisor), "the end of the stack", STOP_S)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[dict[str, int]]:
    """What the test processes know together of their stack, for one of them at a time to read and change."""
    with (folder / "shared.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        shared = json.loads(file.read() or "{}")
        yield shared
        file.truncate(0)
        file.write(json.dumps(shared))


def _ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # until the test process that started it ends
    return True


def coarse_segmenter(folder: Path) -> Path:
    """The manifest of a pocket segmenter that finds less, in a fraction of the time, for `up --segmenter`."""
    pocket = ROOT / "models" / "pocket"
    manifest = json.loads((pocket / "segmenter.json").read_text())
    manifest["everything"]["points_per_side"] = 5
    (folder / "segmenter.safetensors").symlink_to(pocket / "segmenter.safetensors")
    path = folder / "segmenter.json"
    path.write_text(json.dumps(manifest))
    return path
