"""Processes of this project on this machine, as load tests, benchmarks and tests start them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from regionsearch.supervisor.child import MODULES

ROOT = Path(__file__).parents[1]
START_S = 400.0
STOP_S = 120.0
PORTS = range(20_000, 32_768)  # below those that systems hand out by themselves
_candidates = iter(random.sample(PORTS, len(PORTS)))


def free_ports(count: int, candidates: Iterator[int] = _candidates) -> list[int]:
    """Ports that no one listens on, never the same twice.

    They lie below those that systems hand out by themselves, to connections too: one of these could be
    gone before it is listened on, or while its process is restarted.
    """
    ports: list[int] = []
    for port in candidates:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no free port is left from {PORTS.start} to {PORTS.stop - 1}")


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Returns once it is true.

    Raises:
        RuntimeError: It does not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


@dataclass
class Process:
    """One service or gateway.

    Attributes:
        role: segmenter, embedder, searcher or gateway; its settings are named after it.
        folder: For its log and the file that says its port.
        name: Name of these files.
        settings: Settings by name. Without a port it finds a free one.
        module: What runs; by default the role's own.
        arguments: For the module.
        environment: Added to this process's own.
        start_s: Seconds that it may take to start.
    """

    role: str
    folder: Path
    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    module: str | None = None
    arguments: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    start_s: float = START_S
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """All that it has written."""
        return self.folder / f"{self.name}.log"

    @property
    def address(self) -> str:
        """host:port of its gRPC server."""
        return f"127.0.0.1:{self._port_file.read_text().strip()}"

    @property
    def _port_file(self) -> Path:
        return self.folder / f"{self.name}.port"

    def spawn(self) -> None:
        """Starts it and does not wait."""
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | self.environment
        for key, value in {"port": 0, "port_file": self._port_file, **self.settings}.items():
            environment[f"REGIONSEARCH_{self.role.upper()}_{key.upper()}"] = str(value)
        self._port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", self.module or MODULES[self.role], *self.arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def wait_serving(self) -> None:
        """Returns once it serves.

        Raises:
            RuntimeError: It ended, or does not serve in time; the message says what it logged.
        """

        def serves() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-2000:]}")
            return self._port_file.exists()

        wait_for(serves, f"{self.name} serves", self.start_s)

    def start(self) -> str:
        """Starts it and waits until it serves; returns its address."""
        self.spawn()
        self.wait_serving()
        return self.address

    def stop(self) -> None:
        """Asks it to end and waits; one that does not end is killed.

        Raises:
            RuntimeError: Its end was not orderly.
        """
        if self.process is None:
            return
        process, self.process = self.process, None
        process.terminate()
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"{self.name} does not end: {self.log.read_text()[-2000:]}") from None
        if code != 0:
            raise RuntimeError(f"{self.name} ended with code {code}: {self.log.read_text()[-2000:]}")


def stop_all(running: Iterable[Process]) -> None:
    """Asks all to end, the last one first, and waits for them; what does not end is killed."""
    processes = [one.process for one in reversed(list(running)) if one.process is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Stack:
    """All four as a user starts them, by `regionsearch up` on free ports. A context manager.

    Attributes:
        folder: Data and logs.
        http_port: The gateway's HTTP port.
        grpc_port: The gateway's gRPC port.
        environment: Added to this process's own.
        start_s: Seconds that it may take to start.
    """

    folder: Path
    http_port: int = field(default_factory=lambda: free_ports(1)[0])
    grpc_port: int = field(default_factory=lambda: free_ports(1)[0])
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def http(self) -> str:
        """Base URL of the gateway."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """host:port of the gateway's gRPC server."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def services(self) -> dict[str, str]:
        """Service -> host:port that it announced in its log when it began to serve."""
        logs = self.folder / "data" / "logs"
        return {name: service_address(logs / f"{name}.log") for name in MODULES if name != "gateway"}

    def start(self, *options: str) -> None:
        """Starts `regionsearch up` and waits until the gateway is ready."""
        command = [sys.executable, "-m", "regionsearch.cli", "up", "--data-dir", str(self.folder / "data")]
        command += ["--port", str(self.http_port), "--grpc-port", str(self.grpc_port), *options]
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | self.environment
            )
        self.wait_ready()

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Waits until the gateway says that it is ready.

        Raises:
            RuntimeError: It ended, or is not ready in time; the message says what was logged.
        """

        def ready() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"`regionsearch up` ended:\n{self.log()}")
            return answers(f"{self.http}/readyz")

        try:
            wait_for(ready, "the stack is ready", timeout_s)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.log()}") from None

    def pid(self, name: str) -> int:
        """The process id of one of the four."""
        assert self.process is not None
        try:
            return int(processes(self.process.pid)[name].pid)
        except KeyError:
            raise ProcessLookupError(f"{name} is not running:\n{self.log()}") from None

    def kill(self, name: str) -> None:
        """Ends one of the four without any warning."""
        os.kill(self.pid(name), signal.SIGKILL)

    def stop(self) -> int:
        """Ends everything in order; the supervisor's exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

    def log(self) -> str:
        """The last of what the supervisor and its children have written."""
        logs = [self.folder / "up.log", *sorted((self.folder / "data").rglob("*.log"))]
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in logs if path.exists())


def processes(supervisor: int) -> dict[str, psutil.Process]:
    """The supervisor and its four processes, by name."""
    found = {"supervisor": psutil.Process(supervisor)}
    for child in found["supervisor"].children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            found |= {name: child for name, module in MODULES.items() if module in command}
    return found


def service_address(log: Path) -> str:
    """host:port that a service announced in its log when it began to serve."""
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            if event["event"] == "serving":
                return f"127.0.0.1:{event['port']}"
    raise RuntimeError(f"{log} does not say where the service listens")
