"""Writes the Helm chart in deploy/helm from deploy/kubernetes: the base, and each component as a value.

A component's JSON patches become conditions in the templates, so that the chart and the kustomizations cannot
differ: `helm template --set components.gpu=true` is what the base with the component gpu is.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm"
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
SERVICES = ("segmenter", "embedder", "searcher", "gateway")
ABSENT = object()

VALUES = f"""\
# Made by scripts/make_chart.py. Values that are empty here have the default that is named.
image:
  repository: regionsearch  # the images are REPOSITORY/segmenter:TAG and so on
  tag: ""  # required
# Those of deploy/kubernetes/components, whose files say what each needs.
components:
{"".join(f"  {name}: false{chr(10)}" for name in COMPONENTS)}\
models:
  segmenter: ""  # pocket; with gpu sam_vit_h
  embedder: ""  # pocket; with gpu ViT-H-14
replicas:
  segmenter: 2
  embedder: 2
  gateway: 2
  searcherReplica: 2  # with replicas
storage:
  searcher: 50Gi  # that of each replica, too
  images: 100Gi  # ReadWriteMany
# Further environment variables of each process: its settings.
env:
{"".join(f"  {name}: {{}}{chr(10)}" for name in SERVICES)}"""

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class When:
    """What is there with a component, and what without it; `ABSENT` is nothing."""

    component: str
    present: Any
    otherwise: Any


def main() -> None:
    """Writes all files of the chart."""
    shutil.rmtree(CHART, ignore_errors=True)
    for name, text in chart().items():
        path = CHART / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def chart() -> dict[str, str]:
    """The files of the chart by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = {
        "apiVersion": "v2",
        "name": project["name"],
        "description": project["description"],
        "type": "application",
        "version": project["version"],
        "appVersion": project["version"],
    }
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **_schema(yaml.safe_load(VALUES))}
    files = {
        "Chart.yaml": yaml.safe_dump(about, sort_keys=False, width=1000),
        "values.yaml": VALUES,
        "values.schema.json": json.dumps(schema, indent=2) + "\n",
    }
    return files | {f"templates/{name}": text for name, text in _templates().items()}


def _templates() -> dict[str, str]:
    base = KUBERNETES / "base"
    # The namespace is that of the release.
    found = {name: _documents(base / name) for name in _kustomization(base)["resources"]}
    del found["namespace.yaml"]
    texts: dict[str, str] = {}
    for component in COMPONENTS:
        folder = KUBERNETES / "components" / component
        for patch in _kustomization(folder).get("patches", []):
            (target,) = (
                document
                for documents in found.values()
                for document in documents
                if (document["kind"], document["metadata"]["name"])
                == (patch["target"]["kind"], patch["target"]["name"])
            )
            for change in yaml.safe_load(patch["patch"]):
                _apply(target, component, change)
        for name in _kustomization(folder).get("resources", []):
            text = _text(_documents(folder / name))
            texts[name] = f"{{{{- if .Values.components.{component} }}}}\n{text}{{{{- end }}}}\n"
    return texts | {name: _text(documents) for name, documents in found.items()}


def _apply(document: Any, component: str, change: dict[str, Any]) -> None:
    """Makes a change of a JSON patch to a document, conditional on its component."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
    parent = document
    for part in way:
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    match change["op"]:
        case "test":
            return
        case "add" if last == "-":
            parent.append(When(component, change["value"], ABSENT))
        case "add" | "replace" | "remove" if change["op"] != "add" or isinstance(parent, dict):
            place: Any = int(last) if isinstance(parent, list) else last
            before = parent.get(place, ABSENT) if isinstance(parent, dict) else parent[place]
            parent[place] = When(component, change.get("value", ABSENT), before)
        case other:
            raise ValueError(
                f"a patch of {component} has the operation {other!r}, which no chart can have yet"
            )


def _text(documents: list[dict[str, Any]]) -> str:
    texts = []
    for document in documents:
        document["metadata"]["labels"] = {
            "app.kubernetes.io/part-of": "regionsearch",
            "app.kubernetes.io/managed-by": "{{ .Release.Service }}",
            "helm.sh/chart": "{{ .Chart.Name }}-{{ .Chart.Version }}",
        }
        name = f"{document['kind']}/{document['metadata']['name']}"
        texts.append("\n".join(_lines(document, name, 0)) + "\n")
    return "---\n".join(texts)


def _lines(node: Any, path: str, depth: int) -> Iterator[str]:
    """A mapping or a list as YAML in block style."""
    indent = "  " * depth
    items = node.items() if isinstance(node, dict) else ((None, item) for item in node)
    for component, group in itertools.groupby(items, lambda entry: _added_by(entry[1])):
        if component:
            yield f"{indent}{{{{- if .Values.components.{component} }}}}"
        for key, item in group:
            start = f"{indent}- " if key is None else f"{indent}{_scalar(key)}: "
            entry = item.present if component else item
            yield from _entry(start, entry, f"{path}/{'-' if key is None else key}", depth)
        if component:
            yield f"{indent}{{{{- end }}}}"
    if path.endswith("/containers/-/env"):
        name = _process(path)
        yield f"{indent}{{{{- range $name, $value := .Values.env.{name} }}}}"
        yield f"{indent}- {{name: {{{{ $name }}}}, value: {{{{ $value | quote }}}}}}"
        yield f"{indent}{{{{- end }}}}"


def _added_by(item: Any) -> str | None:
    """The component without which there is nothing."""
    return item.component if isinstance(item, When) and item.otherwise is ABSENT else None


def _entry(start: str, item: Any, path: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(item, When):
        there = "not " if item.present is ABSENT else ""
        yield f"{indent}{{{{- if {there}.Values.components.{item.component} }}}}"
        if item.present is not ABSENT:
            yield from _entry(start, item.present, path, depth)
            yield f"{indent}{{{{- else }}}}"
        yield from _entry(start, item.otherwise, path, depth)
        yield f"{indent}{{{{- end }}}}"
    elif isinstance(item, dict | list) and item:
        first, *rest = _lines(item, path, depth + 1)
        if start.endswith("- ") and not first.lstrip().startswith("{{"):
            yield start + first.lstrip()
        else:
            yield from (start.rstrip(), first)
        yield from rest
    else:
        yield start + _valued(item, path)


def _valued(item: Any, path: str) -> str:
    """A scalar, or the value of the chart that says it."""
    name = _process(path)
    said: dict[str, Callable[[], str]] = {
        "/containers/-/image": lambda: (
            f"{{{{ .Values.image.repository }}}}/{name}:"
            '{{ required "set image.tag: which images, of those that you have built" .Values.image.tag }}'
        ),
        "StatefulSet/searcher-replica/spec/replicas": lambda: "{{ .Values.replicas.searcherReplica }}",
        f"Deployment/{name}/spec/replicas": lambda: f"{{{{ .Values.replicas.{name} }}}}",
        "PersistentVolumeClaim/pictures/spec/resources/requests/storage": lambda: (
            "{{ .Values.storage.images }}"
        ),
        "/volumeClaimTemplates/-/spec/resources/requests/storage": lambda: "{{ .Values.storage.searcher }}",
        f"ConfigMap/regionsearch-models/data/{path.rpartition('/')[2]}": lambda: (
            f"{{{{ .Values.models.{path.rpartition('/')[2]} | default {json.dumps(item)} | quote }}}}"
        ),
    }
    for end, expression in said.items():
        if path.endswith(end):
            return expression()
    return _scalar(item)


def _process(path: str) -> str:
    """The process of a workload; a read replica is a searcher."""
    return path.split("/")[1].removesuffix("-replica")


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./-]*|\{\{.*", value)
    if plain and value.lower() not in ("true", "false", "null", "yes", "no", "on", "off"):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _schema(value: Any) -> dict[str, Any]:
    """What the values may be: a misspelt one is refused."""
    if isinstance(value, dict) and not value:
        return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    if isinstance(value, dict):
        properties = {name: _schema(item) for name, item in value.items()}
        properties |= {"global": {"type": "object"}} if "image" in value else {}
        return {"type": "object", "properties": properties, "additionalProperties": False}
    kinds = {bool: "boolean", int: "integer", str: "string"}
    return {"type": kinds[type(value)]}


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def _kustomization(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


if __name__ == "__main__":
    main()
