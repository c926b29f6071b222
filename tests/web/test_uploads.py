"""The queue of uploads as people watch it."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.scenes import scene
from tests.web.steps import drag, picture_file


def test_uploads_appear_as_they_finish_with_failures_first(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    files = [picture_file(tmp_path, f"{n}.png") for n in range(6)]
    for n, file in enumerate(files):
        file.write_bytes(scene(file.name, 300 + n, 200, [("red", "circle", (9, 9, 90, 90))]).data)
    files[1].write_bytes(b"words")
    files[2].write_bytes(b"other words")
    gateway.scenes.clear()
    page.goto(url)
    expect(page.locator("#empty h2")).to_be_visible()
    slow: list[Route] = []

    def some(route: Route) -> None:
        late = route.request.method == "POST" and b'"5.png"' in (route.request.post_data_buffer or b"")
        slow.append(route) if late else route.fallback()

    page.route("**/v1/collections/default/images", some)
    page.locator("#files").set_input_files(files)
    expect(page.locator("#grid button.tile")).to_have_count(3)
    expect(page.locator("#uploads-title")).to_have_text("Adding 6 of 6")
    expect(page.locator("#subtitle")).to_have_text("3 pictures")
    page.get_by_role("button", name="Hide the files").click()
    expect(page.locator("#uploads-list")).to_be_hidden()
    page.get_by_role("button", name="Show the files").click()
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator("#uploads-title")).to_have_text("3 pictures added, 1 cancelled, 2 failed")
    outcomes = page.locator("#uploads-list li").evaluate_all(
        "(rows) => rows.map((row) => row.dataset.outcome)"
    )
    assert sorted(outcomes[:3]) == ["cancelled", "failed", "failed"]
    assert outcomes[3:] == ["created"] * 3
    page.unroute("**/v1/collections/default/images")
    page.get_by_role("button", name="Try all again").click()
    expect(page.locator("#uploads-title")).to_have_text("4 pictures added, 2 failed")
    expect(page.locator("#grid button.tile")).to_have_count(4)


def test_a_folder_is_chosen_and_the_time_that_is_left_is_said(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    """Names are paths below the folder; hidden files and other kinds are left out and counted."""
    (tmp_path / "2024").mkdir()
    names = ["a.png", "2024/a.png", "2024/b.png", "2024/c.png", "2024/d.png"]
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(scene(name, 300 + n, 200, [("red", "circle", (9, 9, 90, 90))]).data)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"words")
    held: list[Route] = []
    page.route(
        "**/v1/collections/default/images",
        lambda route: held.append(route) if route.request.method == "POST" else route.fallback(),
    )
    page.clock.install()
    page.goto(url)
    page.locator("#folder").set_input_files(tmp_path)
    expect(page.locator("#toast")).to_have_text("2 files left out: hidden, or not a picture.")
    expect(page.locator("#uploads-title")).to_have_text("Adding 1 of 5")
    while len(held) < 3:
        page.wait_for_timeout(50)
    page.clock.fast_forward("05:00")
    for route in held[:3]:
        route.continue_()
    expect(page.locator("#uploads-title")).to_have_text("Adding 4 of 5 · 4 min left")
    for route in held[3:]:
        route.continue_()
    expect(page.locator("#uploads-title")).to_have_text("5 pictures added")
    assert set(names) <= {one.name for one in gateway.scenes.values()}


def test_two_images_dropped_on_the_search(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    drag(page, [picture_file(tmp_path, "one.png"), picture_file(tmp_path, "two.png")], 300, 400)
    expect(page.locator("#toast")).to_contain_text("a search takes one picture, 2 were dropped")
    expect(page.locator("#title")).to_have_text("Like your picture")


def test_own_images_bring_the_hint_at_real_weights_until_it_is_closed(
    page: Page, url: str, tmp_path: Path
) -> None:
    hint = page.locator("#weights-hint")
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    expect(hint).to_be_hidden()
    page.locator("#files").set_input_files(picture_file(tmp_path, "mine.png"))
    expect(hint).to_contain_text("regionsearch up --profile base")
    hint.get_by_role("button", name="Do not show this again").click()
    expect(hint).to_be_hidden()
    page.reload()
    page.locator("#picture").set_input_files(picture_file(tmp_path, "query.png"))
    expect(page.locator("#title")).to_have_text("Like your picture")
    expect(hint).to_be_hidden()


def test_real_weights_bring_no_hint(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.variant = "vit_b"
    page.goto(url)
    with page.expect_response("**/v1/models"):
        page.locator("#files").set_input_files(picture_file(tmp_path, "mine.png"))
    expect(page.locator("#uploads-title")).to_have_text("1 picture added")
    expect(page.locator("#weights-hint")).to_be_hidden()
