"""The page as people use it: in Chromium, over HTTP, against answers that never change."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.pixels import MARK, expected_box, marked_box, screenshot
from tests.web.scenes import scene

pytestmark = pytest.mark.browser
LINE_PX = 4  # half of the line, its smoothing, and a pixel of rounding


def search(page: Page, text: str) -> None:
    page.get_by_role("searchbox", name="What are you looking for?").fill(text)
    page.keyboard.press("Enter")


def tile(page: Page, name: str) -> Locator:
    return page.locator("#grid .tile", has=page.locator("img")).and_(
        page.get_by_role("button", name=re.compile(name))
    )


def picture_file(tmp_path: Path, name: str = "new.png") -> Path:
    path = tmp_path / name
    path.write_bytes(
        scene(
            name,
            520,
            340,
            [("red", "circle", (100, 60, 260, 220)), ("green", "square", (330, 120, 450, 260))],
        ).data
    )
    return path


def test_the_whole_way_by_mouse(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"just some words")
    page.locator("#files").set_input_files([picture_file(tmp_path), broken])
    rows = page.locator("#uploads-list li")
    expect(rows.nth(0).locator(".status")).to_have_text("2 things found")
    expect(rows.nth(1).locator(".status")).to_have_text("files[0] is no picture.")
    expect(page.locator("#uploads-title")).to_have_text("1 picture added, 1 failed")
    page.get_by_role("button", name="Close the list of uploads").click()
    expect(page.locator("#grid .tile")).to_have_count(5)

    search(page, "red circle")
    expect(page.locator("#title")).to_have_text("“red circle”")
    first = page.locator("#grid .tile").first
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
    expect(page.locator("#grid .tile").first).to_have_accessible_name("Found in table.png, score 0.34")
    assert gateway.requests[-1][1]["query"]["points"]

    page.get_by_role("link", name="Region Search, all pictures").click()
    tile(page, "new.png").click()
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid .tile")).to_have_count(4)
    assert len(gateway.scenes) == 4


def test_the_whole_way_by_keyboard(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    page.on("filechooser", lambda chooser: None)  # from here on the browser hands the dialog to the test
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
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
    expect(page.locator("#grid .tile svg path.line").first).to_be_attached()
    page.locator("#grid .tile").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#grid .tile").nth(1)).to_be_focused()
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
    page.keyboard.press("m")
    expect(page.locator("#title")).to_have_text("More like this")
    assert gateway.requests[-1][1]["query"]["box"]["x_max"] > gateway.requests[-1][1]["query"]["box"]["x_min"]
    page.locator("#grid .tile").first.focus()
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


def test_back_brings_the_query_back(page: Page, url: str) -> None:
    page.goto(url)
    search(page, "red circle")
    expect(page.locator("#title")).to_have_text("“red circle”")
    search(page, "blue square")
    expect(page.locator("#title")).to_have_text("“blue square”")
    page.locator("#grid .tile").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    page.locator("#grid .tile").first.click()
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#title")).to_have_text("“blue square”")
    page.go_back()
    expect(page.locator("#title")).to_have_text("“red circle”")
    expect(page.locator("#q")).to_have_value("red circle")
    page.reload()
    expect(page.locator("#grid .tile").first).to_have_accessible_name(re.compile("red circle in"))


def test_filters_page_and_threshold(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.page_size = 3
    page.goto(f"{url}/?q=red+circle&group=0")
    expect(page.locator("#grid .tile")).to_have_count(3)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#grid .tile")).to_have_count(6)
    page.get_by_role("button", name=re.compile("Filters")).click()
    slider = page.get_by_role("slider", name="Lowest score")
    slider.fill("0.3")
    slider.dispatch_event("change")
    expect(page.locator("#grid .tile")).to_have_count(1)
    assert "min=0.3" in page.url
    page.get_by_label("Not meant").fill("shadow, poster")
    page.keyboard.press("Enter")
    expect(page.locator("#grid .tile")).to_have_count(1)
    body = gateway.requests[-1][1]
    assert body["negatives"] == ["shadow", "poster"]
    assert body["min_score"] == 0.3
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#grid .tile")).to_have_count(3)


def test_several_phrases_have_their_own_colours(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle,+blue+square&group=0")
    expect(page.locator("#grid b.hue-0").first).to_have_text("red circle")
    expect(page.locator("#grid b.hue-1").first).to_have_text("blue square")
    assert gateway.requests[-1][1]["query"]["texts"] == ["red circle", "blue square"]


def test_search_inside_a_picture(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?view={gateway.id_of('table.png')}")
    page.get_by_label("Search inside this picture").fill("blue square")
    page.keyboard.press("Enter")
    expect(page.locator("#regions .region").first).to_have_accessible_name("blue square, score 0.34, 1 of 2")
    expect(page.locator("#stage-overlay path.line")).to_have_count(1)
    page.locator("#regions .region").first.click()
    expect(page.locator("#selection")).to_contain_text("blue square")


def test_a_dropped_picture_is_searched_with(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    page.goto(url)
    page.locator("#picture").set_input_files(picture_file(tmp_path))
    expect(page.locator("#example")).to_contain_text("Point at a thing")
    expect(page.locator("#grid .tile").first).to_have_accessible_name("Found in table.png, score 0.34")
    page.reload()  # the tab keeps it
    expect(page.locator("#grid .tile").first).to_have_accessible_name("Found in table.png, score 0.34")
    page.get_by_role("button", name="Remove the example (Your picture)").click()
    expect(page.locator("#title")).to_have_text("Your pictures")


def test_closing_what_a_link_has_opened_stays_on_the_page(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle&view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.get_by_role("button", name="Next picture").click()
    expect(page.locator("#viewer-name")).not_to_have_text("table.png")
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#title")).to_have_text("“red circle”")


def test_pointing_at_a_thing_in_the_picture_to_search_with(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    page.goto(url)
    page.locator("#picture").set_input_files(picture_file(tmp_path))
    page.get_by_role("button", name="Point at a thing").click()
    stage = page.locator("#stage")
    expect(stage).to_have_accessible_name("Your picture, 520 by 340 pixels")
    x, y, *_ = expected_box(stage, (520, 340), (390, 190, 390, 190))
    stage.click(position={"x": x, "y": y})
    expect(page.locator("#stage-overlay path.line")).to_have_count(1)
    page.get_by_role("button", name="Search for this").click()
    expect(page.locator("#title")).to_have_text("Like the thing in your picture")
    expect(page.locator("#grid .tile").first).to_have_accessible_name("Found in wide.png, score 0.34")
    query = gateway.requests[-1][1]["query"]
    assert query["image"]
    assert abs(query["points"][0]["x"] - 390) < 2 and abs(query["points"][0]["y"] - 190) < 2
    page.get_by_role("button", name="Thing in your picture", exact=True).click()
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)
    expect(page.get_by_role("button", name="Delete picture")).to_be_hidden()


def test_less_like_this(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid .tile").first.click()
    page.get_by_role("button", name="Less like this").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid .tile").first).not_to_have_accessible_name(re.compile("score 0.34"))
    table = gateway.id_of("table.png")
    assert gateway.requests[-1][1]["negatives"] == [{"region_id": f"{table}-r000"}]
    page.get_by_role("button", name=re.compile("Filters")).click()
    page.get_by_role("button", name="Allow thing 1 again").click()
    expect(page.locator("#grid .tile").first).to_have_accessible_name(re.compile("score 0.34"))
    page.go_back()
    expect(page.locator("#unlike")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.url == f"{url}/?q=red+circle"


def drag(page: Page, paths: list[Path], x: float, y: float) -> None:
    """Drags files or folders from the desktop to a place of the page and lets go, as the system does."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        if kind == "dragEnter":
            expect(page.locator("#drop")).to_be_visible()


def test_a_folder_is_dropped_to_be_added(page: Page, url: str, tmp_path: Path) -> None:
    deep = tmp_path / "holiday" / "day two"
    deep.mkdir(parents=True)
    picture_file(tmp_path / "holiday", "first.png")
    (deep / "second.png").write_bytes(scene("second.png", 300, 200, [("red", "circle", (9, 9, 90, 90))]).data)
    (deep / "notes.txt").write_text("no picture")
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
    drag(page, [tmp_path / "holiday"], 1000, 400)
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#uploads-title")).to_have_text("2 pictures added")
    assert sorted(page.locator("#uploads-list .name").all_inner_texts()) == ["first.png", "second.png"]
    expect(page.locator("#grid .tile")).to_have_count(6)


def test_a_file_is_dropped_to_search_with_it(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
    drag(page, [picture_file(tmp_path)], 300, 400)
    expect(page.locator("#title")).to_have_text("Like your picture")
    expect(page.locator("#grid .tile").first).to_have_accessible_name("Found in table.png, score 0.34")


def test_a_picture_is_pasted(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
    page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 40 });
          canvas.getContext("2d").fillRect(5, 5, 20, 20);
          const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }"""
    )
    page.locator("#q").focus()
    page.keyboard.press("ControlOrMeta+v")
    expect(page.locator("#title")).to_have_text("Like your picture")
    expect(page.locator("#grid .tile").first).to_have_accessible_name("Found in table.png, score 0.34")


def test_downloads(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle&view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.locator("#regions .region").first.click()
    with page.expect_download() as crop:
        page.get_by_role("button", name="Crop").click()
    path = crop.value.path()
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        assert abs(image.width - 141) <= 1 and abs(image.height - 141) <= 1
        assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
        assert image.getpixel((70, 70)) == (210, 52, 44, 255)
    with page.expect_download() as document:
        page.get_by_role("button", name="All as COCO").click()
    coco = json.loads(Path(document.value.path()).read_text())
    assert coco["annotations"][0]["bbox"] == [60, 80, 141, 141]
    assert coco["annotations"][0]["segmentation"]["size"] == [320, 480]


def test_starting_and_failing_are_said(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.ready = False
    page.goto(url)
    expect(page.locator("#notice")).to_contain_text("loading the model")
    gateway.ready = True
    expect(page.locator("#grid .tile")).to_have_count(4)
    gateway.failure = (
        409,
        {"title": "Vectors of different models", "detail": "Another model.", "request_id": "r1"},
    )
    search(page, "red circle")
    expect(page.locator("#notice")).to_contain_text("Vectors of different models")
    expect(page.locator("#notice")).to_contain_text("Request r1")
    gateway.failure = None
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#grid .tile").first).to_be_visible()
    gateway.scenes.clear()
    page.goto(url)
    expect(page.locator("#empty")).to_contain_text("Find any object in any picture")
    page.goto(f"{url}/?q=anything")
    expect(page.locator("#empty")).to_contain_text("Nothing found")


def test_file_names_are_text(page: Page, url: str, gateway: FakeGateway) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    gateway.put(scene(name, 200, 200, [("red", "circle", (20, 20, 90, 90))]))
    page.goto(url)
    expect(page.locator("#grid .caption .name").first).to_have_text(name)
    expect(page.locator("#grid img[src=x]")).to_have_count(0)


def test_dark_mode_keeps_the_mark(browser: Browser, url: str) -> None:
    context = browser.new_context(color_scheme="dark", reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{url}/?q=red+circle")
    found = page.locator("#grid .tile").first
    expect(found.locator("img.settled + svg path.line")).to_be_attached()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(v) for v in re.findall(r"\d+", background)) < 40
    assert np.abs(screenshot(found) - MARK).max(axis=2).min() < 40
    context.close()


def test_a_key_is_asked_for_and_sent_with_pictures_too(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.key = "open sesame"
    page.goto(url)
    page.get_by_role("textbox", name="API key").fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#grid .tile")).to_have_count(4)
    for image in page.locator("#grid img").all():
        expect(image).not_to_have_js_property("naturalWidth", 0)


def test_an_upload_can_be_cancelled_and_repeated(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    page.goto(url)
    expect(page.locator("#grid .tile")).to_have_count(4)
    page.route("**/v1/collections/default/images", lambda route: None)  # never answered
    page.locator("#files").set_input_files(picture_file(tmp_path))
    page.get_by_role("button", name="Cancel new.png").click()
    expect(page.locator("#uploads-list .status")).to_have_text("Cancelled")
    page.unroute("**/v1/collections/default/images")
    page.get_by_role("button", name="Try new.png again").click()
    expect(page.locator("#uploads-list .status")).to_have_text("2 things found")
