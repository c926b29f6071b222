"""One picture, large: what is selected, where the focus goes, what lies where."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.scenes import Scene
from tests.web.steps import tile


def test_the_find_that_was_chosen_is_selected(page: Page, url: str) -> None:
    page.goto(f"{url}/?q=red+circle,+blue+square&group=0")
    page.get_by_role("button", name=re.compile("blue square in table.png, score 0.34")).click()
    expect(page.locator(".selected-name")).to_contain_text("blue square")
    expect(page.locator(".region[aria-pressed=true]")).to_have_accessible_name(re.compile("Thing 2"))


def test_closing_twice_goes_back_once(page: Page, url: str) -> None:
    page.goto(url)
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    page.evaluate(
        "document.getElementById('viewer-close').click(), document.getElementById('viewer-close').click()"
    )
    expect(page.locator("#viewer")).to_be_hidden()
    page.wait_for_timeout(300)
    assert page.url == f"{url}/?q=red+circle"
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()


def test_back_takes_the_question_of_deleting_along(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(url)
    page.locator("#grid button.tile").first.click()
    page.get_by_role("button", name="Delete picture").click()
    expect(page.locator("#confirm")).to_be_visible()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#confirm")).to_be_hidden()
    assert len(gateway.scenes) == 4


def test_turning_pages_keeps_the_button(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(url)
    page.locator("#grid button.tile").first.click()
    name = page.locator("#viewer-name")
    onward = page.get_by_role("button", name="Next picture")
    onward.focus()
    seen = []
    for _ in range(3):
        seen.append(name.inner_text())
        page.keyboard.press("Enter")
        expect(name).not_to_have_text(seen[-1])
        expect(page.locator("#stage-message")).to_be_hidden()
    assert [one for one, _ in gateway.requests] == [], "Enter has not pointed at anything"
    expect(onward).to_be_disabled()
    expect(page.locator("#stage")).to_be_focused()
    page.keyboard.press("PageUp")
    expect(name).to_have_text(seen[-1])


def test_words_are_added_to_an_example(page: Page, url: str, gateway: FakeGateway) -> None:
    region = f"{gateway.id_of('table.png')}-r000"
    page.goto(f"{url}/?like={region}")
    expect(page.locator("#grid button.tile")).not_to_have_count(0)
    page.get_by_placeholder("Add words…").fill("red circle")
    with page.expect_response("**/search"):
        page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("“red circle” and this thing")
    assert gateway.requests[-1][1]["query"] == {"text": "red circle", "region_id": region}
    page.locator("#q").fill("")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Like this thing")


def test_undo_takes_the_last_back(page: Page, url: str) -> None:
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    stage = page.locator("#stage")
    for key in ("+", "b", "Shift+ArrowRight", "Shift+ArrowDown", "b"):
        stage.press(key)
    expect(page.locator("#stage-overlay rect.box")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#stage-overlay rect.box")).to_have_count(0)
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)


def test_a_second_finger_draws_nothing(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    bounds = page.locator("#stage").bounding_box()
    assert bounds
    x, y = bounds["x"] + bounds["width"] / 2, bounds["y"] + bounds["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", (x - 40, y))
    touch("touchStart", (x - 40, y), (x + 40, y))
    for step in (20, 40, 60):
        touch("touchMove", (x - 40 - step, y - step), (x + 40 + step, y + step))
    touch("touchEnd")
    page.wait_for_timeout(200)
    expect(page.locator("#stage-overlay rect.box")).to_have_count(0)
    assert [name for name, _ in gateway.requests] == ["search"]
    touch("touchStart", (x, y))
    touch("touchEnd")
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)


def test_a_click_asks_for_what_a_search_for_it_finds(page: Page, url: str, gateway: FakeGateway) -> None:
    """The gateway searches for the best mask of an ambiguous click: the page shows the same one."""
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    stage = page.locator("#stage")
    with page.expect_response("**/v1/segment"):
        stage.press("+")
    assert gateway.requests[-1][1]["multimask"] is True
    stage.press("ArrowLeft")
    with page.expect_response("**/v1/segment"):
        stage.press("-")
    assert gateway.requests[-1][1]["multimask"] is False


def test_another_mask_of_an_ambiguous_click_is_chosen(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.ambiguous = True
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    page.locator("#stage").press("+")
    choice = page.get_by_role("radiogroup", name="Which of these is meant")
    smaller, larger = choice.get_by_role("radio", name="Smaller"), choice.get_by_role("radio", name="Larger")
    expect(smaller).to_be_checked()
    smaller.focus()
    with page.expect_response("**/v1/segment"):
        page.keyboard.press("ArrowRight")
    expect(larger).to_be_checked()
    expect(larger).to_be_focused()
    asked = gateway.requests[-1][1]
    assert len(asked["points"]) == 1 and asked["box"]
    page.get_by_role("button", name="Undo").click()
    expect(smaller).to_be_checked()
    with page.expect_response("**/v1/segment"):
        larger.check(force=True)
    with page.expect_response("**/search"):
        page.locator("#more-like-this").click()
    query = gateway.requests[-1][1]["query"]
    assert (query["points"], query["box"]) == (asked["points"], asked["box"])  # what is outlined


def test_a_mask_without_pixels_is_nothing(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    box = {"x_min": 0, "y_min": 0, "x_max": 0, "y_max": 0}
    nothing = {"box": box, "area": 0, "mask": {"size": [320, 480], "counts": "PP\\4"}}
    page.route("**/v1/segment", lambda route: route.fulfill(json={"results": [{"candidates": [nothing]}]}))
    page.locator("#stage").press("+")
    expect(page.locator("#selection")).to_contain_text("Nothing stands out there")


@pytest.mark.parametrize("turned", [3, 6])
def test_an_image_that_the_browser_would_render_differently(
    page: Page, url: str, gateway: FakeGateway, turned: int
) -> None:
    """A WebP that EXIF turns: browsers do not, the masks do."""
    original = gateway.scenes.pop(gateway.id_of("table.png"))
    exif = Image.Exif()
    exif[0x0112] = turned
    with Image.open(io.BytesIO(original.data)) as image:
        back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[turned]
        out = io.BytesIO()
        image.transpose(back).save(out, "WEBP", lossless=True, exif=exif)
    gateway.put(Scene("turned.webp", out.getvalue(), original.width, original.height, original.things))
    page.goto(f"{url}/?q=red+circle")
    tile(page, "turned.webp").click()
    expect(page.locator("#regions .region")).to_have_count(2)
    page.locator("#regions .region").first.click()
    with page.expect_download() as crop:
        page.get_by_role("button", name="Crop").click()
    with Image.open(crop.value.path()) as cut:
        red, green, blue, alpha = cut.getpixel((cut.width // 2, cut.height // 2))  # type: ignore[misc]
    assert alpha == 255 and red > 180 and green < 90 and blue < 90


def test_deleting_keeps_the_place(page: Page, url: str) -> None:
    page.goto(url)
    tiles = page.locator("#grid button.tile")
    expect(tiles).to_have_count(4)
    after = tiles.nth(2).get_attribute("aria-label") or ""
    tiles.nth(1).click()
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(tiles).to_have_count(3)
    expect(tiles.nth(1)).to_be_focused()
    expect(tiles.nth(1)).to_have_accessible_name(after)


def test_an_image_deleted_in_another_tab(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(url)
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#viewer-delete")).to_be_enabled()
    gone = {"status": 404, "json": {"title": "Not found", "detail": "There is no such image."}}
    page.route("**/images/*", lambda route: route.fulfill(**gone))
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#grid button.tile")).to_have_count(3)


def test_leaving_the_filters_leaves_the_focus_on_the_page(page: Page, url: str) -> None:
    page.goto(f"{url}/?q=red+circle")
    button = page.get_by_role("button", name=re.compile("Filters"))
    button.click()
    page.get_by_label("One result per picture").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#filters")).to_be_hidden()
    expect(button).to_be_focused()


def test_the_best_region_of_a_whole_image_has_its_own_score(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    def whole(route: object) -> None:
        answer = route.fetch()  # type: ignore[attr-defined]
        found = answer.json()
        for hit in found["hits"]:
            hit["best_region"] = dict(hit, score=0.21)
            hit |= {"level": "image", "region_id": None}
        route.fulfill(json=found)  # type: ignore[attr-defined]

    page.route("**/search", whole)
    page.goto(f"{url}/?q=red+circle&level=both")
    page.locator("#grid button.tile").first.click()
    expect(page.locator(".selected-name")).to_contain_text("score 0.21")
