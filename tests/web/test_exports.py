"""What leaves the page, what must not come back to it, and where a proxy may put it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.web.fake_gateway import LONGEST_PHRASE, FakeGateway, Server
from tests.web.steps import picture_file, search


def downloaded(page: Page, button: str) -> dict[str, Any]:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=button == "COCO").click()
    document: dict[str, Any] = json.loads(Path(download.value.path()).read_text())
    return document


def test_the_grid_is_exported_by_the_server_as_far_as_it_is_shown(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    gateway.page_size = 3
    page.goto(f"{url}/?q=red+circle&group=0&min=0.1")
    expect(page.locator("#grid button.tile")).to_have_count(3)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#grid button.tile")).to_have_count(8)
    document = downloaded(page, "Export")
    assert len(document["annotations"]) == 8
    assert all(annotation["iscrowd"] == 0 for annotation in document["annotations"])
    asked = gateway.requests[-1][1]
    assert (asked["query"], asked["min_score"], asked["page_size"]) == ({"text": "red circle"}, 0.1, 8)
    expect(page.locator("#toast")).to_have_text("8 results saved as COCO.")
    gateway.failure = (503, {"title": "Not ready", "detail": "The embedder is away."})
    page.get_by_role("button", name="Export").click()
    expect(page.locator("#toast")).to_have_text("The embedder is away.")


def test_a_chosen_thing_and_a_click_are_exported_alone(page: Page, url: str, gateway: FakeGateway) -> None:
    identity = gateway.id_of("table.png")
    page.goto(f"{url}/?view={identity}")
    page.locator("#regions .region").nth(1).click()
    (annotation,) = downloaded(page, "COCO")["annotations"]
    assert annotation["region_id"] == f"{identity}-r001"
    page.locator("#stage").click()
    expect(page.locator(".selected-name")).to_contain_text(re.compile("What you pointed at.* of the picture"))
    (annotation,) = downloaded(page, "COCO")["annotations"]
    assert annotation["region_id"] is None
    assert gateway.requests[-1][0] == "segment"
    assert gateway.requests[-1][1] == gateway.requests[-2][1]


def test_show_more_does_not_bring_back_a_deleted_image(page: Page, url: str, gateway: FakeGateway) -> None:
    """The later pages of a search show the collection as it was."""
    gateway.page_size = 3
    page.goto(f"{url}/?q=red+circle&group=0")
    tiles = page.locator("#grid button.tile")
    expect(tiles).to_have_count(3)
    later = page.locator("#more")
    kept = dict(gateway.scenes)
    tiles.first.click()
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    (gone,) = kept.keys() - gateway.scenes.keys()
    gateway.scenes = kept  # as the server's own pages do
    later.click()
    expect(tiles).to_have_count(6)
    expect(later).to_be_hidden()
    sources = page.locator("#grid img").evaluate_all("(images) => images.map((image) => image.src)")
    assert len(sources) > 3
    assert not [source for source in sources if gone in source]
    search(page, "red circle")  # a new search shows what is there now
    expect(tiles).to_have_count(3)
    assert [s for s in page.locator("#grid img").evaluate_all("(i) => i.map((one) => one.src)") if gone in s]


def test_the_page_says_when_the_end_of_a_query_was_left_out(
    page: Page, url: str, gateway: FakeGateway
) -> None:
    page.goto(url)
    line = page.locator("#cut-off")
    expect(line).to_be_hidden()
    search(page, "red circle " * (LONGEST_PHRASE // 10))
    expect(line).to_be_visible()
    expect(line).to_have_text("The query is longer than the model reads; its end was ignored.")
    search(page, "red circle")
    expect(line).to_be_hidden()
    page.locator("#grid button.tile").first.click()
    page.locator("#within-text").fill("blue square " * (LONGEST_PHRASE // 10))
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.locator("#toast")).to_contain_text("its end was ignored")


def test_the_file_chooser_offers_what_phones_write(page: Page, url: str) -> None:
    page.goto(url)
    accepted = (page.locator("#files").get_attribute("accept") or "").split(",")
    assert {"image/*", ".heic", ".heif", ".avif", ".jfif", ".mpo", ".tif"} <= set(accepted)


def test_the_page_works_below_a_path_of_a_proxy(page: Page, gateway: FakeGateway, tmp_path: Path) -> None:
    missing: list[str] = []
    page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    with Server(Starlette(routes=[Mount("/rs", gateway)])) as url:
        page.goto(f"{url}/rs/")
        expect(page.locator("#grid button.tile")).to_have_count(4)
        search(page, "red circle")
        expect(page).to_have_url(f"{url}/rs/?q=red+circle")
        page.locator("#grid button.tile").first.click()
        expect(page.locator("#regions .region").first).to_be_visible()
        page.go_back()
        page.locator("#files").set_input_files(picture_file(tmp_path))
        expect(page.locator("#uploads-list .status")).to_have_text("2 things found")
        page.get_by_role("link", name="Region Search, all pictures").click()
        expect(page).to_have_url(f"{url}/rs/")
        expect(page.locator("#grid button.tile")).to_have_count(5)
    assert missing == []
