"""Takes the pictures of the page that the documentation shows, from a running gateway.

`python -m tests.web.screenshots http://127.0.0.1:8000 evaluation/fixture docs/images` fills the collection
`default` with the pictures of the folder, by the page itself, and writes one file for each state.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.web.conftest import CHROMIUM, QUIET

QUERY = "droplet, red heart, star, owl"
INSIDE = "red heart, yellow heart, droplet"
INSIDE_PICTURE = "scene-0031.webp"
LATER = 6  # pictures that are added while the upload's picture is taken
DESKTOP, PHONE = (1360, 860), (390, 800)


def shoot(page: Page, path: Path) -> None:
    """Writes what the page shows as WebP."""
    page.evaluate("document.activeElement?.blur()")
    above_fold = "(image) => image.getBoundingClientRect().top < innerHeight"
    all_loaded = "every((image) => image.complete && image.naturalWidth)"
    while not page.evaluate(f"[...document.querySelectorAll('#grid img')].filter({above_fold}).{all_loaded}"):
        page.wait_for_timeout(100)
    page.wait_for_timeout(700)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(path, "WEBP", quality=86, method=6)
    print(path, path.stat().st_size)


def add(page: Page, files: list[Path]) -> None:
    """Adds pictures by the page's own queue."""
    page.locator("#files").set_input_files(files)


def search(page: Page, url: str, text: str) -> None:
    """Shows the hits of a phrase."""
    page.goto(f"{url}/?q={text}")
    expect(page.locator("#grid button.tile svg path.line").first).to_be_attached(timeout=30_000)


def open_inside(page: Page, url: str, picture: str, text: str) -> None:
    """Opens a picture and searches in it."""
    page.goto(url)
    while not page.get_by_role("button", name=picture, exact=True).count():
        page.locator("#more").click()
        page.wait_for_timeout(500)
    page.get_by_role("button", name=picture, exact=True).click()
    expect(page.locator("#regions .region").first).to_be_visible()
    page.locator("#within-text").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#regions .swatch").first).to_be_visible(timeout=30_000)


def main(url: str, pictures: Path, out: Path) -> None:
    """Takes all of them."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(pictures.glob("*.webp"))[:72]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)

        def new_page(scheme: str, size: tuple[int, int]) -> Page:
            viewport = {"width": size[0], "height": size[1]}
            return browser.new_page(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]

        page = new_page("light", DESKTOP)
        page.goto(url)
        expect(page.locator("#add")).to_be_visible()
        page.wait_for_timeout(1500)
        add(page, files[:-LATER])
        expect(page.locator("#uploads-title")).to_contain_text("added", timeout=600_000)
        page.goto(url)
        expect(page.locator("#grid button.tile").first).to_be_visible()
        add(page, files[-LATER:])
        expect(page.locator("#uploads-list li[data-outcome]")).not_to_have_count(0, timeout=60_000)
        shoot(page, out / "page-uploads.webp")
        expect(page.locator("#uploads-title")).to_contain_text("added", timeout=600_000)

        search(page, url, QUERY)
        shoot(page, out / "page-search.webp")
        page.locator("#grid button.tile").first.click()
        expect(page.locator("#regions .region").first).to_be_visible()
        box = page.locator("#stage-overlay path.line").first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.locator("#more-like-this")).to_be_enabled(timeout=30_000)
        page.mouse.move(5, 5)
        shoot(page, out / "page-pointing.webp")

        page = new_page("dark", DESKTOP)
        search(page, url, QUERY)
        shoot(page, out / "page-search-dark.webp")
        open_inside(page, url, INSIDE_PICTURE, INSIDE)
        shoot(page, out / "page-inside-dark.webp")

        page = new_page("light", PHONE)
        search(page, url, QUERY)
        shoot(page, out / "page-phone.webp")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]), Path(sys.argv[3]))
