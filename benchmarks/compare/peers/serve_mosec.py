"""mosec: a server in Rust, models in worker processes; crops as they are."""

from __future__ import annotations

import sys
from typing import Any

from mosec import Server, Worker

from benchmarks.compare.peers import pocket_clip
from benchmarks.compare.peers.served import Served


class Peer(Served):
    """It refuses above 1,024 waiting calls by default."""

    package = "mosec"
    path = "/raw"

    def command(self) -> list[str]:
        address = ["--address", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", type(self).__module__, *address]


class Embed(Worker):  # type: ignore[misc]
    """One model a process."""

    def __init__(self) -> None:
        self._model = pocket_clip.Model()

    def deserialize(self, data: Any) -> bytes:
        return bytes(data)

    def forward(self, data: Any) -> Any:
        return [vector.tobytes() for vector in self._model(data)]

    def serialize(self, data: Any) -> bytes:
        return bytes(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Embed, num=pocket_clip.REPLICAS, max_batch_size=pocket_clip.BATCH,
        max_wait_time=round(1000 * pocket_clip.WAIT_S), route="/raw",
    )  # fmt: skip
    server.run()
