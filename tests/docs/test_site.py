"""The pages of docs/ as a site, with the reference of the client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regionsearch.client import Client
from tests.stack import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of what is not ours
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr  # a dead link, or a page outside of the menu
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        made = page.relative_to(ROOT / "docs").with_suffix(".html")
        made = made.with_name("index.html") if page.stem == "README" else made
        assert (site / made).is_file(), made


def test_the_reference_has_the_methods_of_the_client_as_they_are_called(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "python.html").read_text())
    methods = [name for name in vars(Client.__mro__[1]) | vars(Client) if not name.startswith("_")]
    for name in set(methods) - {"awaits", "send"}:
        assert f"{name}(" in text.replace(" ", ""), name
    assert "Operation[" not in text
    assert "_Method" not in text
