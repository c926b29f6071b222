"""Stacks with two of everything that there can be two of, whose members can be restarted one by one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from loadtests.launch import ROOT, Process, answers, free_ports, stop_all, wait_for

DRAIN_S = 3  # of a gateway: several checks of the balancer
STOP_S = 90


class Fleet(Protocol):
    """A stack that runs."""

    @property
    def members(self) -> Sequence[str]:
        """Names of its processes or containers, in the order in which they are restarted."""
        ...

    @property
    def gateways(self) -> tuple[str, str]:
        """host:port of HTTP of the two gateways."""
        ...

    @property
    def services(self) -> Mapping[str, str]:
        """Service -> addresses, for users that call services directly; empty where they cannot."""
        ...

    def stop(self, member: str) -> None:
        """Asks one to stop and waits for its orderly end.

        Raises:
            RuntimeError: Its end was not orderly.
        """
        ...

    def start(self, member: str) -> None:
        """Starts one again, in its old place, until it is ready.

        Raises:
            RuntimeError: It does not come back.
        """
        ...


class Processes:
    """Plain processes on this machine with the pocket models. A context manager: stops them at its end."""

    def __init__(self, folder: Path, workers: int = 2, **settings: object) -> None:
        """Plans the fleet; nothing runs yet.

        Args:
            folder: For data, images and logs.
            workers: Segmenters, and embedders.
            settings: Further ones of every process.
        """
        self._folder = folder
        self._settings = settings
        numbers = range(1, workers + 1)
        names = [f"{role}-{number}" for role in ("segmenter", "embedder") for number in numbers]
        self.members = [*names, "searcher-1", "gateway-1", "gateway-2"]
        self._ports = dict(zip(self.members, free_ports(len(self.members)), strict=True))
        # HTTP of the gateways, which has their metrics too; the metrics of the others.
        self._http = dict(zip(self.members, free_ports(len(self.members)), strict=True))
        self.gateways = (self._address("gateway-1"), self._address("gateway-2"))
        self.services = {
            role: ",".join(f"127.0.0.1:{port}" for name, port in self._ports.items() if name.startswith(role))
            for role in ("segmenter", "embedder", "searcher")
        }
        self._running = {member: self._plan(member) for member in self.members}

    def __enter__(self) -> Processes:
        for process in self._running.values():
            process.spawn()
        for process in self._running.values():
            process.wait_serving()
        return self

    def __exit__(self, *_: object) -> None:
        stop_all(self._running.values())

    @property
    def metrics(self) -> dict[str, list[str]]:
        """Service -> host:port of the metrics of each of its processes."""
        found: dict[str, list[str]] = {}
        for member in self.members:
            found.setdefault(member.partition("-")[0], []).append(self._address(member))
        return found

    def stop(self, member: str) -> None:
        """See `Fleet`."""
        self._running[member].stop()

    def start(self, member: str) -> None:
        """See `Fleet`."""
        self._running[member].start()

    def _plan(self, member: str) -> Process:
        role = member.partition("-")[0]
        settings = self._settings | {"port": self._ports[member]}
        if role == "gateway":
            settings |= self.services | {"http_port": self._http[member], "drain_delay_s": DRAIN_S}
            settings["image_store"] = self._folder / "images"
        else:
            settings["metrics_port"] = self._http[member]
        if role == "searcher":
            settings["embedded__folder"] = self._folder / "records"
        return Process(role, self._folder, member, settings)

    def _address(self, member: str) -> str:
        return f"127.0.0.1:{self._http[member]}"


class Containers:
    """A compose project that runs already, scaled to two segmenters, two embedders and two gateways."""

    services: Mapping[str, str] = {}  # the network of the services is not reachable from outside

    def __init__(self, project: str) -> None:
        """Finds the containers by compose's labels."""
        self._ids: dict[str, str] = {}
        for role in ("segmenter", "embedder", "searcher", "gateway"):
            labels = [
                f"label=com.docker.compose.{k}={v}" for k, v in (("project", project), ("service", role))
            ]
            found = _docker("ps", "--quiet", "--filter", labels[0], "--filter", labels[1]).split()
            self._ids |= {f"{role}-{number}": one for number, one in enumerate(sorted(found), 1)}
        self.members = list(self._ids)
        first, second = (
            _docker("port", one, "8000/tcp").split()[0].replace("0.0.0.0", "127.0.0.1")
            for name, one in self._ids.items()
            if name.startswith("gateway")
        )
        self.gateways = (first, second)

    def stop(self, member: str) -> None:
        """See `Fleet`."""
        container = self._ids[member]
        _docker("stop", "--time", str(STOP_S), container)
        if (code := _docker("inspect", "--format", "{{.State.ExitCode}}", container).strip()) != "0":
            raise RuntimeError(f"{member} ended with code {code}")

    def start(self, member: str) -> None:
        """See `Fleet`."""
        container = self._ids[member]
        _docker("start", container)

        def healthy() -> bool:
            return _docker("inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"

        wait_for(healthy, f"{member} is healthy")


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def balancer(gateways: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """HAProxy before two gateways, as in deploy/haproxy; yields its URL and that of its statistics.

    Raises:
        RuntimeError: It is not installed, or sees no gateway.
    """
    program = next(
        (p for p in ("/usr/sbin/haproxy", "/usr/local/sbin/haproxy") if Path(p).exists()), "haproxy"
    )
    http, stats = (f"127.0.0.1:{port}" for port in free_ports(2))
    environment = os.environ | {"BALANCER": http, "BALANCER_STATS": stats}
    environment |= {"GATEWAY_1": gateways[0], "GATEWAY_2": gateways[1]}
    try:
        process = subprocess.Popen([program, "-f", str(ROOT / "deploy/haproxy/haproxy.cfg")], env=environment)
    except FileNotFoundError:
        raise RuntimeError("haproxy is not installed (Debian's package has the same name)") from None
    try:
        wait_for(lambda: answers(f"http://{http}/healthz"), "the balancer answers", 30)
        yield f"http://{http}", f"http://{stats}"
    finally:
        process.terminate()
        process.wait(30)
