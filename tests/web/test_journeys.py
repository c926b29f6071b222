"""The whole way through the page, by mouse and by keyboard, and where outlines lie, in pixels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.conftest import PATIENCE_MS
from tests.web.fake_gateway import FakeGateway
from tests.web.pixels import MARK, expected_box, marked_box, screenshot
from tests.web.steps import picture_file, search, tile

LINE_PX = 4  # half of the line, its smoothing, and a pixel of rounding


def test_the_whole_way_by_mouse(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"just some words")
    page.locator("#files").set_input_files([picture_file(tmp_path), broken])
    rows = page.locator("#uploads-list li")
    expect(rows.nth(1).locator(".status")).to_have_text("2 things found")
    expect(rows.nth(0).locator(".status")).to_have_text("Not a picture, or the file is damaged")
    expect(page.locator("#uploads-title")).to_have_text("1 picture added, 1 failed")
    page.get_by_role("button", name="Close the list of uploads").click()
    expect(page.locator("#grid button.tile")).to_have_count(5)

    search(page, "red circle")
    expect(page.locator("#title")).to_have_text("“red circle”")
    first = page.locator("#grid button.tile").first
    expect(first).to_have_accessible_name("red circle in table.png, score 0.34")
    first.click()
    stage = page.locator("#stage")
    expect(page.locator("#regions .region")).to_have_count(2)
    square = gateway.scenes[gateway.id_of("table.png")].things[1]
    x, y, *_ = expected_box(stage, (480, 320), (int(square.centre[0]), int(square.centre[1]), 480, 320))
    page.mouse.move(0, 0)
    stage.hover(position={"x": x, "y": y})
    expect(page.locator("#stage-overlay path.hover.line")).to_have_count(1)
    stage.click(position={"x": x, "y": y})
    expect(page.locator(".selected-name")).to_contain_text("11 % of the picture")
    name, asked = gateway.requests[-1]
    assert name == "segment"
    assert asked["points"][0]["label"] == 1
    assert abs(asked["points"][0]["x"] - square.centre[0]) < 2
    page.get_by_role("button", name="More like this", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid button.tile").first).to_have_accessible_name("Found in table.png, score 0.34")
    assert gateway.requests[-1][1]["query"]["points"]

    page.get_by_role("link", name="Region Search, all pictures").click()
    tile(page, "new.png").click()
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid button.tile")).to_have_count(4)
    assert len(gateway.scenes) == 4


def test_the_whole_way_by_keyboard(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    page.on("filechooser", lambda chooser: None)  # from here on the browser hands the dialog to the test
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    add = page.get_by_role("button", name="Add pictures")
    add.focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(picture_file(tmp_path))
    expect(page.locator("#uploads-title")).to_have_text("1 picture added")
    page.keyboard.press("/")
    page.keyboard.type("green square")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("“green square”")
    expect(page.locator("#grid button.tile svg path.line").first).to_be_attached()
    page.locator("#grid button.tile").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#grid button.tile").nth(1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).to_be_focused()
    expect(page.locator("#regions .region")).to_have_count(2)
    page.keyboard.press("]")
    expect(page.locator(".region[aria-pressed=true]")).to_have_count(1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("-")
    expect(page.locator("#stage-overlay .dot")).to_have_count(2)
    page.keyboard.press("Backspace")
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)
    page.keyboard.press("b")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("b")
    expect(page.locator("#stage-overlay rect.box")).to_have_count(1)
    expect(page.get_by_role("button", name="More like this", exact=True)).to_be_enabled()
    with page.expect_response("**/search"):
        page.keyboard.press("m")
    expect(page.locator("#title")).to_have_text("Like this thing")
    expect(page.locator("#grid button.tile").first).to_have_accessible_name(re.compile("Found in"))
    assert gateway.requests[-1][1]["query"]["box"]["x_max"] > gateway.requests[-1][1]["query"]["box"]["x_min"]
    page.locator("#grid button.tile").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.keyboard.press("Delete")
    expect(page.locator("#confirm")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_hidden()
    assert len(gateway.scenes) == 4


@pytest.mark.parametrize(
    ("name", "phrase", "thing"),
    [
        ("table.png", "red circle", 0),
        ("tall.png", "red square", 1),
        ("phone.jpg", "orange circle", 0),
        ("wide.png", "green square", 0),
    ],
    ids=["landscape", "portrait", "turned by EXIF", "panorama"],
)
@pytest.mark.parametrize("width", [1280, 390])
def test_the_outline_is_where_the_thing_is(
    page: Page, url: str, gateway: FakeGateway, name: str, phrase: str, thing: int, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 820})
    page.goto(f"{url}/?q={phrase}")
    found = tile(page, name).first
    expect(found.locator("img.settled + svg path.line")).to_be_attached()
    picture = gateway.scenes[gateway.id_of(name)]
    size, box = (picture.width, picture.height), picture.things[thing].box
    colour = screenshot(found)
    left, top, right, bottom = (round(v) for v in expected_box(found, size, box))
    np.testing.assert_allclose(marked_box(found), (left, top, right, bottom), atol=LINE_PX)
    middle = colour[(top + bottom) // 2, (left + right) // 2]
    thing_colour = {"red": 0, "orange": 0, "green": 1}[phrase.split()[0]]
    assert middle.argmax() == thing_colour, "the thing itself lies inside of its outline"

    found.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    stage = page.locator("#stage")
    page.mouse.move(1, 1)
    np.testing.assert_allclose(marked_box(stage), expected_box(stage, size, box), atol=LINE_PX)


def test_dark_mode_keeps_the_mark(browser: Browser, url: str) -> None:
    context = browser.new_context(color_scheme="dark", reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{url}/?q=red+circle")
    found = page.locator("#grid button.tile").first
    expect(found.locator("img.settled + svg path.line")).to_be_attached()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(v) for v in re.findall(r"\d+", background)) < 40
    assert np.abs(screenshot(found) - MARK).max(axis=2).min() < 40
    context.close()
