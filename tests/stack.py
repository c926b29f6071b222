"""The stack that tests share, and ports of their own."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from loadtests.launch import PORTS, ROOT, Stack, free_ports

__all__ = ["ROOT", "Stack", "free_port", "new_stack"]

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


def coarse_segmenter(folder: Path) -> Path:
    """The manifest of a pocket segmenter that finds less, in a fraction of the time, for `up --segmenter`."""
    pocket = ROOT / "models" / "pocket"
    manifest = json.loads((pocket / "segmenter.json").read_text())
    manifest["everything"]["points_per_side"] = 5
    (folder / "segmenter.safetensors").symlink_to(pocket / "segmenter.safetensors")
    path = folder / "segmenter.json"
    path.write_text(json.dumps(manifest))
    return path
