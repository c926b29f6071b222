"""How the page's files are cached."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gateway.http.page import WEB, edition
from tests.gateway.conftest import Running


def test_browsers_keep_what_the_page_names_and_ask_for_the_page(gateway: Running) -> None:
    page = gateway.http.get("/")
    assert page.headers["cache-control"] == "no-cache"
    links = set(re.findall(r'(?:src|href)="(static/[^"#]+)', page.text))
    assert len(links) > 30
    for link in links:
        answer = gateway.http.get(link)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable", link
    preloaded = {Path(link).name for link in re.findall(r'"modulepreload" href="([^"]+)"', page.text)}
    assert preloaded == {path.name for path in (WEB / "js").glob("*.js")}


def test_another_version_of_the_page_gets_files_that_are_not_kept(gateway: Running) -> None:
    """As while one of several gateways is replaced."""
    script = gateway.http.get("static/0123456789abcdef/js/main.js")
    assert script.content == (WEB / "js" / "main.js").read_bytes()
    assert script.headers["cache-control"] == "no-cache"
    for path in ("static/0123456789abcdef/nothing.js", "static/0123456789abcdef/%2e%2e/core.py"):
        assert gateway.http.get(path).status_code == 404


def test_the_icon_is_where_browsers_look_for_it_unasked(gateway: Running) -> None:
    icon = gateway.http.get("/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")


def test_a_changed_file_has_another_address(tmp_path: Path) -> None:
    web = shutil.copytree(WEB, tmp_path / "web")
    before = edition(web)
    assert before == edition(WEB)  # whoever serves it, and wherever
    with (web / "js" / "dom.js").open("a") as script:
        script.write("// changed\n")
    after = edition(web)
    assert after.version != before.version
    assert f'"static/{after.version}/js/main.js"' in after.html
    assert before.version not in after.html
