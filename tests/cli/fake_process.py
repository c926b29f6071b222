"""Stands for any of the four processes: the gateway serves /readyz and takes images; files tell all more.

In its folder, `<role>.die` ends it at once with code 3, `<role>.drain` keeps it from ending; it writes
`<role>-<port>.settings` and `.pid` when it starts, and its role into `stopped` when it was asked to end and
did. With `tls` in the folder the gateway understands no plain text, and needs a certificate of who calls it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler

FOLDER = Path(os.environ["FAKE_FOLDER"])
(ROLE,) = (
    role
    for role in ("segmenter", "embedder", "searcher", "gateway")
    if f"REGIONSEARCH_{role.upper()}_PORT" in os.environ
)
PORT = os.environ[f"REGIONSEARCH_{ROLE.upper()}_PORT"]


class Ready(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        """Adds an image, once the file `hold` has gone."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("images:check"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"images": []}')
            return
        with (FOLDER / "posted").open("a") as log:
            log.write("one\n")
        while (FOLDER / "hold").exists():
            time.sleep(0.02)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"results": [{"name": "x", "outcome": "created", "image_id": "0", "regions": 2}]}')


class Hangup(BaseRequestHandler):
    """What a TLS server does to who sends it plain text."""

    def handle(self) -> None:
        self.request.recv(1)


def main() -> None:
    print(f"{ROLE} begins", flush=True)
    if (FOLDER / f"{ROLE}.die").exists():
        sys.exit(3)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    settings = {key: value for key, value in os.environ.items() if key.startswith("REGIONSEARCH_")}
    (FOLDER / f"{ROLE}-{PORT}.settings").write_text(json.dumps(settings))
    if ROLE == "gateway":
        address = ("127.0.0.1", int(os.environ["REGIONSEARCH_GATEWAY_HTTP_PORT"]))
        server = ThreadingHTTPServer(address, Hangup if (FOLDER / "tls").exists() else Ready)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with contextlib.suppress(OSError):
            Path(os.environ["REGIONSEARCH_GATEWAY_PORT_FILE"]).write_text("50050\n")
    (FOLDER / f"{ROLE}-{PORT}.pid").write_text(str(os.getpid()))
    over.wait()
    while (FOLDER / f"{ROLE}.drain").exists():
        (FOLDER / f"{ROLE}.draining").touch()
        time.sleep(0.02)
    with (FOLDER / "stopped").open("a") as log:
        log.write(f"{ROLE}\n")


main()
