"""The page before the real processes: a picture turned by EXIF from upload to deletion."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from regionsearch import Client
from regionsearch.masks import decode_rle
from tests.e2e.scenes import Scene, Thing, held_out_scenes, iou
from tests.stack import Stack
from tests.web.pixels import expected_box, marked_box

COLLECTION = "page"


def turned(scene: Scene, path: Path) -> Path:
    """The scene as phones store it: on its side, and EXIF says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(scene.data)) as image:
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=95, exif=exif)
    return path


def largest(scene: Scene) -> tuple[Thing, tuple[int, int]]:
    """The thing with most pixels, and the one of them that is nearest to its middle."""
    thing = max(scene.things, key=lambda thing: thing.mask.sum())
    rows, columns = np.nonzero(thing.mask)
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return thing, (int(columns[nearest]), int(rows[nearest]))


def test_from_upload_to_deletion(page: Page, stack: Stack, tmp_path: Path) -> None:
    scene = held_out_scenes(1)[0]
    thing, (x, y) = largest(scene)
    height, width = thing.mask.shape
    with Client(stack.http) as client:
        client.create_collection(COLLECTION)

    page.goto(f"{stack.http}/?in={COLLECTION}")
    expect(page.locator("#empty h2")).to_be_visible()
    page.locator("#files").set_input_files(turned(scene, tmp_path / "phone.jpg"))
    expect(page.locator("#uploads-title")).to_have_text("1 picture added")
    page.get_by_role("button", name="Close the list of uploads").click()

    page.locator("#q").fill(thing.name)
    page.keyboard.press("Enter")
    found = page.locator("#grid button.tile")
    weaker = page.locator("#weaker")
    expect(found.or_(weaker).first).to_be_visible()
    if weaker.is_visible() and not found.count():  # the model may not be confident of this thing
        weaker.click()
    expect(found.locator("img.settled + svg path.line")).to_be_attached()
    with Client(stack.http) as client:
        hit = client.search(
            thing.name, COLLECTION, level="region", group_by="image", include=["mask", "weak"]
        )[0]
    assert hit.mask is not None
    rows, columns = np.nonzero(hit.mask.to_array())
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    # Specks of the mask are not drawn in the grid, so that only the line itself has to be inside of the box.
    left, top, right, bottom = expected_box(found, (width, height), box)
    drawn = marked_box(found)
    assert left - 4 <= drawn[0] and top - 4 <= drawn[1] and drawn[2] <= right + 4 and drawn[3] <= bottom + 4

    found.click()
    expect(page.locator("#regions .region").first).to_be_visible()
    stage = page.locator("#stage")
    at_x, at_y, *_ = expected_box(stage, (width, height), (x, y, x, y))
    stage.click(position={"x": at_x, "y": at_y})
    expect(page.locator(".selected-name")).to_contain_text(re.compile("What you pointed at.* of the picture"))
    with page.expect_download() as download:
        page.get_by_role("button", name="COCO", exact=True).click()
    (annotation,) = json.loads(Path(download.value.path()).read_text())["annotations"]
    mask = decode_rle(annotation["segmentation"]["counts"], height, width)
    assert iou(mask, thing.mask) > 0.5, "the click has outlined the thing under the mouse"

    page.get_by_role("button", name="More like this", exact=True).click()
    expect(page.locator("#title")).to_have_text("Like this thing")
    found.click()
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    with Client(stack.http) as client:
        assert list(client.images(COLLECTION)) == []
