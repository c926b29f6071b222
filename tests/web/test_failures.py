"""Slow, broken and busy servers, and how the page comes through."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Dialog, Page, Route, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.steps import hold, picture_file, search

IMAGES = "**/v1/collections/default/images"


def test_an_upload_waits_while_the_services_are_busy(page: Page, url: str, tmp_path: Path) -> None:
    refusals = [{"code": "OVERLOADED", "detail": "The queue is full.", "retry_after_s": 0.05}] * 2

    def busy(route: Route) -> None:
        if route.request.method != "POST" or not refusals:
            return route.fallback()
        result = {"index": 0, "name": "new.png", "outcome": "failed", "error": refusals.pop()}
        body = f"event: result\ndata: {json.dumps(result)}\n\n"
        return route.fulfill(content_type="text/event-stream", body=body)

    page.route(IMAGES, busy)
    page.goto(url)
    page.locator("#files").set_input_files(picture_file(tmp_path))
    expect(page.locator("#uploads-list .status")).to_have_text("2 things found")


def test_an_upload_that_is_cut_off(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    page.goto(url)
    gateway.cut = True
    page.locator("#files").set_input_files(picture_file(tmp_path))
    expect(page.locator("#uploads-list .status")).to_have_text("The connection broke. Try again.")
    gateway.cut = False
    page.get_by_role("button", name="Try new.png again").click()
    expect(page.locator("#uploads-list .status")).to_have_text("2 things found")


def test_an_upload_is_not_received_before_it_is_sent(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(url)
    release = hold(page, IMAGES, "POST")
    page.locator("#files").set_input_files(picture_file(tmp_path))
    expect(page.locator("#uploads-list .status")).to_have_text("Sending")
    release()
    expect(page.locator("#uploads-list .status")).to_have_text("2 things found")


def test_leaving_in_the_middle_of_an_upload_is_asked_about(page: Page, url: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", stay)
    page.goto(url)
    hold(page, IMAGES, "POST")
    page.locator("#q").click()  # a browser asks only who has done something on the page
    page.locator("#files").set_input_files(picture_file(tmp_path))
    expect(page.locator("#uploads-list .status")).not_to_have_text("Waiting")
    page.reload()
    assert asked == ["beforeunload"]
    page.unroute(IMAGES)
    page.locator("#q").click()
    page.locator("#files").set_input_files(picture_file(tmp_path))
    expect(page.locator("#uploads-title")).to_have_text(re.compile("added"))
    page.reload()
    assert asked == ["beforeunload"]


def test_more_that_does_not_come_is_said_where_it_was_asked_for(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    gateway.page_size = 3
    page.goto(f"{url}/?q=red+circle&group=0")
    more = page.get_by_role("button", name="Show more")
    expect(more).to_be_visible()
    gateway.failure = (500, {"title": "Unexpected error", "detail": "An unexpected error."})
    more.click()
    expect(page.locator("#toast")).to_have_text("An unexpected error.")
    gateway.failure = None
    more.click()
    expect(page.locator("#grid button.tile")).to_have_count(8)


def test_more_that_comes_late_leaves_the_focus_where_it_went(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    gateway.page_size = 3
    page.goto(f"{url}/?q=red+circle&group=0")
    expect(page.locator("#grid button.tile")).to_have_count(3)
    release = hold(page, "**/search", "POST")
    page.get_by_role("button", name="Show more").click()
    page.locator("#q").focus()
    release()
    expect(page.locator("#grid button.tile")).to_have_count(8)
    expect(page.locator("#q")).to_be_focused()


def test_asking_while_the_models_load(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.ready = False
    gateway.failure = (503, {"title": "Not ready", "detail": "The embedder is starting."})
    page.goto(url)
    expect(page.locator("#notice")).to_contain_text("loading the model")
    search(page, "red circle")
    page.locator("#q").fill("red circle, blue")
    expect(page.locator("#notice")).to_contain_text("loading the model")
    gateway.failure = None
    gateway.ready = True
    expect(page.locator("#title")).to_have_text("“red circle”")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    expect(page.locator("#q")).to_have_value("red circle, blue")  # what is being typed stays


def test_an_upload_that_ends_while_the_page_still_waits(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.ready = False
    page.goto(url)
    expect(page.locator("#notice")).to_contain_text("loading the model")
    page.locator("#files").set_input_files(picture_file(tmp_path))
    expect(page.locator("#uploads-title")).to_have_text("1 picture added")
    gateway.ready = True
    expect(page.locator("#grid button.tile")).to_have_count(5)


def test_responses_that_are_not_json(page: Page, url: str) -> None:
    page.route("**/search", lambda route: route.fulfill(body="<html>a proxy</html>"))
    page.goto(f"{url}/?q=dog")
    expect(page.locator("#notice")).to_contain_text("The answer could not be read")


def test_asking_the_same_again_asks_again(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.failure = (500, {"title": "Unexpected error", "detail": "An unexpected error."})
    page.goto(f"{url}/?q=red+circle")
    expect(page.locator("#notice")).to_contain_text("Unexpected error")
    gateway.failure = None
    before = page.evaluate("history.length")
    page.locator("#q").press("Enter")
    expect(page.locator("#grid button.tile")).to_have_count(4)
    expect(page.locator("#notice")).to_be_hidden()
    assert page.evaluate("history.length") == before


def test_long_names_stay_in_their_boxes(page: Page, url: str, gateway: FakeGateway) -> None:
    name = "w" * 240 + ".png"
    drawn = next(iter(gateway.scenes.values()))
    gateway.put(type(drawn)(name, drawn.data + b" ", drawn.width, drawn.height, drawn.things))
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(url)
    page.locator("#grid button.tile").first.click()
    page.get_by_role("button", name="Delete picture").click()
    inside = "(id) => { const e = document.getElementById(id); return e.scrollWidth <= e.clientWidth; }"
    assert page.evaluate(inside, "confirm")
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator("#picture").set_input_files({"name": name, "mimeType": "image/png", "buffer": b"words"})
    expect(page.locator("#toast")).to_be_visible()
    assert page.evaluate(inside, "toast")
    gateway.failure = (500, {"title": "Unexpected error", "detail": name})
    search(page, "dog")
    expect(page.locator("#notice")).to_contain_text("Unexpected error")
    assert page.evaluate(inside, "notice")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
