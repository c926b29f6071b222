"""What people do on the page, for its tests."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.web.fake_gateway import UPLOADED
from tests.web.scenes import scene


def search(page: Page, text: str) -> None:
    """Types into the search field."""
    page.get_by_role("searchbox", name="What are you looking for?").fill(text)
    page.keyboard.press("Enter")


def tile(page: Page, name: str) -> Locator:
    """The tile of a picture, by a part of its name."""
    return page.locator("#grid .tile", has=page.locator("img")).and_(
        page.get_by_role("button", name=re.compile(name))
    )


def picture_file(folder: Path, name: str = "new.png") -> Path:
    """A picture file with a red circle and a green square."""
    path = folder / name
    path.write_bytes(scene(name, 520, 340, UPLOADED).data)
    return path


def drag(page: Page, paths: list[Path], x: float, y: float, end: str = "drop") -> None:
    """Drags files or folders from the desktop over the page, as the system does."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", end):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        if kind == "dragEnter":
            expect(page.locator("#drop")).to_be_visible()
