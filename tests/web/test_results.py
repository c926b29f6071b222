"""What a search compares, what it outlines, and what it does not claim to have found."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.waiting import wait_for
from tests.web.fake_gateway import FakeGateway
from tests.web.pixels import expected_box
from tests.web.scenes import scene
from tests.web.steps import tile


def test_an_image_query_compares_whole_images_until_something_is_selected(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    page.goto(url)
    like = page.get_by_role("button", name="More like this: tall.png")
    like.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Like this picture")
    first = page.locator("#grid button.tile").first
    expect(first).to_have_accessible_name("tall.png, score 1.00")
    expect(first).to_be_focused()
    expect(page.locator("#example")).to_have_text("This picture")
    assert gateway.requests[-1][1]["level"] is None  # the server's rule

    first.press("Enter")
    expect(page.locator("#regions .region")).to_have_count(2)
    stage = page.locator("#stage")
    x, y, *_ = expected_box(stage, (300, 620), (150, 440, 300, 620))
    stage.click(position={"x": x, "y": y})
    expect(page.locator(".selected-name")).to_contain_text("of the picture")
    expect(page.locator("#stage-overlay path.hover")).to_have_count(0)
    page.keyboard.press("m")
    expect(page.locator("#title")).to_have_text("Like this thing")
    expect(page.locator("#grid button.tile").first).to_be_focused()
    expect(page.locator("#example img")).to_have_attribute("src", re.compile("^data:image/png"))

    page.go_back()  # what was pointed at comes back too
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)
    expect(page.locator("#more-like-this")).to_be_enabled()
    page.keyboard.press("Control+z")
    expect(page.locator("#stage-overlay .dot")).to_have_count(0)
    page.keyboard.press("Control+y")
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)


def test_each_phrase_is_outlined_in_every_image(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.cut_off = 0.3
    page.goto(f"{url}/?q=red+circle,+blue+square")
    both = tile(page, "table.png")
    expect(both).to_have_accessible_name("red circle and blue square in table.png, score 0.34")
    expect(both.locator("svg path.line.hue-0")).to_have_count(1)
    expect(both.locator("svg path.line.hue-1")).to_have_count(1)
    page.get_by_role("button", name=re.compile("weaker matches")).click()
    expect(tile(page, "wide.png").locator("svg path.line")).to_have_count(1)
    page.get_by_role("button", name=re.compile("Filters")).click()
    page.get_by_label("Only pictures with all of these").check()
    expect(page.locator("#grid button.tile")).to_have_count(1)
    expect(both).to_be_visible()


def test_weaker_matches_wait_to_be_asked_for(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.cut_off = 0.3
    page.goto(f"{url}/?q=red+circle")
    expect(page.locator("#grid button.tile")).to_have_count(1)
    page.get_by_role("button", name="3 weaker matches · show").click()
    expect(page.locator("#grid button.tile")).to_have_count(4)
    expect(page.locator("#grid .kind")).to_have_text(["weak"] * 3)
    expect(page.locator("#grid button.tile").nth(1)).to_be_focused()
    expect(page.locator("#weaker")).to_be_hidden()


def test_there_may_be_no_confident_match(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.cut_off = 0.3
    page.goto(f"{url}/?q=submarine")
    expect(page.locator("#empty h2")).to_have_text("No confident match for “submarine”")
    expect(page.locator("#grid button.tile")).to_have_count(0)
    page.get_by_role("button", name=re.compile("weaker matches")).click()
    expect(page.locator("#grid button.tile")).to_have_count(4)
    expect(page.locator("#empty")).to_be_hidden()


def test_a_model_without_cut_offs_shows_all_and_says_so(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=submarine")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    expect(page.locator("#subtitle")).to_contain_text("ranked by similarity")


def test_searching_inside_can_find_nothing(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.cut_off = 0.3
    page.goto(f"{url}/?view={gateway.id_of('wide.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.get_by_label("Search inside this picture").fill("red circle")
    page.keyboard.press("Enter")
    expect(page.locator("#regions-title")).to_have_text("Nothing found like “red circle”")
    expect(page.locator("#stage-overlay path.line")).to_have_count(0)
    expect(page.locator("#regions .region").first).to_have_accessible_name(re.compile("^Thing "))


def test_a_link_to_a_deleted_image(page: Page, url: str) -> None:
    page.goto(f"{url}/?view=deadbeef")
    expect(page.locator("#stage-message")).to_contain_text("not in the collection")
    expect(page.locator("#stage-image")).to_be_hidden()
    expect(page.get_by_role("toolbar", name="Pointing")).to_be_hidden()
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#grid button.tile")).to_have_count(4)


def test_the_slider_by_keyboard_is_one_search_and_one_step_back(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    page.goto(f"{url}/?q=red+circle")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    page.get_by_role("button", name=re.compile("Filters")).click()
    page.get_by_role("slider", name="Minimum score").focus()
    steps, asked = page.evaluate("history.length"), len(gateway.requests)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("min=0.1$"))
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("min=0.11"))
    assert page.evaluate("history.length") == steps + 1
    assert len(gateway.requests) <= asked + 4


def test_an_image_that_only_the_server_can_decode(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    photo = tmp_path / "IMG_1.HEIC"
    photo.write_bytes(b"a picture of a phone")
    page.goto(url)
    page.locator("#picture").set_input_files(photo)
    expect(page.locator("#title")).to_have_text("Like your picture")
    expect(page.locator("#grid button.tile").first).to_be_visible()
    page.get_by_role("button", name="Point at a thing").click()
    expect(page.locator("#stage-message")).to_contain_text("This browser cannot show this kind of picture")


def test_back_and_reload_return_to_where_the_grid_was(page: Page, url: str, gateway: FakeGateway) -> None:
    for n in range(46):
        gateway.put(scene(f"{n}.png", 400, 300, [("red", "circle", (9 + n, 9, 90 + n, 90))]))
    gateway.images_page = 10
    page.goto(url)
    tiles = page.locator("#grid button.tile")
    expect(tiles).to_have_count(10)
    page.get_by_role("button", name="Show more").click()
    expect(tiles.nth(19)).to_be_attached()
    for last in (19, 29, 39):  # further pages come by themselves
        tiles.nth(last).scroll_into_view_if_needed()
        expect(tiles.nth(last + 10)).to_be_attached()
    tiles.nth(30).scroll_into_view_if_needed()
    page.locator("#q").fill("red circle")
    y = page.evaluate("scrollY")
    assert y > 500
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("“red circle”")
    page.go_back()
    expect(tiles).to_have_count(50)
    page.wait_for_timeout(400)
    assert abs(page.evaluate("scrollY") - y) < 3
    page.reload()
    expect(tiles).to_have_count(50)
    page.wait_for_timeout(400)
    assert abs(page.evaluate("scrollY") - y) < 3


def test_both_levels_say_which_a_result_is(page: Page, url: str) -> None:
    page.goto(f"{url}/?q=red+circle&level=both")
    expect(page.locator("#grid .kind").first).to_have_text("thing")


def test_pictures_are_ordered_by_the_day_on_which_they_were_taken(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    """In the open picture it is corrected, its offset from UTC stays; an emptied field takes a fact away."""
    first, second, *_ = gateway.scenes
    gateway.attributes[first] = {"taken_at": "2024-05-01T23:30:00-08:00", "camera": "X", "place": "59.9,10.7"}
    gateway.attributes[second] = {"taken_at": "2023-12-24T18:00:00"}
    page.goto(url)
    page.get_by_label("Order").select_option("Newest taken")
    names = page.locator("#grid .caption .name")
    expect(names.nth(0)).to_have_text(gateway.scenes[first].name)
    expect(page.locator("#grid .caption .score").nth(0)).to_have_text("May 1, 2024")
    expect(names.nth(1)).to_have_text(gateway.scenes[second].name)
    assert "sort=newest" in page.url
    page.locator("#grid button.tile").first.click()
    taken, camera = page.get_by_label("Taken", exact=True), page.get_by_label("Camera")
    expect(taken).to_have_value("2024-05-01T23:30")
    expect(page.get_by_role("link", name="Show the place")).to_be_visible()
    taken.fill("2022-02-03T04:05:06")
    camera.fill("")
    page.keyboard.press("Enter")
    expect(camera).to_have_value("")
    page.get_by_role("button", name="Next picture").click()
    expect(taken).to_have_value("2023-12-24T18:00")
    page.get_by_role("button", name="Previous picture").click()
    expect(taken).to_have_value("2022-02-03T04:05:06")
    assert gateway.attributes[first] == {"taken_at": "2022-02-03T04:05:06-08:00", "place": "59.9,10.7"}
    page.goto(f"{url}/?q=circle&since=2024-01-01&until=2024-12-31")
    expect(page.locator("#filter-count")).to_have_text("1")
    wait_for(lambda: gateway.requests[-1][0] == "search")
    (condition,) = gateway.requests[-1][1]["filter"]["conditions"]
    assert condition["time"] == {"gte": "2024-01-01T00:00:00Z", "lte": "2024-12-31T23:59:59.999Z"}


def test_the_list_has_filters_and_months(page: Page, url: str, gateway: FakeGateway) -> None:
    """In the order of days pictures stand below their months; tags and days narrow the list."""
    first, second, third, *_ = gateway.scenes
    for identity, taken in (
        (first, "2024-05-01T23:30:00"),
        (second, "2024-05-30T10:00:00"),
        (third, "2023-12-24T18:00:00"),
    ):
        gateway.attributes[identity] = {"taken_at": taken}
        gateway.tags[identity] = ["holiday"]
    page.goto(f"{url}/?sort=newest")
    months = page.locator("#grid .month:visible")
    expect(months).to_have_text(["May 2024", "December 2023", "Without a date"])
    page.get_by_role("button", name=re.compile("Filters")).click()
    expect(page.get_by_label("Exclude", exact=True)).to_be_hidden()  # only a search has results to exclude
    page.locator("#filters [name=tags]").fill("holiday")
    page.keyboard.press("Enter")
    expect(page.locator("#grid button.tile")).to_have_count(3)
    expect(months).to_have_count(2)
    with page.expect_response("**/images?*"):
        page.get_by_label("Taken from").fill("2024-01-01")
    expect(page).to_have_url(re.compile("since=2024-01-01"))
    expect(page.locator("#filter-count")).to_have_text("2")
    (condition,) = gateway.requests[-1][1]["conditions"]
    assert condition == {"attribute": "taken_at", "time": {"gte": "2024-01-01T00:00:00Z"}}
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#grid button.tile")).to_have_count(len(gateway.scenes))
