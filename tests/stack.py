"""The whole product as a user starts it: `regionsearch up` as a process of its own, on free ports."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from loadtests.deployments import PORTS, free_ports

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "REGIONSEARCH_GATEWAY_TIMEOUTS__PROBE_S": "30",  # what answers slowly, on a busy machine, is not away
}
MODULES = {
    "segmenter": "services.segmenter",
    "embedder": "services.embedder",
    "searcher": "services.searcher",
    "gateway": "gateway",
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


@dataclass
class Stack:
    """Four processes and their supervisor.

    Attributes:
        folder: Data and logs.
        http: Base URL of the gateway.
        grpc: host:port of the gateway's gRPC server.
    """

    folder: Path
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def start(self, *options: str) -> None:
        """Starts `regionsearch up` and waits until the gateway is ready."""
        command = [sys.executable, "-m", "regionsearch.cli", "up", "--data-dir", self.folder / "data"]
        command += ["--port", self.http_port, "--grpc-port", self.grpc_port, *options]
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
            )
        self.wait_ready()

    def wait_ready(self, timeout_s: float = 400) -> None:
        """Waits until /readyz answers 200."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                if httpx.get(f"{self.http}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError(f"the stack is not ready after {timeout_s} s:\n{self.log()}")

    def pid(self, name: str) -> int:
        """The process id of one of the four, found as a child of the supervisor."""
        assert self.process is not None
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
                command = (status.parent / "cmdline").read_bytes().decode().split("\0")
            except (OSError, StopIteration):
                continue
            if int(parent.split()[1]) == self.process.pid and MODULES[name] in command:
                return int(status.parent.name)
        raise ProcessLookupError(f"{name} is not running:\n{self.log()}")

    def kill(self, name: str) -> None:
        """Ends one of the four without any warning."""
        os.kill(self.pid(name), signal.SIGKILL)

    def stop(self) -> int:
        """Ends everything in order; the supervisor's exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process = None

    def log(self) -> str:
        """The last of what the supervisor and its children have written."""
        logs = [self.folder / "up.log", *sorted((self.folder / "data").rglob("*.log"))]
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in logs if path.exists())
