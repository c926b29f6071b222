"""Commands run in this process against a fake gateway, and a folder of images for them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from regionsearch.cli import app
from tests.client.conftest import gateway
from tests.client.fakes import FakeGateway

__all__ = ["gateway"]  # the fixture


def run(gateway: FakeGateway, *arguments: object) -> Result:
    """Runs a command; a typed error comes out as the result's exception."""
    environment = {"REGIONSEARCH_URL": gateway.http, "COLUMNS": "200", "REGIONSEARCH_API_KEY": ""}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def png(colour: str = "white", size: tuple[int, int] = (3, 2)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders, and what is none."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.PNG").write_bytes(png("red"))
    (tmp_path / "deep" / "a.jpg").write_bytes(png("blue"))
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path
