"""Environments for packages that conflict with ours, and the programs that run in them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import SkipCase

HERE = Path(__file__).parent
PACKAGES = {"lancedb": ["lancedb"], "milvus": ["milvus-lite>=3.2.2", "pymilvus"]}


def environment(name: str) -> Path:
    """The Python of an environment, which is made when it is not there.

    Raises:
        SkipCase: It cannot be installed here.
    """
    folder = HERE.parent / "out" / f"env-{name}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        install = [str(python), "-m", "pip", "install", "--quiet", "numpy", *PACKAGES[name]]
        for command in ([sys.executable, "-m", "venv", str(folder)], install):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise SkipCase(f"{name} cannot be installed: {why}")
        complete.touch()
    return python


class Peer:
    """A running program of this folder, and how to ask it.

    Args:
        program: The process; it reads and writes one JSON object a line.
    """

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program

    def rate(self, callers: int, queries: int, filtered: bool) -> float:
        """Searches a second."""
        asked = {"do": "rate", "callers": callers, "queries": queries, "filtered": filtered}
        return float(self._ask(asked)["rate"])

    def rows(self, queries: int) -> list[list[int]]:
        """The best rows of the first queries."""
        found: list[list[int]] = self._ask({"do": "rows", "queries": queries})["rows"]
        return found

    def wait(self) -> None:
        """Until it has loaded the data.

        Raises:
            SkipCase: It ended instead.
        """
        self._read()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(message) + "\n")
        self._program.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            if line.startswith("{"):  # libraries print too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SkipCase(f"it ended with code {self._program.wait()}")


@contextlib.contextmanager
def running(
    name: str, vectors: NDArray[np.float32], tenth: NDArray[np.bool_], queries: NDArray[np.float32]
) -> Iterator[Peer]:
    """A peer that holds the vectors.

    Args:
        name: A key of `PACKAGES`.
        vectors: Shape (rows, dimension).
        tenth: The rows that the filter lets through.
        queries: Shape (queries, dimension).

    Raises:
        SkipCase: It cannot be installed or started.
    """
    python = environment(name)
    with tempfile.TemporaryDirectory() as folder:
        for part, array in (("vectors", vectors), ("tenth", tenth), ("queries", queries)):
            np.save(Path(folder) / f"{part}.npy", array)
        log = (Path(folder) / "log").open("w")
        program = subprocess.Popen(
            [str(python), str(HERE / f"{name}_peer.py"), folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            peer = Peer(program)
            peer.wait()
            yield peer
        finally:
            if program.stdin is not None:
                program.stdin.close()  # it ends by itself
            program.wait()
            log.close()
