"""axe-core finds nothing serious in any state of the page."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.web.fake_gateway import FakeGateway

pytestmark = pytest.mark.browser
SERIOUS = {"serious", "critical"}


def findings(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary']}"
        for one in violations
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious(browser: Browser, url: str, gateway: FakeGateway, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
    assert findings(page) == []
    page.goto(f"{url}/?q=red+circle,+blue+square&group=0")
    expect(page.locator("#grid .tile svg path.line").first).to_be_attached()
    page.locator("#filter-toggle").click()
    assert findings(page) == []
    page.locator("#grid .tile").first.click()
    expect(page.locator("#more-like-this")).to_be_enabled()
    assert findings(page) == []
    page.locator("#viewer-delete").click()
    assert findings(page) == []
    page.keyboard.press("Escape")
    gateway.scenes.clear()
    page.goto(url)
    expect(page.locator("#empty h2")).to_be_visible()
    page.locator("#help-button").click()
    assert findings(page) == []
    gateway.ready = False
    page.goto(url)
    expect(page.locator("#notice h2")).to_have_text("Starting")
    assert findings(page) == []
    context.close()
