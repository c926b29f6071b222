"""A peer for the tests of `benchmarks.compare`: lines in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.compare import driver


class Peer(driver.Peer):
    version, efforts = "1.0", (1, 2)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "rows"
        if (folder / "broken").exists():
            raise SystemExit("it cannot open its folder")

    def add(self, first: int, items: Any) -> None:
        with self._file.open("a") as file:
            file.writelines(f"{part}\n" for part in items[1])

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        print("libraries print")
        if below == 0:
            raise ValueError("nothing passes")
        if not self.effort:
            raise driver.RefusedError
        return [self.effort]

    def count(self) -> int:
        return len(self._file.read_text().splitlines())
