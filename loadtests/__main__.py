"""`python -m loadtests`: a minute of load on a local stack, and whether it kept its promises."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer

from loadtests.callers import FLOOD_KEY, PEOPLE_KEYS
from loadtests.deployments import free_ports

HERE = Path(__file__).parent
START_TIMEOUT_S = 180.0
SERVICES = ("segmenter", "embedder", "searcher")
CLOSED_LOOP = ("GatewayUser", "SegmentUser", "EmbedUser", "SearchUser")
OPEN_LOOP = ("GatewayArrivals",)
FLOOD = "FloodUser"


@dataclass(frozen=True)
class Target:
    """Where a stack answers.

    Attributes:
        url: Base URL of the gateway.
        services: Service -> host:port.
        supervisor: Process id of `regionsearch up`, where the stack is one of this machine.
    """

    url: str
    services: dict[str, str]
    supervisor: int | None = None


@contextlib.contextmanager
def local_stack(folder: Path) -> Iterator[Target]:
    """`regionsearch up` on free ports of this machine, stopped at the end.

    Raises:
        RuntimeError: It ended or was not ready in three minutes; the message says what it logged.
    """
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "regionsearch.cli", "up", "--data-dir", str(folder / "data")]
    command += ["--port", str(http_port), "--grpc-port", str(grpc_port)]
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{http_port}"
        _wait_ready(url, process, log)
        logs = folder / "data" / "logs"
        services = {name: service_address(logs / f"{name}.log") for name in SERVICES}
        yield Target(url, services, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the stack did not become ready:\n{log.read_text()[-2000:]}")


def service_address(log: Path) -> str:
    """host:port that a service announced in its log when it began to serve."""
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            if event["event"] == "serving":
                return f"127.0.0.1:{event['port']}"
    raise RuntimeError(f"{log} does not say where the service listens")


def locust_command(
    target: Target,
    users: int,
    duration_s: int | None,
    rate: float | None,
    out: Path,
    ui: bool,
    kinds: Sequence[str] = CLOSED_LOOP,
    flood: int = 0,
) -> list[str]:
    """The Locust call for a run.

    Args:
        target: What is loaded.
        users: At once, of all kinds.
        duration_s: None runs until the process is told to stop.
        rate: Open loop with so many requests a second; None is a closed loop.
        out: Where HTML and CSV go.
        ui: With Locust's page instead.
        kinds: Names of the users of a closed loop.
        flood: Requests at once of one more caller.
    """
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--host", target.url]
    for name, address in target.services.items():
        command += [f"--{name}", address]
    if ui:
        return [*command, "--web-host", "127.0.0.1", "--class-picker"]
    command += ["--headless", "--only-summary", "--stop-timeout", "30"]
    if duration_s is not None:
        command += ["--run-time", f"{duration_s}s"]
    command += ["--html", str(out / "report.html"), "--csv", str(out / "load")]
    if flood:
        command += ["--flood", str(flood)]
        users, kinds = users + 1, [*kinds, FLOOD]
    if rate is None:
        command += ["--users", str(users), "--spawn-rate", str(users), *kinds]
    else:
        command += ["--users", "1", "--arrival-rate", str(rate), *OPEN_LOOP]
    return command


def main(
    users: Annotated[int, typer.Option(help="Closed loop: users at once, over all kinds.")] = 7,
    arrival_rate: Annotated[
        float | None, typer.Option(help="Open loop: requests a second on the gateway.")
    ] = None,
    duration: Annotated[int, typer.Option(help="Seconds, the warm-up included.")] = 70,
    out: Annotated[Path, typer.Option(help="Folder for HTML and CSV.")] = HERE / "out",
    flood: Annotated[
        int, typer.Option(help="Closed loop: requests at once of one more caller, who asks for clicks.")
    ] = 0,
    ui: Annotated[bool, typer.Option("--ui", help="Open Locust's page instead.")] = False,
) -> None:
    """Starts a local stack, loads it, judges it by slo.toml; exit code 1 when a promise was broken."""
    out.mkdir(parents=True, exist_ok=True)
    if flood:
        os.environ["REGIONSEARCH_GATEWAY_API_KEYS"] = ",".join((FLOOD_KEY, *PEOPLE_KEYS))
    with tempfile.TemporaryDirectory() as folder, local_stack(Path(folder)) as target:
        typer.echo(f"stack: {target.url}")
        command = locust_command(target, users, duration, arrival_rate, out, ui, flood=flood)
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    typer.run(main)
