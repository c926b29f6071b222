"""What Locust loads: the users, their options, and the judgement at the end.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000

`python -m loadtests` starts a local stack and calls this with everything set.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import gevent
import psutil
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from loadtests.grpc_users import EmbedUser, SearchUser, SegmentUser  # noqa: F401 (Locust finds them here)
from loadtests.http_users import FloodUser, GatewayArrivals, GatewayUser  # noqa: F401
from loadtests.slo import Observed, Slo

_cpu: list[float] = []  # each generator's use of its core, one value a second


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """The options of this load test, in addition to Locust's own."""
    add = parser.add_argument
    add("--segmenter", default="127.0.0.1:50051", help="gRPC address")
    add("--embedder", default="127.0.0.1:50052", help="gRPC address")
    add("--searcher", default="127.0.0.1:50053", help="gRPC address")
    add("--api-key", default="", env_var="REGIONSEARCH_API_KEY", help="of the gateway", is_secret=True)
    add("--flood", type=int, default=0, help="requests at once of FloodUser; others have own keys then")
    add("--arrival-rate", type=float, default=5.0, help="requests a second of GatewayArrivals")
    add("--warm-up", type=float, default=10.0, help="seconds at the start that do not count")
    add("--slo", default=str(Path(__file__).with_name("slo.toml")), help="what is promised")


@events.test_start.add_listener
def start(environment: Environment, **_: Any) -> None:
    """Begins to watch the generator; forgets what happens while caches and models warm up."""
    _cpu.clear()
    if not isinstance(environment.runner, MasterRunner):  # a master only gathers
        gevent.spawn(_watch_generator)
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn_later(environment.parsed_options.warm_up, _forget_warm_up, environment)


@events.report_to_master.add_listener
def send_cpu(client_id: str, data: dict[str, Any]) -> None:
    """A worker sends its CPU use to the master together with its statistics."""
    data["generator_cpu"] = _cpu.copy()
    _cpu.clear()


@events.worker_report.add_listener
def gather_cpu(client_id: str, data: dict[str, Any]) -> None:
    """What :func:`send_cpu` sent."""
    _cpu.extend(data["generator_cpu"])


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """Prints the table; a broken promise is exit code 1."""
    if isinstance(environment.runner, WorkerRunner):
        return
    observed = {
        entry.name: Observed(
            entry.num_requests,
            entry.num_failures,
            *(entry.get_response_time_percentile(part) or 0.0 for part in (0.5, 0.95, 0.99)),
        )
        for entry in environment.stats.entries.values()
    }
    promise = Slo.load(Path(environment.parsed_options.slo))
    faults = promise.broken(observed, _cpu)
    console = Console()
    console.print(_table(observed, promise))
    if _cpu:
        console.print(f"Generators: {sum(_cpu) / len(_cpu):.0%} of a core each, at most {max(_cpu):.0%}")
    for fault in faults:
        console.print(f"[red]broken:[/red] {fault}")
    environment.process_exit_code = 1 if faults else 0


def _forget_warm_up(environment: Environment) -> None:
    environment.stats.reset_all()
    _cpu.clear()


def _watch_generator() -> None:
    process = psutil.Process()
    process.cpu_percent()
    while True:
        gevent.sleep(1)
        _cpu.append(process.cpu_percent() / 100)


def _table(observed: dict[str, Observed], promise: Slo) -> Table:
    table = Table("request", title="Load test")
    for column in ("count", "failed", "p50 ms", "p95 ms", "p99 ms", "promised p95 ms"):
        table.add_column(column, justify="right")
    for name, one in sorted(observed.items()):
        promised = promise.p95_ms.get(name)
        numbers = [f"{value:.0f}" for value in (one.p50_ms, one.p95_ms, one.p99_ms)]
        limit = "" if promised is None else f"{promised:.0f}"
        table.add_row(name, str(one.requests), str(one.failures), *numbers, limit)
    return table
