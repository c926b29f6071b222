"""Nothing sticks out of the screen, however narrow it is and however long the words are."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.web.fake_gateway import FakeGateway

WIDTHS = (320, 360, 375, 390, 412, 768, 1024)
OVERFLOW = """(root) => {
  const visible = (one) => one.checkVisibility() && one.getBoundingClientRect().width > 1;
  const out = (one) => {
    const { left, right } = one.getBoundingClientRect();
    return left < -0.5 || right > innerWidth + 0.5;
  };
  const all = [...document.querySelectorAll(`${root} :is(button, input, select, label)`)].filter(visible);
  return all.filter(out).map((one) => one.id || one.textContent);
}"""


def test_the_page_fits_every_width(page: Page, url: str, gateway: FakeGateway) -> None:
    gateway.ambiguous = True
    gateway.names.append("a-collection-with-a-rather-long-name-of-its-own")
    words = "a very long sentence that somebody has pasted into the field, " * 12
    page.goto(f"{url}/?q={words}")
    expect(page.locator("#grid button.tile").first).to_be_visible()
    expect(page.locator("#collection option")).to_have_count(4)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 760})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOW, "header.bar") == []
        assert page.locator("#title").bounding_box()["height"] < 80  # type: ignore[index]
        assert page.locator("#q").bounding_box()["width"] > 60  # type: ignore[index]
    page.goto(f"{url}/?sort=newest")
    expect(page.locator("#order")).to_be_visible()
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 760})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(f"{url}/?view={gateway.id_of('table.png')}")
    expect(page.locator("#regions .region")).to_have_count(2)
    page.locator("#stage").press("+")
    expect(page.get_by_role("radiogroup", name="Which of these is meant")).to_be_visible()
    for width in (*WIDTHS, 1280):
        page.set_viewport_size({"width": width, "height": 760})
        assert page.evaluate(OVERFLOW, "#viewer") == []


def test_grey_tiles_come_at_once_and_the_title_stays(page: Page, url: str) -> None:
    page.route("**/readyz", lambda route: None)  # the line is slow
    page.goto(url)
    expect(page.locator("#grid .skeleton").first).to_be_visible()
    before = page.locator("#title").bounding_box()
    page.unroute("**/readyz")
    page.reload()
    expect(page.locator("#subtitle")).to_have_text("4 pictures")
    assert page.locator("#title").bounding_box() == before


def test_words_that_run_from_right_to_left(page: Page, url: str) -> None:
    page.goto(f"{url}/?q=إبريق")
    expect(page.locator("#title")).to_have_css("direction", "rtl")
    expect(page.locator("#q")).to_have_css("direction", "rtl")
