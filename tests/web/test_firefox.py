"""The main job in Firefox: search, point, more like this, add a picture, look at the map."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.web.steps import picture_file

SCRIPT = Path(__file__).with_name("firefox.mjs")


def packages() -> Path:
    """Where npm keeps what is installed for all."""
    for program in ("firefox-esr", "node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    found = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True, check=True)
    folder = Path(found.stdout.strip())
    if not (folder / "puppeteer-core").is_dir():
        pytest.skip("puppeteer-core is not installed (npm install -g puppeteer-core)")
    return folder


def test_the_main_job_works_in_firefox(url: str, tmp_path: Path) -> None:
    picture = picture_file(tmp_path)
    command = ["node", SCRIPT, packages(), url, picture, tmp_path / "firefox.png"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen.pop("width") <= 1280
    assert seen.pop("outlined") >= 1
    assert seen == {
        "errors": [],
        "title": "“red circle”",
        "example": "Like this thing",
        "added": "1 picture added",
    }
