"""The manifests, rendered and checked without a cluster."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
import yaml

from gateway.settings import LimitSettings
from services.runtime.settings import ClientTlsSettings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
VERSIONS = ("1.31", kubernetes_validate.latest_version())
BUILT_IN = {"v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1"}

Resource = dict[str, Any]


def render(*components: str) -> list[Resource]:
    """What `kubectl kustomize` would: the base with the components' resources and JSON patches."""
    resources = [*load(KUBERNETES / "base")]
    for component in components:
        folder = KUBERNETES / "components" / component
        resources += load(folder)
        for patch in kustomization(folder).get("patches", []):
            target = patch["target"]
            wanted = (target["kind"], target["name"])
            matches = [r for r in resources if (r["kind"], r["metadata"]["name"]) == wanted]
            assert len(matches) == 1, f"{component}: {target} matches {len(matches)} resources"
            index = resources.index(matches[0])
            resources[index] = jsonpatch.apply_patch(matches[0], yaml.safe_load(patch["patch"]))
    return copy.deepcopy(resources)


@functools.cache
def kustomization(folder: Path) -> Resource:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


@functools.cache
def load(folder: Path) -> list[Resource]:
    files = [folder / name for name in kustomization(folder).get("resources", [])]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def workloads(resources: list[Resource]) -> list[Resource]:
    return [r for r in resources if r["kind"] in ("Deployment", "StatefulSet")]


def settings(container: Resource) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container["env"]}


every_set = pytest.mark.parametrize(  # every pair: what two patches do to each other shows there
    "components",
    [c for n in (0, 1, 2, len(COMPONENTS)) for c in itertools.combinations(COMPONENTS, n)],
    ids="+".join,
)


@functools.cache
def validate(resource: str, version: str) -> None:
    """Checks a resource, as JSON; each once, as most sets have most resources in common."""
    kubernetes_validate.validate(json.loads(resource), version, strict=True)


@every_set
def test_every_combination_is_valid(components: tuple[str, ...]) -> None:
    for resource in render(*components):
        if resource["apiVersion"] in BUILT_IN:
            validate(json.dumps(resource), VERSIONS[0])


def test_the_newest_kubernetes_takes_all_of_it() -> None:
    for resource in render(*COMPONENTS):
        if resource["apiVersion"] in BUILT_IN:
            kubernetes_validate.validate(resource, VERSIONS[1], strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kubectl_renders_the_folder_that_operations_shows(tmp_path: Path) -> None:
    """`render`, which most tests here use, is compared with the real thing."""
    shutil.copytree(KUBERNETES, tmp_path, dirs_exist_ok=True)
    example = (
        (DEPLOY.parent / "docs" / "operations.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    )
    folder = tmp_path / example.splitlines()[0].removeprefix("# deploy/kubernetes/").rpartition("/")[0]
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(example)
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = list(yaml.safe_load_all(done.stdout))
    chosen = [Path(component).name for component in yaml.safe_load(example)["components"]]
    pods = [{w["metadata"]["name"]: w["spec"] for w in workloads(r)} for r in (shown, render(*chosen))]
    for specs in pods:
        for spec in specs.values():
            spec["template"]["metadata"]["labels"].pop("app.kubernetes.io/part-of", None)
            (container,) = spec["template"]["spec"]["containers"]
            name, _, tag = container.pop("image").rpartition(":")
            assert name.endswith(f"regionsearch/{container['name']}") and tag
    assert pods[0] == pods[1]
    assert len(shown) == len(render(*chosen))


@every_set
def test_services_and_policies_select_what_exists(components: tuple[str, ...]) -> None:
    resources = render(*components)
    labels = [w["spec"]["template"]["metadata"]["labels"] for w in workloads(resources)]
    for resource in resources:
        match resource["kind"]:
            case "Service":
                selector = resource["spec"]["selector"]
            case "PodDisruptionBudget":
                selector = resource["spec"]["selector"]["matchLabels"]
            case _:
                continue
        assert any(selector.items() <= pod.items() for pod in labels), resource["metadata"]["name"]


def test_every_process_is_probed_and_what_is_replicated_survives_the_drain_of_a_node() -> None:
    resources = render()
    budgets = {r["metadata"]["name"] for r in resources if r["kind"] == "PodDisruptionBudget"}
    for workload in workloads(resources):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= set(container), container["name"]
        # A budget for one of one would keep its node from ever being drained.
        assert (workload["metadata"]["name"] in budgets) == (workload["spec"]["replicas"] > 1)


def test_an_apply_leaves_the_number_of_replicas_to_the_autoscaler() -> None:
    resources = render(*COMPONENTS)
    scaled = {w["metadata"]["name"]: w["spec"] for w in workloads(resources)}
    autoscalers = [r for r in resources if r["kind"] == "HorizontalPodAutoscaler"]
    assert {a["spec"]["scaleTargetRef"]["name"] for a in autoscalers} == {"segmenter", "embedder"}
    for autoscaler in autoscalers:
        assert "replicas" not in scaled[autoscaler["spec"]["scaleTargetRef"]["name"]]
        assert autoscaler["spec"]["minReplicas"] > 1, "one must serve while the other is replaced"


def test_the_drain_fits_into_the_grace_period() -> None:
    for workload in workloads(render()):
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        delay = next(float(v) for k, v in settings(container).items() if k.endswith("DRAIN_DELAY_S"))
        assert delay + 30 < pod["terminationGracePeriodSeconds"]


def test_pods_are_locked_down() -> None:
    for workload in workloads(render(*COMPONENTS)):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False, "nothing here talks to Kubernetes"
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (namespace,) = (r for r in render() if r["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(text[:-2]) * units[text[-2:]]


def test_no_pod_can_fill_its_node() -> None:
    for workload in workloads(render(*COMPONENTS)):
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        most = quantity(container["resources"]["limits"]["ephemeral-storage"])
        scratch = [v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v]
        assert scratch
        for volume in scratch:
            assert volume.get("medium") != "Memory", "what lies in memory counts as memory"
            assert quantity(volume["sizeLimit"]) < most


@pytest.mark.parametrize(
    ("components", "expected"),
    [((), {"pocket"}), (("gpu",), {"sam_vit_h", "ViT-H-14"})],
    ids=["pocket", "gpu"],
)
def test_one_config_map_says_which_models_run(components: tuple[str, ...], expected: set[str]) -> None:
    resources = render(*components)
    (models,) = (r for r in resources if r["kind"] == "ConfigMap")
    assert set(models["data"].values()) == expected
    for workload in workloads(resources):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        name = workload["metadata"]["name"]
        found = [e["valueFrom"] for e in container["env"] if e["name"].endswith("ER_MODEL")]
        if name in models["data"]:
            assert found == [{"configMapKeyRef": {"name": models["metadata"]["name"], "key": name}}]


def test_uploads_fit_their_volume() -> None:
    (gateway,) = (w for w in workloads(render()) if w["metadata"]["name"] == "gateway")
    (tmp,) = (v for v in gateway["spec"]["template"]["spec"]["volumes"] if v["name"] == "tmp")
    assert LimitSettings().max_upload_bytes <= quantity(tmp["emptyDir"]["sizeLimit"]) / 2


def test_nobody_is_let_in_without_a_key_unless_that_was_asked_for() -> None:
    def keys(*components: str) -> list[Resource]:
        (gateway,) = (w for w in workloads(render(*components)) if w["metadata"]["name"] == "gateway")
        (container,) = gateway["spec"]["template"]["spec"]["containers"]
        return [e for e in container["env"] if e["name"] == "REGIONSEARCH_GATEWAY_API_KEYS"]

    (secret,) = keys()
    assert not secret["valueFrom"]["secretKeyRef"].get("optional")
    assert not keys("open")


def test_one_slow_answer_does_not_end_a_pod() -> None:
    for workload in workloads(render()):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        probe = container["livenessProbe"]
        if "httpGet" in probe:
            assert probe["timeoutSeconds"] >= 5 and probe["failureThreshold"] * probe["periodSeconds"] >= 60


def test_an_image_has_no_tag_that_could_be_pulled_by_mistake() -> None:
    """`latest` would be whatever was built last; who deploys says which one is meant."""
    for workload in workloads(render()):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert container["image"].endswith(":unset")


def test_pods_reach_only_what_they_need() -> None:
    policies = {r["metadata"]["name"]: r["spec"] for r in render() if r["kind"] == "NetworkPolicy"}
    ports = {port["port"] for rule in policies["gateway"]["egress"] for port in rule["ports"]}
    services = {
        port["port"]
        for r in render()
        if r["kind"] == "Service" and r["metadata"]["name"] != "gateway"
        for port in r["spec"]["ports"]
        if port["name"] == "grpc"
    }
    assert ports == services | {53}
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["ingress"]:
            if {"port": "metrics"} in rule.get("ports", []):
                assert rule["from"], "metrics are for the monitoring alone"


def test_with_tls_the_gateway_speaks_it_to_the_services() -> None:
    """Services that want certificates, and a gateway that shows none, would be a stack that never serves."""
    containers = {
        container["name"]: container
        for workload in workloads(render("tls"))
        for container in workload["spec"]["template"]["spec"]["containers"]
    }
    for name in ("segmenter", "embedder", "searcher"):
        assert settings(containers[name])[f"REGIONSEARCH_{name.upper()}_TLS__CLIENT_CA"]
    given = {
        name.removeprefix("REGIONSEARCH_GATEWAY_BACKEND_TLS__").lower(): value
        for name, value in settings(containers["gateway"]).items()
        if "BACKEND_TLS__" in name
    }
    files = ClientTlsSettings.model_validate(given).files()
    assert files is not None, "the gateway speaks plain text"
    mounts = [Path(mount["mountPath"]) for mount in containers["gateway"]["volumeMounts"]]
    for file in (files.ca, files.certificate, files.key):
        assert file is not None and file.parent in mounts


def test_an_update_needs_no_gpu_that_is_not_there() -> None:
    for workload in workloads(render("gpu")):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
            assert workload["spec"]["replicas"] > 1, "one must serve meanwhile"


def test_jobs_are_called_as_rules_and_dashboards_expect() -> None:
    """Without a label for its name a job is called after the monitor: one job for three services."""
    monitors = [r for r in render("monitoring") if r["kind"] == "PodMonitor"]
    pods = [w["spec"]["template"]["metadata"]["labels"] for w in workloads(render())]
    jobs = {pod[monitor["spec"]["jobLabel"]] for monitor in monitors for pod in pods}
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {config["job_name"] for config in scraped}


def test_every_setting_exists() -> None:
    """A misspelt environment variable would be ignored in silence."""
    for workload in workloads(render(*COMPONENTS)):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        fields = known_settings(container["name"])
        for name in settings(container):
            prefix = f"REGIONSEARCH_{container['name'].upper()}_"
            field = name.removeprefix(prefix).split("__")[0].lower()
            assert field in fields, f"{name} is not a setting"


def known_settings(process: str) -> set[str]:
    if process == "gateway":
        from gateway.settings import GatewaySettings as Settings
    else:
        module = __import__(f"services.{process}.settings", fromlist=["x"])
        Settings = getattr(module, f"{process.capitalize()}Settings")  # noqa: N806
    return set(Settings.model_fields)
