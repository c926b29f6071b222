"""Pictures that come to the page and leave it: uploads, drops, pastes, downloads, examples to search with."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway
from tests.web.pixels import expected_box
from tests.web.scenes import scene
from tests.web.steps import drag, picture_file


def test_a_dropped_image_becomes_the_query(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    page.goto(url)
    page.locator("#picture").set_input_files(picture_file(tmp_path))
    expect(page.locator("#example")).to_contain_text("Point at a thing")
    expect(page.locator("#grid button.tile").first).to_have_accessible_name("table.png, score 0.34")
    page.reload()  # the tab keeps it
    expect(page.locator("#grid button.tile").first).to_have_accessible_name("table.png, score 0.34")
    page.get_by_role("button", name="Remove the example: your picture").click()
    expect(page.locator("#title")).to_have_text("Your pictures")


def test_a_folder_is_dropped_to_be_added(page: Page, url: str, gateway: FakeGateway, tmp_path: Path) -> None:
    deep = tmp_path / "holiday" / "day two"
    deep.mkdir(parents=True)
    picture_file(tmp_path / "holiday", "first.png")
    (deep / "second.png").write_bytes(scene("second.png", 300, 200, [("red", "circle", (9, 9, 90, 90))]).data)
    (deep / "notes.txt").write_text("no picture")
    for foreign in ("._first.png", ".thumbnails/1.png", "@eaDir/first.png", "__MACOSX/first.png"):
        (tmp_path / "holiday" / foreign).parent.mkdir(exist_ok=True)
        (tmp_path / "holiday" / foreign).write_bytes(b"not the user's")
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    drag(page, [tmp_path / "holiday"], 1000, 400)
    expect(page.locator("#toast")).to_have_text("5 files left out: hidden, or not a picture.")
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#uploads-title")).to_have_text("2 pictures added")
    assert sorted(page.locator("#uploads-list .name").all_inner_texts()) == ["first.png", "second.png"]
    assert gateway.id_of("first.png")
    assert gateway.id_of("day two/second.png")
    expect(page.locator("#grid button.tile")).to_have_count(6)


def test_a_file_is_dropped_to_search_with_it(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    drag(page, [picture_file(tmp_path)], 300, 400)
    expect(page.locator("#title")).to_have_text("Like your picture")
    expect(page.locator("#grid button.tile").first).to_have_accessible_name("table.png, score 0.34")


def test_a_drag_that_is_called_off_leaves_no_veil(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    drag(page, [picture_file(tmp_path)], 300, 400, end="dragCancel")
    page.mouse.move(310, 410)
    expect(page.locator("#drop")).to_be_hidden()
    page.locator("#grid button.tile").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#uploads")).to_be_hidden()


def test_an_image_is_pasted(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
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
    expect(page.locator("#grid button.tile").first).to_have_accessible_name("table.png, score 0.34")


def test_text_copied_with_an_image_is_pasted_as_text(page: Page, url: str) -> None:
    """As cells of a spreadsheet do; elsewhere than in a field it is the picture that is meant."""
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    paste = """(id) => {
      const clipboardData = new DataTransfer();
      clipboardData.items.add("red circle", "text/plain");
      clipboardData.items.add(new File(["no picture"], "cells.png", { type: "image/png" }));
      const given = { clipboardData, bubbles: true, cancelable: true };
      return document.getElementById(id).dispatchEvent(new ClipboardEvent("paste", given));
    }"""
    assert page.evaluate(paste, "q"), "left to the field"
    assert not page.evaluate(paste, "grid"), "taken as a picture"


def test_pointing_at_an_object_in_the_query_image(
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
    expect(page.locator("#grid button.tile").first).to_have_accessible_name("Found in wide.png, score 0.34")
    query = gateway.requests[-1][1]["query"]
    assert query["image"]
    assert abs(query["points"][0]["x"] - 390) < 2 and abs(query["points"][0]["y"] - 190) < 2
    page.get_by_role("button", name="The thing in your picture", exact=True).click()
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)
    expect(page.get_by_role("button", name="Delete picture")).to_be_hidden()


def test_an_upload_can_be_cancelled_and_repeated(
    page: Page, url: str, gateway: FakeGateway, tmp_path: Path
) -> None:
    page.goto(url)
    expect(page.locator("#grid button.tile")).to_have_count(4)
    page.route("**/v1/collections/default/images", lambda route: None)  # never answered
    page.locator("#files").set_input_files(picture_file(tmp_path))
    page.get_by_role("button", name="Cancel new.png").click()
    expect(page.locator("#uploads-list .status")).to_have_text("Cancelled")
    page.unroute("**/v1/collections/default/images")
    page.get_by_role("button", name="Try new.png again").click()
    expect(page.locator("#uploads-list .status")).to_have_text("2 things found")


def test_images_and_cut_outs_are_downloaded(page: Page, url: str, gateway: FakeGateway) -> None:
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
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#toast")).to_have_text("Copied.")
    copied = "navigator.clipboard.read().then(([one]) => one.getType('image/png')).then((blob) => blob.size)"
    assert page.evaluate(copied) > 100
    with page.expect_download() as document:
        page.get_by_role("button", name="All as COCO").click()
    coco = json.loads(Path(document.value.path()).read_text())
    assert coco["annotations"][0]["bbox"] == [60, 80, 141, 141]
    assert coco["annotations"][0]["segmentation"]["size"] == [320, 480]


def test_file_names_are_text(page: Page, url: str, gateway: FakeGateway) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    gateway.put(scene(name, 200, 200, [("red", "circle", (20, 20, 90, 90))]))
    page.goto(url)
    expect(page.locator("#grid .caption .name").first).to_have_text(name)
    expect(page.locator("#grid img[src=x]")).to_have_count(0)
