"""All four processes on this machine: started together, kept alive, stopped together.

This is what `regionsearch up` runs on a laptop. On servers a container engine or Kubernetes does this.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.models.catalog import Profile

HOST = "127.0.0.1"
POLL_S = 0.1
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
# A process that dies so often in a row, each time so soon, will not recover by being started again.
QUICK_DEATHS = 5
QUICK_DEATH_S = 60.0
LARGE_LOG = 16 << 20  # bytes; at the next start it becomes the old log
STOP_S = 45.0  # a process drains for 30 s at most

MODULES = {
    "segmenter": "services.segmenter",
    "embedder": "services.embedder",
    "searcher": "services.searcher",
    "gateway": "gateway",
}
# These keep nothing of their own; the searcher has the one store, and one gateway is enough here.
SCALABLE = ("segmenter", "embedder")
# Ports follow the gateway's gRPC port where they are free: 50051 to 50053 by default. Not fixed ones: of two
# such sets on one machine, the one could take the port of a process of the other that has died.
PORT_OFFSETS = {"segmenter": 1, "embedder": 2, "searcher": 3}

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        profile: The models.
        data_dir: Pictures, vectors and logs.
        http_port: Of the gateway's page and HTTP API.
        grpc_port: Of the gateway's gRPC API.
        host: Address that the gateway listens on; the services stay on this machine.
        workers: Processes of each of `SCALABLE`; one when absent.
    """

    profile: Profile
    data_dir: Path
    http_port: int = 8000
    grpc_port: int = 50050
    host: str = HOST
    workers: Mapping[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = "localhost" if self.host in (HOST, "0.0.0.0", "::") else reachable(self.host)  # noqa: S104
        return f"http://{host}:{self.http_port}"


@dataclass
class _Child:
    """One process and its history; the replicas of a service share its role."""

    name: str
    role: str
    settings: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    quick_deaths: int = 0

    def start(self) -> None:
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        for key, value in self.settings.items():
            environment[f"REGIONSEARCH_{self.role.upper()}_{key.upper()}"] = value
        if "port_file" in self.settings:
            Path(self.settings["port_file"]).unlink(missing_ok=True)  # of the process before this one
        if self.log.exists() and self.log.stat().st_size > LARGE_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            # In a session of its own: Ctrl-C goes to the supervisor alone, which stops the children in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULES[self.role]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def tail(self, lines: int = 12) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


class Supervisor:
    """Starts the processes of a plan and starts those again that die.

    Args:
        plan: What to start.
        report: Called with a line for the user now and then.

    Attributes:
        url: Where a browser on this machine finds the page, once the gateway is ready: whether it speaks TLS
            is for its own settings to say.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when a port of the plan is taken, or workers are asked for where
            there can be only one.
    """

    def __init__(self, plan: Plan, report: Callable[[str], None]) -> None:
        self.plan = plan
        self.url = plan.url
        self._report = report
        self._stopping = False
        counts = {name: plan.workers.get(name, 1) for name in PORT_OFFSETS}
        if not set(plan.workers) <= set(SCALABLE) or min(counts.values()) < 1:
            raise invalid("workers", f"only {' and '.join(SCALABLE)} have workers, at least one")
        with _reserve(plan.host, plan.http_port, "port"), _reserve(plan.host, plan.grpc_port, "grpc-port"):
            ports = {
                name: _pick_ports(plan.grpc_port + offset, counts[name])
                for name, offset in PORT_OFFSETS.items()
            }
        self._children = self._plan_children(ports)

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopping

    def _plan_children(self, ports: Mapping[str, Sequence[int]]) -> list[_Child]:
        plan, data = self.plan, self.plan.data_dir.resolve()
        logs = data / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        settings = {
            "segmenter": {"model": plan.profile.segmenter},
            "embedder": {"model": plan.profile.embedder},
            "searcher": {"embedded__folder": str(data / "searcher")},
        }
        children = []
        for role, own in settings.items():
            for number, port in enumerate(ports[role], 1):
                name = role if number == 1 else f"{role}-{number}"
                here = own | {"host": HOST, "port": str(port)}
                children.append(_Child(name, role, here, logs / f"{name}.log"))
        gateway = {role: ",".join(f"{HOST}:{port}" for port in ports[role]) for role in settings}
        gateway |= {"host": plan.host, "port": str(plan.grpc_port), "http_port": str(plan.http_port)}
        gateway |= {"image_store": str(data / "images"), "port_file": str(logs / "gateway.port")}
        self._serving = Path(gateway["port_file"])
        return [*children, _Child("gateway", "gateway", gateway, logs / "gateway.log")]

    def run(self, on_ready: Callable[[], None]) -> int:
        """Runs until a signal or until a process cannot be kept alive.

        Args:
            on_ready: Called once, when the gateway says that it is ready.

        Returns:
            The exit code: 0 after a signal, 1 after a failure.
        """
        previous = {name: signal.signal(name, self._interrupt) for name in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        try:
            for child in self._children:
                child.start()
            announced = False
            waiting_for = ""
            while not self._stopping:
                if not self._keep_alive():
                    code = 1
                    break
                if not announced:
                    ready, reason = self._readiness()
                    if ready:
                        announced = True
                        on_ready()
                    elif reason != waiting_for:
                        waiting_for = reason
                        self._report(reason)
                time.sleep(POLL_S)
        finally:
            self._stop_all()
            for name, handler in previous.items():
                signal.signal(name, handler)
        return code

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:  # a second Ctrl-C: at once
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
        self._stopping = True

    def _keep_alive(self) -> bool:
        """Starts again what has died; False when one process will not live."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.start_again_at:
                    child.start()
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.process = None
            quick = now - child.started_at < QUICK_DEATH_S
            child.quick_deaths = child.quick_deaths + 1 if quick else 1
            if child.quick_deaths >= QUICK_DEATHS:
                self._report(f"{child.name} ends again and again (last with code {code}); its log says:")
                self._report(child.tail())
                return False
            delay = min(FIRST_DELAY_S * 2 ** (child.quick_deaths - 1), LONGEST_DELAY_S)
            child.start_again_at = now + delay
            self._report(f"{child.name} ended with code {code}; starting it again. Its log: {child.log}")
        return True

    def _readiness(self) -> tuple[bool, str]:
        try:
            host = reachable(self.plan.host)
            # No proxy of the environment stands between processes of one machine.
            response = httpx.get(f"http://{host}:{self.plan.http_port}/readyz", timeout=2, trust_env=False)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            # It understands no plain text, and may ask for a certificate that only its own clients have:
            # whether it serves is seen from its file.
            if not self._serving.exists():
                return False, "starting the processes"
            self.url = self.plan.url.replace("http:", "https:", 1)
            return True, ""
        except httpx.TransportError:
            return False, "starting the processes"
        if response.status_code == httpx.codes.OK:
            return True, ""
        with contextlib.suppress(ValueError, KeyError):
            services = response.json()["services"].items()
            waiting = [name for name, state in services if not state["ready"]]
            return False, f"waiting for {' and '.join(waiting)}"
        return False, "starting the processes"

    def _stop_all(self) -> None:
        """The gateway first, so that no call is sent to a service that is leaving."""
        self._stopping = True
        self._report("stopping; what is in work is finished first")
        deadline = time.monotonic() + STOP_S
        gateway = [child for child in self._children if child.role == "gateway"]
        services = [child for child in self._children if child.role != "gateway"]
        for group in (gateway, services):
            running = [child.process for child in group if child.process is not None]
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def reachable(host: str) -> str:
    """How an address to listen on is called from this machine, in a URL."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return HOST
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _reserve(host: str, port: int, option: str) -> Iterator[None]:
    """Holds a port that the user chose while others are picked; an error names the option to change."""
    try:
        listener = _listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise invalid(option, f"port {port} is in use; choose another one with --{option}") from None
        reason = f"cannot listen on {host}, port {port}: {error.strerror}"
        raise invalid(option, f"{reason}; choose others with --host and --{option}") from None
    with listener:
        yield


def _pick_ports(preferred: int, count: int) -> list[int]:
    """That many free ports, the preferred one first if it is free."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in [preferred if preferred < 65536 else 0, *[0] * count]:
            with contextlib.suppress(OSError):
                listener = held.enter_context(_listen(HOST, port))
                found.append(int(listener.getsockname()[1]))
    if len(found) < count:
        raise RegionSearchError(Kind.FAILED_PRECONDITION, "this machine has no free port left")
    return found[:count]


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)  # gRPC shares ports: a bind alone would not notice
    except BaseException:
        listener.close()
        raise
    return listener
