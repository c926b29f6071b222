"""What is watched: rules and dashboards against the metrics there are and a real Prometheus; traces too."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from loadtests.deployments import Processes
from loadtests.launch import answers, free_ports

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "regionsearch.json").read_text())
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
EVERYTHING = {"$job": ".+", "$instance": ".+"}  # what the dashboard's variables choose at first
NEEDS_A_GPU = {"Device memory"}

needs = pytest.mark.skipif


def rule_expressions() -> list[str]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    exported = "".join(p.read_text() for part in ("services", "gateway") for p in (ROOT / part).rglob("*.py"))
    queries = [*rule_expressions(), *(expression for _, expression in PANELS)]
    names = {n for q in queries for n in re.findall(r"\b(?:regionsearch|grpc_server)_\w+", q)}
    assert names
    for name in names - {"regionsearch_queue_wait_p95_seconds"}:
        base = re.sub(r"_(bucket|sum|count|info)$", "", name)
        assert f'"{base}"' in exported, name


def test_series_that_others_export_too_are_told_apart() -> None:
    """In a cluster's Prometheus a bare `up == 0` is about everybody's processes."""
    for query in (*rule_expressions(), *(expression for _, expression in PANELS)):
        for name, matchers in re.findall(r"\b(up|grpc_server_\w+|process_\w+)(\{.*?\})?", query):
            assert "job=" in matchers, f"{name} in {query}"


def test_grafana_finds_prometheus_and_the_dashboard_and_its_variables_are_used() -> None:
    grafana = ROOT / "deploy" / "grafana"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (source,) = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((grafana / "provisioning/dashboards/regionsearch.yml").read_text())[
        "providers"
    ]
    assert source["url"].removeprefix("http://").partition(":")[0] in compose
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]
    assert all(panel["datasource"]["uid"] == source["uid"] for panel in DASHBOARD["panels"])
    variables = {f"${variable['name']}" for variable in DASHBOARD["templating"]["list"]}
    assert variables == set(EVERYTHING)
    assert all(variable in expression for variable in variables for _, expression in PANELS)


@needs(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
def test_panels_ask_what_prometheus_understands(tmp_path: Path) -> None:
    rules = [{"record": f"panel_{i}", "expr": shown(expression)} for i, (_, expression) in enumerate(PANELS)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "panels.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def shown(expression: str) -> str:
    """A panel's expression with its variables filled in."""
    for variable, value in EVERYTHING.items():
        expression = expression.replace(variable, value)
    return expression


def test_panels_do_not_overlap() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert [p["id"] for p in DASHBOARD["panels"]] == list(range(1, len(places) + 1))


@needs(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize("what", [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_prometheus_itself_takes_the_files(what: tuple[str, str]) -> None:
    kind, name = what
    done = subprocess.run(["promtool", "check", kind, PROMETHEUS / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


UP = ["segmenter", "embedder", "searcher", "gateway"]
ALERTS_TESTED: list[tuple[list[str], list[str], str, dict[str, str]]] = [
    # Jobs that are scraped, further series, and the alert with its labels that follows from them.
    (UP, [], "", {}),
    # In compose a container that has stopped has no name any more: its target is not down, it is gone.
    (["segmenter", "embedder", "gateway"], [], "RegionSearchGone", {"job": "searcher"}),
    (
        UP,
        [
            'regionsearch_http_requests_total{job="gateway",route="/v1/segment",status="500",method="POST"}',
            'regionsearch_http_requests_total{job="gateway",route="/v1/segment",status="200",method="POST"}',
        ],
        "RegionSearchFailingHttp",
        {"job": "gateway", "route": "/v1/segment"},
    ),
    *(
        (
            UP,
            [f'regionsearch_ingest_images_total{{job="gateway",outcome="failed",code="{code}"}}'],
            alert,
            {"job": "gateway", "code": code} if alert else {},
        )
        # A bad file is its sender's; a full disk is the operator's.
        for code, alert in (("STORAGE_FULL", "RegionSearchNotStoring"), ("UNSUPPORTED_IMAGE", ""))
    ),
    *(
        (
            UP,
            [f'grpc_server_handled_total{{job="searcher",grpc_method="{method}",grpc_code="{code}"}}'],
            "RegionSearchNotWriting",
            {"job": "searcher", "grpc_method": method},
        )
        for method in ("Upsert", "UpdateImages")
        for code in ("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION")  # a full disk, and one that has failed
    ),
    *(
        (
            UP,
            [f'regionsearch_store_{counter}_total{{job="searcher",instance="a"}}'],
            alert,
            {"job": "searcher", "instance": "a"},
        )
        for counter, alert in (
            ("damaged_rows", "RegionSearchDamagedRows"),
            ("checkpoint_failures", "RegionSearchCheckpointsFail"),
        )
    ),
    (
        UP,
        ['regionsearch_auth_failures_total{job="gateway",reason="unknown"}'],
        "RegionSearchWrongKeys",
        {"job": "gateway"},
    ),
    (
        UP,  # one counted from 1970 on: long over
        ['regionsearch_tls_certificate_expiry_timestamp_seconds{job="searcher",instance="a",role="server"}'],
        "RegionSearchCertificateExpires",
        {"job": "searcher", "instance": "a", "role": "server"},
    ),
]


@needs(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize(("up", "counters", "alert", "labels"), ALERTS_TESTED, ids=str)
def test_alerts_follow_from_what_happens(
    up: list[str], counters: list[str], alert: str, labels: dict[str, str], tmp_path: Path
) -> None:
    series = [{"series": f'up{{job="{job}",instance="a:9090"}}', "values": "1x30"} for job in up]
    series += [{"series": counter, "values": "0+60x30"} for counter in counters]
    rules = [r for g in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for r in g["rules"]]
    assert not alert or alert in {rule.get("alert") for rule in rules}
    expected = []
    for rule in (r for r in rules if "alert" in r):
        here = rule["alert"] == alert
        follows = [{"exp_labels": labels | rule["labels"]}] if here else []
        expected.append({"eval_time": "20m", "alertname": rule["alert"], "exp_alerts": follows})
        if here:
            summary = rule["annotations"]["summary"]
            for name, value in labels.items():
                summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
            follows[0]["exp_annotations"] = {"summary": summary}
    case = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": [str(PROMETHEUS / "rules.yml")], "tests": [case]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_operations_says_what_every_alert_means() -> None:
    rules = [r for g in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for r in g["rules"]]
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text.partition("## What the alerts mean")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE)[1:] == [r["alert"] for r in rules if "alert" in r]


class Collector(TraceServiceServicer):
    """Stands for the OpenTelemetry collector: keeps which services took part in which trace."""

    def __init__(self) -> None:
        self.traces: dict[bytes, set[tuple[str, str]]] = {}

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            (service,) = (
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.traces.setdefault(span.trace_id, set()).add((service, span.name))
        return ExportTraceServiceResponse()


class Monitor:
    """A Prometheus that watches a fleet, and what collects its traces."""

    def __init__(self, address: str, fleet: Processes, collector: Collector) -> None:
        self.fleet = fleet
        self.collector = collector
        self._api = httpx.Client(base_url=f"http://{address}/api/v1", timeout=30)

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self._api.get(path, params=parameters)
        assert answer.is_success, answer.text
        return answer.json()["data"]

    def series(self, expression: str) -> list[Any]:
        """What an expression gives now, without what is not a number (a ratio of nothing to nothing)."""
        found = self.ask("/query", query=expression)["result"]
        return [one for one in found if one["value"][1] != "NaN"]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    """The committed configuration, with the addresses of processes on this machine in the place of names."""
    folder = tmp_path_factory.mktemp("monitor")
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Processes(folder, workers=1, otlp_endpoint=f"http://127.0.0.1:{port}") as fleet:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(PROMETHEUS / "rules.yml")]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": fleet.metrics[job["job_name"]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_ports(1)[0]}"
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"]
        with (folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(f"http://{address}/-/ready"), "Prometheus is ready")
            yield Monitor(address, fleet, collector)
        finally:
            process.terminate()
            process.wait(30)
    server.stop(None)


pytestmark_real = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    needs(not shutil.which("prometheus"), reason="needs Debian's package prometheus"),
]


class TestReal:
    pytestmark = pytestmark_real

    def test_every_process_is_scraped(self, monitor: Monitor) -> None:
        wait_for(lambda: len(monitor.series("up == 1")) == len(monitor.fleet.members), "all targets are up")

    def test_every_panel_shows_something(self, monitor: Monitor) -> None:
        url = f"http://{monitor.fleet.gateways[0]}/v1"
        scenes = sorted((ROOT / "examples" / "scenes").glob("*.jpg"))

        def use() -> None:
            with scenes[-1].open("rb") as file:
                httpx.post(f"{url}/collections/default/images", files={"files": file}, timeout=120)
            httpx.post(f"{url}/collections/default/search", json={"query": {"text": "dog"}}, timeout=60)
            httpx.get(f"{url}/collections/missing", timeout=60)

        empty = dict(PANELS)

        def all_show() -> bool:
            use()
            for title, expression in PANELS:
                if title not in NEEDS_A_GPU and monitor.series(shown(expression)):
                    empty.pop(title, None)
            return set(empty) <= NEEDS_A_GPU

        with contextlib.suppress(AssertionError):
            wait_for(all_show, "every panel has data", 60)
        assert set(empty) <= NEEDS_A_GPU

    def test_one_trace_leads_through_all_services(self, monitor: Monitor) -> None:
        wanted = {f"regionsearch-{role}" for role in monitor.fleet.metrics}

        def complete() -> bool:
            return any(
                {service for service, _ in t} == wanted for t in list(monitor.collector.traces.values())
            )

        with next((ROOT / "examples" / "scenes").glob("*.jpg")).open("rb") as file:
            url = f"http://{monitor.fleet.gateways[1]}/v1/collections/default/images"
            assert httpx.post(url, files={"files": file}, timeout=120).is_success
        wait_for(complete, "a trace of an image's way in")

    def test_the_rules_work(self, monitor: Monitor) -> None:
        def rules() -> dict[str, Any]:
            return {r["name"]: r for g in monitor.ask("/rules")["groups"] for r in g["rules"]}

        wait_for(lambda: all(r["health"] == "ok" for r in rules().values()), "every rule is evaluated")
        wait_for(lambda: monitor.series("regionsearch_queue_wait_p95_seconds"), "the recorded series")
        assert rules()["RegionSearchDown"]["state"] == "inactive"
        monitor.fleet.stop("embedder-1")
        wait_for(lambda: rules()["RegionSearchDown"]["state"] != "inactive", "somebody notices")
        (alert,) = rules()["RegionSearchDown"]["alerts"]
        assert alert["labels"]["job"] == "embedder"
        assert "does not answer" in alert["annotations"]["summary"]
