"""Several images at once: selected, deleted, tagged; and the tags of one."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.steps import tile


def test_selected_images_are_deleted_together(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(url)
    tiles = page.locator("#grid button.tile")
    expect(tiles).to_have_count(4)
    page.get_by_role("button", name="Select", exact=True).click()
    tile(page, "table.png").click()
    page.get_by_role("checkbox", name="Select wide.png").click()
    tile(page, "tall.png").click()
    tile(page, "tall.png").click()  # not that one after all
    expect(page.locator("#picked-count")).to_have_text("2 pictures selected")
    expect(page.locator("#viewer")).to_be_hidden()
    page.locator("#picked-delete").click()
    expect(page.locator("#confirm")).to_contain_text("Delete 2 pictures?")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(tiles).to_have_count(2)
    expect(page.locator("#toast")).to_have_text("2 pictures deleted.Undo")
    expect(page.locator("#subtitle")).to_have_text("2 pictures")
    assert sorted(one.name for one in gateway.scenes.values()) == ["phone.jpg", "tall.png"]
    tiles.first.click()  # opens again
    expect(page.locator("#viewer")).to_be_visible()


def test_a_deletion_is_undone(page: Page, url: str, gateway: FakeGateway) -> None:
    """Pictures come back with their tags and facts, by the button or by Ctrl+Z."""
    first, second = gateway.id_of("table.png"), gateway.id_of("wide.png")
    gateway.tags[first], gateway.attributes[first] = ["holiday"], {"taken_at": "2024-05-01T12:00:00"}
    page.goto(url)
    tiles = page.locator("#grid button.tile")
    page.get_by_role("checkbox", name="Select table.png").click()
    page.get_by_role("checkbox", name="Select wide.png").click()
    page.locator("#picked-delete").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(tiles).to_have_count(2)
    gateway.tags[first], gateway.attributes[first] = [], {}
    page.get_by_role("button", name="Undo", exact=True).last.click()
    expect(tiles).to_have_count(4)
    assert {first, second} <= gateway.scenes.keys()
    assert (gateway.tags[first], gateway.attributes[first]["taken_at"]) == (
        ["holiday"],
        "2024-05-01T12:00:00",
    )
    tile(page, "tall.png").click()
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(tiles).to_have_count(3)
    page.keyboard.press("Control+z")
    expect(tiles).to_have_count(4)


def test_selected_images_are_exported(page: Page, url: str, gateway: FakeGateway) -> None:
    """All that is in them, or what the search has found in them."""
    page.goto(url)
    chosen = [gateway.scenes[gateway.id_of(name)] for name in ("table.png", "wide.png")]
    for query, number in (("", sum(len(one.things) for one in chosen)), ("/?q=red+circle", 2)):
        page.goto(url + query)
        for one in chosen:
            page.get_by_role("checkbox", name=f"Select {one.name}").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Export as COCO", exact=True).click()
        assert download.value.suggested_filename == "pictures.coco.json"
        assert len(json.loads(Path(download.value.path()).read_text())["annotations"]) == number


def test_the_keyboard_selects_ranges_and_all(page: Page, url: str) -> None:
    page.goto(url)
    chosen = page.locator("#grid li.picked-tile")
    page.locator("#grid button.tile").first.focus()
    page.keyboard.press("x")
    expect(chosen).to_have_count(1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+X")
    expect(chosen).to_have_count(3)
    page.keyboard.press("Control+a")
    expect(chosen).to_have_count(4)
    page.keyboard.press("Escape")
    expect(chosen).to_have_count(0)
    expect(page.locator("#picked")).to_be_hidden()


def test_images_that_cannot_be_deleted_stay_selected(page: Page, url: str, gateway: FakeGateway) -> None:
    kept = gateway.id_of("wide.png")
    page.route(
        f"**/images/{kept}",
        lambda route: route.fulfill(
            status=403, json={"title": "Not allowed", "detail": "The key may read only."}
        ),
    )
    page.goto(url)
    page.locator("#grid button.tile").first.focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#toast")).to_have_text("3 pictures deleted, 1 not: The key may read only.Undo")
    expect(page.locator("#grid li.picked-tile")).to_have_count(1)
    assert list(gateway.scenes) == [kept]


def test_tags_of_several_images_and_of_one(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(url)
    page.locator("#grid button.tile").first.focus()
    page.keyboard.press("Control+a")
    page.get_by_role("button", name="Tags…").click()
    page.get_by_label("Add", exact=True).fill("summer, 2026")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_have_text("Tags of 4 pictures changed.")
    assert set(map(tuple, gateway.tags.values())) == {("summer", "2026")}
    page.get_by_role("button", name="Stop selecting").click()
    tile(page, "table.png").click()
    tags = page.locator("#tags-list li")
    expect(tags).to_have_text(["summer", "2026"])
    page.get_by_role("button", name="Remove the tag summer").click()
    expect(tags).to_have_text(["2026"])
    page.get_by_label("Add tags").fill("garden")
    page.keyboard.press("Enter")
    expect(tags).to_have_text(["2026", "garden"])
    assert gateway.tags[gateway.id_of("table.png")] == ["2026", "garden"]


def test_the_file_is_given_back_as_it_was_added(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?view={gateway.id_of('table.png')}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Original").click()
    assert download.value.suggested_filename == "table.png"
    assert Path(download.value.path()).read_bytes() == gateway.scenes[gateway.id_of("table.png")].data
