"""Answers that come late, and what the page keeps of them: nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.scenes import scene
from tests.web.steps import all_freed, hold, picture_file, search, watch_addresses


def point(page: Page, url: str, gateway: FakeGateway) -> Callable[..., None]:
    """Opens the first hit and points at it; the mask is still to come."""
    page.goto(f"{url}/?q=red+circle")
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#regions .region")).to_have_count(2)
    release = hold(page, "**/v1/segment", "POST")
    page.locator("#stage").press("+")
    expect(page.locator(".selected-name")).to_contain_text("outlining")
    return release


def test_a_late_mask_is_not_drawn_on_the_next_image(page: Page, url: str, gateway: FakeGateway) -> None:
    release = point(page, url, gateway)
    page.get_by_role("button", name="Next picture").click()
    expect(page.locator("#viewer-name")).not_to_have_text("table.png")
    expect(page.locator(".selected-name")).to_contain_text("red circle")
    release()
    expect(page.locator(".selected-name")).to_contain_text("red circle")
    expect(page.locator("#stage-overlay .dot")).to_have_count(0)


def test_a_mask_that_arrives_after_closing_is_dropped(page: Page, url: str, gateway: FakeGateway) -> None:
    release = point(page, url, gateway)
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    release()  # an error of the script fails the test


@pytest.mark.parametrize("act", ["choose", "search inside"])
def test_a_late_mask_does_not_replace_what_was_selected_since(
    page: Page, url: str, gateway: FakeGateway, act: str
) -> None:
    release = point(page, url, gateway)
    if act == "choose":
        page.keyboard.press("]")
        expect(page.locator(".selected-name")).to_contain_text("Thing 1")
    else:
        page.get_by_label("Search inside this picture").fill("blue square")
        page.keyboard.press("Enter")
        expect(page.locator("#regions-title")).to_have_text("Best first")
    release()
    if act == "choose":
        expect(page.locator(".selected-name")).to_contain_text("Thing 1")
    else:
        expect(page.locator(".selected-name")).to_have_count(0)


def test_a_late_deletion_leaves_the_next_image_open(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(url)
    page.locator("#grid button.tile").first.click()
    name = page.locator("#viewer-name")
    first = name.inner_text()
    release = hold(page, "**/images/*", "DELETE")
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Next picture").click()
    expect(name).not_to_have_text(first)
    release()
    expect(page.locator("#toast")).to_contain_text("The picture is deleted.")
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#grid button.tile")).to_have_count(3)


def test_a_late_failure_leaves_the_results_that_came_since(page: Page, url: str) -> None:
    release = hold(page, "**/v1/collections/default/images?*", "GET")
    page.clock.install(time=0)
    page.clock.pause_at(1)
    with page.expect_request("**/v1/collections/default/images?*"):
        page.goto(url)
    with page.expect_request("**/v1/collections/default/search"):
        search(page, "red circle")
    expect(page.locator("#grid button.tile svg")).not_to_have_count(0)
    page.clock.run_for(1000)  # the grey tiles of the first request would come now
    expect(page.locator("#grid button.tile svg")).not_to_have_count(0)
    release(status=500, body="{}")
    expect(page.locator("#grid button.tile svg")).not_to_have_count(0)
    expect(page.locator("#notice")).to_be_hidden()


def test_the_last_chosen_image_is_the_query(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(url)
    page.evaluate(
        """() => {
          const real = window.createImageBitmap;
          window.createImageBitmap = (file) => new Promise((resolve) => {
            const go = async () => {
              resolve(await real(file));
              await new Promise((done) => setTimeout(done));
            };
            if (file.name === "slow.png") window.release = go; else go();
          });
        }"""
    )
    page.locator("#picture").set_input_files(picture_file(tmp_path, "slow.png"))
    page.locator("#picture").set_input_files(picture_file(tmp_path, "quick.png"))
    expect(page.locator("#title")).to_have_text("Like your picture")
    address = page.url
    page.evaluate("window.release()")
    assert page.url == address


def test_what_cannot_be_read_of_a_drop_is_left_out(page: Page, url: str) -> None:
    page.goto(url)
    page.evaluate(
        """() => {
          const entry = (file) => ({ webkitGetAsEntry: () => ({ isFile: true, file }) });
          const picture = new File(["\\x89PNG"], "good.png", { type: "image/png" });
          const refused = (_, fail) => fail(new DOMException("no", "NotReadableError"));
          const items = [entry(refused), entry((take) => take(picture))];
          const dataTransfer = { types: ["Files"], items, files: [] };
          document.body.dispatchEvent(Object.assign(new Event("drop", { bubbles: true }), { dataTransfer }));
        }"""
    )
    expect(page.locator("#uploads-list .name")).to_have_text(["good.png"])


def test_the_slider_follows_the_address(page: Page, url: str) -> None:
    page.goto(f"{url}/?q=red+circle&min=0.3")
    page.get_by_role("button", name=re.compile("Filters")).click()
    slider = page.get_by_role("slider", name="Minimum score")
    expect(slider).to_have_value("0.3")
    search(page, "something else")
    expect(page.locator("#subtitle")).to_contain_text("best score 0.12")
    page.go_back()
    expect(page.locator("#subtitle")).to_contain_text("best score 0.34")
    expect(slider).to_have_value("0.3")
    page.get_by_label("One result per picture").uncheck()
    expect(page).to_have_url(re.compile("min=0.3&|min=0.3$"))


def test_a_key_that_no_header_can_carry_is_not_taken(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.key = "open sesame"
    page.goto(url)
    field = page.get_by_role("textbox", name="API key")
    field.fill("“open sesame”")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_visible()
    field.fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#grid button.tile")).to_have_count(4)


def test_object_urls_of_the_queue_and_of_broken_images_are_revoked(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    watch_addresses(page)
    gateway.key = "open sesame"
    gateway.scenes.clear()
    drawn = scene("broken.png", 60, 40, [])
    gateway.put(type(drawn)("broken.png", b"no picture", 60, 40, drawn.things))
    page.goto(url)
    page.get_by_role("textbox", name="API key").fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#grid button.tile img.settled")).to_have_count(1)
    all_freed(page)
    page.route("**/v1/collections/default/images", lambda route: None)  # never answered
    files = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": b"%d" % n} for n in range(120)]
    page.locator("#files").set_input_files(files)  # type: ignore[arg-type]
    expect(page.locator("#uploads-list li")).to_have_count(120)
    page.get_by_role("button", name="Cancel all").click()
    page.get_by_role("button", name="Close the list of uploads").click()
    all_freed(page)


def test_what_is_not_known_yet_is_not_deleted(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle")
    release = hold(page, "**/regions?include=mask", "GET")
    page.locator("#grid button.tile").first.click()
    delete = page.get_by_role("button", name="Delete picture")
    expect(delete).to_be_disabled()
    release()
    delete.click()
    expect(page.locator("#confirm")).to_be_visible()
