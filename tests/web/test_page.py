"""The page as people use it: in Chromium, over HTTP, against answers that never change."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.steps import search


def test_back_brings_the_query_back(page: Page, url: str) -> None:
    page.goto(url)
    search(page, "red circle")
    expect(page.locator("#title")).to_have_text("“red circle”")
    search(page, "blue square")
    expect(page.locator("#title")).to_have_text("“blue square”")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    page.locator("#grid button.tile").first.click()
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#title")).to_have_text("“blue square”")
    page.go_back()
    expect(page.locator("#title")).to_have_text("“red circle”")
    expect(page.locator("#q")).to_have_value("red circle")
    page.reload()
    expect(page.locator("#grid button.tile").first).to_have_accessible_name(re.compile("red circle in"))


def test_filters_page_and_threshold(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.page_size = 3
    page.goto(f"{url}/?q=red+circle&group=0")
    expect(page.locator("#grid button.tile")).to_have_count(3)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#grid button.tile")).to_have_count(8)
    page.get_by_role("button", name=re.compile("Filters")).click()
    slider = page.get_by_role("slider", name="Minimum score")
    slider.fill("0.3")
    slider.dispatch_event("change")
    expect(page.locator("#grid button.tile")).to_have_count(1)
    expect(page).to_have_url(re.compile("min=0.3"))
    page.get_by_label("Exclude", exact=True).fill("shadow, poster")
    with page.expect_response("**/search"):
        page.keyboard.press("Enter")
    expect(page.locator("#grid button.tile")).to_have_count(1)
    body = gateway.requests[-1][1]
    assert body["negatives"] == ["shadow", "poster"]
    assert body["min_score"] == 0.3
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#grid button.tile")).to_have_count(3)


def test_several_phrases_have_their_own_colours(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle,+blue+square&group=0")
    expect(page.locator("#grid b.hue-0").first).to_have_text("red circle")
    expect(page.locator("#grid b.hue-1").first).to_have_text("blue square")
    assert gateway.requests[-1][1]["query"]["texts"] == ["red circle", "blue square"]


def test_search_inside_an_image(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.get_by_label("Search inside this picture").fill("blue square")
    page.keyboard.press("Enter")
    expect(page.locator("#regions .region").first).to_have_accessible_name("blue square 0.34, 1 of 2")
    expect(page.locator("#stage-overlay path.line")).to_have_count(1)
    page.locator("#regions .region").first.click()
    expect(page.locator("#selection")).to_contain_text("blue square")


def test_closing_what_a_link_has_opened_stays_on_the_page(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle&view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.get_by_role("button", name="Next picture").click()
    expect(page.locator("#viewer-name")).not_to_have_text("table.png")
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#title")).to_have_text("“red circle”")


def test_a_region_can_be_excluded_as_unlike(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    page.get_by_role("button", name="Less like this").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid button.tile").first).not_to_have_accessible_name(re.compile("score 0.34"))
    table = gateway.id_of("table.png")
    assert gateway.requests[-1][1]["negatives"] == [{"region_id": f"{table}-r000"}]
    page.get_by_role("button", name=re.compile("Filters")).click()
    page.get_by_role("button", name="Allow thing 1 again").click()
    expect(page.locator("#grid button.tile").first).to_have_accessible_name(re.compile("score 0.34"))
    page.go_back()
    expect(page.locator("#unlike")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page).to_have_url(f"{url}/?q=red+circle")


def test_starting_and_failing_are_said(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.ready = False
    gateway.detail = "127.0.0.1:50301 does not answer: connection refused"
    page.goto(url)
    expect(page.locator("#notice li").first).to_have_text("segmenterstarting")
    gateway.detail = "loading the model"
    expect(page.locator("#notice")).to_contain_text("loading the model")
    gateway.ready = True
    expect(page.locator("#grid button.tile")).to_have_count(4)
    gateway.failure = (
        409,
        {"title": "Vectors of different models", "detail": "Another model.", "request_id": "r1"},
    )
    search(page, "red circle")
    expect(page.locator("#notice")).to_contain_text("Vectors of different models")
    expect(page.locator("#notice")).to_contain_text("Request r1")
    gateway.failure = None
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#grid button.tile").first).to_be_visible()
    gateway.scenes.clear()
    page.goto(url)
    expect(page.locator("#empty")).to_contain_text("Find anything in any picture")
    page.goto(f"{url}/?q=anything")
    expect(page.locator("#empty")).to_contain_text("Nothing found")


def test_a_key_is_asked_for_and_sent_with_images_too(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.key = "open sesame"
    page.goto(url)
    page.get_by_role("textbox", name="API key").fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    for image in page.locator("#grid img").all():
        expect(image).not_to_have_js_property("naturalWidth", 0)
