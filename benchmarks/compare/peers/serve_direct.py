"""No server: the model in the caller's process, one crop a call."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from benchmarks.compare import driver
from benchmarks.compare.peers.pocket_clip import Model


class Peer(driver.Peer):
    """What serving is measured against; callers wait for one another."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._model, self._alone = Model(), threading.Lock()

    def ask(self, query: Any, below: int | None = None) -> int:
        with self._alone:
            return len(self._model([query])[0])
