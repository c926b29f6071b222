"""The web page. Addresses of its files change with their content, so browsers keep them without asking."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = Path(__file__).resolve().parents[1] / "web"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_IMMUTABLE = "public, max-age=31536000, immutable"
_VERSIONED = re.compile(r"([0-9a-f]{16})/(.+)")


class Edition(NamedTuple):
    """The page as its files are at one time."""

    version: str
    """Digest of all files; a part of their addresses."""
    html: str
    """What is served as the page."""


def edition(web: Path = WEB) -> Edition:
    """The present edition; a changed file shows at the next reload.

    Args:
        web: The folder with index.html, scripts and styles.
    """
    files = (path for path in sorted(web.rglob("*")) if path.is_file())
    stats = ((path, path.stat()) for path in files)
    return _edition(web, tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@lru_cache(maxsize=4)
def _edition(web: Path, files: tuple[tuple[Path, int, int], ...]) -> Edition:
    digest = hashlib.sha256()  # of content, so that several gateways agree
    for path, _, _ in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(web)} {len(content)}\n".encode() + content)
    version = digest.hexdigest()[:16]
    root = f"static/{version}/"
    modules = (path.relative_to(web).as_posix() for path, _, _ in files if path.suffix == ".js")
    preloads = "".join(f'<link rel="modulepreload" href="{root}{module}">\n' for module in modules)
    html = (web / "index.html").read_text().replace('"static/', f'"{root}')
    return Edition(version, html.replace("</head>", f"{preloads}</head>"))


def page() -> Response:
    """The page itself, which browsers ask for each time. Reads files."""
    return HTMLResponse(
        edition().html, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    )


class PageFiles(StaticFiles):
    """The page's scripts, styles and icons, for ever under the address of the present version."""

    def __init__(self) -> None:
        super().__init__(directory=WEB, check_dir=False)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answers any version with the present files, as gateways are replaced one by one."""
        caching = "no-cache"
        if versioned := _VERSIONED.fullmatch(path):
            version, path = versioned.groups()
            if version == (await to_thread.run_sync(edition)).version:
                caching = _IMMUTABLE
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = caching
        return response
