"""Looking closer at the open image, and at all of its regions."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway

UNDER = """([x, y]) => {
  const matrix = document.getElementById("stage-overlay").getScreenCTM();
  const point = new DOMPoint(x, y).matrixTransform(matrix.inverse());
  return [point.x, point.y];
}"""


def test_zooming_keeps_what_is_under_the_pointer(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    stage = page.locator("#stage")
    frame = stage.bounding_box()
    assert frame
    x, y = frame["x"] + frame["width"] * 0.5, frame["y"] + frame["height"] * 0.5
    before = page.evaluate(UNDER, [x + 40, y + 30])
    page.mouse.move(x + 40, y + 30)
    page.mouse.wheel(0, -600)
    expect(page.locator("#zoom-level")).not_to_have_text("100 %")
    after = page.evaluate(UNDER, [x + 40, y + 30])
    assert after == pytest.approx(before, abs=1)
    page.keyboard.down("Space")
    page.mouse.down()
    page.mouse.move(x + 10, y + 10)
    page.mouse.up()
    page.keyboard.up("Space")
    assert page.evaluate(UNDER, [x + 10, y + 10]) == pytest.approx(before, abs=1)
    expect(page.locator("#stage-overlay .dot")).to_have_count(0)
    with page.expect_response("**/v1/segment"):
        page.mouse.click(x + 10, y + 10)  # pointing goes on where one looks
    expect(page.locator("#stage-overlay .dot")).to_have_count(1)
    point = gateway.requests[-1][1]["points"][0]
    assert abs(point["x"] - before[0]) < 2
    stage.focus()
    page.keyboard.press("0")
    expect(page.locator("#zoom-level")).to_have_text("100 %")
    page.get_by_role("button", name="Zoom in").click()
    expect(page.locator("#zoom-level")).to_have_text("150 %")
    page.get_by_role("button", name="Fit").click()
    expect(page.get_by_role("button", name="Zoom out")).to_be_disabled()


def test_all_regions_can_be_outlined(page: Page, url: str, gateway: FakeGateway) -> None:
    page.goto(f"{url}/?view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.get_by_role("button", name="All things").click()
    expect(page.locator("#stage-overlay path.line")).to_have_count(2)
    page.locator("#regions .region").first.click()
    expect(page.locator("#stage-overlay path.line")).to_have_count(1)
    page.get_by_role("button", name="All things").click()
    page.keyboard.press("Escape")
    expect(page.locator("#stage-overlay path.line")).to_have_count(0)
