"""The map of a collection: points, a lasso, the things that it chooses."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.steps import search


@pytest.fixture
def mapped(page: Page, url: str) -> Page:
    page.goto(url)
    page.get_by_role("button", name="Map", exact=True).click()
    expect(page.locator("#map-canvas")).to_have_attribute(
        "aria-label", re.compile("Map: .* things of 4 pictures")
    )
    return page


def box_of_map(page: Page) -> tuple[float, float, float, float]:
    bounds = page.locator("#map-canvas").bounding_box()
    assert bounds
    return bounds["x"], bounds["y"], bounds["width"], bounds["height"]


def test_a_lasso_chooses_things_that_are_alike(mapped: Page, gateway: FakeGateway) -> None:
    page = mapped
    expect(page.locator("#grid")).to_be_hidden()
    x, y, width, height = box_of_map(page)
    corners = [(0.02, 0.02), (0.5, 0.02), (0.5, 0.98), (0.02, 0.98)]
    page.mouse.move(x + 0.02 * width, y + 0.02 * height)
    page.mouse.down()
    for across, down in corners[1:]:
        page.mouse.move(x + across * width, y + down * height, steps=4)
    page.mouse.up()
    circles = sum("circle" in thing.name for one in gateway.scenes.values() for thing in one.things)
    expect(page.locator("#map-title")).to_have_text(f"{circles} things")
    expect(page.locator("#patches .patch")).to_have_count(circles)
    page.locator("#patches .patch").first.click()
    expect(page.locator("#selection")).to_contain_text(re.compile(r"Thing \d"))
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#map-canvas")).to_be_focused()
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#map-chosen")).to_be_hidden()


def test_a_point_shows_and_opens_its_picture(mapped: Page, gateway: FakeGateway) -> None:
    page = mapped
    x, y, width, height = box_of_map(page)
    one = next(iter(gateway.scenes.values()))
    left = 0.1 if "circle" in one.things[0].name else 0.8
    at = (x + 34 + left * (width - 68), y + 34 + 0.125 * (height - 68))
    page.mouse.move(*at)
    expect(page.locator("#map-hover")).to_be_visible()
    expect(page.locator("#map-hover")).to_contain_text(one.name)
    page.mouse.click(*at)
    expect(page.locator("#viewer-name")).to_have_text(one.name)
    expect(page.locator("#regions [aria-pressed=true]")).to_have_count(1)
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#map")).to_be_visible()
    page.reload()
    expect(page.locator("#map")).to_be_visible()
    search(page, "red circle")
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#grid button.tile").first).to_be_visible()


def test_the_map_by_keyboard_and_for_screen_readers(mapped: Page) -> None:
    page = mapped
    page.locator("#map-canvas").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#live")).to_contain_text("A thing in")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#map-hover")).to_be_visible()
    page.keyboard.press("Space")
    expect(page.locator("#patches .patch").first).to_be_visible()
    assert Axe().run(page).response["violations"] == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#map-canvas").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#map-chosen")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
