"""axe-core finds nothing serious in any state of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.web.conftest import PATIENCE_MS
from tests.web.fake_gateway import UPLOADED, FakeGateway
from tests.web.scenes import scene

SERIOUS = {"serious", "critical"}


def findings(page: Page) -> list[str]:
    # A button that waits for an answer is pale, which a disabled one may be; no longer so a moment later.
    expect(page.locator("[aria-busy=true], button[type=submit]:disabled")).to_have_count(0)
    page.wait_for_function("() => !document.getAnimations().some((one) => one instanceof CSSTransition)")
    violations = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary']}"
        for one in violations
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.fixture(params=[("dark", 1280), ("light", 390)], ids=["dark", "phone"])
def looked_at(request: pytest.FixtureRequest, browser: Browser, url: str) -> Iterator[Page]:
    """A page in both colour schemes and in both layouts."""
    scheme, width = request.param
    context = browser.new_context(
        color_scheme=scheme,
        reduced_motion="reduce",
        bypass_csp=True,  # axe is injected; that the page keeps its policy is tested elsewhere
        viewport={"width": width, "height": 820},
    )
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


def test_the_grid_and_the_viewer(looked_at: Page, url: str) -> None:
    page = looked_at
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    assert findings(page) == []
    page.locator("#select").click()
    page.locator("#grid button.tile").first.click()
    assert findings(page) == []
    page.locator("#picked-tags").click()
    assert findings(page) == []
    page.locator("#tagging-cancel").click()
    page.locator("#collection").select_option("Manage collections…")
    expect(page.locator("#manage-list li")).to_have_count(1)
    assert findings(page) == []
    page.goto(f"{url}/?q=red+circle,+blue+square&group=0&unlike=x-r000")
    expect(page.locator("#grid button.tile svg path.line").first).to_be_attached()
    page.locator("#filter-toggle").click()
    expect(page.locator("#unlike")).to_be_visible()
    assert findings(page) == []
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#more-like-this")).to_be_enabled()
    assert findings(page) == []
    page.locator("#within-text").fill("red circle, blue square")
    page.keyboard.press("Enter")
    expect(page.locator("#regions .swatch").first).to_be_visible()
    assert findings(page) == []
    page.locator("#viewer-delete").click()
    assert findings(page) == []


def test_a_query_image_is_accessible(looked_at: Page, url: str, tmp_path: Path) -> None:
    page = looked_at
    own = tmp_path / "own.png"
    own.write_bytes(scene("own", 520, 340, UPLOADED).data)
    page.goto(url)
    page.locator("#picture").set_input_files(own)
    expect(page.locator("#point")).to_be_visible()
    expect(page.locator("#grid button.tile").first).to_be_visible()
    assert findings(page) == []
    page.locator("#point").click()
    page.locator("#stage").click()
    expect(page.locator("#more-like-this")).to_be_enabled()
    assert findings(page) == []


def test_waiting_and_failing(looked_at: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    page = looked_at
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"words")
    page.goto(url)
    page.locator("#files").set_input_files(broken)
    expect(page.locator("#uploads-title")).to_have_text("0 pictures added, 1 failed")
    assert findings(page) == []
    gateway.failure = (409, {"title": "Vectors of different models", "detail": "Another model."})
    page.goto(f"{url}/?q=dog")
    expect(page.locator("#notice h2")).to_have_text("Vectors of different models")
    assert findings(page) == []
    gateway.failure = None
    gateway.scenes.clear()
    page.goto(f"{url}/?q=dog&min=0.9")
    expect(page.locator("#empty h2")).to_have_text("Nothing found")
    assert findings(page) == []
    page.goto(url)
    expect(page.locator("#empty h2")).to_be_visible()
    page.locator("#help-button").click()
    assert findings(page) == []
    gateway.ready = False
    page.goto(url)
    expect(page.locator("#notice h2")).to_have_text("Starting")
    assert findings(page) == []
