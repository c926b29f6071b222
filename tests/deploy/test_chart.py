"""The Helm chart, which is made from the manifests."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from scripts import make_chart
from tests.deploy.test_kubernetes import BUILT_IN, COMPONENTS, VERSIONS, Resource, render


def templated(*components: str, **values: Any) -> list[Resource]:
    """What Helm itself makes of the chart."""
    given = {"image": {"tag": "unset"}, "components": dict.fromkeys(components, True), **values}
    if shutil.which("helm"):
        command = ["helm", "template", "--values", "-", "regionsearch", make_chart.CHART]
        done = subprocess.run(
            command, input=yaml.safe_dump(given), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        texts = [done.stdout]
    else:
        helm = pytest.importorskip("helm_python", reason="needs helm, or pip install helm-python-sdk")
        with helm.Chart.load(str(make_chart.CHART)) as chart:
            texts = list(chart.render(given, name="regionsearch", namespace="regionsearch").values())
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def by_name(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
    for resource in resources:
        resource["metadata"].pop("labels", None)
    return {(r["kind"], r["metadata"]["name"]): r for r in resources if r["kind"] != "Namespace"}


def test_the_chart_is_what_its_script_makes_of_the_manifests() -> None:
    """`python scripts/make_chart.py` writes it anew."""
    files = {
        str(path.relative_to(make_chart.CHART)): path.read_text()
        for path in make_chart.CHART.rglob("*")
        if path.is_file()
    }
    assert files == make_chart.chart()


@pytest.mark.parametrize(
    "components", [(), *((name,) for name in COMPONENTS), tuple(COMPONENTS)], ids="+".join
)
def test_helm_makes_of_the_chart_what_kustomize_makes_of_the_manifests(components: tuple[str, ...]) -> None:
    made = templated(*components)
    for resource in made:
        if resource["apiVersion"] in BUILT_IN:
            kubernetes_validate.validate(resource, VERSIONS[1], strict=True)
    assert by_name(made) == by_name(render(*components))


def test_values_reach_the_manifests() -> None:
    made = by_name(
        templated(
            models={"embedder": "ViT-B-32:openai"},
            replicas={"gateway": 5},
            storage={"searcher": "1Ti"},
            env={"gateway": {"REGIONSEARCH_GATEWAY_IMAGE_STORE": "s3://bucket/path"}},
        )
    )
    assert made["ConfigMap", "regionsearch-models"]["data"] == {
        "segmenter": "pocket",
        "embedder": "ViT-B-32:openai",
    }
    gateway = made["Deployment", "gateway"]["spec"]
    assert gateway["replicas"] == 5
    assert gateway["template"]["spec"]["containers"][0]["env"][-1] == {
        "name": "REGIONSEARCH_GATEWAY_IMAGE_STORE",
        "value": "s3://bucket/path",
    }
    (claim,) = made["StatefulSet", "searcher"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Ti"


def test_read_replicas_are_searchers_with_the_values_of_searchers() -> None:
    made = by_name(
        templated(
            "replicas",
            replicas={"searcherReplica": 3},
            storage={"searcher": "1Ti"},
            env={"searcher": {"REGIONSEARCH_SEARCHER_READ_THREADS": "32"}},
        )
    )
    writer, replica = (made["StatefulSet", name]["spec"] for name in ("searcher", "searcher-replica"))
    assert replica["replicas"] == 3
    assert replica["volumeClaimTemplates"] == writer["volumeClaimTemplates"]
    (one,), (other,) = (spec["template"]["spec"]["containers"] for spec in (writer, replica))
    assert other["image"] == one["image"]
    settings = {variable["name"]: variable["value"] for variable in other["env"]}
    assert settings["REGIONSEARCH_SEARCHER_FOLLOW"] == "searcher:50053"
    assert settings["REGIONSEARCH_SEARCHER_READ_THREADS"] == "32"


def test_the_templates_of_every_component_name_images_and_values_that_there_are() -> None:
    """Without Helm, too: what a template takes from the values is in them."""
    values = yaml.safe_load(make_chart.VALUES)
    for name, text in make_chart.chart().items():
        for found in re.finditer(r"\.Values\.([\w.-]+)", text):
            part = values
            for key in found[1].split("."):
                assert key in part, f"{name}: {found[0]}"
                part = part[key]
        for process in re.findall(r"image\.repository }}/([\w-]+):", text):
            assert process in make_chart.SERVICES, name
