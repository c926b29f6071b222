"""What the peers of the serving part share: a server as a process, crops posted over HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.compare import driver

START_S = 120.0


class Served(driver.Peer):
    """A server that is this peer's own file, run as a program with a port; batches of 64, 2 ms of waiting."""

    package = ""
    path = "/"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.version = version(self.package)
        self._own = threading.local()
        (self.port,) = driver.free_ports(1)
        self._server = subprocess.Popen(self.command(), stdout=sys.stderr, stderr=sys.stderr)
        self._wait()

    def command(self) -> list[str]:
        """What starts the server."""
        return [sys.executable, "-m", type(self).__module__, str(self.port)]

    def body(self, crop: bytes) -> bytes:
        """The crop as the server takes it."""
        return crop

    def ask(self, query: Any, below: int | None = None) -> int:
        """Posts a crop; the size of the answer."""
        if not hasattr(self._own, "http"):
            self._own.http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=driver.PATIENCE_S)
        headers = {"Content-Type": "application/json" if self.path != "/raw" else "application/octet-stream"}
        try:
            self._own.http.request("POST", self.path, self.body(query), headers)
            answer = self._own.http.getresponse()
            content = answer.read()
        except BaseException:
            self._own.http.close()
            raise
        if answer.status in (429, 503):
            raise driver.RefusedError(answer.status)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:200]!r}")
        return len(content)

    def stop(self) -> None:
        self._server.terminate()

    def _wait(self) -> None:
        crop, deadline = driver.crops()[0], time.monotonic() + START_S
        while True:
            if self._server.poll() is not None:
                raise SystemExit(f"its server ended with code {self._server.returncode}")
            try:
                self.ask(crop)
            except Exception as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f"its server does not answer: {error}") from error
                time.sleep(0.2)
            else:
                return


def in_json(name: str, crop: bytes, several: bool = False) -> bytes:
    """A crop as JSON, in base 64."""
    text = base64.b64encode(crop).decode()
    return json.dumps({name: [text] if several else text}).encode()
