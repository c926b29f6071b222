"""Collections on the page: made, changed, and missing."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway


def test_a_collection_is_made_and_a_search_goes_along(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?q=red+circle&group=0&like={gateway.id_of('table.png')}-r000")
    choice = page.locator("#collection")
    expect(choice.locator("option")).to_have_text(["default", "New collection…", "Manage collections…"])
    choice.select_option("New collection…")
    name = page.get_by_label("Name")
    name.fill("default")
    page.keyboard.press("Enter")
    expect(page.locator("#new-collection-error")).to_contain_text("already")
    name.fill("holiday")
    page.keyboard.press("Enter")
    expect(page.locator("#empty h2")).to_have_text("Nothing found")
    assert page.url == f"{url}/?in=holiday&q=red+circle&group=0"
    assert gateway.requests[-1][1]["query"] == {"text": "red circle"}, "what is stored elsewhere stays there"
    choice.select_option("default")
    expect(page.locator("#title")).to_have_text("“red circle”")
    expect(page.locator("#grid button.tile").first).to_be_visible()


def test_a_missing_collection_can_be_made(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?in=nosuch")
    expect(page.locator("#notice h2")).to_have_text("There is no collection “nosuch”")
    page.get_by_role("button", name="Create it").click()
    expect(page.locator("#empty h2")).to_have_text("Find anything in any picture")
    assert gateway.names == ["default", "nosuch"]


def test_collections_are_looked_through_and_deleted(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.names += ["holiday", "work"]
    page.goto(f"{url}/?in=holiday")
    choice = page.locator("#collection")
    expect(choice.locator("option")).to_have_count(5)
    choice.select_option("Manage collections…")
    rows = page.locator("#manage-list li")
    expect(rows.first).to_contain_text(
        f"default4 pictures, {sum(len(s.things) for s in gateway.scenes.values())} things"
    )
    page.get_by_role("button", name="Delete the collection work").click()
    page.get_by_role("button", name="Keep it").click()
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="Delete the collection work").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Delete the collection holiday").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#manage")).to_be_hidden()
    expect(page.locator("#grid button.tile")).to_have_count(4)
    assert gateway.names == ["default"]
    assert page.url == f"{url}/"
