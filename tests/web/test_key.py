"""A server that wants a key: asking, refusing, and what must not be asked twice."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.scenes import scene
from tests.web.steps import all_freed, hold, search, watch_addresses


@pytest.fixture
def gateway() -> FakeGateway:
    gateway = FakeGateway()
    gateway.key = "open sesame"
    return gateway


def give(page: Page, key: str) -> None:
    page.get_by_role("textbox", name="API key").fill(key)
    page.keyboard.press("Enter")


def test_without_a_key_the_page_says_what_it_needs(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_contain_text("API key required")
    expect(page.locator("#key")).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    give(page, "open sesame")
    expect(page.locator("#grid button.tile")).to_have_count(4)


def test_the_key_dialog_can_be_left_with_a_button(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#notice")).to_contain_text("API key required")


def test_a_wrong_key_is_said_to_be_wrong(page: Page, url: str) -> None:
    page.goto(url)
    hint = page.locator("#key [role=alert]")
    expect(page.get_by_role("textbox", name="API key")).to_be_focused()
    expect(hint).to_be_empty()
    give(page, "open barley")
    expect(hint).to_contain_text("does not take this key")
    expect(page.get_by_role("textbox", name="API key")).to_be_focused()
    give(page, "open sesame")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    page.reload()
    expect(page.locator("#grid button.tile")).to_have_count(4)


def test_a_refusal_that_comes_late_does_not_ask_again(page: Page, url: str) -> None:
    release = hold(page, "**/v1/collections?*", "GET")  # sent without a key, refused after there is one
    page.goto(url)
    give(page, "open sesame")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    release()
    page.wait_for_timeout(200)
    expect(page.locator("#key")).to_be_hidden()


def test_a_browser_that_keeps_nothing(page: Page, url: str) -> None:
    page.add_init_script(
        """Object.defineProperty(window, "sessionStorage",
             { get() { throw new DOMException("no", "SecurityError"); } });"""
    )
    page.goto(url)
    give(page, "open sesame")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    search(page, "red circle")
    expect(page.locator("#title")).to_have_text("“red circle”")


def test_a_key_that_may_not_list_collections(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.key = None
    page.route("**/v1/collections?*", lambda route: route.fulfill(status=403, body="{}"))
    page.route("**/v1/collections/trips/images?*", lambda route: route.fulfill(json=NOTHING))
    page.goto(f"{url}/?in=trips")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#collection")).to_have_value("trips")


NOTHING = {"images": [], "next_page_token": "", "total_count": 0}


def test_images_never_scrolled_into_view_are_released(page: Page, url: str, gateway: FakeGateway) -> None:
    page.set_viewport_size({"width": 390, "height": 600})
    for n in range(40):
        gateway.put(scene(f"{n}.png", 40, 30 + n, []))
    watch_addresses(page)
    page.goto(url)
    give(page, "open sesame")
    expect(page.locator("#grid button.tile")).to_have_count(44)
    all_freed(page)


def test_what_the_key_does_not_allow_is_not_offered(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.scopes = ["search", "write"]
    page.goto(url)
    expect(page.get_by_role("button", name="Add pictures")).to_be_visible()
    give(page, "open sesame")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#tags-new")).to_be_visible()
    expect(page.get_by_role("button", name="Delete picture")).to_be_hidden()
    gateway.scopes = ["search"]
    page.reload()
    expect(page.locator("#tags-new")).to_be_hidden()
    expect(page.locator("#add")).to_be_hidden()
    gateway.scopes = ["admin"]
    page.reload()
    expect(page.get_by_role("button", name="Delete picture")).to_be_visible()
    expect(page.locator("#tags-new")).to_be_visible()
