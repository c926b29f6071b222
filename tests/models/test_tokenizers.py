"""Tokenizers of the Hugging Face hub: their files come without the weights."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models.download import pull_repository
from regionsearch.models.store import find_hub_file


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as serves the files of one repository."""

    FILES: ClassVar = {"tokenizer_config.json": b"{}", "config.json": b"{}", "model.safetensors": bytes(9)}
    COMMIT = "c" * 40

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/tokenizer/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": name}
                for name, data in self.FILES.items()
            ]
            body = json.dumps(tree).encode()
        elif self.path.startswith("/api/models/org/tokenizer/"):
            files = [{"rfilename": name} for name in self.FILES]
            body = json.dumps({"id": "org/tokenizer", "sha": self.COMMIT, "siblings": files}).encode()
        elif self.path.startswith(f"/org/tokenizer/resolve/{self.COMMIT}/"):
            body = self.FILES[self.path.rpartition("/")[2]]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_files_of_a_tokenizer_come_without_the_weights(hub: str, models: Path) -> None:
    pytest.importorskip("huggingface_hub")
    folder = pull_repository("org/tokenizer")
    assert folder.is_relative_to(models)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer_config.json"]
    assert find_hub_file("org/tokenizer", "tokenizer_config.json") == folder / "tokenizer_config.json"
    assert pull_repository("org/tokenizer") == folder


def test_a_missing_tokenizer_is_reported_in_a_sentence(
    hub: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(RegionSearchError, match="the configuration of org/other cannot be read") as caught:
        pull_repository("org/other")
    assert caught.value.kind is Kind.UNAVAILABLE
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RegionSearchError, match=re.escape("pip install 'regionsearch[hf]'")) as missing:
        pull_repository("org/tokenizer")
    assert missing.value.kind is Kind.FAILED_PRECONDITION
