"""What the pages of the documentation name is there: files, links, settings, manifests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from gateway.settings import GatewaySettings
from services.runtime.settings import ServiceSettings
from services.searcher.settings import SearcherSettings
from tests.stack import ROOT

FOLDERS = ("", "docs", "benchmarks", "evaluation", "gateway", "loadtests", "models", "services")
PAGES = sorted(
    page
    for folder in FOLDERS
    for page in (ROOT / folder).glob("*.md" if folder in ("", "docs") else "**/*.md")
    if "out" not in page.parts  # environments of benchmarks
)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def variables(settings: type[BaseModel], prefix: str) -> set[str]:
    """The names of all settings in the environment."""
    found = set()
    for name, field in settings.model_fields.items():
        found.add(f"{prefix}{name}".upper())
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= variables(field.annotation, f"{prefix}{name}__")
    return found


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@every_page
def test_variables_are_settings(page: Path) -> None:
    from services.embedder.settings import EmbedderSettings  # which need torch
    from services.segmenter.settings import SegmenterSettings

    processes: tuple[type[ServiceSettings], ...] = (
        SegmenterSettings, EmbedderSettings, SearcherSettings, GatewaySettings,
    )  # fmt: skip
    known = {name for one in processes for name in variables(one, f"REGIONSEARCH_{one.process}_")}
    for role, name in re.findall(
        r"REGIONSEARCH_(SEGMENTER|EMBEDDER|SEARCHER|GATEWAY)_(\w+)", page.read_text()
    ):
        variable = f"REGIONSEARCH_{role}_{name}"
        assert any(one == variable or one.startswith(variable + "_") for one in known), variable


@every_page
def test_files_are_there(page: Path) -> None:
    tops = "deploy|docs|evaluation|examples|gateway|loadtests|protos|regionsearch|scripts|services|training"
    for name in re.findall(rf"`((?:{tops})/[\w./-]+\.\w+)`", page.read_text()):
        made = re.match(r"loadtests/out/|benchmarks/out/", name)
        assert made or (ROOT / name).exists(), name


@pytest.mark.parametrize("module", ["gateway.sweep", "services.searcher"])
def test_help_names_the_command_that_it_is_about(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"usage: python -m {module} ")


def test_the_kubernetes_example_is_whole() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    folder = ROOT / re.search(r"# (\S+)/kustomization.yaml", text)[1]  # type: ignore[index]
    example = yaml.safe_load(text)
    for path in (*example["resources"], *example["components"]):
        assert (folder.parent / path.removeprefix("../") / "kustomization.yaml").is_file(), path
    base = folder.parent / "base"
    assert example["namespace"] == yaml.safe_load((base / "kustomization.yaml").read_text())["namespace"]
    used = {name for file in base.glob("*.yaml") for name in re.findall(r"image: (\S+)", file.read_text())}
    assert {f"{image['name']}:unset" for image in example["images"]} == used
