"""What `regionsearch up` starts, and on which ports."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.models.catalog import Profile

HOST = "127.0.0.1"
MOST_PORT = 65535

# These keep nothing of their own; the searcher has the one store, and one gateway is enough here.
SCALABLE = ("segmenter", "embedder")
# Ports follow the gateway's gRPC port where they are free: 50051 to 50053 by default. Not fixed ones: of two
# such sets on one machine, the one could take the port of a process of the other that has died.
PORT_OFFSETS = {"segmenter": 1, "embedder": 2, "searcher": 3, "other_embedder": 4}


@dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        profile: The models.
        data_dir: Images, vectors and logs.
        http_port: Port of the gateway's page and HTTP API.
        grpc_port: Port of the gateway's gRPC API.
        host: Address that the gateway listens on; the services stay on this machine.
        workers: The device of each process of a service in `SCALABLE`, or "" for that of its settings; one
            process when absent.
        other_embedder: Model of a second embedder; empty for none.
        proposer: File of a detector that tells the segmenter where to look; empty for none.
    """

    profile: Profile
    data_dir: Path
    http_port: int = 8000
    grpc_port: int = 50050
    host: str = HOST
    workers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    other_embedder: str = ""
    proposer: str = ""

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = "localhost" if self.host in (HOST, "0.0.0.0", "::") else reachable(self.host)  # noqa: S104
        return f"http://{host}:{self.http_port}"

    def devices(self) -> dict[str, Sequence[str]]:
        """The device of each process of each service; "" for that of its settings.

        Raises:
            RegionSearchError: INVALID_ARGUMENT when workers are asked for where there can be only one.
        """
        devices = {name: self.workers.get(name, ("",)) for name in PORT_OFFSETS}
        if not self.other_embedder:
            del devices["other_embedder"]
        if not set(self.workers) <= set(SCALABLE) or not all(devices.values()):
            raise invalid("workers", f"only {' and '.join(SCALABLE)} have workers, at least one")
        return devices

    def pick_ports(self) -> dict[str, list[int]]:
        """Free ports for the processes of each service, while those of the gateway are found to be free.

        Raises:
            RegionSearchError: INVALID_ARGUMENT when a port of the gateway is taken or is not a valid one.
        """
        with (
            _reserve(self.host, self.http_port, "port"),
            _reserve(self.host, self.grpc_port, "grpc-port"),
        ):
            return {
                name: _pick_ports(self.grpc_port + PORT_OFFSETS[name], len(devices))
                for name, devices in self.devices().items()
            }


def reachable(host: str) -> str:
    """How an address to listen on is called from this machine, in a URL."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return HOST
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _reserve(host: str, port: int, option: str) -> Iterator[None]:
    """Holds a port that the user chose while others are picked; an error names the option to change."""
    if not 0 < port <= MOST_PORT:
        raise invalid(option, f"{port} is not a valid port: choose one from 1 to {MOST_PORT} with --{option}")
    try:
        listener = _listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise invalid(option, f"port {port} is in use; choose another one with --{option}") from None
        reason = f"cannot listen on {host}, port {port}: {error.strerror}"
        raise invalid(option, f"{reason}; choose others with --host and --{option}") from None
    except UnicodeError:
        raise invalid("host", f"{host!r} is not a valid host name; choose another one with --host") from None
    with listener:
        yield


def _pick_ports(preferred: int, count: int) -> list[int]:
    """That many free ports, the preferred one first if it is free."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in [preferred if preferred <= MOST_PORT else 0, *[0] * count]:
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
