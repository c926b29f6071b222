from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from regionsearch.models import download
from regionsearch.models.catalog import Weights


@dataclass
class Publisher:
    """A server of one file, with ranges, entity tags and accidents."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    announce: str | None = None  # what the hub says in its redirection
    drop_after: int | None = None  # bytes after which the connection breaks, once
    shift: int = 0  # bytes by which a part begins elsewhere than asked for
    status: int | None = None
    refusals: int | None = None  # requests that get `status`; all when None
    headers: dict[str, str] = field(default_factory=dict)  # of every answer
    redirect: str = "/weights.bin"
    url: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)

    def weights(self, sha256: str | None = None, path: str = "/weights.bin") -> Weights:
        return Weights("test_model", "weights.bin", self.url + path, sha256, "Apache-2.0")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder."""
    monkeypatch.setenv("REGIONSEARCH_MODELS_DIR", str(tmp_path / "models"))
    for name in ("REGIONSEARCH_MODELS_MIRROR", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_CACHE", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    return tmp_path / "models"


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    state = Publisher(bytes(range(256)) * 20_000)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            state.requests.append({name.lower(): value for name, value in self.headers.items()})
            if state.status is not None and state.refusals != 0:
                if state.refusals is not None:
                    state.refusals -= 1
                self.send_response(state.status)
                self.send_header("Content-Length", "0")
                for name, value in state.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                return
            if self.path.startswith("/hub"):
                self.send_response(302)
                if state.announce:
                    self.send_header("X-Linked-Etag", f'"{state.announce}"')
                self.send_header("Location", state.redirect)
                self.end_headers()
                return
            start = self._start()
            if start is not None and start >= len(state.data):
                self.send_error(416)
                return
            self.send_response(200 if start is None else 206)
            body = state.data[start or 0 :]
            if start is not None:
                sent = start + state.shift
                self.send_header("Content-Range", f"bytes {sent}-{len(state.data) - 1}/{len(state.data)}")
            for name, value in state.headers.items():
                self.send_header(name, value)
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.drop_after is not None:
                self.wfile.write(body[: state.drop_after])
                state.drop_after = None
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(body)

        def _start(self) -> int | None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            unchanged = self.headers.get("If-Range", state.etag) == state.etag
            return int(wanted[1]) if wanted and state.ranges and unchanged else None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
