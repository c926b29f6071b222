"""What people do on the page, for its tests."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, Route, expect

from tests.web.fake_gateway import UPLOADED
from tests.web.scenes import scene


def search(page: Page, text: str) -> None:
    """Types into the search field."""
    page.get_by_role("searchbox", name="What are you looking for?").fill(text)
    page.keyboard.press("Enter")


def tile(page: Page, name: str) -> Locator:
    """The tile of a picture, by a part of its name."""
    return page.locator("#grid button.tile", has=page.locator("img")).and_(
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


def hold(page: Page, pattern: str, method: str) -> Callable[..., None]:
    """Lets no such request through until what is returned is called, which may answer for the server."""
    held: list[Route] = []

    def caught(route: Route) -> None:
        held.append(route) if route.request.method == method else route.fallback()

    page.route(pattern, caught)

    def release(**answer: object) -> None:
        for _ in range(600):  # the page may say that it sends before the request is seen here
            if held:
                break
            page.wait_for_timeout(100)
        page.unroute(pattern)
        assert held
        for route in held:
            given = answer or {"response": route.fetch()}
            with contextlib.suppress(Error):  # the page has given it up
                route.fulfill(**given)  # type: ignore[arg-type]
        page.evaluate("fetch('/readyz').then((answer) => answer.text())")  # what was released came before it
        page.wait_for_timeout(50)

    return release


def watch_addresses(page: Page) -> None:
    """From the next page on, counts the object URLs that were made and not let go."""
    page.add_init_script(
        """const live = (window.live = new Set());
        const { createObjectURL, revokeObjectURL } = URL;
        URL.createObjectURL = (blob) => { const url = createObjectURL(blob); live.add(url); return url; };
        URL.revokeObjectURL = (url) => { live.delete(url); revokeObjectURL(url); };"""
    )


def all_freed(page: Page) -> None:
    """Waits until no object URL is left; the page's policy forbids Playwright's own way to wait."""
    for _ in range(1200):
        if not page.evaluate("live.size"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{page.evaluate('live.size')} are left")
