"""The Dockerfile and the compose files, as far as they can be checked without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import GatewaySettings
from tests.deploy.test_kubernetes import known_settings

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("segmenter", "embedder", "searcher", "gateway")
# Stage -> (the stage or image that it begins from, its instructions).
STAGES = {
    name: (source, text)
    for source, name, text in re.findall(
        r"^FROM (\S+) AS (\w+)\n(.*?)(?=^FROM|\Z)",
        (ROOT / "Dockerfile").read_text(),
        re.MULTILINE | re.DOTALL,
    )
}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())

each_service = pytest.mark.parametrize("name", SERVICES)


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in service.get("environment", {}).items()}


@each_service
def test_a_container_is_locked_down_and_tells_its_health(name: str) -> None:
    _, last = STAGES[name]
    assert "USER 10001:10001" in last
    assert "HEALTHCHECK --interval=10s" in last
    assert f'"services.runtime.probe", "{name}"' in last
    assert 'ENTRYPOINT ["tini", "--", ' in last


def test_every_container_of_compose_is_locked_down_and_bounded() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] and service["mem_limit"], name
        assert service["restart"] == ("no" if service.get("profiles") == ["setup"] else "unless-stopped"), (
            name
        )


def test_what_lies_in_memory_has_a_size_and_uploads_do_not_lie_there() -> None:
    for name, service in COMPOSE["services"].items():
        for mount in service.get("tmpfs", []):
            assert ":size=" in mount, f"{name}: {mount}"
    gateway = COMPOSE["services"]["gateway"]
    assert "tmpfs" not in gateway
    assert "uploads:/tmp" in gateway["volumes"]


def test_only_segmenter_and_embedder_have_torch_and_models_and_share_its_layers() -> None:
    assert {name for name in SERVICES if "COPY --from=code /opt/pocket " in STAGES[name][1]} == {
        "segmenter",
        "embedder",
    }
    assert {name: STAGES[name][0] for name in (*SERVICES, "torch")} == {
        "segmenter": "torch",
        "embedder": "torch",
        "searcher": "base",
        "gateway": "base",
        "torch": "base",
    }
    # An engine without BuildKit builds all stages above its target.
    assert list(STAGES).index("torch") > max(list(STAGES).index(name) for name in ("searcher", "gateway"))


def test_requirements_are_installed_anew_only_when_they_change() -> None:
    """Not for a rule of ruff: `[tool.ruff]` and what follows is left out; nothing that builds may be."""
    assert "sed -i '/^\\[tool.ruff\\]/,$d' pyproject.toml" in STAGES["requirements"][1]
    _, marker, left_out = (ROOT / "pyproject.toml").read_text().partition("\n[tool.ruff]\n")
    assert marker
    assert not re.search(r"^\[+(project|build-system|tool\.hatch)", left_out, re.MULTILINE)


@each_service
def test_every_setting_of_a_container_exists(name: str) -> None:
    fields = known_settings(name)
    given = re.findall(rf"REGIONSEARCH_{name.upper()}_(\w+?)(?:__\w+)?=", STAGES[name][1])
    given += [
        key.removeprefix(f"REGIONSEARCH_{name.upper()}_").partition("__")[0]
        for key in environment(COMPOSE["services"][name])
    ]
    assert given
    assert {setting.lower() for setting in given} <= fields


def test_what_is_ours_can_be_built_wherever_it_is_used() -> None:
    """The weights are pulled before anything was built: an image that nobody can build would be looked for in
    a registry that does not have it."""
    for file in ("docker-compose.yml", "docker-compose.gpu.yml"):
        for name, service in yaml.safe_load((ROOT / file).read_text())["services"].items():
            if service.get("image", "").startswith("regionsearch/"):
                assert service["image"] == f"regionsearch/{service['build']['target']}", f"{name} of {file}"
                assert service["build"]["target"] in STAGES, f"{name} of {file}"


@pytest.mark.parametrize(("given", "keys"), [("", ()), ("read:abc,def", ("read:abc", "def"))])
def test_keys_reach_the_gateway(given: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "REGIONSEARCH_GATEWAY_API_KEYS"
    assert environment(COMPOSE["services"]["gateway"])[variable] == "${API_KEYS:-}"
    monkeypatch.setenv(variable, given)
    assert tuple(key.get_secret_value() for key in GatewaySettings().api_keys) == keys


@each_service
def test_there_is_time_to_stop_in(name: str) -> None:
    delay = float(
        environment(COMPOSE["services"][name]).get(f"REGIONSEARCH_{name.upper()}_DRAIN_DELAY_S", 0.5)
    )
    assert delay + 30 < int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))


def test_only_the_gateway_and_what_people_look_at_are_published() -> None:
    published = {name for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"gateway", "grafana", "jaeger"}
    for name in published:
        for port in COMPOSE["services"][name]["ports"]:
            assert port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")), f"{name}: {port}"
    always = {name for name, service in COMPOSE["services"].items() if "profiles" not in service}
    assert always == set(SERVICES)


def test_whoever_sees_the_dashboards_can_only_look() -> None:
    grafana = environment(COMPOSE["services"]["grafana"])
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"  # no admin with a known password


def test_metrics_are_scraped_where_the_containers_have_them() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    for job in scraped["scrape_configs"]:
        (target,) = job["dns_sd_configs"]
        name = job["job_name"]
        assert f"REGIONSEARCH_{name.upper()}_METRICS_PORT={target['port']}" in STAGES[name][1]


def test_traces_go_where_the_collector_listens() -> None:
    collector = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert f"OTLP_ENDPOINT=http://otel-collector:{port} " in (ROOT / "docker-compose.yml").read_text()
    (pipeline,) = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == set(collector[kind])
    assert collector["exporters"]["otlp"]["endpoint"].partition(":")[0] in COMPOSE["services"]
    for name in SERVICES:
        assert environment(COMPOSE["services"][name])[f"REGIONSEARCH_{name.upper()}_OTLP_ENDPOINT"]


def test_workers_have_a_gpu_each_and_are_found_under_one_name() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]
    del services["models"]
    gpus = []
    for name, service in services.items():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        gpus += device["device_ids"]
        role = name.removesuffix("-2")
        assert {s.partition("_")[2].partition("_")[0].lower() for s in service["environment"]} == {role}
        if name != role:
            assert service["networks"]["internal"]["aliases"] == [role]
    assert len(set(gpus)) == len(gpus) == len(services) == 4


def test_read_replicas_follow_the_searcher_and_share_the_name_that_the_gateway_reads_from() -> None:
    services = COMPOSE["services"]
    searcher, replica = services["searcher"], services["searcher-replica"]
    assert replica["profiles"] == ["replicas"]
    assert (replica["image"], replica["build"]) == (searcher["image"], searcher["build"])
    assert environment(replica)["REGIONSEARCH_SEARCHER_FOLLOW"] == "searcher:50053"
    assert replica["networks"] == searcher["networks"] == {"internal": {"aliases": ["searcher-reads"]}}
    assert environment(services["gateway"])["REGIONSEARCH_GATEWAY_SEARCHER_READS"] == "${SEARCHER_READS:-}"


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
@pytest.mark.parametrize(
    "files",
    [
        ["docker-compose.yml"],
        ["docker-compose.yml", "docker-compose.gpu.yml"],
        ["docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.searcher-gpu.yml"],
    ],
    ids=len,
)
def test_compose_itself_takes_the_files(files: list[str]) -> None:
    command = ["docker-compose", *(part for name in files for part in ("-f", name)), "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/usr/sbin/haproxy").exists(), reason="needs haproxy")
def test_haproxy_itself_takes_its_file() -> None:
    variables = {
        "BALANCER": "127.0.0.1:1",
        "BALANCER_STATS": "127.0.0.1:2",
        "GATEWAY_1": "127.0.0.1:3",
        "GATEWAY_2": "127.0.0.1:4",
    }
    command = ["/usr/sbin/haproxy", "-c", "-f", ROOT / "deploy" / "haproxy" / "haproxy.cfg"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
