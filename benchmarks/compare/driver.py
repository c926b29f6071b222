"""Runs in a peer's environment: holds the peer, answers JSON lines on stdin with measurements on stdout.

Usage: ``python -m benchmarks.compare.driver MODULE FOLDER INPUTS``. Needs nothing but numpy.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PORTS = range(20_000, 32_768)
PATIENCE_S = 5.0  # of a caller of a server


class RefusedError(Exception):
    """A server has no room for a call, and says so."""


class Peer:
    """What is compared. Made over a folder that is empty or was filled by an earlier one: that is its start.

    Attributes:
        folder: Where it keeps what it acknowledges; its own.
        version: Of its package.
        efforts: How hard it can search: a larger effort finds more and takes longer.
        filters: Whether it can search among some rows only.
        effort: The present one.
    """

    version = ""
    efforts: Sequence[int] = (0,)
    filters = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.effort = folder, self.efforts[0]

    def add(self, first: int, items: Any) -> None:
        """Adds items; they are acknowledged when it returns.

        Args:
            first: Number of the first one.
            items: What `Inputs.items` gives.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Does what is done once all is added: builds an index, writes a file."""

    def ask(self, query: Any, below: int | None = None) -> Any:
        """Answers a query; a search only among rows whose part is below a number."""
        raise NotImplementedError

    def count(self) -> int:
        """How many items it holds."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends in order."""


class Inputs:
    """What peers are given: vectors with their parts (0 to 999), or image files; and queries, or crops."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = sorted(folder.glob("images/*"))
        self.queries: Any = crops(folder)
        if (folder / "queries.npy").exists():
            self.queries = np.load(folder / "queries.npy")
        elif (folder / "queries.json").exists():
            self.queries = json.loads((folder / "queries.json").read_text())

    def items(self, first: int, count: int) -> Any:
        """Float32 vectors of shape (count, dimension) with their int parts, or a list of files' contents."""
        if self._files:
            return [file.read_bytes() for file in self._files[first : first + count]]
        vectors = np.load(self._folder / "vectors.npy", mmap_mode="r")[first : first + count]
        return np.array(vectors), np.load(self._folder / "parts.npy")[first : first + count]


def crops(folder: Path | None = None) -> list[bytes]:
    """The crops, as JPEG, that serving peers are asked for."""
    return [file.read_bytes() for file in sorted((folder or Path(sys.argv[3])).glob("crops/*"))]


def free_ports(count: int) -> list[int]:
    """Ports that no one listens on, below those that systems hand out by themselves."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def main() -> None:
    """Serves until stdin ends."""
    module, folder, inputs = sys.argv[1], Path(sys.argv[2]), Inputs(Path(sys.argv[3]))
    begin = time.perf_counter()
    peer: Peer = importlib.import_module(module).Peer(folder)
    try:
        _say(
            ready=time.perf_counter() - begin,
            version=peer.version,
            efforts=list(peer.efforts),
            filters=peer.filters,
        )
        for line in sys.stdin:
            message = json.loads(line)
            _say(**_COMMANDS[message.pop("do")](peer, inputs, **message))
    finally:
        peer.stop()


def _add(peer: Peer, inputs: Inputs, first: int, count: int, batch: int) -> dict[str, Any]:
    """Says after every batch how many items are acknowledged."""
    spent = 0.0
    for start in range(first, first + count, batch):
        items = inputs.items(start, min(batch, first + count - start))
        begin = time.perf_counter()
        peer.add(start, items)
        spent += time.perf_counter() - begin
        _say(added=min(start + batch, first + count))
    return {"seconds": spent}


def _finish(peer: Peer, inputs: Inputs) -> dict[str, Any]:
    begin = time.perf_counter()
    peer.finish()
    return {"seconds": time.perf_counter() - begin}


def _ask(
    peer: Peer, inputs: Inputs, callers: int, seconds: float, below: int | None = None
) -> dict[str, Any]:
    """Callers that each ask one query after the other for so many seconds, at least five queries in all."""
    turns, times, errors = itertools.count(), list[float](), Counter[str]()
    begin = time.perf_counter()

    def caller() -> None:
        while (time.perf_counter() - begin < seconds or len(times) < 5) and errors.total() < 1000:
            query = inputs.queries[next(turns) % len(inputs.queries)]
            asked = time.perf_counter()
            try:
                peer.ask(query) if below is None else peer.ask(query, below)
            except Exception as error:
                errors[type(error).__name__] += 1
            else:
                times.append(time.perf_counter() - asked)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[str, Any] = {"rate": len(times) / (time.perf_counter() - begin), "errors": dict(errors)}
    if times:
        found["p50_ms"] = 1000 * statistics.median(times)
        found["p99_ms"] = 1000 * float(np.quantile(times, 0.99))
    return found


def _flood(peer: Peer, inputs: Inputs, rate: float, seconds: float) -> dict[str, Any]:
    """So many calls a second, whether others are answered or not; how they end, how fast they are refused."""
    ends, refusals = Counter[str](), list[float]()

    def one(query: Any) -> None:
        asked = time.perf_counter()
        try:
            peer.ask(query)
            ends["answered"] += 1
        except RefusedError:
            ends["refused"] += 1
            refusals.append(time.perf_counter() - asked)
        except Exception:
            ends["failed"] += 1

    threads, begin = [], time.perf_counter()
    for number in range(round(rate * seconds)):
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(inputs.queries[number % len(inputs.queries)],)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return dict(ends) | {"refusal_ms": 1000 * statistics.median(refusals or [0.0])}


def _answers(peer: Peer, inputs: Inputs, count: int, below: int | None = None) -> dict[str, Any]:
    """One after the other; an error counts as an empty answer."""
    answers: list[Any] = []
    for query in inputs.queries[:count]:
        try:
            answers.append(peer.ask(query) if below is None else peer.ask(query, below))
        except Exception as error:
            print(error, file=sys.stderr)
            answers.append([])
    return {"answers": answers}


def _effort(peer: Peer, inputs: Inputs, value: int) -> dict[str, Any]:
    peer.effort = value
    return {}


def _count(peer: Peer, inputs: Inputs) -> dict[str, Any]:
    return {"count": peer.count()}


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "add": _add,
    "flood": _flood, "finish": _finish, "ask": _ask, "answers": _answers, "effort": _effort, "count": _count,
}  # fmt: skip


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    # Peers import this module by its name, so that the classes of `__main__` are not theirs.
    from benchmarks.compare import driver

    driver.main()
